"""The arena's figures: thresholds from calibration scenes, mIoU, boundary IoU, and intervals over scenes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int64

from benchmarks.common import DEMO_CLASSES
from data.demo.world import Scene
from data.scoring import boundary_counts, boundary_iou, confusion_matrix, score
from data.store.softmaps import SoftMaps, upsample
from pseudolabel.calibrate.criteria import THRESHOLDS, best_threshold, count_pixels
from pseudolabel.masks.config import MaskConfig
from pseudolabel.masks.fuse import before_crf
from pseudolabel.masks.labelmap import label_map

N_CLASSES = len(DEMO_CLASSES) + 1
SAMPLES = 1000
STEPS = tuple(0.025 * step for step in range(-5, 2))  # around the best threshold before the CRF, which is seldom lower


@dataclass(frozen=True)
class Fitted:
    """The thresholds that are best on some scenes, and the mIoU after the CRF."""

    threshold_before: float
    threshold_after: float
    after: float


@dataclass(frozen=True)
class Judged:
    """What a method reaches on a world; counts are the confusion matrices of its scenes."""

    before: float
    after: float
    boundary: float
    counts_before: Int64[np.ndarray, "scenes classes classes"]
    counts_after: Int64[np.ndarray, "scenes classes classes"]


def with_threshold(masks: MaskConfig, threshold: float) -> MaskConfig:
    """Return settings with another threshold."""
    return replace(masks, fuse=replace(masks.fuse, threshold=threshold))


def fitted(scenes: Sequence[Scene], maps: Sequence[SoftMaps], masks: MaskConfig) -> Fitted:
    """Return the best thresholds, of THRESHOLDS before the CRF and of some around that after it."""
    counts = sum(
        count_pixels(upsample(soft.maps.astype(np.float32), soft), soft.labels, scene.mask, N_CLASSES)
        for scene, soft in zip(scenes, maps, strict=True)
    )
    assert isinstance(counts, np.ndarray)
    _, before = best_threshold(counts)
    tried = [before + step for step in STEPS if THRESHOLDS[0] <= before + step <= 1]
    reached = [score(_after(scenes, maps, with_threshold(masks, tau)).sum(axis=0)).miou for tau in tried]
    best = int(np.argmax(reached))
    return Fitted(before, tried[best], reached[best])


def _after(
    scenes: Sequence[Scene], maps: Sequence[SoftMaps], masks: MaskConfig
) -> Int64[np.ndarray, "scenes classes classes"]:
    """Return the confusion matrix of each scene after the CRF."""
    found = [label_map(scene.rgb, soft, masks)[1] for scene, soft in zip(scenes, maps, strict=True)]
    return np.stack([confusion_matrix(s.mask, each, N_CLASSES) for s, each in zip(scenes, found, strict=True)])


def judged(scenes: Sequence[Scene], maps: Sequence[SoftMaps], masks: MaskConfig, before: float, after: float) -> Judged:
    """Return what some soft maps reach at these thresholds."""
    raw, refined, edges = [], [], np.zeros((2, N_CLASSES), np.int64)
    for scene, soft in zip(scenes, maps, strict=True):
        coarse = before_crf(soft, with_threshold(masks, before).fuse)
        fine = label_map(scene.rgb, soft, with_threshold(masks, after))[1]
        raw.append(confusion_matrix(scene.mask, coarse, N_CLASSES))
        refined.append(confusion_matrix(scene.mask, fine, N_CLASSES))
        edges += boundary_counts(scene.mask, fine, N_CLASSES)
    counts = np.stack(raw), np.stack(refined)
    means = [score(each.sum(axis=0)).miou for each in counts]
    return Judged(means[0], means[1], float(np.nanmean(boundary_iou(edges))), *counts)


def drawn_mious(
    counts: Int64[np.ndarray, "scenes classes classes"], samples: int = SAMPLES
) -> Float[np.ndarray, " samples"]:
    """Return the mIoU of bootstrap samples of the scenes; of equally many scenes they are the same samples."""
    number = len(counts)
    times = np.random.default_rng(0).multinomial(number, [1 / number] * number, samples)
    matrices = (times @ counts.reshape(number, -1)).reshape(samples, *counts.shape[1:])
    hits = np.einsum("sii->si", matrices).astype(np.float64)
    union = matrices.sum(axis=1) + matrices.sum(axis=2) - hits
    return np.nanmean(np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0), axis=1)


def interval(counts: Int64[np.ndarray, "scenes classes classes"]) -> tuple[float, float]:
    """Return the 95 % interval of the mIoU."""
    low, high = np.percentile(drawn_mious(counts), [2.5, 97.5])
    return float(low), float(high)


def difference(
    first: Int64[np.ndarray, "scenes classes classes"], second: Int64[np.ndarray, "scenes classes classes"]
) -> tuple[float, float, float]:
    """Return by how much the first has a higher mIoU than the second on the same scenes, with its 95 % interval."""
    low, high = np.percentile(drawn_mious(first) - drawn_mious(second), [2.5, 97.5])
    gap = score(first.sum(axis=0)).miou - score(second.sum(axis=0)).miou
    return gap, float(low), float(high)
