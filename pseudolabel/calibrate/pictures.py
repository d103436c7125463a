"""The images a calibration looks at: their labels, absent classes for the sentence, and a small view of the truth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data.images import read_image, size_of
from data.masks import read_truth
from data.samples import Sample

KEPT_PIXELS = 2_100_000  # of an image kept in memory: a hundred such take 630 MB
VIEW_PX = 96  # long side at which candidates are compared with the ground truth


@dataclass(frozen=True)
class Picture:
    """One image of the calibration set.

    Attributes:
        id: its noise depends on it.
        source: the image, or, for one of more than KEPT_PIXELS, the file it is read from each time it is needed.
        labels: classes it holds.
        decoys: classes it does not hold that are put into the sentence all the same.
        truth: ground truth sampled at VIEW_PX; None where there is none.

    """

    id: str
    source: UInt8[np.ndarray, "height width 3"] | Path
    labels: tuple[int, ...]
    decoys: tuple[int, ...] = ()
    truth: UInt8[np.ndarray, "view_h view_w"] | None = None

    @property
    def rgb_u8(self) -> UInt8[np.ndarray, "height width 3"]:
        """The image."""
        return read_image(self.source) if isinstance(self.source, Path) else self.source

    @property
    def size_hw(self) -> tuple[int, int]:
        """Its height and width."""
        return size_of(self.source) if isinstance(self.source, Path) else self.source.shape[:2]

    @property
    def prompted(self) -> tuple[int, ...]:
        """All classes in the sentence, ascending."""
        return tuple(sorted({*self.labels, *self.decoys}))


def load_picture(sample: Sample, n_classes: int, n_decoys: int, with_truth: bool) -> Picture:
    """Read an image and, where there is one and it is wanted, its ground truth; draw its decoys."""
    rgb_u8 = read_image(sample.image_path)
    truth = None
    if with_truth and sample.truth_path is not None:
        height, width = rgb_u8.shape[:2]
        whole = read_truth(sample.truth_path, (height, width), sample.image_path, sample.white)
        shrink = min(1.0, VIEW_PX / max(height, width))
        view_hw = max(1, round(height * shrink)), max(1, round(width * shrink))
        rows, columns = (
            ((np.arange(count) + 0.5) * size / count).astype(int)
            for count, size in zip(view_hw, (height, width), strict=True)
        )
        truth = np.ascontiguousarray(whole[np.ix_(rows, columns)])
    decoys = draw_decoys(sample.id, sample.labels, n_classes, n_decoys)
    source = rgb_u8 if rgb_u8.shape[0] * rgb_u8.shape[1] <= KEPT_PIXELS else sample.image_path
    return Picture(sample.id, source, sample.labels, decoys, truth)


def draw_decoys(sample_id: str, labels: tuple[int, ...], n_classes: int, count: int) -> tuple[int, ...]:
    """Return some classes an image does not hold, ascending; they depend on the image's id alone."""
    others = [label for label in range(1, n_classes + 1) if label not in labels]
    order = np.random.default_rng(list(sample_id.encode())).permutation(len(others))[:count]
    return tuple(sorted(others[index] for index in order))
