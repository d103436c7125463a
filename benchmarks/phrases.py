"""Phrases on the demo world: how good their masks are, and how well presence tells what is there from what is not.

    python -m benchmarks.phrases                  # 60 scenes of val, 60 of calibration; writes phrases.md and .json
    python -m benchmarks.phrases --scenes 8       # a quick look

Presence was chosen on the calibration scenes alone; its figures on val are there to be reported. No figure for masks
was used to choose anything.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import (
    DEMO_CLASSES,
    DEMO_CONFIG,
    DEMO_MODEL,
    HERE,
    load_config,
    machine,
    machine_line,
    table,
    write_json,
    write_text,
)
from data.demo.world import Scene, Split, split_scenes
from data.phrase_scores import Overlap, auroc, mean_iou, overall_iou, overlap_of
from pseudolabel.ground.config import GroundConfig
from pseudolabel.ground.localizer import Localizer
from pseudolabel.ground.presence import SUREST_SHARE, presence
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.parts import Parts, pick_device, pick_dtype
from pseudolabel.softmaps.shares import PhraseMaps


@dataclass(frozen=True)
class Ask:
    """How a scene's phrases are chosen: its classes' words, with an article, its grounds, one absent class."""

    name: str
    article: bool = False
    grounds: bool = False
    absent: bool = False


ASKS = (
    Ask("classes"),
    Ask("classes and grounds", grounds=True),
    Ask("classes with article", article=True),
    Ask("classes and an absent one", absent=True),
)


def surest(attention: np.ndarray, share: float = SUREST_SHARE) -> np.ndarray:
    """Return the flat positions of the cells where a phrase has most of the attention."""
    own = attention.mean(axis=0).ravel()
    return np.argsort(own)[-max(1, round(share * own.size)) :]


def chosen(maps: PhraseMaps, row: int) -> float:
    return presence(maps.attention[row], maps.idle[row])


def chosen_wider(maps: PhraseMaps, row: int) -> float:
    return presence(maps.attention[row], maps.idle[row], 0.02)


def peak(maps: PhraseMaps, row: int) -> float:
    return float(maps.attention[row].mean(axis=0).ravel()[surest(maps.attention[row])].mean())


def mean(maps: PhraseMaps, row: int) -> float:
    return float(maps.attention[row].mean())


def against_others(maps: PhraseMaps, row: int) -> float:
    others = [own.mean(axis=0).ravel() for other, own in enumerate(maps.attention) if other != row]
    if not others:
        return 0.0
    cells = surest(maps.attention[row])
    found = maps.attention[row].mean(axis=0).ravel()[cells].mean()
    return float(found / (found + np.max(others, axis=0)[cells].mean()))


def contrast(maps: PhraseMaps, row: int) -> float:
    own = maps.attention[row].mean(axis=0)
    inside = own > (own.min() + own.max()) / 2
    return float(own[inside].mean() / max(own[~inside].mean(), 1e-9)) if (~inside).any() else 0.0


def agreement(maps: PhraseMaps, row: int) -> float:
    passes = maps.attention[row].reshape(len(maps.attention[row]), -1)
    return float(np.corrcoef(passes[0], passes[-1])[0, 1]) if len(passes) > 1 else 0.0


def scaled(maps: PhraseMaps, row: int) -> float:
    return float(maps.soft.maps[row].max())


# Scores that may tell what is there: of the maps of an image's phrases and the row of one of them.
CANDIDATES: dict[str, Callable[[PhraseMaps, int], float]] = {
    "share of attention at the surest 0.5 % of cells, against start, end and filler (chosen)": chosen,
    "the same, 2 % of cells": chosen_wider,
    "attention at the surest 0.5 % of cells": peak,
    "mean attention": mean,
    "attention at the surest cells, against the other phrases' there": against_others,
    "attention inside the mask over outside": contrast,
    "agreement of the first and the last pass (correlation)": agreement,
    "highest value of the scaled map": scaled,
}


def phrases_of(scene: Scene, ask: Ask, index: int) -> tuple[list[str], list[int]]:
    """Return a scene's phrases and the class id of each, 0 for a ground."""
    ids = list(scene.labels)
    if ask.absent:
        ids = sorted([*ids, absent_class(scene, index)])
    words = [DEMO_CLASSES.phrases[label - 1] for label in ids]
    words = [f"a {word}" if ask.article else word for word in words]
    grounds = list(scene.grounds) if ask.grounds else []
    return [*words, *grounds], [*ids, *[0] * len(grounds)]


def absent_class(scene: Scene, index: int) -> int:
    """Return a class that a scene does not show, the same for every way of asking."""
    others = [label for label in range(1, len(DEMO_CLASSES) + 1) if label not in scene.labels]
    return others[int(np.random.default_rng([7, index]).integers(len(others)))]


def numbered_scenes(split: Split, count: int) -> list[tuple[int, str, Scene]]:
    """Return the first scenes of a split, each with its number and its id."""
    return [(index, f"{split}_{index}", scene) for index, scene in enumerate(split_scenes(split, count))]


def measure_masks(
    localizer: Localizer, scenes: Iterable[tuple[int, str, Scene]], ask: Ask, independent: bool
) -> dict[str, float]:
    """Return the figures of the masks of the classes that are there."""
    overlaps: list[Overlap] = []
    for index, image_id, scene in scenes:
        phrases, ids = phrases_of(scene, ask, index)
        found = localizer.localize(scene.rgb, phrases, independent=independent, image_id=image_id)
        for label, one in zip(ids, found.phrases, strict=True):
            if label in scene.labels:
                overlaps.append(overlap_of(one.mask, scene.mask == label, edges=False))
    return {"oiou": overall_iou(overlaps), "miou": mean_iou(overlaps), "phrases": len(overlaps)}


