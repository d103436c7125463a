"""Files that appear whole or not at all, and lines that are appended under a lock."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

_WINDOWS = os.name == "nt"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part: temporary file, then os.replace.

    The temporary file lies beside the target, begins with a dot and carries process and thread, so that two writers of
    one name do not meet. There is no fsync: after a power cut the file may be missing, and is then made again.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(content)
        _replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _replace(temporary: Path, path: Path) -> None:
    """Move a file over another; on Windows a reader or a virus scanner that has that one open is waited for."""
    for seconds in (0.01, 0.1, 1.0):
        try:
            os.replace(temporary, path)
        except PermissionError:
            if not _WINDOWS:
                raise
            time.sleep(seconds)
        else:
            return
    os.replace(temporary, path)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a JSON line in one write, under a lock; starts on a new line even after a torn one.

    The lock is the file `.<name>.lock` beside it, so that a copied or deleted file never carries a lock along.
    """
    line = json_bytes(record, separators=(",", ":")) + b"\n"
    with FileLock(path.with_name(f".{path.name}.lock")), path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        written = file.write(line)
        if written != len(line):
            raise OSError(f"Only {written} of {len(line)} bytes of a line were written to {path}; is the disk full?")


def json_bytes(value: Any, **options: Any) -> bytes:
    """Return a value as JSON in UTF-8.

    A path whose bytes are no UTF-8 (Python holds them as lone surrogates) cannot be written so; it is written with
    JSON's escapes, which give the same path back when they are read.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=plain_json, **options).encode()
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=True, default=plain_json, **options).encode()


def plain_json(value: Any) -> Any:
    """Turn what JSON does not know into what it does: numpy scalars and arrays, paths, and the rest as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
