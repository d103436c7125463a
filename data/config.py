"""The settings that say which images, labels and ground truth are meant; nothing heavy is imported here."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

DataFormat = Literal["voc", "coco", "folder"]
White = Literal["ignore", "class"]


@dataclass(frozen=True)
class DataConfig:
    """Where the images, labels and ground truth are."""

    root: Path
    """Folder of the data set: VOCdevkit or its VOC2012, a COCO folder with annotations/, or a folder of images."""
    format: Literal["auto", "voc", "coco", "folder"] = "auto"
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


def to_plain(value: Any) -> Any:
    """Return settings as values JSON and YAML know: dataclasses become dictionaries, tuples lists, paths text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def changed(config: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of some settings that do not have their default value."""
    defaults = {field.name: field.default for field in fields(config)}
    return tuple(name for name in names if getattr(config, name) != defaults[name])
