"""Other people's files, read safely: of a stated kind and size, in bounded time and memory.

A file that somebody wrote may be a device, a gigabyte of zeros, a nest of brackets or of aliases: `read_bytes`,
`read_text`, `read_json` and `read_yaml` take regular files up to a size that is stated for each kind of file, and end
with the content or with one line that says what is wrong.
"""

import codecs
import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import ConfigError, UserError
from data.files import read_regular

if TYPE_CHECKING:
    import yaml

MAX_YAML_NODES = 50_000  # values in a YAML file, each alias counted as often as it is used; long texts count as several
_BYTE_ORDER_MARKS = {  # the long ones first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class FileKind:
    """A kind of file that people write.

    Attributes:
        name: what messages call it, such as "the class file".
        limit_bytes: the largest size that is read.
        remedy: what to do about one that cannot be read; the end of the message.
        error: the error to raise.
        fallback: an encoding to try for text that is not UTF-8.
        any_unicode: whether UTF-16 and UTF-32 are read too; not where a library reads the file after us.

    """

    name: str
    limit_bytes: int
    remedy: str
    error: type[UserError]
    fallback: str | None = None
    any_unicode: bool = True

    def fault(self, path: Path, reason: str) -> UserError:
        """Return the error for a file of this kind, to be raised."""
        return self.error(f"Cannot read {self.name} {path}: {' '.join(reason.split())[:400]}; {self.remedy}.")


CONFIG_FILE = FileKind(
    "the config file", 512 * 1024, "--print_config shows what one looks like", ConfigError, any_unicode=False
)


def read_bytes(path: Path, kind: FileKind) -> bytes:
    """Read a regular file whole.

    Raises:
        UserError: the kind's error, if the file is missing, is a device or a pipe, or is too large.

    """
    try:
        return read_regular(Path(path), kind.limit_bytes)
    except (OSError, ValueError) as error:  # ValueError: a zero character in the path
        number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
        if number == errno.EINVAL:
            reason = "it is a folder, a pipe or a device, not a file"
        elif number == errno.EFBIG:
            reason = f"it is larger than the {kind.limit_bytes:,} bytes that are read of such a file"
        raise kind.fault(path, reason) from error


def read_text(path: Path, kind: FileKind) -> str:
    """Read a text file: UTF-8, or UTF-16 or UTF-32 with a byte order mark, or the kind's other encoding.

    Raises:
        UserError: the kind's error, if it cannot be read or is not text.

    """
    content = read_bytes(path, kind)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8-sig")
    if not (kind.any_unicode or encoding.startswith("utf-8")):
        raise kind.fault(path, f"it is text in {encoding.upper()}; save it as UTF-8")
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
    return json_of(read_text(path, kind), path, kind)


def json_of(text: str, path: Path, kind: FileKind, place: str = "it") -> Any:
    """Return the value of a JSON text out of a file; `place` says which part of the file that is."""
    try:
        return json.loads(text)  # COCO's is too long for a look at its depth before
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
            if "\0" in node.value:  # written as an escape; no path and no name can hold it
                raise yaml.YAMLError(f"line {node.start_mark.line + 1} holds a zero character")
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
