"""Files and folders that appear whole or not at all, lines that are appended under a lock, and JSON read with care.

Nothing here opens an existing link for writing: a file is made beside its place under a name that must be free, and
moved there; a link that stands in its place is replaced, and what it points to stays as it is.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from data.errors import UserError

MAX_DEPTH = 100  # of JSON that is read; none of our files is nested deeper than 6
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', re.DOTALL)
_PARTIAL, _PARTIAL_LOCK = ".partial", ".partial.lock"

_WINDOWS = os.name == "nt"
Key = TypeVar("Key")


def write_atomically(path: Path, content: bytes | memoryview, durable: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; as `atomic_file`."""
    with atomic_file(path, durable) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_file(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write to that stands at `path` when the block ends: temporary file, then os.replace.

    The temporary file lies beside the target, begins with a dot and carries process and thread, so that two writers of
    one name do not meet. If the block fails, nothing has changed.

    Args:
        path: the file.
        durable: wait until the disk has it (fsync) before the former file goes. Without it the file may be missing
            after a power cut, which is right for all that is made again.

    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process with this number, or somebody's link
        with temporary.open("x+b") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        _replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk names no file, and nobody knows the temporary one
        raise


def check_writable(path: Path) -> None:
    """Raise OSError if a file could not be written there; for what takes long to make. Leaves nothing behind."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "A folder, where a file is to be written", str(path))
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        write_atomically(probe, b"x")
    except OSError as error:
        error.filename = str(path)
        raise
    probe.unlink()


def check_place(path: Path) -> None:
    """Raise OSError if a folder could not be made and filled there; for what takes long. Leaves nothing behind."""
    path = Path(os.path.abspath(path))
    existing = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "Not a folder", str(existing))
    probe = existing / f".{os.getpid()}.{threading.get_ident()}.probe"
    try:
        probe.mkdir()
    except OSError as error:
        error.filename = str(path)
        raise
    probe.rmdir()


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

    Raises:
        OSError: the file or its lock is a link, or cannot be written.

    """
    line = json_bytes(record, separators=(",", ":")) + b"\n"
    lock = path.with_name(f".{path.name}.lock")
    for file_name in (path, lock):
        if file_name.is_symlink():
            raise OSError(errno.ELOOP, "A link, and what it points to is not written to", str(file_name))
    with FileLock(lock), path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        try:
            written = file.write(line)
        except OSError as error:
            error.filename = str(path)
            raise
        if written != len(line):
            raise OSError(f"Only {written} of {len(line)} bytes of a line were written to {path}; is the disk full?")


def lines_by(path: Path, key: Callable[[dict[str, Any]], Key]) -> dict[Key, dict[str, Any]]:
    """Return the JSON lines of a file, the last one of each key; none where there is no file.

    A line that is torn, or lacks what the key is made of, is passed over: its work is done again.
    """
    found: dict[Key, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
            found[key(line)] = line
        except (ValueError, KeyError, TypeError):
            continue
    return found


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; what is in it stands at `path` when the block ends, and nothing does if it fails.

    Where `path` does not exist yet, the folder is filled beside it (`.<name>.partial`) and renamed. Where it exists and
    is empty, it may be the root of another disk, so a subfolder (`.partial`) is filled and its entries are moved up.
    What a killed process has left there is deleted; a second process that fills it at the same time is an error.

    Raises:
        UserError: `path` is taken (see `is_free`), or is being filled by another process.
        OSError: it cannot be filled; the error names `path`, as what was written is gone.

    """
    path = Path(os.path.abspath(path))
    if not is_free(path):
        raise UserError(f"{path} exists and is not empty; name a new folder with --output.")
    inside = path.is_dir()
    staging = path / _PARTIAL if inside else path.with_name(f".{path.name}{_PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named_as(path, staging), _only_here(staging.with_name(f"{staging.name}.lock"), path):
        _remove(staging)
        staging.mkdir()
        try:
            yield staging
            if inside:
                for entry in sorted(staging.iterdir()):
                    os.rename(entry, path / entry.name)
                staging.rmdir()
            else:
                os.rename(staging, path)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextlib.contextmanager
def _named_as(path: Path, staging: Path) -> Iterator[None]:
    """Let an error of the system name a folder where it names its staging folder, its lock or nothing (a full disk)."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and str(error.filename or staging).startswith(str(staging)):
            error.filename = str(path)
        raise


def is_free(path: Path) -> bool:
    """Return whether nothing is there, or an empty folder, or one with nothing but what a killed `new_folder` left."""
    if not path.is_dir():
        return not os.path.lexists(path)
    return {entry.name for entry in path.iterdir()} <= {_PARTIAL, _PARTIAL_LOCK}


@contextlib.contextmanager
def _only_here(lock_path: Path, what: Path) -> Iterator[None]:
    """Hold a lock file while the block runs, and take it away afterwards."""
    if lock_path.is_symlink():
        lock_path.unlink()
    lock = FileLock(lock_path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"Another process is writing {what}; wait for it, or name another folder.") from error
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            lock_path.unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file of bounded size; a pipe or a device, which may never end, is not opened.

    Raises:
        OSError: missing, no regular file, too large, or not readable.

    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)  # the size in the folder may be less than what comes (/proc)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"Larger than {most_bytes:,} bytes", str(path))
    return content


def parse_json(content: bytes | str) -> Any:
    """Return the value of JSON, as text or as its UTF-8 bytes.

    Raises:
        ValueError: not UTF-8, not JSON, or nested deeper than `MAX_DEPTH`, where parsers and writers give up.

    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    if text.count("[") + text.count("{") > MAX_DEPTH:
        depth = 0
        for opening, closing in _BRACKETS.findall(text):
            depth += bool(opening) - bool(closing)
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
    return json.loads(text)


def json_bytes(value: Any, **layout: Any) -> bytes:
    """Return a value as UTF-8 JSON; `layout` as `json.dumps` takes it.

    A file name that is no text in any encoding holds halves of surrogate pairs, which UTF-8 cannot write; then
    everything beyond ASCII is escaped.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=plain_json, **layout).encode()
    except UnicodeEncodeError:
        return json.dumps(value, default=plain_json, **layout).encode()


def plain_json(value: Any) -> Any:
    """Turn what JSON does not know into what it does: numpy scalars and arrays, paths, and the rest as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
