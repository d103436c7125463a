"""Files that appear whole or not at all, and lines that are appended under a lock."""

import hashlib
import json
import os
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock


def write_atomically(path: Path, content: bytes | memoryview, durable: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new, never a part: temporary file, then os.replace.

    The temporary file lies beside the target, begins with a dot and carries process and thread, so that two writers of
    one name do not meet.

    Args:
        path: the file.
        content: its bytes.
        durable: wait until the disk has them (fsync) before the former file goes. Without it the file may be missing
            after a power cut, which is right for all that is made again.

    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        _replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk names no file, and nobody knows the temporary one
        raise


def _replace(temporary: Path, path: Path) -> None:
    """Move a file over another; on Windows a reader or a virus scanner that has that one open is waited for."""
    for seconds in (0.01, 0.1, 1.0):
        try:
            os.replace(temporary, path)
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(seconds)
        else:
            return
    os.replace(temporary, path)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits; an unchanged file is read once in a process."""
    there = path.stat()
    return _sha256(path.resolve(), there.st_size, there.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    """Return the hash; size and time of change stand for the content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