def measure_presence(localizer: Localizer, scenes: Iterable[tuple[int, str, Scene]]) -> dict[str, dict[str, float]]:
    """Return the AUROC of every candidate, present against absent class words, by how the words are asked for."""
    scores: dict[str, dict[str, list[float]]] = {}
    truth: dict[str, list[bool]] = {}
    for index, image_id, scene in tqdm(list(scenes), "presence", unit="scene"):
        absent = absent_class(scene, index)
        words = {label: DEMO_CLASSES.phrases[label - 1] for label in (*scene.labels, absent)}
        together = sorted(words)
        sentences = {
            "in one sentence": [together],
            "with the world's grounds": [together],
            "each alone": [[label] for label in together],
        }
        for how, groups in sentences.items():
            for labels in groups:
                extra = DEMO_CLASSES.background_words[0] if how == "with the world's grounds" else ()
                plan = localizer.plan([*(words[label] for label in labels), *extra])
                [maps] = localizer.pipeline.phrase_maps([scene.rgb], [plan], [image_id])
                truth.setdefault(how, []).extend(label != absent for label in labels)
                for name, score in CANDIDATES.items():
                    kept = scores.setdefault(name, {}).setdefault(how, [])
                    kept.extend(score(maps, row) for row in range(len(labels)))
    return {
        name: {how: auroc(np.array(values), np.array(truth[how])) for how, values in by_sentence.items()}
        for name, by_sentence in scores.items()
    }


def with_match(config: GroundConfig, **values: object) -> GroundConfig:
    """Return settings with other values in the group match."""
    return replace(config, match=replace(config.match, **values))


def mask_rows(parts: Parts, config: GroundConfig, scenes: list[tuple[int, str, Scene]]) -> list[dict[str, object]]:
    """Measure every way of asking under every rule."""
    rows = []
    for ask in ASKS:
        variants = [("mean", False, 0.0), ("similarity", False, 0.0), ("mean", True, 0.0)]
        if ask.absent:
            variants = [("mean", False, 0.0), ("mean", False, 0.5), ("mean", True, 0.0)]
        for words, independent, presence_min in variants:
            localizer = Localizer.from_parts(parts, with_match(config, words=words, presence_min=presence_min))
            figures = measure_masks(localizer, tqdm(scenes, ask.name, unit="scene"), ask, independent)
            rows.append(
                {"ask": ask.name, "words": words, "independent": independent, "presence_min": presence_min, **figures}
            )
    return rows


def report(
    rows: Sequence[dict[str, object]],
    aurocs: dict[str, dict[str, dict[str, float]]],
    found: dict[str, str],
    counts: tuple[int, int],
) -> str:
    """Return the page."""
    masks = table(
        ("phrases asked for", "tokens", "competing", "presence at least", "oIoU", "mIoU", "phrases"),
        [
            (row["ask"], row["words"], "no" if row["independent"] else "yes", f"{row['presence_min']:.1f}",
             f"{100 * row['oiou']:.1f}", f"{100 * row['miou']:.1f}", row["phrases"])
            for row in rows
        ],
    )  # fmt: skip
    hows = list(next(iter(aurocs["val"].values())))
    heads = [f"{split}: {how}" for split in ("calibration", "val") for how in hows]
    present = table(
        ("score", *heads),
        [
            (name, *(f"{aurocs[split][name][how]:.3f}" for split in ("calibration", "val") for how in hows))
            for name in CANDIDATES
        ],
    )
    return "\n".join(
        [
            "# Phrases on the demo world",
            "",
            machine_line(found),
            "",
            f"Masks on {counts[0]} scenes of `val`, in percent, of the classes that are there; written by",
            "`python -m benchmarks.phrases`. oIoU is sum(I) / sum(U) over all phrases, mIoU the mean of their IoU.",
            "Tokens: the mean over a phrase's, or weighted by likeness to its last one (they differ for phrases of",
            'several tokens alone: "potted plant", "a dog"). Grounds are phrases that compete, and have no mask to be',
            "scored against.",
            "",
            masks,
            "",
            "## Presence",
            "",
            f"AUROC of telling class words that are there from one that is not: {counts[1]} scenes of `calibration`,",
            f"where the score was chosen, and {counts[0]} of `val`. The words stand in one sentence, in one with the",
            "world's eight grounds as decoys, or each alone.",
            "",
            present,
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phrases", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=int, default=60, help="scenes of val")
    parser.add_argument("--calibration", type=int, default=60, help="scenes of calibration")
    parser.add_argument("--config", type=Path, default=DEMO_CONFIG)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=HERE / "phrases.md", help="the .json goes beside it")
    options = parser.parse_args(arguments)
    given = load_config(options.config if options.config.is_file() else None)
    shared = ("resize", "prompt", "diffusion", "attention", "affinity", "fuse", "crf", "run")
    config = GroundConfig(**{name: getattr(given, name) for name in shared})
    config = replace(config, model=replace(config.model, id=str(options.model)))
    device = pick_device(options.device)
    parts = load_parts(config.model, device, pick_dtype(config.run.dtype, device))
    val, calibration = numbered_scenes("val", options.scenes), numbered_scenes("calibration", options.calibration)
    localizer = Localizer.from_parts(parts, config)
    with torch.inference_mode():
        aurocs = {
            "calibration": measure_presence(localizer, calibration),
            "val": measure_presence(localizer, val),
        }
        rows = mask_rows(parts, config, val)
    found, counts = machine(device.type), (options.scenes, options.calibration)
    write_json(options.output.with_suffix(".json"), {"machine": found, "masks": rows, "presence": aurocs})
    write_text(options.output, report(rows, aurocs, found, counts))
    print(f"Wrote {options.output}.")


if __name__ == "__main__":
    main()
