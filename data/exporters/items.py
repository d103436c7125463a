"""What every exporter shares: its options, the images of a store one by one, and where their files go."""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from data.classes import ClassSet
from data.errors import ImageError, StoreError
from data.images import read_orientation, size_of, to_raw_layout
from data.store.records import size_of_record
from data.store.reviewed import Counted, Use, reviewed_mask
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
        review: what people's decisions mean; see `data.store.reviewed.apply_reviews`.
        url_prefix: what Label Studio finds before an image's path; the default is its local file storage.

    """

    source: Literal["masks", "argmax"] = "masks"
    images: Literal["auto", "none", "link", "copy"] = "auto"
    orientation: Literal["upright", "raw"] = "upright"
    components: bool = False
    min_area_px: int = 1
    root: Path | None = None
    url_prefix: str = "/data/local-files/?d="
    review: Use = "use"


@dataclass(frozen=True)
class Exported:
    """What an export did: the number of images, the file to open, and remarks."""

    n_images: int
    opens: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One image of a store.

    Attributes:
        record: its line in the index.
        mask: its mask as it is exported.
        image: its file.
        name: the file's path below the folder of the data, with forward slashes.

    """

    record: dict[str, Any]
    mask: UInt8[np.ndarray, "height width"]
    image: Path
    name: str


def read_items(store: MaskStore, counted: Iterable[Counted], options: ExportOptions) -> Iterator[Item]:
    """Yield the images of a store that are exported, with the masks that count.

    A label that was marked wrong is no label of its image.

    Args:
        store: the store.
        counted: its images that people have not thrown out, and which of their masks counts.
        options: where the masks and images come from.

    Raises:
        ImageError: the raw layout is wanted of an image that is not there, or a mask is not its image's.
        StoreError: an image outside of the data's folder.

    """
    root = options.root if options.root is not None else store.root
    read = store.read_mask if options.source == "masks" else store.read_argmax
    for each in counted:
        record = each.record
        image = store.image_path(record, options.root)
        mask = reviewed_mask(each, read(record))
        if each.wrong and "labels" in record:
            record = record | {"labels": [label for label in record["labels"] if label not in each.wrong]}
        if options.orientation == "raw":
            if not image.is_file():
                raise ImageError(f"There is no image {image}, whose EXIF says how the raw file lies; give --root.")
            mask = to_raw_layout(mask, read_orientation(image))
        yield Item(record, mask, image, image.relative_to(root).as_posix())


def classes_in(mask: UInt8[np.ndarray, "height width"], classes: ClassSet) -> list[int]:
    """Return the class ids that a mask shows, ascending."""
    return [int(value) for value in np.unique(mask) if 1 <= value <= len(classes)]


def split_of(store: MaskStore) -> str:
    """Return the name of the split that a store was made from, as a name of a file or folder."""
    return str(store.header["data"].get("split") or "train").replace("\\", "_").replace("/", "_")


def place_image(item: Item, target: Path, how: Literal["auto", "none", "link", "copy"]) -> None:
    """Put the image at `target`, where nothing may be yet: a link, or a copy where links cannot be made.

    Raises:
        ImageError: no such image, no image, or one of another size than its mask.
        StoreError: something is there already.

    """
    if how == "none":
        return
    if not item.image.is_file():
        raise ImageError(
            f"There is no image {item.image}; name the folder of the images with --root, or --images=none."
        )
    _check_size(item)
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        raise StoreError(f"Two images of the store would be the file {target.name}; one is {item.image}: rename it.")
    if (how == "link" or (how == "auto" and _ends_cleanly(item.image))) and _link(item.image, target):
        return
    with item.image.open("rb") as source, target.open("xb") as copy:  # x: never through a link that stands there
        shutil.copyfileobj(source, copy)


def _check_size(item: Item) -> None:
    """Raise ImageError unless the file is an image of the mask's size: what a store names need not be an image."""
    found, wanted = size_of(item.image), size_of_record(item.record)
    if found != wanted:
        raise ImageError(
            f"The image {item.image} has {found[0]} x {found[1]} pixels (height x width), its mask {wanted[0]} x "
            f"{wanted[1]}: was it replaced? Generate its mask again, or export with --images=none."
        )


def _link(image: Path, target: Path) -> bool:
    """Make a link; return False where the system or the disk has none."""
    try:
        target.symlink_to(image.resolve())
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


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
