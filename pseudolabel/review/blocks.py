"""What pages show: colours of classes, pictures as data URLs, maps over images. The markup is in `templates/`."""

import base64
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from data.classes import ClassSet
from data.images import encode_picture
from data.masks import voc_palette
from data.store.softmaps import SoftMaps, upsample

THUMBNAIL_PX = 144  # height of a picture where there is room
SMALLEST_PX = 96  # height of a picture below which its row is broken in two instead
ROW_PX = 1110  # width that a page has for a row of pictures
GAP_PX = 8

# Control points of a perceptually even ramp from dark violet to yellow, after matplotlib's "inferno" (CC0).
RAMP = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], np.float64)


@dataclass(frozen=True)
class Chip:
    """A class's name beside its colour."""

    name: str
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """A picture of a page with what stands below it.

    Attributes:
        caption: plain text.
        width: in CSS pixels.
        height: in CSS pixels.
        address: its content, as a data URL.

    """

    caption: str
    width: int
    height: int
    address: str


def chip(classes: ClassSet, class_id: int, palette: UInt8[np.ndarray, "256 3"] | None = None) -> Chip:
    """Return a class's name beside its colour: the one it has in masks, or in the palette given."""
    red, green, blue = (int(value) for value in (voc_palette() if palette is None else palette)[class_id])
    return Chip(classes.name(class_id), (red, green, blue))


def picture(rgb_u8: UInt8[np.ndarray, "height width 3"], caption: str) -> Picture:
    """Return a picture with its caption; it becomes a JPEG inside the page."""
    content = encode_picture(rgb_u8, "JPEG", quality=85, subsampling=0)
    height, width = rgb_u8.shape[:2]
    return Picture(caption, width, height, "data:image/jpeg;base64," + base64.b64encode(content).decode())


def share_or_none(share: float | None) -> float | None:
    """Return a share from 0 to 1 for a bar: None in place of nan, the IoU of a class that never occurs."""
    return None if share is None or math.isnan(share) else float(share)


def thumbnail_size(image_hw: tuple[int, int], count: int, height_px: int = THUMBNAIL_PX) -> tuple[int, int]:
    """Return height and width of an image's pictures on a page, so that a row holds them or breaks into even rows.

    Args:
        image_hw: height and width of the image.
        count: how many pictures of it stand side by side.
        height_px: height where there is room; they are at most three times as wide.

    >>> thumbnail_size((375, 500), 3, 150), thumbnail_size((375, 500), 6), thumbnail_size((200, 600), 6)
    ((150, 200), (134, 178), (121, 364))

    """
    height, width = image_hw
    for rows in range(1, count + 1):
        per_row = math.ceil(count / rows)
        room = (ROW_PX - (per_row - 1) * GAP_PX) // per_row
        scale = min(height_px / height, min(3 * height_px, room) / width)
        if height * scale >= SMALLEST_PX or 3 * height_px <= room:
            break
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrink(
    rgb_u8: UInt8[np.ndarray, "height width 3"], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Resize a picture for the page."""
    resized = Image.fromarray(rgb_u8).resize(size_hw[::-1], Image.Resampling.LANCZOS)
    return np.asarray(resized)


def shrink_mask(
    mask: UInt8[np.ndarray, "height width"], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width"]:
    """Resize a mask for the page; ids are kept, not mixed."""
    return np.asarray(Image.fromarray(mask).resize(size_hw[::-1], Image.Resampling.NEAREST))


def heat_maps(soft: SoftMaps, size_hw: tuple[int, int]) -> Float[np.ndarray, "classes height width"]:
    """Return the map of each label (not the background) over the image, 0 to 1, at the size asked for."""
    rows = soft.maps[1:] if soft.background else soft.maps
    return np.clip(upsample(rows.astype(np.float32), soft, size_hw), 0, 1)


def heat_overlay(
    rgb_u8: UInt8[np.ndarray, "height width 3"], heat: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture in grey under the ramp's colours; the hotter, the less of the picture shows."""
    grey = rgb_u8.astype(np.float64).mean(axis=-1, keepdims=True) * 0.55
    position = np.clip(heat.astype(np.float64), 0, 1) * (len(RAMP) - 1)
    low = np.minimum(position.astype(np.int64), len(RAMP) - 2)
    share = (position - low)[..., None]
    colour = RAMP[low] * (1 - share) + RAMP[low + 1] * share
    cover = 0.35 + 0.55 * np.clip(heat, 0, 1)[..., None]
    return np.clip(grey * (1 - cover) + colour * cover, 0, 255).astype(np.uint8)
