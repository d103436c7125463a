"""Where a store's images and ground truth are: from a data set's settings to the header and back."""

import os
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data.config import DataConfig, White, to_plain
from data.errors import ConfigError
from data.readers.layout import detect_format, open_samples
from data.store.header import data_settings
from data.store.store import MaskStore


def stored_data(config: DataConfig) -> dict[str, Any]:
    """Return what a store's header says about the data: the fields that decide which images and labels these are."""
    stored = to_plain(replace(config, format=detect_format(config), root=Path(config.root).absolute()))
    del stored["cache"]
    if config.truth_255 == "ignore":  # as in stores that were made before there was such a setting
        del stored["truth_255"]
    return dict(stored)


def stored_path(image: Path, root: Path) -> str:
    """Return what an index line says of an image file: its path below the data's root, or an absolute one."""
    path, root = Path(os.path.abspath(image)), Path(os.path.abspath(root))
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def moved(stored: dict[str, Any], root: Path | None) -> dict[str, Any]:
    """Return a header's data entry for images that have moved to `root`; None leaves it as it is."""
    return dict(stored) if root is None else stored | {"root": str(Path(root).absolute())}


def data_config(store: MaskStore, root: Path | None = None) -> DataConfig:
    """Return the settings of the data set that a store was made from; the inverse of `stored_data`.

    Args:
        store: a store of either stage.
        root: folder of the data set, if it is not where the store says.

    Raises:
        ConfigError: the store does not say where its images are.

    """
    stored = moved(store.header["data"], root)
    if stored.get("root") is None:
        raise ConfigError(f"{store.path} does not say where its images are; name the data set's folder with --root")
    return data_settings(stored)


def truth_white(store: MaskStore, root: Path | None = None) -> White:
    """Return what 255 means in the ground truth of the data set a store was made from; see `data.masks.read_truth`."""
    return data_config(store, root).truth_255


def truth_paths(store: MaskStore, root: Path | None = None, truth: str | Path | None = None) -> dict[str, Path]:
    """Return the ground-truth file of each image of the data set a store was made from, as far as there is one.

    Args:
        store: a store of either stage.
        root: folder of the data set, if it is not where the store says.
        truth: folder of ground-truth masks: absolute, relative to the data set's folder, or, where that has no such
            folder, to the working folder; None: the layout's own.

    Raises:
        ConfigError: the store does not say which data set that is, its folder is gone, or ground truth would be drawn
            (COCO) with other classes than the store's.

    """
    config = data_config(store, root)
    if truth is not None:
        config = replace(config, truth=str(_truth_folder(Path(truth), config.root)))
    data_set = open_samples(config, need_labels=False)
    if config.format == "coco" and data_set.classes.names != store.classes.names:
        raise ConfigError(
            f"The classes of {config.root} are no longer those of {store.path} "
            f"({_first_difference(store.classes.names, data_set.classes.names)}), so ground truth drawn now would not "
            "fit its masks: undo what was changed in the annotations or the class file, or make the masks again"
        )
    return {sample.id: sample.truth_path for sample in data_set.samples if sample.truth_path is not None}


def _truth_folder(truth: Path, root: Path) -> Path:
    return truth.absolute() if truth.is_dir() and not (root / truth).is_dir() else truth


def _first_difference(stored: tuple[str, ...], now: tuple[str, ...]) -> str:
    pairs = zip_longest(stored, now)
    position, (there, here) = next((place, pair) for place, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    return f"class {position} was {there!r} and is {here!r}"
