"""The command `init`: from a folder of images to a class file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from data.wording import count, printable

if TYPE_CHECKING:
    from data.config import DataConfig, DataFormat


def init(root: Path, output: Path | None = None, overwrite: bool = False) -> None:
    """Look at a folder of images and write its class file.

    The file lists the classes found in labels.csv, labels.jsonl, class folders, VOC annotations or COCO's JSON, with a
    suggested prompt phrase and background words for each. Read it over and correct it: the phrases are what the
    diffusion model is asked for.

    Args:
        root: Folder of the data set.
        output: Class file to write (YAML); classes.yaml in the folder if not given.
        overwrite: Replace a class file that is there.

    """
    from collections import Counter
    from dataclasses import replace

    from data.class_file import save_classes
    from data.classes import class_key
    from data.config import DataConfig
    from data.errors import ConfigError
    from data.readers.layout import detect_format, list_data
    from data.readers.listing import listing_classes

    path = output or root / "classes.yaml"
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"{path} exists; edit it, write elsewhere with --output, or replace it with --overwrite.")
    config = DataConfig(root=root)
    config = replace(config, format=detect_format(config), split=_whole_split(config, detect_format(config)))
    listing = list_data(config, own_classes=False)
    counts = Counter(class_key(name) for names in listing.names for name in names)
    classes = listing_classes(listing)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_classes(classes, path)
    unlabelled = sum(1 for names in listing.names if not names)
    images, kinds = count(len(listing.ids), "image"), count(len(classes), "class")
    print(f"{images} ({config.format}), {unlabelled} without labels, {kinds}:")
    for name, phrase in zip(classes.names, classes.phrases, strict=True):
        print(printable(f"  {counts[class_key(name)]:7d}  {name}" + (f'  ("{phrase}")' if phrase != name else "")))
    print(f"Wrote {path}; correct the phrases and background words in it, then: pseudolabel check --root {root}")


def _whole_split(config: "DataConfig", layout: "DataFormat") -> str:
    """Return the split that shows the classes best: all of VOC's images, COCO's train or what there is of it."""
    if layout == "voc":
        return "all"
    if layout == "folder":
        return config.split
    names = sorted(
        path.stem.removeprefix("instances_") for path in (config.root / "annotations").glob("instances_*.json")
    )
    return next((name for name in names if name.startswith("train")), names[0]).removesuffix("2014")
