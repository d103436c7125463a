"""index.jsonl: a line for each finished image, read as far as it was written and checked line by line.

Where two runs wrote the same image, or one was made again, there are several lines about it: the last one counts.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import StoreError
from data.files import parse_json
from data.store.records import record_fault

MAX_LINE_BYTES = 4_000_000  # a line takes some hundred bytes
logger = logging.getLogger(__name__)

Record = dict[str, Any]


def read_lines(path: Path, n_classes: int) -> Iterator[Record]:
    """Yield the whole lines of an index in the order they were written; memory does not grow with the file.

    Args:
        path: the file; where there is none, no image is finished.
        n_classes: number of classes, without the background.

    Raises:
        StoreError: not a file, or a line whose values cannot be what they stand for.

    """
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is not a file; delete it and generate again.")
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
            if not line.strip():
                continue
            record = parse_line(line)
            if record is None:
                logger.warning("Line %d of %s is torn and was skipped.", number, path)
                continue
            fault = record_fault(record, n_classes)
            if fault:
                raise StoreError(f"Line {number} of {path}: {fault}; delete the line and generate again.")
            yield record


def parse_line(line: bytes) -> Record | None:
    """Return the record of a line; None for one that is being written, or was torn by a full disk or a power cut."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("id"), str) else None
