"""The door to the readers: which layout a folder has, and its samples or its listing."""

import os
from pathlib import Path
from typing import Protocol, get_args

from data.config import DataConfig, DataFormat, White, stays_inside
from data.errors import ConfigError
from data.readers.listing import Listing
from data.samples import SampleSet
from data.wording import short

_CHOICES = {
    "format": ("auto", *get_args(DataFormat)),
    "unlabelled": ("skip", "stop"),
    "crowd": ("ignore", "class"),
    "truth_255": get_args(White),
    "difficult": (True, False),
}


class LayoutFile(Protocol):
    """What the file of a layout holds; a new layout is such a file, its name in `DataFormat` and a case in `_file`."""

    def found(self, root: Path) -> bool:
        """Return whether a folder has this layout."""

    def open_samples(self, config: DataConfig, need_labels: bool, need_truth: bool) -> SampleSet:
        """List the samples; see the function of this name."""

    def list_data(self, config: DataConfig, own_classes: bool) -> Listing:
        """List images and labels as they are spelt; see the function of this name."""


def _file(layout: DataFormat) -> LayoutFile:
    match layout:
        case "voc":
            from data.readers import voc

            return voc
        case "coco":
            from data.readers import coco

            return coco
        case "folder":
            from data.readers import folder

            return folder


def open_samples(config: DataConfig, need_labels: bool = True, need_truth: bool = True) -> SampleSet:
    """List the samples of a data set.

    Args:
        config: which data set and split.
        need_labels: leave images without labels out (they are counted in `notes`); False keeps them, with no labels.
        need_truth: set `truth_path` where there is ground truth. COCO's is rendered when a sample is asked for the
            first time; say False where it is not read.

    Raises:
        ConfigError: no such folder, or a split it does not have.
        LabelError: an unknown class, a malformed label file, or an image without labels under `unlabelled="stop"`.

    """
    _check_settings(config)
    return _file(detect_format(config)).open_samples(config, need_labels, need_truth)


def detect_format(config: DataConfig) -> DataFormat:
    """Return the layout of the root folder, or what the configuration says it is."""
    if config.format != "auto":
        return config.format
    layouts: tuple[DataFormat, ...] = get_args(DataFormat)
    return next(layout for layout in layouts if _file(layout).found(Path(config.root)))


def list_data(config: DataConfig, own_classes: bool = True) -> Listing:
    """List a data set of any layout with labels as they are spelt; writes nothing (COCO's index neither).

    Args:
        config: which data set.
        own_classes: for a folder, read its class file; False finds the classes afresh.

    """
    _check_settings(config)
    return _file(detect_format(config)).list_data(config, own_classes)


def _check_settings(config: DataConfig) -> None:
    """Raise ConfigError unless the settings mean something: they may come out of anybody's store.

    The root must be a folder, and the split must stay inside it.
    """
    for name, allowed in _CHOICES.items():
        if getattr(config, name) not in allowed:
            raise ConfigError(
                f"--data.{name} is {short(getattr(config, name))}; it must be {' or '.join(map(str, allowed))}."
            )
    split, truth = config.split, config.truth
    if truth is not None and not (isinstance(truth, str) and truth and "\0" not in truth):
        raise ConfigError(f"--data.truth is {short(truth)}; it must be the name of a folder.")
    if not os.path.isdir(config.root):
        raise ConfigError(f"There is no folder {config.root}; --root must name the folder of the data set.")
    if not isinstance(split, str) or not stays_inside(split):
        raise ConfigError(f"--data.split is {short(split)}; it must be the name of a split, inside {config.root}.")
