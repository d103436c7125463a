"""The photographs a thing is learned from: read, cut into views, encoded."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from data.errors import ImageError
from data.images import read_image
from data.readers.folder import image_samples
from pseudolabel.softmaps.diffusion.encode import encode_image
from pseudolabel.softmaps.diffusion.parts import Parts

LEAST, USUAL = 2, 3  # photographs: fewer than the first are an error, fewer than the second a warning


def read_photographs(folder: Path, least: int, flag: str = "images") -> list[UInt8[np.ndarray, "height width 3"]]:
    """Read all images of a folder, in the order of their names.

    Args:
        folder: where they are.
        least: how many there must be.
        flag: what named the folder, for messages.

    Raises:
        ImageError: one that cannot be read, or too few.

    """
    samples = image_samples(folder, flag)
    if len(samples) < least:
        raise ImageError(
            f"{folder} holds {len(samples)} image: from a single one the thing cannot be told from what is around it; "
            "give three to six"
        )
    return [read_image(sample.image_path) for sample in samples]


def cut_views(
    images: Sequence[UInt8[np.ndarray, "height width 3"]], count: int, side_px: int, seed: int, least_side: float
) -> list[UInt8[np.ndarray, "side side 3"]]:
    """Cut square views out of images in turn: at random places, half of them mirrored, resized to one side.

    Args:
        images: at least one.
        count: number of views.
        side_px: side of the views.
        seed: of places, sizes and mirroring.
        least_side: least side of the square that is cut, as a share of an image's shorter side; the most is all of it.

    """
    views = []
    for index in range(count):
        random = np.random.default_rng([seed, 3, index])
        image = images[index % len(images)]
        shorter = min(image.shape[:2])
        side = max(1, round(shorter * random.uniform(least_side, 1)))
        top, left = (int(random.integers(length - side + 1)) for length in image.shape[:2])
        view = image[top : top + side, left : left + side]
        if random.random() < 0.5:
            view = view[:, ::-1]
        resized = Image.fromarray(np.ascontiguousarray(view)).resize((side_px, side_px), Image.Resampling.BICUBIC)
        views.append(np.array(resized))
    return views


@torch.no_grad()
def encode_views(
    parts: Parts, views: Sequence[UInt8[np.ndarray, "side side 3"]]
) -> Float[Tensor, "views channels height width"]:
    """Return the latents of views: the mode of the image encoder's posterior, scaled as the denoiser reads them."""
    return torch.stack([encode_image(parts, view, "mode") for view in views])
