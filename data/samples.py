"""A sample is an image, its labels and, where there is one, its ground truth; and how an image becomes an array.

Orientation. Cameras store a picture as the sensor saw it and say in EXIF how to turn it. This project works on the
picture as a viewer shows it: images are turned upright when they are read, masks have the upright height and width, and
polygons, previews and exports agree with browsers, annotation tools and OpenCV (`cv2.imread` turns too). A program that
reads the raw rows of a file (`PIL.Image.open` without `ImageOps.exif_transpose`) wants the mask in the raw layout:
`to_raw_layout` turns it back exactly, and `pseudolabel export --orientation raw` does so for a whole store.

Colour. Everything becomes 8-bit RGB by fixed rules that do not depend on the image's content: greyscale is repeated in
the three channels; palettes are looked up; transparency is laid over white; CMYK is converted without colour profiles;
of 16-bit values the high byte is kept; of animations and multi-page files the first picture is taken. Floating-point
and 32-bit images are refused, because their range is unknown.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from data.classes import ClassSet
from data.errors import ConfigError, ImageError, LabelError
from data.masks import read_mask

DataFormat = Literal["voc", "coco", "folder"]

# The largest image that is read: Pillow's own limit against decompression bombs, 12,000 x 7,456 pixels for example.
# Reading one takes about 0.7 GB for a moment; the whole is never held twice as floating point.
MAX_PIXELS = 89_478_485
MAX_ID_BYTES = 200  # file systems allow 255 bytes a name; suffixes and temporary names need some
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jfif"})
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, UnidentifiedImageError)
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Sample:
    """One image with its image-level labels.

    Attributes:
        id: name of the image in a store, checked by `check_id`.
        image_path: the image file.
        labels: class ids present, ascending, from 1; empty only where unlabelled images were asked for.
        truth_path: mask of the true classes, for scoring only; None where there is none.

    """

    id: str
    image_path: Path
    labels: tuple[int, ...]
    truth_path: Path | None = None


@dataclass(frozen=True)
class SampleSet:
    """The samples of one split.

    Attributes:
        classes: what the label ids mean.
        samples: the samples; may make each one only when it is asked for.
        notes: what was left out and why, one sentence each, to be printed at the end of a run.

    """

    classes: ClassSet
    samples: Sequence[Sample]
    notes: tuple[str, ...] = ()


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
    cache: Path | None = None
    """Where the COCO index and rendered ground truth are kept; ~/.cache/text2mask-wsss if not given."""


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
    root = Path(config.root)
    if not root.is_dir():
        raise ConfigError(f"There is no folder {root}; --root must name the folder of the data set.")
    match detect_format(config):
        case "voc":
            from data.voc import open_voc

            return open_voc(config, need_labels, need_truth)
        case "coco":
            from data.coco import open_coco

            return open_coco(config, need_labels, need_truth)
        case "folder":
            from data.folder import open_folder

            return open_folder(config, need_labels, need_truth)


def detect_format(config: DataConfig) -> DataFormat:
    """Return the layout of the root folder, or what the configuration says it is."""
    if config.format != "auto":
        return config.format
    root = Path(config.root)
    if any((root / part / "JPEGImages").is_dir() for part in (".", "VOC2012", "VOCdevkit/VOC2012")):
        return "voc"
    if any((root / "annotations").glob("instances_*.json")):
        return "coco"
    return "folder"


def check_id(sample_id: str) -> str:
    """Return the id if it can be a file name inside a store.

    Raises:
        LabelError: empty, too long, hidden, with a separator, "..", or a character that cannot be printed.

    """
    reason = _id_fault(sample_id)
    if reason:
        raise LabelError(f"Image id {sample_id!r} {reason}; an id becomes a file name, so rename the image.")
    return sample_id


def _id_fault(sample_id: str) -> str:
    if not sample_id:
        return "is empty"
    if any(character in sample_id for character in "/\\"):
        return "holds a path separator"
    if ".." in sample_id or sample_id.startswith("."):
        return "begins with a dot or holds '..'"
    if any(
        ord(character) < 32 or ord(character) == 127 or 0xD800 <= ord(character) < 0xE000 for character in sample_id
    ):
        return "holds a control character"
    if len(sample_id.encode()) > MAX_ID_BYTES:
        return f"is longer than {MAX_ID_BYTES} bytes"
    return ""


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image upright as 8-bit RGB (the rules are in this file's first lines).

    Raises:
        ImageError: missing, damaged, cut short, of an unknown kind, or larger than `MAX_PIXELS`.

    """
    try:
        with Image.open(path) as image:
            check_size(image, path)
            return np.array(to_rgb(ImageOps.exif_transpose(image), path))
    except FileNotFoundError as error:
        raise ImageError(f"There is no image {path}; check the label file and --root.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, str(error)) from error
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ImageError(
            f"Cannot read the image {path}: {reason}; replace or convert it, or leave such images out with "
            "--on_error skip."
        ) from error


def check_size(image: Image.Image, path: Path) -> None:
    """Raise ImageError if the image is larger than `MAX_PIXELS` or has no pixels."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} x {image.height} pixels")


def _too_large(path: Path, what: str) -> ImageError:
    return ImageError(f"The image {path} is too large ({what}); at most {MAX_PIXELS:,} pixels are read: scale it down.")


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Return a picture of any mode as 8-bit RGB; see this file's first lines for the rules."""
    mode = image.mode
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 0xFFFF):
            raise ImageError(
                f"{path} holds 32-bit values, whose range is unknown; save it with 8 or 16 bits a channel."
            )
        return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if mode == "F":
        raise ImageError(f"{path} holds floating-point values, whose range is unknown; save it with 8 bits a channel.")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def read_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (upright) where it says none or nonsense."""
    try:
        with Image.open(path) as image:
            value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def size_of(path: Path) -> tuple[int, int]:
    """Return height and width of an image as a viewer shows it, from the file's header alone.

    Raises:
        ImageError: missing, damaged, or of an unknown kind.

    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in range(5, 9) and image.format != "TIFF"
    except FileNotFoundError as error:
        raise ImageError(f"There is no image {path}; check the label file and --root.") from error
    except DECODE_ERRORS as error:
        raise ImageError(f"Cannot read the image {path}: {' '.join(str(error).split())}; replace it.") from error
    return (width, height) if turned else (height, width)  # Pillow reports a TIFF's size upright already


