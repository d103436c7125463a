"""Files that appear whole or not at all, and lines that are appended under a lock."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part: temporary file, then os.replace.

    The temporary file lies beside the target, begins with a dot and carries process and thread, so that two writers of
    one name do not meet. There is no fsync: after a power cut the file may be missing, and is then made again.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a JSON line in one write, under a lock; starts on a new line even after a torn one."""
    line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=plain_json).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _lock(descriptor)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        written = os.write(descriptor, line)
        if written != len(line):
            raise OSError(f"Only {written} of {len(line)} bytes of a line were written to {path}; is the disk full?")
    finally:
        os.close(descriptor)  # releases the lock


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # no such lock on Windows: O_APPEND alone, one writer at a time
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def plain_json(value: Any) -> Any:
    """Turn what JSON does not know into what it does: numpy scalars and arrays, paths, and the rest as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
