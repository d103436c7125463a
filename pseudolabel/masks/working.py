"""The size that a large image is worked on at, so that memory has a bound whatever the image.

An image of more than `crf.max_megapixels` is made smaller by area averaging, soft maps and refinement are made for that
size (the CRF's ranges in pixels shrink alike), and the finished labels are enlarged to the image's own size by nearest
neighbour. Any other image is worked on as it is.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

from pseudolabel.masks.config import CrfConfig


def working_size(image_hw: tuple[int, int], config: CrfConfig) -> tuple[int, int]:
    """Return the height and width that an image of this size is worked on at.

    >>> working_size((375, 500), CrfConfig()), working_size((7456, 12000), CrfConfig())
    ((375, 500), (1142, 1838))
    """
    limit = config.max_megapixels * 1e6
    pixels = image_hw[0] * image_hw[1]
    if pixels <= limit:
        return image_hw
    shrink = (limit / pixels) ** 0.5
    short = max(1, int(min(image_hw) * shrink))
    long = min(int(max(image_hw) * shrink), int(limit) // short)  # the second where the short side cannot shrink
    return (long, short) if image_hw[0] > image_hw[1] else (short, long)


def shrunk_to(
    rgb_u8: UInt8[np.ndarray, "height width 3"], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Return a picture at a smaller size, by area averaging; itself where it has that size."""
    if rgb_u8.shape[:2] == size_hw:
        return rgb_u8
    return cv2.resize(rgb_u8, size_hw[::-1], interpolation=cv2.INTER_AREA).reshape(*size_hw, 3)


def enlarged_to(
    mask: UInt8[np.ndarray, "height width"], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width"]:
    """Return a mask at another size, by nearest neighbour, so that ids are kept; itself where it has that size."""
    if mask.shape == size_hw:
        return mask
    return cv2.resize(mask, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT).reshape(size_hw)