def to_upright(raw: UInt8[np.ndarray, "rows columns"], orientation: int) -> UInt8[np.ndarray, "height width"]:
    """Turn a mask from the raw layout of an image file to how a viewer shows it.

    Args:
        raw: mask in the order of the file's rows.
        orientation: EXIF orientation of the image, 1 to 8 (EXIF 2.32, tag 0x0112).

    """
    if orientation >= 5:
        raw = raw.T
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(raw[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def to_raw_layout(upright: UInt8[np.ndarray, "height width"], orientation: int) -> UInt8[np.ndarray, "rows columns"]:
    """Turn a mask back to the raw layout of the image file; the inverse of `to_upright`."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    return to_upright(upright, back)


def read_truth(
    path: Path, size_hw: tuple[int, int], image_path: Path | None = None
) -> UInt8[np.ndarray, "height width"]:
    """Read a ground-truth mask: class ids, 255 where nothing is to be scored.

    Args:
        path: an 8-bit palette or greyscale PNG.
        size_hw: height and width of the upright image, which the mask must have.
        image_path: the image; where it is given and lies on its side (EXIF), a mask drawn on the raw rows is turned.

    Raises:
        ImageError: missing, damaged, in colours, or of another size.

    """
    mask = read_mask(path)
    if mask.shape != tuple(size_hw) and image_path is not None and mask.shape == tuple(size_hw)[::-1]:
        orientation = read_orientation(image_path)
        if orientation >= 5:
            mask = to_upright(mask, orientation)
    if mask.shape != tuple(size_hw):
        raise ImageError(
            f"The ground truth {path} has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), its image "
            f"{size_hw[0]} x {size_hw[1]}: they must be equal; check data.truth."
        )
    return mask
