"""store.json: what it says, how it is read and checked, and how two of them differ."""

import errno
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from data.classes import IGNORE, ClassSet
from data.config import DataConfig, from_plain, stays_inside
from data.errors import StoreError, UserError
from data.files import json_bytes, parse_json, plain_json, read_regular
from data.machine import written_by

FORMAT = "pseudolabel-masks"
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 64_000_000  # 254 classes with a thousand background words each take a tenth
# Settings of the data that change no mask.
_NO_MATTER = ("data.cache:", "data.truth:", "data.truth_255:", "data.crowd:")
_ENGINE = re.compile(r"config\.(\w+\.)*crf\.engine:")  # nor does what ran the CRF, beyond a pixel in ten thousand
_NOT_STORED = frozenset({"cache"})  # a folder that is written to: never taken from a store


class MadeWith(TypedDict):
    """What the masks of a store are made with.

    Attributes:
        classes: classes of the masks.
        config: the resolved settings that change the result (not the batch size or the device).
        model: id and fingerprint of the model.
        data: where the images are: format, root, split and so on, as `data.config.DataConfig` names them.
        program: name of the program that writes it; pseudolabel if not given.

    """

    classes: ClassSet
    config: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    program: NotRequired[str]


def make_header(
    classes: ClassSet,
    config: dict[str, Any],
    model: dict[str, Any],
    data: dict[str, Any],
    program: str = "pseudolabel",
) -> dict[str, Any]:
    """Return the content of store.json; arguments as in `MadeWith`. It is equal to what reading it back would give."""
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "written_by": written_by(program),
        "classes": classes.to_json(),
        "ignore_index": IGNORE,
        "config": config,
        "model": model,
        "data": data,
    }
    plain: dict[str, Any] = json.loads(json.dumps(header, default=plain_json))
    return plain


def header_bytes(header: dict[str, Any]) -> bytes:
    """Return a header as store.json holds it."""
    return json_bytes(header, indent=1) + b"\n"


def read_header(folder: Path) -> dict[str, Any]:
    """Return the header of the store in a folder, checked.

    Raises:
        StoreError: no store, or a store.json that is unreadable, damaged, of a newer format version, or not what one
            can be.

    """
    path = folder / "store.json"
    try:
        header = parse_json(read_regular(path, MAX_HEADER_BYTES))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"There is no mask store at {folder} (no store.json); --store must name one.") from error
    except OSError as error:
        if error.errno in (errno.EFBIG, errno.EINVAL):
            raise StoreError(f"{path} is damaged ({error.strerror}); restore it, or make the store again.") from error
        raise StoreError(f"{path} cannot be read ({error.strerror}); check --store and the permissions.") from error
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); restore it, or make the store again.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise StoreError(f"{path} is not of the format {FORMAT!r}; --store must name a mask store.")
    version = header.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT_VERSION:
        raise StoreError(
            f"{folder} has store format version {version}, this program reads up to {FORMAT_VERSION}: install a "
            f"text2mask-wsss that reads version {version} (written by {header.get('written_by', 'another')})."
        )
    missing = [key for key in ("classes", "config", "model", "data") if key not in header]
    if missing:
        raise StoreError(f"{path} lacks {', '.join(missing)}; restore it, or make the store again.")
    fault = header_fault(header)
    if fault:
        raise StoreError(f"{path}: {fault}; restore it, or make the store again.")
    return header


def header_fault(header: dict[str, Any]) -> str:
    """Return what is wrong with the parts of a header, or an empty text."""
    for part in ("classes", "config", "model", "data"):
        if not isinstance(header[part], dict):
            return f"{part} is {header[part]!r:.60}, not an object"
    try:
        ClassSet.from_json(header["classes"])
        data_settings(header["data"])
    except UserError as error:
        return str(error).rstrip(".")
    split = header["data"].get("split") or "train"
    if not stays_inside(split):
        return f"data.split is {split!r}; a split is a name, or a path inside the data's folder (--data.split)"
    return ""


def data_settings(stored: dict[str, Any]) -> DataConfig:
    """Return a header's data entry as settings; what other versions add is left aside, and so is a cache folder.

    Raises:
        ConfigError: a value of another type than the setting has.

    """
    known = {field.name for field in fields(DataConfig)} - _NOT_STORED
    given = {name: value for name, value in stored.items() if name in known and value is not None}
    return from_plain(DataConfig, {"root": "."} | given, "data")


def header_differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return a line for each setting that changes masks and differs, key by key.

    The data's root may differ if the stored one no longer exists (the data set was moved); where ground truth and
    caches lie may differ always, and so may the engine of the dense CRF (a line of the index names it).
    """
    root = stored["data"].get("root")
    gone = bool(root) and not Path(root).exists()
    return [
        line
        for key in ("classes", "config", "model", "data")
        for line in _differences(key, stored[key], wanted[key])
        if not line.startswith(_NO_MATTER) and not _ENGINE.match(line) and not (gone and line.startswith("data.root:"))
    ]


def _differences(key: str, stored: Any, wanted: Any) -> list[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = [*stored, *(name for name in wanted if name not in stored)]
        return [line for name in keys for line in _differences(f"{key}.{name}", stored.get(name), wanted.get(name))]
    return [] if stored == wanted else [f"{key}: {_short(stored)} there, {_short(wanted)} now"]


def _short(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 3] + "..."
