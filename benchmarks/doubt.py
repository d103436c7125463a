"""Finding wrong labels by presence: the demo's scenes, a fifth of them with a label too many.

    python -m benchmarks.doubt                  # 200 scenes of calibration, 100 of val; writes doubt.md

Every fifth scene gets a class that is not in it. Each (image, label) pair is scored as `pseudolabel doubt` does and the
AUROC of right against wrong labels is taken. What is flagged was chosen on calibration; val is there to be reported.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
    write_text,
)
from data.demo.world import Scene, Split, split_scenes
from data.phrase_scores import auroc
from pseudolabel.config import GenerateConfig
from pseudolabel.ground.presence import presence
from pseudolabel.pipeline import Pipeline
from pseudolabel.review.doubtful import is_flagged

EVERY = 5  # scenes of which one gets a label too many


def noisy_labels(scene: Scene, index: int) -> tuple[int, ...]:
    """Return a scene's labels, in every fifth with one that is wrong."""
    if index % EVERY:
        return tuple(sorted(scene.labels))
    absent = [label for label in range(1, len(DEMO_CLASSES) + 1) if label not in scene.labels]
    return tuple(sorted({*scene.labels, absent[int(np.random.default_rng([11, index]).integers(len(absent)))]}))


def scored(pipeline: Pipeline, split: Split, count: int) -> tuple[list[float], list[bool]]:
    """Return the presence of every label, and whether it is right."""
    found, right = [], []
    for index, scene in enumerate(tqdm(list(split_scenes(split, count)), split, unit="scene")):
        labels, image_id = noisy_labels(scene, index), f"{split}_{index}"
        [maps] = pipeline.maps_and_shares_or_faults([scene.rgb], [labels], [image_id])
        if isinstance(maps, Exception):
            raise maps
        for label, own, idle in zip(labels, maps.attention, maps.idle, strict=True):
            found.append(presence(own, idle))
            right.append(label in scene.labels)
    return found, right


def figures(found: Sequence[float], right: Sequence[bool]) -> dict[str, float]:
    """Return AUROC of the ways of scoring, and what the most doubted fifth of labels holds."""
    truth, flagged = np.array(right), np.array(is_flagged(found))
    worst = np.argsort(found)[: int((~truth).sum())]
    return {
        "AUROC": auroc(np.array(found), truth),
        "share of the wrong labels that a report flags": float(flagged[~truth].mean()),
        "share of the right labels that a report flags": float(flagged[truth].mean()),
        "wrong among as many most doubted labels as are wrong": float((~truth[worst]).mean()),
        "labels": len(truth),
        "of them wrong": int((~truth).sum()),
    }


def main() -> None:
    """Measure both splits and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=100, help="scenes of val")
    parser.add_argument("--calibration", type=int, default=200, help="scenes of calibration")
    parser.add_argument("--output", type=Path, default=HERE / "doubt.md")
    options = parser.parse_args()
    config: GenerateConfig = load_config(DEMO_CONFIG)
    config = config.__class__(**{**vars(config), "model": config.model.__class__(id=str(DEMO_MODEL))})
    pipeline = Pipeline.load(config, DEMO_CLASSES)
    splits: tuple[tuple[Split, int], ...] = (("calibration", options.calibration), ("val", options.scenes))
    both = {f"{split} ({count} scenes)": figures(*scored(pipeline, split, count)) for split, count in splits}
    rows = [
        [name, *(f"{found[name]:.3f}" if isinstance(found[name], float) else found[name] for found in both.values())]
        for name in next(iter(both.values()))
    ]
    text = [
        "# Wrong labels found by presence",
        "The demo's model and settings; every fifth scene has a label too many. AUROC of right against wrong labels: "
        "0.5 is chance, 1 perfect.",
        table(["", *both], rows),
        machine_line(machine()),
        "Made by `python -m benchmarks.doubt`.",
    ]
    write_text(options.output, "\n\n".join(text))
    print("\n\n".join(text))


if __name__ == "__main__":
    main()
