"""Masks as palette PNG files, and masks as pictures for people."""

import io
import logging
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from data.classes import IGNORE
from data.config import White
from data.errors import ImageError
from data.files import write_atomically
from data.images import BAND_PIXELS, as_shown, open_image

logger = logging.getLogger(__name__)


def encode_mask(mask: UInt8[np.ndarray, "height width"], palette: UInt8[np.ndarray, "256 3"] | None = None) -> bytes:
    """Return a mask as the bytes of an 8-bit palette PNG; the pixel values are the class ids."""
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette((voc_palette() if palette is None else palette).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_mask(
    path: Path,
    mask: UInt8[np.ndarray, "height width"],
    palette: UInt8[np.ndarray, "256 3"] | None = None,
) -> None:
    """Write a mask as an 8-bit palette PNG, atomically; `palette` is VOC's when it is not given."""
    write_atomically(Path(path), encode_mask(mask, palette))


def read_mask(path: Path) -> UInt8[np.ndarray, "height width"]:
    """Read a mask of class ids from a palette or greyscale PNG; the palette's colours do not matter.

    Raises:
        ImageError: missing, damaged, or a picture in colours (whose class ids would have to be guessed).

    """
    with open_image(path, "mask") as image:
        if image.mode not in {"P", "L", "1"}:
            raise ImageError(
                f"{path} holds colours (mode {image.mode}), not class ids; save the mask as an 8-bit palette or "
                "greyscale PNG whose pixel values are the class ids."
            )
        return np.array(image, dtype=np.uint8)


def value_counts(mask: UInt8[np.ndarray, "height width"]) -> Int64[np.ndarray, "256"]:
    """Return how many pixels hold each value; in bands, because counting takes eight bytes a pixel."""
    flat = mask.reshape(-1)
    parts = (np.bincount(flat[at : at + BAND_PIXELS], minlength=256) for at in range(0, flat.size, BAND_PIXELS))
    return sum(parts, np.zeros(256, np.int64))


def colorize(
    mask: UInt8[np.ndarray, "height width"],
    palette: UInt8[np.ndarray, "256 3"] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the mask in the palette's colours (RGB)."""
    return (voc_palette() if palette is None else palette)[mask]


def overlay(
    rgb: UInt8[np.ndarray, "height width 3"],
    mask: UInt8[np.ndarray, "height width"],
    palette: UInt8[np.ndarray, "256 3"] | None = None,
    alpha: float = 0.6,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image with the mask's colours laid over it; the background stays as it is.

    Args:
        rgb: the image.
        mask: class ids; pixels of 0 are left alone.
        palette: colour of each id, VOC's when it is not given.
        alpha: share of the colour, from 0 (image alone) to 1 (colour alone).

    """
    mixed = (1.0 - alpha) * rgb + alpha * colorize(mask, palette)
    return np.where((mask > 0)[..., None], np.rint(mixed).astype(np.uint8), rgb)


def voc_palette() -> UInt8[np.ndarray, "256 3"]:
    """Return the colour of each mask value, as the PASCAL VOC development kit draws them (VOClabelcolormap.m).

    The bits of the value are dealt out to red, green and blue from the highest colour bit down, so neighbouring values
    get very different colours; 0 is black and 255 is the cream white of VOC's borders (224, 224, 192).
    """
    values = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((values >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def read_truth(
    path: Path, size_hw: tuple[int, int], image_path: Path | None = None, white: White = "ignore"
) -> UInt8[np.ndarray, "height width"]:
    """Read a ground-truth mask: class ids, 255 where nothing is to be scored.

    A mask that holds only 0 and 255 is most likely black and white; a warning says so, once for each folder.

    Args:
        path: an 8-bit palette or greyscale PNG.
        size_hw: height and width of the upright image, which the mask must have.
        image_path: the image; where it is given and lies on its side (EXIF), a mask drawn on the raw rows is turned.
        white: "class" reads 255 as class 1, where a mask holds nothing but 0 and 255.

    Raises:
        ImageError: missing, damaged, in colours, or of another size.

    """
    mask = read_mask(path)
    if white == "class":
        mask = white_as_class(mask)
    elif only_black_and_white(mask):
        _warn_of_white(path.parent)
    if image_path is not None:
        mask = as_shown(mask, size_hw, image_path)
    if mask.shape != tuple(size_hw):
        raise ImageError(
            f"The ground truth {path} has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), its image "
            f"{size_hw[0]} x {size_hw[1]}: they must be equal; check data.truth."
        )
    return mask


def only_black_and_white(mask: UInt8[np.ndarray, "height width"]) -> bool:
    """Return whether a mask holds 255 and besides it only 0."""
    return bool(mask.size) and bool((mask == IGNORE).any()) and not bool(((mask != 0) & (mask != IGNORE)).any())


def white_as_class(mask: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Return a black-and-white mask with class 1 in place of 255; another mask as it is."""
    return np.where(mask == IGNORE, np.uint8(1), mask) if only_black_and_white(mask) else mask


@cache
def _warn_of_white(folder: Path) -> None:
    logger.warning(
        "Ground truth in %s holds only 0 and 255, and 255 is not scored. Where 255 is the object of a single class, "
        "say --truth_255=class (segtrain: --data.val.truth_255=class).",
        folder,
    )
