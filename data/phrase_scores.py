"""Figures of one mask a question: was the thing that a phrase names found, and nothing where it is not.

Unlike `data.scoring`, which has one confusion matrix of a fixed list of classes, every mask here is yes or no.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from data.scoring import boundary_counts

# The Panoptic Narrative Grounding authors' steps (their 0.00001 made coarser: the figure moves by less than 0.001).
RECALL_THRESHOLDS = np.arange(0, 1, 0.001)


@dataclass(frozen=True)
class Overlap:
    """Pixels of one predicted and one true mask; sums of several add field by field.

    Attributes:
        intersection: in both.
        union: in either.
        predicted: in the prediction.
        true: in the truth; 0 where the thing is not there.
        edge_intersection: in both masks' boundary regions (`data.scoring.boundary_counts`).
        edge_union: in either boundary region.
        size: in the image.

    """

    intersection: int
    union: int
    predicted: int
    true: int
    edge_intersection: int = 0
    edge_union: int = 0
    size: int = 0

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both masks are empty: nothing was to be found and nothing was."""
        return self.intersection / self.union if self.union else 1.0


def overlap_of(
    predicted: Bool[np.ndarray, "height width"], true: Bool[np.ndarray, "height width"], edges: bool = True
) -> Overlap:
    """Count what two masks of one size share; `edges` counts their boundary regions too.

    >>> overlap_of(np.array([[True, True, False]]), np.array([[False, True, True]]), edges=False).iou
    0.3333333333333333
    """
    edge_intersection, edge_union = 0, 0
    if edges:
        counts = boundary_counts(true.astype(np.uint8), predicted.astype(np.uint8), 2)
        edge_intersection, edge_union = int(counts[0, 1]), int(counts[1, 1])
    return Overlap(
        int((predicted & true).sum()),
        int((predicted | true).sum()),
        int(predicted.sum()),
        int(true.sum()),
        edge_intersection,
        edge_union,
        true.size,
    )


def total(overlaps: Iterable[Overlap]) -> Overlap:
    """Return the sum of overlaps."""
    return sum(overlaps, Overlap(0, 0, 0, 0))


def overall_iou(overlaps: Iterable[Overlap]) -> float:
    """Return sum(intersection) / sum(union) over all masks (oIoU): large objects count for more; nan without any.

    Source: the referring-segmentation protocol of RefCOCO, where it is called overall or cumulative IoU.
    """
    summed = total(overlaps)
    return summed.intersection / summed.union if summed.union else float("nan")


def mean_iou(overlaps: Sequence[Overlap]) -> float:
    """Return the mean of each mask's own IoU (mIoU of RefCOCO); nan without any."""
    return float(np.mean([one.iou for one in overlaps])) if overlaps else float("nan")


def overall_accuracy(overlaps: Iterable[Overlap]) -> float:
    """Return sum(intersection) / sum(true): the share of the thing's pixels that were found; nan without any."""
    summed = total(overlaps)
    return summed.intersection / summed.true if summed.true else float("nan")


def overall_boundary_iou(overlaps: Iterable[Overlap]) -> float:
    """Return the Boundary IoU from summed boundary regions; nan without any."""
    summed = total(overlaps)
    return summed.edge_intersection / summed.edge_union if summed.edge_union else float("nan")


def mean_over_concepts(figure: Sequence[float]) -> float:
    """Return the mean over concepts that have a figure; nan without any.

    PerSeg's mIoU is the mean over its 40 objects of each object's `overall_iou`.
    """
    known = [value for value in figure if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def average_recall(
    overlaps: Sequence[Overlap], thresholds: Float[np.ndarray, " thresholds"] = RECALL_THRESHOLDS
) -> float:
    """Return the mean over IoU thresholds of the share of masks that reach the threshold; nan without any.

    Source: Gonzalez et al., "Panoptic Narrative Grounding", ICCV 2021, section 5. As the thresholds run from 0 to 1 it
    is the mean IoU but for their steps.

    >>> average_recall([Overlap(1, 2, 1, 2)], np.array([0.25, 0.75]))
    0.5
    """
    if not overlaps:
        return float("nan")
    ious = np.array([one.iou for one in overlaps])
    return float((ious[:, None] >= thresholds[None]).mean())


def false_alarm_rate(overlaps: Iterable[Overlap], least_share: float = 0.001) -> float:
    """Return the share of the images without the thing in which it was found all the same; nan without such images.

    Args:
        overlaps: of any images; those that hold the thing are passed over.
        least_share: of an image's pixels that count as a find; fewer are specks.

    """
    absent = [one for one in overlaps if one.true == 0]
    if not absent:
        return float("nan")
    return float(np.mean([one.predicted > least_share * one.size for one in absent]))


def auroc(scores: Float[np.ndarray, " items"], positive: Bool[np.ndarray, " items"]) -> float:
    """Return the chance that a positive item scores higher than a negative one, ties counted half (area under ROC).

    nan where either kind is missing.

    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # mean rank of equal scores, from 1
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
