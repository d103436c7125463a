"""How good settings are: on recordings, and through the pipeline itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.masks import read_truth
from data.samples import Sample
from data.scoring import confusion_matrix, score
from pseudolabel.calibrate.criteria import best_threshold, count_pixels, image_edges, label_score
from pseudolabel.calibrate.offline import raw_maps, refined_maps, view
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.calibrate.recordings import Sentences
from pseudolabel.config import GenerateConfig, mask_config
from pseudolabel.masks.fuse import before_crf
from pseudolabel.masks.labelmap import label_map
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.grids import common_grid
from pseudolabel.softmaps.layers import Layer


@dataclass(frozen=True)
class Measured:
    """The mIoU of some settings through the pipeline itself, at full size and with all draws."""

    threshold: float
    before_crf: float
    after_crf: float

    def __str__(self) -> str:
        return f"{self.before_crf:.4f} / {self.after_crf:.4f}"


def measured(
    pipeline: Pipeline, samples: Sequence[Sample], pictures: Sequence[Picture], thresholds: Sequence[float]
) -> Measured:
    """Return what the pipeline's settings reach at the threshold that is best after the CRF."""
    n_classes = len(pipeline.reader.classes or ()) + 1
    counts = np.zeros((len(thresholds), 2, n_classes, n_classes), np.int64)
    masks = mask_config(pipeline.config)
    variants = [replace(masks, fuse=replace(masks.fuse, threshold=tau)) for tau in thresholds]
    for sample, picture in tqdm(list(zip(samples, pictures, strict=True)), "measure", unit="image", leave=False):
        assert sample.truth_path is not None
        rgb_u8 = picture.rgb_u8
        truth = read_truth(sample.truth_path, rgb_u8.shape[:2], sample.image_path, sample.white)
        [soft] = pipeline.soft_maps([rgb_u8], [picture.labels], [picture.id])
        for (raw, refined), variant in zip(counts, variants, strict=True):
            raw += confusion_matrix(truth, before_crf(soft, variant.fuse), n_classes)
            refined += confusion_matrix(truth, label_map(rgb_u8, soft, variant)[1], n_classes)
    best = int(np.argmax([score(refined).miou for _, refined in counts]))
    raw, refined = counts[best]
    return Measured(float(thresholds[best]), score(raw).miou, score(refined).miou)


@dataclass(frozen=True)
class Verdict:
    """How good some settings are: the score, and the threshold that goes with it."""

    score: float
    threshold: float


def judge_by_truth(
    recorded: Iterable[Sentences], candidates: Sequence[GenerateConfig], layers: tuple[Layer, ...], n_classes: int
) -> list[Verdict]:
    """Return the highest mIoU over thresholds of each candidate (one confusion matrix over all pictures)."""
    counts: list[Any] = [0] * len(candidates)
    for item in recorded:
        picture = item[0].picture
        assert picture.truth is not None
        for index, candidate in enumerate(candidates):
            if candidate.diffusion.timesteps != (item[0].timestep,):
                continue
            maps = competed(view(refined_maps(item, candidate, layers), item[0]), candidate)
            counts[index] = counts[index] + count_pixels(maps, picture.prompted, picture.truth, n_classes)
    return [Verdict(*best_threshold(count)) for count in counts]


def competed(maps: np.ndarray, config: GenerateConfig) -> np.ndarray:
    """Return class maps that are zero where background words win, if these compete; theirs is then the last map."""
    if config.fuse.background == "rule":
        return maps
    classes, words = maps[:-1], maps[-1]
    return np.where(words > classes.max(axis=0), 0, classes)


def judge_sizes(
    by_scale: Mapping[float, Sequence[np.ndarray]],
    pictures: Sequence[Picture],
    sets: Sequence[tuple[float, ...]],
    n_classes: int,
) -> list[Verdict]:
    """Return the highest mIoU over thresholds of each set of image sizes, whose maps are averaged.

    Args:
        by_scale: by relative size, the maps of each picture at the size of its ground truth.
        pictures: the same pictures.
        sets: sizes that are averaged.
        n_classes: number of classes, the background included.

    """
    verdicts = []
    for scales in sets:
        counts: Any = 0
        for picture, *maps in zip(pictures, *(by_scale[scale] for scale in scales), strict=True):
            assert picture.truth is not None
            counts = counts + count_pixels(np.mean(maps, axis=0), picture.prompted, picture.truth, n_classes)
        verdicts.append(Verdict(*best_threshold(counts)))
    return verdicts


def judge_by_labels(
    recorded: Iterable[Sentences], candidates: Sequence[GenerateConfig], layers: tuple[Layer, ...]
) -> list[Verdict]:
    """Return `criteria.label_score` of each candidate's raw maps; the affinity of the candidates plays no part."""
    present: list[list[Any]] = [[] for _ in candidates]
    absent: list[list[Any]] = [[] for _ in candidates]
    edges: list[list[Any]] = [[] for _ in candidates]
    for item in recorded:
        lines = image_edges(item[0].picture.rgb_u8)
        for index, candidate in enumerate(candidates):
            if candidate.diffusion.timesteps != (item[0].timestep,):
                continue
            first, second = present_and_absent(item, candidate, layers)
            present[index].append(first)
            absent[index].append(second)
            edges[index].append(lines)
    scores = [label_score(*maps) for maps in zip(present, absent, edges, strict=True)]
    return [Verdict(score, candidate.fuse.threshold) for score, candidate in zip(scores, candidates, strict=True)]


def present_and_absent(
    item: Sentences, config: GenerateConfig, layers: tuple[Layer, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the raw maps (mean over draws) of the classes a picture holds, and of its decoys, without the padding."""
    names = {spec.partition("@")[0] for spec in config.attention.cross_layers}
    picture = item[0].picture
    grid_hw = common_grid([layer for layer in layers if layer.name in names], (), item[0].latent_hw)
    maps = torch.zeros(len(picture.prompted), *grid_hw)
    for recorded in item:
        maps[list(recorded.rows)] = raw_maps(recorded, config.attention, grid_hw).mean(dim=0)
    rows, width = item[0].frame.valid_cells(grid_hw)
    cells = maps[:, :rows, :width].numpy()
    holds = np.array([label in picture.labels for label in picture.prompted])
    return cells[holds], cells[~holds]
