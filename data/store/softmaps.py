"""Soft maps: the seam between the diffusion model and the masks, as they are kept on disk."""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float16

from data.console import count
from data.errors import StoreError

SOFT_VERSION = 1  # of the npz files


@dataclass(frozen=True)
class Frame:
    """Where an image lies in the padded image a model sees; sizes are (height, width) in pixels.

    Attributes:
        padded_hw: size the model sees, whole cells.
        resized_hw: size of the image in it, at the top left.
        image_hw: size of the image file.

    """

    padded_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    image_hw: tuple[int, int]

    def valid_cells(self, grid_hw: tuple[int, int]) -> tuple[int, int]:
        """Return how many rows and columns of a grid over the padded image hold at least one pixel of the image."""
        rows = -(-self.resized_hw[0] * grid_hw[0] // self.padded_hw[0])
        columns = -(-self.resized_hw[1] * grid_hw[1] // self.padded_hw[1])
        return rows, columns


@dataclass(frozen=True)
class SoftMaps:
    """Scores of one image before thresholds, CRF and upsampling.

    Attributes:
        maps: one map per class at grid resolution.
        labels: the class ids of the image, ascending.
        background: False: the rows are the labels' maps in [0, 1], and the background is derived from them later, so
            that its threshold can be changed; True: row 0 is the background, the others the labels (probabilities).
        padded_hw: height and width in pixels that the grid covers, the padding included.
        resized_hw: height and width of the part at the top left that is image.
        image_hw: height and width of the upright image.

    """

    maps: Float16[np.ndarray, "rows grid_height grid_width"]
    labels: tuple[int, ...]
    background: bool
    padded_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    image_hw: tuple[int, int]

    def __post_init__(self) -> None:
        if len(self.maps) != len(self.labels) + self.background:
            raise StoreError(
                f"{count(len(self.maps), 'soft map')} for {count(len(self.labels), 'label')} "
                f"(background={self.background}): one each."
            )


def encode_soft(soft: SoftMaps) -> bytes:
    """Return soft maps as the bytes of an .npz file; equal maps give equal bytes."""
    buffer = io.BytesIO()
    sizes = np.array([soft.padded_hw, soft.resized_hw, soft.image_hw], dtype=np.int32)
    np.savez_compressed(  # dates inside are fixed by numpy, so equal content gives equal bytes
        buffer,
        format_version=np.int32(SOFT_VERSION),
        maps=soft.maps.astype(np.float16),
        labels=np.array(soft.labels, dtype=np.int32),
        background=np.bool_(soft.background),
        sizes=sizes,
    )
    return buffer.getvalue()


def decode_soft(content: bytes) -> SoftMaps:
    """Return the soft maps of an .npz file's bytes; nothing pickled is read."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        padded, resized, image = ((int(height), int(width)) for height, width in file["sizes"])
        labels = tuple(int(label) for label in file["labels"])
        return SoftMaps(file["maps"], labels, bool(file["background"]), padded, resized, image)


def resize_scores(
    scores: Float[np.ndarray, "rows height width"], size_hw: tuple[int, int]
) -> Float[np.ndarray, "rows new_height new_width"]:
    """Resize score maps, bilinear, half-pixel centres; no rows give no rows."""
    import cv2

    if not len(scores):
        return np.empty((0, *size_hw), scores.dtype)
    return np.stack([cv2.resize(row, size_hw[::-1], interpolation=cv2.INTER_LINEAR) for row in scores])


def upsample(
    scores: Float[np.ndarray, "rows grid_height grid_width"], soft: SoftMaps, size_hw: tuple[int, int] | None = None
) -> Float[np.ndarray, "rows height width"]:
    """Return scores on a soft map's grid over its image: padded image, crop, image; bilinear throughout.

    Args:
        scores: one map per row on the grid of `soft`.
        soft: says where the image lies on that grid.
        size_hw: height and width of the result; the image's own if not given.

    """
    height, width = soft.resized_hw
    padded = resize_scores(scores, soft.padded_hw)
    return resize_scores(np.ascontiguousarray(padded[:, :height, :width]), size_hw or soft.image_hw)
