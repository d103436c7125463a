"""From an image file's pixels to the size a diffusion model reads, and back: sizes only, no model.

Source: the published implementation of arXiv 2309.04109: the wider the image, the longer its long side, and the short
side is padded to whole cells. Here the same rule is scaled to any model: the cell is what the model's deepest level
needs (64 px for Stable Diffusion 1.x) and the long side is measured against its native size (512 there).
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data.store.softmaps import Frame

# (aspect ratio above which it holds, long side in px at a native size of 512 px); source: as above.
LONG_SIDES = ((16 / 7, 1024), (15 / 8, 960), (14 / 8, 896), (13 / 9, 832), (12 / 10, 768), (0.0, 704))
FILL_RGB = (123, 117, 104)


def long_side(image_hw: tuple[int, int], native_px: int, cell_px: int) -> int:
    """Return the long side of the resized image, a multiple of the cell, never longer than the rule asks.

    >>> long_side((375, 500), 512, 64), long_side((500, 500), 512, 64), long_side((128, 128), 128, 32)
    (768, 704, 160)
    """
    aspect = max(image_hw) / min(image_hw)
    published = next(side for above, side in LONG_SIDES if aspect > above)
    return max(1, published * native_px // (512 * cell_px)) * cell_px


def frame_image(image_hw: tuple[int, int], cell_px: int, long_side_px: int) -> Frame:
    """Return the frame of an image: long side as given, short side rounded down, both padded up to whole cells.

    >>> frame_image((375, 500), 64, 768)
    Frame(padded_hw=(576, 768), resized_hw=(576, 768), image_hw=(375, 500))
    """
    height, width = image_hw
    short_side_px = max(1, long_side_px * min(image_hw) // max(image_hw))
    resized = (long_side_px, short_side_px) if height > width else (short_side_px, long_side_px)
    if height == width:
        resized = (long_side_px, long_side_px)
    padded = (-(-resized[0] // cell_px) * cell_px, -(-resized[1] // cell_px) * cell_px)
    return Frame(padded, resized, image_hw)


def resize_and_pad(
    rgb_u8: UInt8[np.ndarray, "height width 3"], frame: Frame
) -> UInt8[np.ndarray, "padded_h padded_w 3"]:
    """Resize an image (bilinear, area-weighted when it shrinks) and fill the rest of the frame with the mean colour."""
    height, width = frame.resized_hw
    resized = np.asarray(Image.fromarray(rgb_u8).resize((width, height), Image.Resampling.BILINEAR))
    padded = np.empty((*frame.padded_hw, 3), np.uint8)
    padded[:] = FILL_RGB
    padded[:height, :width] = resized
    return padded


def frame_latent(latent_hw: tuple[int, int], factor: int, image_hw: tuple[int, int] | None) -> Frame:
    """Return the frame of a latent that shows the whole of an image, unpadded."""
    size_hw = (latent_hw[0] * factor, latent_hw[1] * factor)
    return Frame(size_hw, size_hw, image_hw or size_hw)
