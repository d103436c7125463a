"""Rules that find a thing in what its token and class word show: their settings, chosen on one half of the drawings."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from data.demo.personal import CONCEPTS, SUBSETS
from data.demo.scene import VISIBLE_PX
from pseudolabel.softmaps.grids import resize_maps

READ = {"last": (3,), "first and last": (0, 3), "those of demo.yaml": (1, 2, 3)}  # indices of personal_read.LAYERS
WEIGHTS = (0.25, 0.5, 1.0, 2.0)  # lambda
CUTS = np.concatenate([np.geomspace(0.002, 0.3, 40), np.linspace(0.32, 0.98, 34)])
RULES = ("class word", "token", "both, the higher one", "contrast", "class word x share")
WEIGHTED = ("contrast", "class word x share")
CHOSEN_ON = "semantic_distractor"  # the subset


@dataclass(frozen=True)
class Choice:
    """How a rule reads its maps: layers, whether they are spread by self-attention, whether scaled to 0..1, lambda."""

    rule: str
    layers: str
    spread: bool
    scaled: bool
    weight: float = 0.0

    def text(self) -> str:
        """Say it in a table's cell."""
        parts = [
            self.layers,
            "spread" if self.spread else "as read",
            "0..1 in each scene" if self.scaled else "absolute",
        ]
        return "; ".join(parts) + (f"; lambda {self.weight:g}" if self.rule in WEIGHTED else "")


def choices() -> Iterator[Choice]:
    """Yield every way of reading that is tried on the tuning half."""
    for layers, spread, scaled in product(READ, (False, True), (False, True)):
        for rule in RULES:
            for weight in WEIGHTS if rule in WEIGHTED else (0.0,):
                yield Choice(rule, layers, spread, scaled, weight)


