"""Augmentation: the only file that touches albumentations."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.classes import IGNORE
from data.config import require
from train.network import IMAGENET_MEAN

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its newest version at import

FILL_RGB = tuple(round(255 * value) for value in IMAGENET_MEAN)  # what is padded with, unless the network says


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to a training image and its mask."""

    crop: int = 321
    """Height and width in pixels of what the network sees; smaller images are padded with ignored pixels."""
    scale: tuple[float, float] = (0.5, 1.5)
    """The image is scaled by a factor drawn between these two."""
    flip: bool = True
    """Mirror left and right half of the time."""
    rotate_degrees: float = 0.0
    """Rotate by an angle drawn up to this, either way."""
    colour: float = 0.0
    """Strength of changes in brightness, contrast and saturation, 0 to 1; a quarter of it in hue."""

    def __post_init__(self) -> None:
        require("data.augment.crop", self.crop, self.crop >= 32, "at least 32 pixels")
        low, high = self.scale
        require("data.augment.scale", self.scale, 0 < low <= high <= 8, "two factors, 0 < low <= high <= 8")
        require("data.augment.rotate_degrees", self.rotate_degrees, 0 <= self.rotate_degrees <= 180, "from 0 to 180")
        require("data.augment.colour", self.colour, 0 <= self.colour <= 1, "from 0 to 1")


class Augmentation:
    """Random crops, scales, flips and colours of an image together with its mask and weights.

    The result depends on the arguments and the seed alone: not on the process, the order or what was drawn before.

    Args:
        config: what is done.
        fill_rgb: what is padded with; the network's mean, which normalisation makes 0.

    """

    def __init__(self, config: AugmentConfig, fill_rgb: tuple[int, ...] = FILL_RGB) -> None:
        import albumentations as A
        import cv2

        low, high = config.scale
        cv2.setNumThreads(0)  # the loader has processes of its own; OpenCV's threads would only get in their way
        fill: dict[str, Any] = {"border_mode": cv2.BORDER_CONSTANT, "fill": fill_rgb, "fill_mask": IGNORE}
        steps: list[Any] = []
        if (low, high) != (1.0, 1.0):
            steps.append(A.RandomScale((low - 1, high - 1), p=1))
        if config.rotate_degrees:
            steps.append(A.Rotate((-config.rotate_degrees, config.rotate_degrees), p=1, **fill))
        steps += [A.PadIfNeeded(config.crop, config.crop, position="random", **fill)]
        steps += [A.RandomCrop(config.crop, config.crop)]
        if config.flip:
            steps.append(A.HorizontalFlip(p=0.5))
        if config.colour:
            by = config.colour
            steps.append(A.ColorJitter((1 - by, 1 + by), (1 - by, 1 + by), (1 - by, 1 + by), (-by / 4, by / 4), p=0.8))
        self._fill_rgb = fill_rgb
        self._compose = A.Compose(steps)
        self._smallest = math.ceil(1 / low)  # pixels of a side of which the smallest scale leaves one

    def __call__(
        self,
        rgb: UInt8[np.ndarray, "height width 3"],
        mask: UInt8[np.ndarray, "height width"],
        weight: UInt8[np.ndarray, "height width"] | None,
        seed: int,
    ) -> tuple[UInt8[np.ndarray, "crop crop 3"], UInt8[np.ndarray, "crop crop"], UInt8[np.ndarray, "crop crop"] | None]:
        """Return the augmented image, mask and weights."""
        self._compose.set_random_seed(seed)
        missing_hw = [max(0, self._smallest - side) for side in mask.shape]
        if any(missing_hw):  # a side of one pixel would be scaled down to none
            rgb, mask, weight = self._enlarged(missing_hw, rgb, mask, weight)
        planes = [mask] if weight is None else [mask, weight]
        result = self._compose(image=rgb, masks=planes)
        drawn = result["masks"]
        return result["image"], drawn[0], None if weight is None else drawn[1]

    def _enlarged(self, missing_hw: Sequence[int], rgb: Any, mask: Any, weight: Any) -> tuple[Any, Any, Any]:
        """Return the three with pixels added at the right and at the bottom that are ignored."""
        rows, columns = ((0, missing) for missing in missing_hw)
        filled = np.broadcast_to(
            np.array(self._fill_rgb, np.uint8), (rgb.shape[0] + rows[1], rgb.shape[1] + columns[1], 3)
        ).copy()
        filled[: rgb.shape[0], : rgb.shape[1]] = rgb
        mask = np.pad(mask, (rows, columns), constant_values=IGNORE)
        return filled, mask, None if weight is None else np.pad(weight, (rows, columns))
