"""Augmentation: the only file that touches albumentations."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.classes import IGNORE
from data.errors import ConfigError
from train.network import IMAGENET_MEAN

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its newest version at import

FILL_RGB = tuple(round(255 * value) for value in IMAGENET_MEAN)  # what padding is filled with; 0 after normalisation


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


class Augmentation:
    """Random crops, scales, flips and colours of an image together with its mask and weights.

    The result depends on the arguments and the seed alone: not on the process, the order or what was drawn before.
    """

    def __init__(self, config: AugmentConfig) -> None:
        import albumentations as A
        import cv2

        if config.crop < 32:
            raise ConfigError(f"--data.augment.crop is {config.crop}; it must be at least 32 pixels.")
        low, high = config.scale
        if not 0 < low <= high:
            raise ConfigError(f"--data.augment.scale is {config.scale}; it takes two factors, 0 < low <= high.")
        cv2.setNumThreads(0)  # the loader has processes of its own; OpenCV's threads would only get in their way
        fill: dict[str, Any] = {"border_mode": cv2.BORDER_CONSTANT, "fill": FILL_RGB, "fill_mask": IGNORE}
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
        self._compose = A.Compose(steps)

    def __call__(
        self,
        rgb: UInt8[np.ndarray, "height width 3"],
        mask: UInt8[np.ndarray, "height width"],
        weight: UInt8[np.ndarray, "height width"] | None,
        seed: int,
    ) -> tuple[UInt8[np.ndarray, "crop crop 3"], UInt8[np.ndarray, "crop crop"], UInt8[np.ndarray, "crop crop"] | None]:
        """Return the augmented image, mask and weights."""
        self._compose.set_random_seed(seed)
        planes = [mask] if weight is None else [mask, weight]
        result = self._compose(image=rgb, masks=planes)
        drawn = result["masks"]
        return result["image"], drawn[0], None if weight is None else drawn[1]
