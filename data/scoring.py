"""The field's figures: one confusion matrix over the whole data set, and what follows from it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from data.classes import IGNORE
from data.errors import LabelError
from data.images import BAND_PIXELS

BOUNDARY_SHARE = 0.02  # depth of a boundary region as a share of the image's diagonal, as Cheng et al. measure


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
    if truth.shape != prediction.shape:
        raise LabelError(f"The ground truth has the shape {truth.shape}, the prediction {prediction.shape}: one shape.")
    flat, found = truth.reshape(-1), prediction.reshape(-1)
    total = np.zeros(n_classes**2, np.int64)
    for at in range(0, flat.size, BAND_PIXELS):  # in bands, because counting takes eight bytes a pixel
        counted = flat[at : at + BAND_PIXELS] != ignore
        true, predicted = flat[at : at + BAND_PIXELS][counted].astype(np.int64), found[at : at + BAND_PIXELS][counted]
        for name, values in (("ground truth", true), ("prediction", predicted)):
            _check_ids(name, values, n_classes)
        total += np.bincount(true * n_classes + predicted, minlength=n_classes**2)
    return total.reshape(n_classes, n_classes)


def _check_ids(name: str, values: np.ndarray, n_classes: int) -> None:
    if values.size and values.max() >= n_classes:
        raise LabelError(
            f"The {name} holds class id {values.max()}, but ids end at {n_classes - 1}: wrong class list, or a "
            "mask with an ignore band where one without is scored."
        )


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


def boundary_counts(
    truth: UInt8[np.ndarray, "height width"],
    prediction: UInt8[np.ndarray, "height width"],
    n_classes: int,
    distance_px: int | None = None,
    ignore: int = IGNORE,
) -> Int64[np.ndarray, "2 classes"]:
    """Count what Boundary IoU is made of, for each class: pixels of the intersection, pixels of the union.

    A class's boundary region is what lies inside its mask within `distance_px` of the mask's outline; the image's
    border is an outline too. Add the counts of all images up; `boundary_iou` divides. Unlike the IoU, it does not grow
    with an object's size, so it tells smooth blobs from sharp masks. Source: Cheng et al., CVPR 2021 (arXiv
    2103.16562), equation 4, with the square neighbourhood and the 2 % of the diagonal of the authors' code. Where we
    differ: the sums run over the data set, as those of mIoU do, and not over one object; and see `ignore`.

    Args:
        truth: class ids.
        prediction: class ids without an ignore band.
        n_classes: number of classes, the background included.
        distance_px: depth of the boundary region, in pixels along rows, columns and diagonals; 2 % of the image's
            diagonal, rounded, at least 1, if not given.
        ignore: value of the truth to leave out. Such pixels belong to no class, neither in the truth nor in the
            prediction, so their edge is an outline of both, and what is predicted there changes nothing.

    Raises:
        LabelError: an id of `n_classes` or more at a counted pixel.

    >>> boundary_counts(np.uint8([[0, 0, 1, 1]]), np.uint8([[0, 1, 1, 1]]), 2, 1)
    array([[1, 2],
           [2, 3]])

    """
    if distance_px is None:
        distance_px = max(1, round(BOUNDARY_SHARE * float(np.hypot(*truth.shape))))
    for name, values in (("ground truth", truth), ("prediction", prediction)):
        _check_ids(name, values[truth != ignore], n_classes)
    true = _boundary_ids(truth, distance_px, ignore)
    predicted = _boundary_ids(np.where(truth == ignore, truth, prediction), distance_px, ignore)
    both = np.where(true == predicted, true, np.uint8(ignore))
    in_true, in_predicted, in_both = (
        np.bincount(ids[ids != ignore], minlength=n_classes) for ids in (true, predicted, both)
    )
    return np.stack([in_both, in_true + in_predicted - in_both]).astype(np.int64)


def boundary_iou(counts: Int64[np.ndarray, "2 classes"]) -> Float64[np.ndarray, " classes"]:
    """Return the Boundary IoU of each class, 0 to 1, from summed `boundary_counts`; nan for a class never there.

    >>> boundary_iou(np.array([[1, 2], [2, 2]]))
    array([0.5, 1. ])
    """
    return _ratio(counts[0].astype(np.float64), counts[1])


def _boundary_ids(
    labels: UInt8[np.ndarray, "height width"], distance_px: int, ignore: int
) -> UInt8[np.ndarray, "height width"]:
    """Return the labels where the image's border or another label is within the distance, `ignore` elsewhere.

    That is the union of the boundary regions of all classes: a class's own pixels from which another label can be
    reached in that many steps, each to one of the eight neighbours. The last step leaves a pixel with such a neighbour.
    """
    import cv2

    framed = np.pad(labels.astype(np.int16), 1, constant_values=-1)
    height, width = labels.shape
    edge = np.zeros(labels.shape, dtype=np.uint8)
    for row in range(3):
        for column in range(3):
            edge |= framed[row : row + height, column : column + width] != labels
    # Distance d along rows, columns and diagonals is a square of side 2 d + 1; a square is a row, then a column.
    side = 2 * (distance_px - 1) + 1
    near = cv2.dilate(cv2.dilate(edge, np.ones((1, side), np.uint8)), np.ones((side, 1), np.uint8)) > 0
    return np.where(near, labels, np.uint8(ignore))
