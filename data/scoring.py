"""The field's figures: one confusion matrix over the whole data set, and what follows from it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from data.classes import IGNORE
from data.errors import LabelError


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says.

    Attributes:
        iou: intersection over union of each class, 0 to 1, background first; nan for a class that neither the
            truth nor the prediction holds.
        miou: mean of the classes that are not nan; nan if there is none.
        pixel_accuracy: share of the scored pixels that are right; nan if there are none.
        precision: share of the pixels predicted as a class that are of it; nan where it was never predicted.
        recall: share of the pixels of a class that were found; nan where it never occurs.
        matrix: the counts, rows truth, columns prediction.

    """

    iou: Float64[np.ndarray, " classes"]
    miou: float
    pixel_accuracy: float
    precision: Float64[np.ndarray, " classes"]
    recall: Float64[np.ndarray, " classes"]
    matrix: Int64[np.ndarray, "classes classes"]


def confusion_matrix(
    truth: UInt8[np.ndarray, "*shape"],
    prediction: UInt8[np.ndarray, "*shape"],
    n_classes: int,
    ignore: int = IGNORE,
) -> Int64[np.ndarray, "classes classes"]:
    """Count pixels by true class (row) and predicted class (column); add the matrices of all images up.

    Args:
        truth: class ids; pixels of `ignore` are not counted.
        prediction: class ids without an ignore band.
        n_classes: number of classes, the background included.
        ignore: value of the truth to leave out.

    Raises:
        LabelError: an id of `n_classes` or more at a counted pixel.

    >>> confusion_matrix(np.uint8([0, 1, 1, 255]), np.uint8([0, 0, 1, 1]), 2)
    array([[1, 0],
           [1, 1]])

    """
    counted = truth != ignore
    true, predicted = truth[counted].astype(np.int64), prediction[counted]
    for name, values in (("ground truth", true), ("prediction", predicted)):
        if values.size and values.max() >= n_classes:
            raise LabelError(
                f"The {name} holds class id {values.max()}, but ids end at {n_classes - 1}: wrong class list, or a "
                "mask with an ignore band where one without is scored."
            )
    counts = np.bincount(true * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes).astype(np.int64)


def score(matrix: Int64[np.ndarray, "classes classes"]) -> Scores:
    """Return the figures of a confusion matrix (rows truth, columns prediction).

    >>> score(np.array([[1, 0], [1, 1]])).miou
    0.5
    """
    hits = np.diag(matrix).astype(np.float64)
    true, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    iou = _ratio(hits, true + predicted - hits)
    return Scores(
        iou=iou,
        miou=float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan"),
        pixel_accuracy=float(hits.sum() / matrix.sum()) if matrix.sum() else float("nan"),
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, true),
        matrix=matrix,
    )


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> Float64[np.ndarray, " classes"]:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def boundary_confusion(
    truth: UInt8[np.ndarray, "height width"],
    prediction: UInt8[np.ndarray, "height width"],
    n_classes: int,
    distance_px: int | None = None,
    ignore: int = IGNORE,
) -> Int64[np.ndarray, "classes classes"]:
    """Count as `confusion_matrix` does, but only pixels near a boundary of the truth (the "trimap" of the CRF papers).

    `score` of the sum over all images is the IoU along outlines, which tells smooth blobs from sharp masks where the
    plain IoU hardly does. Source: Kohli, Ladicky and Torr, IJCV 82 (2009), section 5; DeepLab (arXiv 1606.00915),
    figure 10. This is not Cheng et al.'s Boundary IoU (arXiv 2103.16562), which compares the two outlines instead;
    from it we take the width's default.

    Args:
        truth: class ids; `ignore` is not counted, and its edge is a boundary like any other.
        prediction: class ids.
        n_classes: number of classes, the background included.
        distance_px: half width of the band, in pixels along rows and columns; 2 % of the diagonal if not given.
        ignore: value of the truth to leave out.

    """
    if distance_px is None:
        distance_px = max(1, round(0.02 * float(np.hypot(*truth.shape))))
    near = _near_boundary(truth, distance_px)
    return confusion_matrix(truth[near], prediction[near], n_classes, ignore)


def _near_boundary(labels: UInt8[np.ndarray, "height width"], distance_px: int) -> Bool[np.ndarray, "height width"]:
    edge = np.zeros(labels.shape, dtype=bool)
    rows, columns = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= rows
    edge[:-1] |= rows
    edge[:, 1:] |= columns
    edge[:, :-1] |= columns
    return _widen(_widen(edge, distance_px - 1).T, distance_px - 1).T


def _widen(marks: Bool[np.ndarray, "rows columns"], distance_px: int) -> Bool[np.ndarray, "rows columns"]:
    """Mark every pixel that has a marked one within the distance in its column, by differences of running sums."""
    if distance_px <= 0:
        return marks
    sums = np.concatenate([np.zeros((1, marks.shape[1]), np.int64), marks.cumsum(axis=0)])
    positions = np.arange(len(marks))
    high = np.minimum(positions + distance_px + 1, len(marks))
    low = np.maximum(positions - distance_px, 0)
    return sums[high] > sums[low]
