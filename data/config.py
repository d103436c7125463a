"""The settings of a data set, and how any settings are checked, stored and read back; nothing heavy is imported."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path, PurePosixPath
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from data.errors import ConfigError

Settings = TypeVar("Settings")


DataFormat = Literal["voc", "coco", "folder"]  # the files of data/readers, in the order in which auto looks
MAX_SPLIT = 200  # characters of the name of a split, which becomes one of a file
White = Literal["ignore", "class"]  # what 255 means in a black-and-white mask: no decision, or its one class
CrfEngine = Literal["auto", "pydensecrf", "torch"]  # of the dense CRF, in both stages; see data/densecrf.py


@dataclass(frozen=True)
class DataConfig:
    """Where the images, labels and ground truth are."""

    root: Path
    """Folder of the data set: VOCdevkit or its VOC2012, a COCO folder with annotations/, or a folder of images."""
    format: Literal["auto", DataFormat] = "auto"
    """Layout of the folder; auto looks for JPEGImages, then for annotations/instances_*.json, and else takes folder."""
    split: str = "train"
    """Which images: a list in ImageSets/Segmentation, train_aug, or 2014's train or val; folder takes all images."""
    classes: Path | None = None
    """Class file (YAML, see `pseudolabel init`); without it VOC's 20, COCO's 80, or the names found in a folder."""
    labels: Path | None = None
    """Label file (labels.csv or labels.jsonl) to use instead of Annotations, class folders or the one in the root."""
    difficult: bool = True
    """VOC: count objects marked as difficult among the labels, as the field does."""
    unlabelled: Literal["skip", "stop"] = "skip"
    """An image without labels: leave it out and say how many, or stop."""
    crowd: Literal["ignore", "class"] = "ignore"
    """COCO: a crowd region of the ground truth is not scored (255), or belongs to its class."""
    truth: str | None = None
    """Folder of ground-truth masks, relative to the root; without it the layout's own one, where there is one."""
    truth_255: Literal["ignore", "class"] = "ignore"
    """255 in a ground-truth mask is not scored, or, in black-and-white masks of a single class, is that class."""
    cache: Path | None = None
    """Where the COCO index and rendered ground truth are kept; ~/.cache/text2mask-wsss if not given."""


def stays_inside(split: str) -> bool:
    """Return whether the name of a split, which may be a path, stays inside the folder of the data."""
    path = PurePosixPath(split.replace("\\", "/"))
    leaves = path.is_absolute() or ".." in path.parts or split[1:2] == ":"
    return 0 < len(split) <= MAX_SPLIT and "\0" not in split and not leaves


def require(flag: str, value: object, holds: bool, rule: str) -> None:
    """Raise a ConfigError naming the flag, the value and the rule unless the rule holds."""
    if not holds:
        raise ConfigError(f"--{flag} is {value!r}: it must be {rule}; change --{flag} or its line in the config")


def require_finite(group: str, config: Any) -> None:
    """Raise a ConfigError naming the flag of a number among settings that is nan or without end."""
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float):
            require(f"{group}.{field.name}", value, math.isfinite(value), "a finite number")


def to_plain(value: Any) -> Any:
    """Return settings as values JSON and YAML know: dataclasses become dictionaries, tuples lists, paths text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[Settings], values: Any, where: str) -> Settings:
    """Return settings from JSON values, the inverse of `to_plain`, with each value checked against its field's type.

    Args:
        kind: a dataclass whose fields are texts, paths, numbers, switches, literals, tuples of those or dictionaries.
        values: value by field; a field that is missing has its default.
        where: what the message calls them, "data" for example.

    Raises:
        ConfigError: no dictionary, an unknown name, or a value of another type or out of its range.

    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is {values!r:.60}; it must hold settings by name.")
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"{where}.{name} is no setting of this version; there are {', '.join(hints)}.")
        if not _fits(value, hints[name]):
            rule = getattr(hints[name], "__name__", str(hints[name])).replace("typing.", "")
            raise ConfigError(f"{where}.{name} is {value!r:.60}; it must be {rule}.")
    return kind(**{name: _made(value, hints[name]) for name, value in values.items()})


def _made(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if Path in _kinds(hint) and value else value


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value can be a setting of a type; a whole number can be a float, a switch no number."""
    for kind in _kinds(hint):
        if get_origin(kind) is Literal:
            fits = any(value == one and type(value) is type(one) for one in get_args(kind))
        elif get_origin(kind) is tuple:
            first, *others = get_args(kind)
            hints = [first] * len(value) if others == [...] and isinstance(value, list) else [first, *others]
            fits = isinstance(value, list) and len(value) == len(hints) and all(map(_fits, value, hints))
        elif get_origin(kind) is dict:
            fits = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        elif kind in (str, Path):
            fits = isinstance(value, str) and "\0" not in value
        elif kind in (int, float):
            wanted = (int,) if kind is int else (int, float)
            fits = isinstance(value, wanted) and not isinstance(value, bool) and abs(value) < 2**53
        else:
            fits = kind in (bool, NoneType) and isinstance(value, kind)
        if fits:
            return True
    return False


def changed(config: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of some settings that do not have their default value."""
    defaults = {field.name: field.default for field in fields(config)}
    return tuple(name for name in names if getattr(config, name) != defaults[name])
