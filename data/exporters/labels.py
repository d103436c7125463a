"""Label files for other programs and for our own readers."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from data.errors import LabelError
from data.files import write_atomically
from data.readers.labels import read_label_table


def write_labels(folder: Path, rows: Sequence[tuple[str, Sequence[str]]]) -> Path:
    """Write labels.csv, or labels.jsonl where a name would not come out of a CSV cell as it went in.

    Such names hold what separates labels in a cell (`,` `;` `|`), are quoted, or look like numbers.

    Args:
        folder: where to.
        rows: image and class names.

    Returns:
        The file written.

    """
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(
        (image, ";".join(names)) for image, names in rows
    )
    path = folder / "labels.csv"
    write_atomically(path, f"image,labels\n{text.getvalue()}".encode())
    if not rows or _read_back(path) == {image: set(names) for image, names in rows}:
        return path
    path.unlink()
    lines = (json.dumps({"image": image, "labels": list(names)}, ensure_ascii=False) for image, names in rows)
    write_atomically(folder / "labels.jsonl", "".join(f"{line}\n" for line in lines).encode())
    return folder / "labels.jsonl"


def _read_back(path: Path) -> dict[str, set[str]]:
    try:
        return {image: set(names) for image, names in read_label_table(path).items()}
    except LabelError:  # a name that can hardly be one, 0.9 for example
        return {}
