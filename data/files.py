"""Files that appear whole or not at all, lines that are appended under a lock, and other people's files read safely.

A file that somebody wrote may be a device, a gigabyte of zeros, a nest of brackets or of aliases: `read_bytes`,
`read_text`, `read_json` and `read_yaml` take regular files up to a size that is stated for each kind of file, and end
in bounded time and memory with the content or with one line that says what is wrong.
"""

import codecs
import hashlib
import json
import os
import stat
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from data.errors import ConfigError, UserError

if TYPE_CHECKING:
    import yaml

MAX_YAML_NODES = 50_000  # values in a YAML file, each alias counted as often as it is used; long texts count as several
_BYTE_ORDER_MARKS = {  # the long ones first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


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


@dataclass(frozen=True)
class FileKind:
    """A kind of file that people write.

    Attributes:
        name: what messages call it, such as "the class file".
        limit_bytes: the largest size that is read.
        remedy: what to do about one that cannot be read; the end of the message.
        error: the error to raise.
        fallback: an encoding to try for text that is not UTF-8.

    """

    name: str
    limit_bytes: int
    remedy: str
    error: type[UserError]
    fallback: str | None = None

    def fault(self, path: Path, reason: str) -> UserError:
        """Return the error for a file of this kind, to be raised."""
        return self.error(f"Cannot read {self.name} {path}: {' '.join(reason.split())[:400]}; {self.remedy}.")


CONFIG_FILE = FileKind("the config file", 512 * 1024, "--print_config shows what one looks like", ConfigError)


def read_bytes(path: Path, kind: FileKind) -> bytes:
    """Read a regular file whole.

    Raises:
        UserError: the kind's error, if the file is missing, is a device or a pipe, or is too large.

    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise kind.fault(path, "it is a folder, a pipe or a device, not a file")
        with open(path, "rb") as file:
            content = file.read(kind.limit_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero character in the path
        raise kind.fault(path, getattr(error, "strerror", None) or str(error)) from error
    if len(content) > kind.limit_bytes:
        raise kind.fault(path, f"it is larger than the {kind.limit_bytes:,} bytes that are read of such a file")
    return content


def read_text(path: Path, kind: FileKind) -> str:
    """Read a text file: UTF-8, or UTF-16 or UTF-32 with a byte order mark, or the kind's other encoding.

    Raises:
        UserError: the kind's error, if it cannot be read or is not text.

    """
    content = read_bytes(path, kind)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        text = _decode_otherwise(content, kind.fallback)
        if not text:
            raise kind.fault(
                path, f"it is no text file in {encoding.removesuffix('-sig').upper()} ({error.reason})"
            ) from error
    if "\0" in text:
        raise kind.fault(path, "it holds zero characters: no text file, or UTF-16 without its mark; save it as UTF-8")
    return text


def _decode_otherwise(content: bytes, encoding: str | None) -> str:
    try:
        return content.decode(encoding) if encoding else ""
    except UnicodeDecodeError:
        return ""


def read_json(path: Path, kind: FileKind) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the kind's error, if it cannot be read, is not JSON, or is nested too deeply.

    """
    return parse_json(read_text(path, kind), path, kind)


def parse_json(text: str, path: Path, kind: FileKind, place: str = "it") -> Any:
    """Return the value of a JSON text out of a file; `place` says which part of the file that is."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise kind.fault(path, f"{place} is not JSON ({error})") from error
    except RecursionError as error:
        raise kind.fault(path, f"{place} is nested too deeply") from error


def read_yaml(path: Path, kind: FileKind) -> Any:
    """Read a YAML file of plain values: mappings, lists, text, numbers, true, false and null; a date is text.

    Raises:
        UserError: the kind's error, if it cannot be read, is not YAML, names a key twice, holds tags (`!!...`), is
            nested too deeply, or has more than `MAX_YAML_NODES` values once its aliases are written out.

    """
    import yaml

    text = read_text(path, kind)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        return None if node is None else _plain_yaml(node, loader, [MAX_YAML_NODES])
    except yaml.YAMLError as error:
        raise kind.fault(path, str(error)) from error
    except (ValueError, OverflowError) as error:  # numbers of thousands of digits, or 0x without any
        raise kind.fault(path, f"it holds a number that cannot be read ({error})") from error
    except RecursionError as error:
        raise kind.fault(path, "it is nested too deeply") from error


def _plain_yaml(node: "yaml.Node", loader: "yaml.SafeLoader", left: list[int]) -> Any:
    """Return the value of a node, aliases written out; `left` counts down the values that may still come."""
    import yaml

    left[0] -= 1 + len(node.value) // 64
    if left[0] < 0:
        raise yaml.YAMLError(f"it holds more than {MAX_YAML_NODES:,} values with its aliases written out")
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.ScalarNode):
        if kind in {"str", "timestamp", "value", "merge"}:
            return node.value
        if (
            kind in {"null", "bool", "int", "float"}
            and loader.resolve(type(node), node.value, (True, False)) == node.tag
        ):
            return loader.construct_object(node)
    elif isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_plain_yaml(one, loader, left) for one in node.value]
    elif isinstance(node, yaml.MappingNode) and kind == "map":
        return _plain_mapping(node, loader, left)
    raise yaml.YAMLError(f"the tag {node.tag!r} in line {node.start_mark.line + 1} is not allowed")


def _plain_mapping(node: "yaml.MappingNode", loader: "yaml.SafeLoader", left: list[int]) -> dict[Any, Any]:
    import yaml

    found: dict[Any, Any] = {}
    merged: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key, value = _plain_yaml(key_node, loader, left), _plain_yaml(value_node, loader, left)
        if key_node.tag.endswith(":merge"):
            for one in value if isinstance(value, list) else [value]:
                if not isinstance(one, dict):
                    raise yaml.YAMLError(f"line {key_node.start_mark.line + 1} merges what is no mapping")
                for name, inner in one.items():
                    merged.setdefault(name, inner)
        elif isinstance(key, list | dict):
            raise yaml.YAMLError(f"the key in line {key_node.start_mark.line + 1} is no single value")
        elif key in found:
            raise yaml.YAMLError(f"the key {key!r} stands twice, again in line {key_node.start_mark.line + 1}")
        else:
            found[key] = value
    return merged | found
