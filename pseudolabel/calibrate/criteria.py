"""How good class maps are, in one number: against ground truth, or from the image-level labels alone.

Pure functions on small arrays, quick enough for the hundreds of candidates that `pseudolabel calibrate` compares.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Int64, UInt8

from data.classes import IGNORE

# Thresholds (tau) that are compared.
THRESHOLDS = np.arange(0.1, 0.9501, 0.025)
# Share of a map's cells that count as its peak.
PEAK_SHARE = 0.1
# Long side, in pixels, at which maps are compared with the image's edges: grain and fine texture do not count.
EDGE_PX = 64


def cut_of(threshold: Float[np.ndarray, "*shape"] | float) -> Float[np.ndarray, "*shape"] | float:
    """Return the map value below which the background wins, for a threshold tau.

    The background's score is (2 tau - m)^2 with m the highest class map, so it wins where m < 2 tau and
    (2 tau - m)^2 > m; the smaller root is (4 tau + 1 - sqrt(8 tau + 1)) / 2.

    >>> round(cut_of(0.5), 3)
    0.382
    """
    return (4 * threshold + 1 - (8 * threshold + 1) ** 0.5) / 2


def threshold_of(cut: float) -> float:
    """Return the threshold tau whose background wins below a map value; the inverse of `cut_of`.

    >>> round(threshold_of(cut_of(0.35)), 6)
    0.35
    """
    return float((cut + cut**0.5) / 2)


def count_pixels(
    maps: Float[np.ndarray, "classes height width"],
    labels: tuple[int, ...],
    truth: UInt8[np.ndarray, "height width"],
    n_classes: int,
) -> Int64[np.ndarray, "true predicted bins"]:
    """Count pixels by true class, strongest class, and how many of THRESHOLDS would call them background.

    From the sum over images `best_threshold` gets the confusion matrix of every threshold at once.

    Args:
        maps: one map per label, 0 to 1, without background.
        labels: class ids of the maps.
        truth: class ids, 255 where nothing is counted.
        n_classes: number of classes, the background included.

    """
    counted = truth != IGNORE
    winner = np.asarray(labels)[maps.argmax(axis=0)][counted]
    bins = np.searchsorted(cut_of(THRESHOLDS), maps.max(axis=0)[counted], side="right")
    size = len(THRESHOLDS) + 1
    flat = (truth[counted].astype(np.int64) * n_classes + winner) * size + bins
    return np.bincount(flat, minlength=n_classes**2 * size).reshape(n_classes, n_classes, size)


def mious(counts: Int64[np.ndarray, "true predicted bins"]) -> Float[np.ndarray, " thresholds"]:
    """Return the mIoU at each of THRESHOLDS, from summed `count_pixels`."""
    # A pixel of bin b exceeds the cuts 0 to b - 1: at threshold i it is an object where b > i.
    objects = counts[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:]
    matrices = objects.copy()
    matrices[:, 0] += counts.sum(axis=(1, 2))[:, None] - objects.sum(axis=1)
    hits = np.einsum("iit->it", matrices).astype(np.float64)
    union = matrices.sum(axis=0) + matrices.sum(axis=1) - hits
    iou = np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)
    return np.nanmean(iou, axis=0)


def best_threshold(counts: Int64[np.ndarray, "true predicted bins"]) -> tuple[float, float]:
    """Return the highest mIoU over THRESHOLDS and the threshold that reaches it, from summed `count_pixels`."""
    values = mious(counts)
    best = int(values.argmax())
    return float(values[best]), float(THRESHOLDS[best])


def peak(maps: Float[np.ndarray, "*classes height width"]) -> Float[np.ndarray, "*classes"]:
    """Return how far each map's highest tenth stands out: its mean over the mean of the whole map; 1 for a flat map."""
    flat = maps.reshape(*maps.shape[:-2], -1)
    count = max(1, round(PEAK_SHARE * flat.shape[-1]))
    highest = np.sort(flat, axis=-1)[..., -count:].mean(axis=-1)
    return highest / np.maximum(flat.mean(axis=-1), 1e-12)


