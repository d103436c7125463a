"""How good settings are: on recordings, and through the pipeline itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pseudolabel.calibrate.criteria import (
    THRESHOLDS,
    best_threshold,
    count_pixels,
    edge_alignment,
    image_edges,
    joined_score,
    separation,
)
from pseudolabel.calibrate.offline import raw_maps, refined_maps, view
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.calibrate.recordings import Sentences
from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.grids import common_grid
from pseudolabel.softmaps.layers import Layer

Sheet = dict[str, Tensor]  # what one picture says of some settings, kept until all pictures have spoken


@dataclass(frozen=True)
class Verdict:
    """How good some settings are: the score, and the threshold that goes with it."""

    score: float
    threshold: float


def sheet_by_truth(
    items: Sequence[Sentences], candidates: Sequence[GenerateConfig], layers: Sequence[Layer], n_classes: int
) -> Sheet:
    """Return the pixels of one picture by what candidates make of them (`count_pixels`): the numbers above 0, placed.

    Args:
        items: what was recorded of the picture, at each timestep that a candidate has.
        candidates: settings of one timestep each.
        layers: all layers of the model.
        n_classes: number of classes, the background included.

    """
    picture = items[0][0].picture
    assert picture.truth is not None
    at = {item[0].timestep: item for item in items}
    places, numbers, size = [], [], n_classes**2 * (len(THRESHOLDS) + 1)
    for index, candidate in enumerate(candidates):
        item = at[candidate.diffusion.timesteps[0]]
        maps = competed(view(refined_maps(item, candidate, layers), item[0]), candidate)
        counted = count_pixels(maps, picture.prompted, picture.truth, n_classes).ravel()
        [found] = np.nonzero(counted)
        places.append(found + index * size)
        numbers.append(counted[found])
    return {
        "places": torch.from_numpy(np.concatenate(places)),
        "numbers": torch.from_numpy(np.concatenate(numbers)),
    }


def verdicts_by_truth(sheets: Iterable[Sheet], candidates: Sequence[GenerateConfig], n_classes: int) -> list[Verdict]:
    """Return the highest mIoU over thresholds of each candidate (one confusion matrix over all pictures)."""
    counts = np.zeros((len(candidates), n_classes, n_classes, len(THRESHOLDS) + 1), np.int64)
    for sheet in sheets:
        counts.reshape(-1)[sheet["places"].numpy()] += sheet["numbers"].numpy()  # no place twice in a sheet
    return [Verdict(*best_threshold(each)) for each in counts]


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


def sheet_by_labels(items: Sequence[Sentences], candidates: Sequence[GenerateConfig], layers: Sequence[Layer]) -> Sheet:
    """Return of one picture how well each candidate's raw maps tell classes apart, and follow the image's edges.

    These are the two parts of `criteria.label_score`; the affinity of the candidates plays no part.
    """
    at = {item[0].timestep: item for item in items}
    edges = image_edges(items[0][0].picture.rgb_u8)
    rows = []
    for candidate in candidates:
        present, absent = present_and_absent(at[candidate.diffusion.timesteps[0]], candidate, layers)
        rows.append([separation(present, absent), edge_alignment(present, edges)])
    return {"parts": torch.tensor(rows, dtype=torch.float64)}


def verdicts_by_labels(sheets: Iterable[Sheet], candidates: Sequence[GenerateConfig]) -> list[Verdict]:
    """Return `criteria.label_score` of each candidate, with the threshold it has."""
    means = torch.stack([sheet["parts"] for sheet in sheets]).mean(dim=0).tolist()
    return [
        Verdict(joined_score(told_apart, aligned), candidate.fuse.threshold)
        for candidate, (told_apart, aligned) in zip(candidates, means, strict=True)
    ]


def present_and_absent(
    item: Sentences, config: GenerateConfig, layers: Sequence[Layer]
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
