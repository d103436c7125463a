"""What every exporter shares: its options, the images of a store one by one, and where their files go."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from data.classes import ClassSet
from data.errors import ImageError
from data.images import read_orientation, to_raw_layout
from data.store.store import MaskStore

_JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif"})


@dataclass(frozen=True)
class ExportOptions:
    """How masks are exported.

    Attributes:
        source: "masks" keeps undecided pixels apart (255 in VOC, part of no shape elsewhere); "argmax" gives each pixel
            its best class.
        images: "link" or "copy" puts the images beside the labels, "none" does not, "auto" links where the format finds
            labels through images (yolo, voc).
        orientation: "upright" as a viewer shows the image; "raw" as the file stores it, for readers blind to EXIF.
        components: one object for each connected region instead of one for each class (coco; yolo always does).
        min_area_px: smaller regions are left out (yolo, and coco with components).
        root: folder of the images, if it is not where the store says.
        url_prefix: what Label Studio finds before an image's path; the default is its local file storage.

    """

    source: Literal["masks", "argmax"] = "masks"
    images: Literal["auto", "none", "link", "copy"] = "auto"
    orientation: Literal["upright", "raw"] = "upright"
    components: bool = False
    min_area_px: int = 1
    root: Path | None = None
    url_prefix: str = "/data/local-files/?d="


@dataclass(frozen=True)
class Exported:
    """What an export did: the number of images, the file to open, and remarks."""

    n_images: int
    opens: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One image of a store: its line in the index, its mask as it is exported, and its file."""

    record: dict[str, Any]
    mask: UInt8[np.ndarray, "height width"]
    image: Path


def read_items(store: MaskStore, options: ExportOptions) -> Iterator[Item]:
    """Yield the finished images of a store.

    Raises:
        ImageError: the raw layout is wanted of an image that is not there.

    """
    read = store.read_mask if options.source == "masks" else store.read_argmax
    for record in store.records():
        image = store.image_path(record, options.root)
        mask = read(record["id"])
        if options.orientation == "raw":
            if not image.is_file():
                raise ImageError(f"There is no image {image}, whose EXIF says how the raw file lies; give --root.")
            mask = to_raw_layout(mask, read_orientation(image))
        yield Item(record, mask, image)


def classes_in(mask: UInt8[np.ndarray, "height width"], classes: ClassSet) -> list[int]:
    """Return the class ids that a mask shows, ascending."""
    return [int(value) for value in np.unique(mask) if 1 <= value <= len(classes)]


def split_of(store: MaskStore) -> str:
    """Return the name of the split that a store was made from."""
    return str(store.header["data"].get("split") or "train")


def place_image(item: Item, target: Path, how: Literal["auto", "none", "link", "copy"]) -> None:
    """Put the image at `target`: a link, or a copy where links cannot be made."""
    if how == "none":
        return
    if not item.image.is_file():
        raise ImageError(
            f"There is no image {item.image}; name the folder of the images with --root, or --images=none."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "link" or (how == "auto" and _ends_cleanly(item.image)):
        with contextlib.suppress(OSError):
            target.symlink_to(item.image.resolve())
            return
    shutil.copyfile(item.image, target)


def _ends_cleanly(image: Path) -> bool:
    """Return False for a JPEG with bytes after its end marker, as telephones write them.

    Ultralytics takes such a file for damaged and writes it anew in its place; before 8.4 that went through a link and
    changed the original (verify_image_label in ultralytics/data/utils.py).
    """
    if image.suffix.lower() not in _JPEG_SUFFIXES:
        return True
    with image.open("rb") as file:
        file.seek(-min(2, image.stat().st_size), os.SEEK_END)
        return file.read() == b"\xff\xd9"


def suffix_of(image: Path) -> str:
    """Return the suffix that other programs look for: lower case, and .jpg for every JPEG."""
    suffix = image.suffix.lower()
    return ".jpg" if suffix in _JPEG_SUFFIXES else suffix
