"""The drawings of the demo world: read from the shipped atlas, and placed at any size and angle in whole numbers.

Everything here is integer arithmetic, so that the same scene has the same pixels on every machine.
"""

import json
import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32, UInt8

from data.images import open_image

GLYPHS_DIR = Path(__file__).parent / "glyphs"
Drawings = Literal["train", "all", "held_out"]
ONE = 1 << 16  # 1.0 in the 16.16 fixed-point numbers of `place`.


@dataclass(frozen=True, eq=False)
class Glyph:
    """One cut-out: its class, its name ("dog/poodle") and its pixels at full, half and quarter size.

    A level is uint8 (height, width, 4), colours premultiplied with alpha, with a transparent border of one pixel.
    """

    class_name: str
    name: str
    held_out: bool
    levels: tuple[np.ndarray, ...]

    @property
    def longest_px(self) -> int:
        """The longer side of the drawing at full size, in pixels."""
        return max(self.levels[0].shape[:2]) - 2


@lru_cache(maxsize=1)
def load_glyphs() -> tuple[Glyph, ...]:
    """Return all drawings of the shipped atlas, in its order; it is decoded once a process."""
    entries = json.loads((GLYPHS_DIR / "atlas.json").read_text(encoding="utf-8"))["drawings"]
    with open_image(GLYPHS_DIR / "atlas.png") as image:
        atlas = np.asarray(image.convert("RGBA")).astype(np.int32)
    glyphs = []
    for entry in entries:
        left, top, right, bottom = entry["box"]
        pixels = atlas[top:bottom, left:right].copy()
        pixels[..., :3] = (pixels[..., :3] * pixels[..., 3:] + 127) // 255
        glyphs.append(Glyph(entry["class"], entry["name"], entry["held_out"], _pyramid(pixels)))
    return tuple(glyphs)


def atlas_crc32() -> int:
    """Return the checksum of the atlas's file, by which a drawn folder knows whether it is of these drawings."""
    return zlib.crc32((GLYPHS_DIR / "atlas.png").read_bytes())


@lru_cache(maxsize=64)
def glyphs_of(class_name: str, drawings: Drawings) -> tuple[Glyph, ...]:
    """Return the drawings of one class: those for training, those held out of it, or all."""
    match drawings:
        case "all":
            wanted: tuple[bool, ...] = (True, False)
        case "train":
            wanted = (False,)
        case "held_out":
            wanted = (True,)
        case _:
            raise ValueError(f"drawings is {drawings!r}: choose 'train', 'all' or 'held_out'")
    return tuple(glyph for glyph in load_glyphs() if glyph.class_name == class_name and glyph.held_out in wanted)


def find_glyph(drawing: str) -> Glyph:
    """Return the drawing of a name like "dog/service".

    Raises:
        ValueError: there is none of that name.

    """
    for glyph in load_glyphs():
        if glyph.name == drawing:
            return glyph
    known = ", ".join(glyph.name for glyph in load_glyphs() if glyph.class_name == drawing.split("/", maxsplit=1)[0])
    raise ValueError(f"no drawing is called {drawing!r}" + (f": choose one of {known}" if known else ""))


def _pyramid(pixels: Int32[np.ndarray, "height width 4"]) -> tuple[np.ndarray, ...]:
    """Full, half and quarter size (means of 2 x 2), each with a border of one transparent pixel."""
    levels = []
    for _ in range(3):
        levels.append(np.pad(pixels.astype(np.uint8), ((1, 1), (1, 1), (0, 0))))
        even = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)))
        pixels = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) // 4
    return tuple(levels)


def place(glyph: Glyph, side_px: int, degrees: int, flip: bool) -> UInt8[np.ndarray, "height width 4"]:
    """Draw a glyph at a size and angle, by bilinear sampling.

    Args:
        glyph: The cut-out.
        side_px: Length of its longer side before it is turned, at least 1.
        degrees: Angle, anticlockwise, whole degrees.
        flip: Mirror it left to right first.

    Returns:
        RGBA with premultiplied colours, the tight bounding rectangle of the turned picture (its outermost rows and
        columns may still be transparent).

    """
    level_index = 0
    while level_index < 2 and side_px * 2 ** (level_index + 1) <= glyph.longest_px:
        level_index += 1
    level = glyph.levels[level_index]
    height, width = level.shape[0] - 2, level.shape[1] - 2
    # Fixed-point cosine and sine: rounded once, the rest is exact.
    cosine, sine = (round(f(math.radians(degrees)) * ONE) for f in (math.cos, math.sin))
    longest = max(height, width)
    # Rounded up: a pixel cut at the rim still belongs to the picture.
    out_width = -(-(abs(cosine) * width + abs(sine) * height) * side_px // (longest * ONE))
    out_height = -(-(abs(sine) * width + abs(cosine) * height) * side_px // (longest * ONE))
    step_cosine, step_sine = cosine * longest // side_px, sine * longest // side_px
    # Twice the distance of a pixel's centre from the picture's, to stay in whole numbers.
    across = 2 * np.arange(out_width, dtype=np.int32) - (out_width - 1)
    down = 2 * np.arange(out_height, dtype=np.int32)[:, None] - (out_height - 1)
    if flip:
        source_x = (width + 1) * ONE // 2 - (across * step_cosine - down * step_sine) // 2
    else:
        source_x = (width + 1) * ONE // 2 + (across * step_cosine - down * step_sine) // 2
    source_y = (height + 1) * ONE // 2 + (across * step_sine + down * step_cosine) // 2
    return _bilinear(level, source_x, source_y)


def _bilinear(
    level: UInt8[np.ndarray, "height width 4"],
    source_x: Int32[np.ndarray, "rows columns"],
    source_y: Int32[np.ndarray, "rows columns"],
) -> UInt8[np.ndarray, "rows columns 4"]:
    """Sample a picture at 16.16 fixed-point places, with weights of eight bits; outside lies its transparent border."""
    height, width = level.shape[:2]
    source_x = np.clip(source_x, 0, (width - 1) * ONE - 1)
    source_y = np.clip(source_y, 0, (height - 1) * ONE - 1)
    corner = (source_y >> 16) * width + (source_x >> 16)
    right, below = (source_x >> 8) & 255, (source_y >> 8) & 255
    weights = (256 - right) * (256 - below), right * (256 - below), (256 - right) * below, right * below
    flat = level.reshape(-1, 4)
    summed = np.full((*corner.shape, 4), ONE // 2, dtype=np.int32)
    for offset, weight in zip((0, 1, width, width + 1), weights, strict=True):
        summed += flat.take(corner + offset, axis=0) * weight[..., None]
    return (summed >> 16).astype(np.uint8)