def separation(
    present: Float[np.ndarray, "classes height width"], absent: Float[np.ndarray, "others height width"]
) -> float:
    """Return how often a present class's map has a higher `peak` than an absent class's: 0.5 is chance, 1 is always.

    This is the area under the ROC curve (Mann and Whitney's U over the number of pairs); ties count half.
    """
    difference = peak(present)[:, None] - peak(absent)[None]
    return float((np.sign(difference) / 2 + 0.5).mean())


def image_edges(rgb_u8: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "small_h small_w"]:
    """Return how much an image changes from pixel to pixel (gradient magnitude over colours), at EDGE_PX."""
    height, width = rgb_u8.shape[:2]
    shrink = min(1.0, EDGE_PX / max(height, width))
    size_wh = max(1, round(width * shrink)), max(1, round(height * shrink))
    return _gradient(cv2.resize(rgb_u8, size_wh, interpolation=cv2.INTER_AREA))


def edge_alignment(
    maps: Float[np.ndarray, "classes height width"], edges: Float[np.ndarray, "small_h small_w"]
) -> float:
    """Return how well maps change where the image does: 1 along the same lines, 0 unrelated or flat, -1 elsewhere.

    This is the correlation of a map's gradient magnitude with `image_edges`, mean over maps.
    """
    changes = [_gradient(cv2.resize(each.astype(np.float32), edges.shape[::-1])) for each in maps]
    return float(np.mean([_correlation(change, edges) for change in changes]))


def label_score(
    present: Sequence[Float[np.ndarray, "_ _ _"]],
    absent: Sequence[Float[np.ndarray, "_ _ _"]],
    edges: Sequence[Float[np.ndarray, "_ _"]],
) -> float:
    """Return how good maps are as far as image-level labels can tell, 0 to 1; no ground truth is used.

    The sentence read names classes that are in the image and others that are not. Good maps tell the two kinds apart,
    and change where the image does: mean `separation` over images times mean `edge_alignment`; either alone ranks
    settings worse. Our own, chosen among some twenty formulas on four versions of the demo's model;
    benchmarks/calibration.md holds its rank correlation with mIoU on scenes that no choice was made on.

    Args:
        present: of each image, raw maps (not scaled to 0..1) of the classes it holds.
        absent: of each image, raw maps of the classes it does not hold, from the same passes.
        edges: `image_edges` of each image.

    """
    told_apart = float(np.mean([separation(*pair) for pair in zip(present, absent, strict=True)]))
    aligned = float(np.mean([edge_alignment(*pair) for pair in zip(present, edges, strict=True)]))
    return joined_score(told_apart, aligned)


def joined_score(told_apart: float, aligned: float) -> float:
    """Return the score of mean `separation` and mean `edge_alignment` over images; see `label_score`."""
    return told_apart * max(0.0, aligned)


def _gradient(picture: np.ndarray) -> Float[np.ndarray, "height width"]:
    """Return the gradient's magnitude (Sobel), over all channels."""
    whole = np.atleast_3d(picture).astype(np.float32)
    across = [
        cv2.Sobel(channel, cv2.CV_32F, *axis) for channel in np.moveaxis(whole, 2, 0) for axis in ((1, 0), (0, 1))
    ]
    return np.linalg.norm(np.stack(across), axis=0)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Pearson's correlation; 0 where one of the two does not vary."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def otsu_threshold(maps: Sequence[Float[np.ndarray, "_ _ _"]]) -> float:
    """Return the threshold tau whose background is what Otsu's method takes as the lower of two groups of cells.

    Source: Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE SMC 9 (1979), over the highest class
    map of every cell of all images. Used where there is no ground truth.
    """
    strongest = np.concatenate([image.max(axis=0).ravel() for image in maps])
    values = np.round(np.clip(strongest, 0, 1) * 255).astype(np.uint8)
    level, _ = cv2.threshold(values[None], 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return round(threshold_of(float(level) / 255), 3)