def scores_of(maps: dict[str, np.ndarray], choice: Choice, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the score of every pixel of every scene under a rule: (scenes, height, width).

    Args:
        maps: of a concept, (scenes, 2, layers, maps, rows, columns) by sentence.
        choice: the rule and how it reads.
        size_hw: height and width of the scenes.

    """
    sentence = {"class word": "class", "token": "token"}.get(choice.rule, "both")
    read = maps[sentence][:, int(choice.spread), list(READ[choice.layers])].mean(1)  # scenes, maps, rows, columns
    match choice.rule:
        case "both, the higher one":
            score = np.where(read[:, 0] >= read[:, 1], read[:, 0], 0)
        case "contrast":
            score = np.maximum(0, read[:, 0] - choice.weight * read[:, 1])
        case "class word x share":
            kind = to_unit(maps["class"][:, 1, list(READ["those of demo.yaml"]), 0].mean(1))
            score = kind * read[:, 0] / np.maximum(read[:, 0] + choice.weight * read[:, 1], 1e-6)
        case _:
            score = read[:, 0]
    if choice.scaled:
        score = to_unit(score)
    return resize_maps(torch.from_numpy(score)[:, None], size_hw)[:, 0].numpy()


def to_unit(score: np.ndarray) -> np.ndarray:
    """Scale each scene's map to 0..1."""
    low, high = score.min((1, 2), keepdims=True), score.max((1, 2), keepdims=True)
    return (score - low) / np.maximum(high - low, 1e-6)


def overlaps(scores: np.ndarray, truths: np.ndarray, scenes: int) -> np.ndarray:
    """Return IoU by subset and cut: sum(I) / sum(U) over the scenes of a subset.

    Args:
        scores: of every pixel, (scenes, height, width), subset after subset.
        truths: the true masks, likewise.
        scenes: how many a subset has.

    """
    found = np.zeros((len(SUBSETS), len(CUTS)))
    for index in range(len(SUBSETS)):
        score, truth = (values[index * scenes : (index + 1) * scenes].ravel() for values in (scores, truths))
        above = np.digitize(score, CUTS)  # how many cuts a pixel is above
        predicted = np.bincount(above, minlength=len(CUTS) + 1)[::-1].cumsum()[::-1][1:]
        both = np.bincount(above[truth], minlength=len(CUTS) + 1)[::-1].cumsum()[::-1][1:]
        found[index] = both / np.maximum(predicted + truth.sum() - both, 1)
    return found


Maps = dict[tuple[str, str], dict[str, np.ndarray]]  # by kind of token and concept, then by sentence
Truths = dict[str, np.ndarray]  # masks by concept


def compare(maps: Maps, truths: Truths, kind: str) -> list[dict[str, Any]]:
    """Choose how each rule reads on the tuning half, and measure it on both halves; one row a rule.

    Args:
        maps: from `personal_read.maps_of`.
        truths: from `personal_read.read_truths`.
        kind: of the token: taught where to look, or plain.

    """
    best = choose(maps, truths, kind)
    rows = []
    for rule in RULES:
        choice, cut = best[rule]
        row: dict[str, Any] = {"rule": rule, "choice": choice.text(), "cut": round(float(CUTS[cut]), 4)}
        row["settings"] = [choice.layers, choice.spread, choice.scaled, choice.weight]
        row |= {half: measure(maps, truths, kind, choice, cut, half == "tuning") for half in ("tuning", "final")}
        rows.append(row)
    return rows


def choose(maps: Maps, truths: Truths, kind: str) -> dict[str, tuple[Choice, int]]:
    """Return for each rule the way of reading, and the number of the cut, with the highest mean IoU when tuning."""
    best: dict[str, tuple[float, Choice, int]] = {}
    for choice in choices():
        mean = ious(maps, truths, kind, choice, tuning=True).mean(0)[SUBSETS.index(CHOSEN_ON)]
        if mean.max() > best.get(choice.rule, (-1.0,))[0]:
            best[choice.rule] = (float(mean.max()), choice, int(mean.argmax()))
    return {rule: (choice, cut) for rule, (_, choice, cut) in best.items()}


def half_of(tuning: bool) -> list[str]:
    """Return the names of the concepts of a half."""
    return [concept.name for concept in CONCEPTS if concept.tuning == tuning]


def scenes_in(truths: Truths) -> int:
    """Return how many scenes a subset of a concept has."""
    return len(next(iter(truths.values()))) // len(SUBSETS)


def ious(maps: Maps, truths: Truths, kind: str, choice: Choice, tuning: bool) -> np.ndarray:
    """Return the IoU of a way of reading by concept of a half, subset and cut."""
    scenes, size_hw = scenes_in(truths), next(iter(truths.values())).shape[1:]
    return np.stack(
        [overlaps(scores_of(maps[kind, name], choice, size_hw), truths[name], scenes) for name in half_of(tuning)]
    )


def measure(maps: Maps, truths: Truths, kind: str, choice: Choice, cut: int, tuning: bool) -> dict[str, Any]:
    """Return the figures of a way of reading on a half, in percent: at the chosen cut, and at the best of each."""
    names, size_hw = half_of(tuning), next(iter(truths.values())).shape[1:]
    found = ious(maps, truths, kind, choice, tuning)
    scores = {name: scores_of(maps[kind, name], choice, size_hw) for name in names}
    return {
        "iou": [percent(value) for value in found[:, :, cut].mean(0)],
        "oracle": [percent(value) for value in found.max(2).mean(0)],
        "by_concept": {name: [percent(value) for value in found[i, :, cut]] for i, name in enumerate(names)},
        **alarms(scores, truths, CUTS[cut], scenes_in(truths)),
    }


def percent(share: float) -> float:
    """Return a share in percent, to a tenth."""
    return round(100 * float(share), 1)


def alarms(scores: dict[str, np.ndarray], truths: dict[str, np.ndarray], cut: float, scenes: int) -> dict[str, float]:
    """Return in what percentage of the distractor scenes it is seen: of those without it, and of those with it."""
    first = scenes * SUBSETS.index(CHOSEN_ON)
    part = slice(first, first + scenes)
    seen = np.concatenate([(score[part] > cut).sum((1, 2)) > VISIBLE_PX for score in scores.values()])
    shown = np.concatenate([truths[name][part].any((1, 2)) for name in scores])
    rates = {"false_alarms": seen[~shown].mean() if (~shown).any() else 0.0, "found": seen[shown].mean()}
    return {name: percent(rate) for name, rate in rates.items()}
