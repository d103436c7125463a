"""Trained on pseudo-masks against trained on the true masks: mIoU on val over seeds, and the ratio.

    python -m benchmarks.stage_two_seeds --store S --root W [--seeds 0 1 2] [--relabel 3] [--output runs/seeds]

S is a store of pseudo-masks of W's train split, W the data set (`pseudolabel demo --draw_only` draws one). Both
networks have the same settings, order and number of steps. `--relabel N` adds a round of self-training to the first N.
Runs that are done are not repeated. The figures go to benchmarks/stage_two_seeds.json, with hardware and commit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import HERE, machine, write_json
from data.demo.world import TRAIN_TRUTH_FOLDER

CONFIG = HERE.parent / "configs/train/demo.yaml"


def main() -> None:
    """Train, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--truth", type=Path, help="true masks of the store's images; default: those of the demo world")
    parser.add_argument("--split", default="val")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--relabel", type=int, default=0, help="how many of the seeds get a round of self-training")
    given = parser.parse_args()
    truth = given.truth or given.root / TRAIN_TRUTH_FOLDER
    rows: dict[str, list[float]] = {}
    for position, seed in enumerate(given.seeds):
        for name, more in (("pseudo", []), ("truth", ["--data.masks", "truth", "--data.truth", truth])):
            rows.setdefault(name, []).append(train(given, f"{name}_{seed}", given.store, seed, more))
        if position < given.relabel:
            corrected = given.output / f"relabelled_{seed}"
            checkpoint = given.output / f"pseudo_{seed}" / "checkpoints" / "best.ckpt"
            segtrain("relabel", "--ckpt_path", checkpoint, "--data.store", given.store, "--output", corrected)
            rows.setdefault("relabelled", []).append(train(given, f"again_{seed}", corrected, seed, []))
        write(given, rows)


def train(given: argparse.Namespace, name: str, store: Path, seed: int, more: list[str]) -> float:
    """Return the mIoU on val of one training run; one that was measured already is read."""
    run = given.output / name
    measured = run / "test" / "scores.json"
    val = ["--data.val.root", given.root, "--data.val.split", given.split]
    if not measured.exists():
        start = time.perf_counter()
        common = ["--config", given.config, *val, "--seed_everything", seed]
        segtrain("fit", *common, "--data.store", store, "--output", run, "--overwrite", "true", *more)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        segtrain("test", "--ckpt_path", run / "checkpoints" / "best.ckpt", *val, "--report.output", run / "test")
    return json.loads(measured.read_text(encoding="utf-8"))["miou"]


def segtrain(*arguments: object) -> None:
    """Run the command line in a process of its own, without a progress bar."""
    quiet = ["--trainer.enable_progress_bar", "false"] if arguments[0] in {"fit", "test"} else []
    subprocess.run([sys.executable, "-m", "train", *map(str, arguments), *quiet], check=True)


def write(given: argparse.Namespace, rows: dict[str, list[float]]) -> None:
    """Print and keep the figures."""
    ratios = [pseudo / truth for pseudo, truth in zip(rows["pseudo"], rows["truth"], strict=True)]
    table = {"miou": rows, "ratio": ratios, "mean_ratio": statistics.mean(ratios)}
    table |= {name: spread(values) for name, values in rows.items()}
    table |= {"seeds": given.seeds[: len(ratios)], "store": str(given.store), "config": given.config.name}
    table |= {"load": round(os.getloadavg()[0], 1), **machine()}
    write_json(HERE / "stage_two_seeds.json", table)
    print(json.dumps(table, indent=1))


def spread(values: list[float]) -> dict[str, float]:
    """Return mean and standard deviation over seeds."""
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


if __name__ == "__main__":
    main()
