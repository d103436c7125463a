"""What helps a network that learns from pseudo-masks: each remedy for their errors alone, over seeds.

    python -m benchmarks.stage_two_noise --store S --root W [--masks WORDS] [--seeds 0 1 2] [--only NAME ...]

S is a store of pseudo-masks of W's train split, W the demo world (`pseudolabel demo` makes both). Every network has the
same settings and number of steps but for its remedy (REMEDIES). What is chosen is chosen on 200 calibration scenes,
which are drawn beside the runs and are in no other split; what is reported is measured on val. Runs that are done are
not repeated; runs of `stage_two_seeds.py` in the same folder count. Writes stage_two_noise.json and .md beside itself,
with hardware and commit: one table for each kind of masks that was tried, of which this run replaces its own.
"""

import argparse
import json
import os
import statistics
from argparse import Namespace
from pathlib import Path

import numpy as np

from benchmarks.common import HERE, machine, machine_line, table, write_json, write_text
from benchmarks.stage_two_seeds import CONFIG, segtrain, train
from data.classes import IGNORE
from data.demo.world import TRAIN_TRUTH_FOLDER, write_world
from data.masks import read_mask, write_mask
from data.scoring import confusion_matrix, score
from data.store.store import MaskStore
from train.dataset import confidence

SCENES = 200  # of calibration
REMEDIES = {
    "pseudo": "the store's masks (the demo's training)",
    "truth": "the true masks",
    "argmax": "without the ignore band (`--data.masks argmax`)",
    "confidence": "pixels weighted by the soft maps (`--data.weights confidence`)",
    "bootstrapped": "bootstrapped cross-entropy (`--model.loss.kind bootstrapped`)",
    "presence": "labels that are hardly there are not learnt (`--data.min_presence 0.5`)",
    "sure_10": "the least confident tenth of each class's pixels is ignored",
    "sure_20": "the least confident fifth of each class's pixels is ignored",
    "sure_30": "the least confident three tenths of each class's pixels are ignored",
    "relabelled": "a second round on masks corrected by the first network (`segtrain relabel`)",
    "relabelled_crf": "the same, its decisions sharpened by the CRF (`--inference.crf.enabled true`)",
    "decided_crf": "a second round on the network's decisions under the CRF (also `--disagreement network "
    "--ignore_below 0`)",
    "decided_crf_twice": "a third round, by the network of decided_crf",
    "swapped_crf": "as decided_crf, but each network is corrected by that of another seed (label swapping)",
    "early": "the store's masks, three of eight epochs",
    "early_crf": "as decided_crf, but by the network of early, before errors are learnt by heart (as ADELE corrects, "
    "arXiv 2110.03740, but once and between two trainings)",
}
CRF = ["--inference.crf.enabled", "true"]
DECIDED = [*CRF, "--disagreement", "network", "--ignore_below", "0"]
ROUNDS = {  # which network corrects, of this seed or of the one after it, and how
    "relabelled": ("pseudo", 0, []),
    "relabelled_crf": ("pseudo", 0, CRF),
    "decided_crf": ("pseudo", 0, DECIDED),
    "decided_crf_twice": ("decided_crf", 0, DECIDED),
    "swapped_crf": ("pseudo", 1, DECIDED),
    "early_crf": ("early", 0, DECIDED),
}


def main() -> None:
    """Train what is not there, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--masks", default="The demo's settings", help="the table's heading: which masks S holds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=tuple(REMEDIES), default=tuple(REMEDIES))
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--output", type=Path, default=Path("runs/noise"))
    parser.add_argument("--there", action="store_true", help="train nothing: the table of the runs that are there")
    given = parser.parse_args()
    write_world(given.output / "calibration", train=0, val=0, personal=0, calibration=SCENES)
    found = {name: {seed: measured(given, name, seed) for seed in wanted(given, name)} for name in given.only}
    rows = {name: summary(by_seed) for name, by_seed in found.items() if by_seed}
    there = HERE / "stage_two_noise.json"
    tables = json.loads(there.read_text(encoding="utf-8")) if there.exists() else {}
    tables[given.masks] = {"rows": rows, "seeds": given.seeds, "load": round(os.getloadavg()[0], 1), **machine()}
    write_json(there, tables)
    write_text(HERE / "stage_two_noise.md", page(tables))
    print(page(tables))


def wanted(given: Namespace, name: str) -> list[int]:
    """Return the seeds of a network that are trained, or, with --there, those of which something is there."""
    kinds = (f"{name}_{{}}/test/scores.json", f"store_{name}_{{}}/index.jsonl")
    there = {seed for seed in given.seeds if any((given.output / kind.format(seed)).exists() for kind in kinds)}
    return [seed for seed in given.seeds if seed in there or not given.there]


def measured(given: Namespace, name: str, seed: int) -> dict[str, float]:
    """Return the mIoU of one network on the calibration scenes and on val, and that of the masks it learns from."""
    folder, store = given.output / f"{name}_{seed}", given.store
    if not given.there:
        given.split = "val"
        run(given, name, seed)
        scenes = ["--data.val.root", given.output / "calibration", "--data.val.split", "calibration"]
        checkpoint, chosen = folder / "checkpoints" / "best.ckpt", folder / "calibration"
        if not (chosen / "scores.json").exists():
            segtrain("test", "--ckpt_path", checkpoint, *scenes, "--report.output", chosen, "--report.plots", "false")
    reports = {"calibration": folder / "calibration", "val": folder / "test"}
    found = {split: miou(report) for split, report in reports.items() if (report / "scores.json").exists()}
    if name in ROUNDS:
        store = given.output / f"store_{name}_{seed}"
    return found | ({"masks": quality(store, given.root)} if name in {"pseudo", *ROUNDS} else {})


def miou(report: Path) -> float:
    """Return what `segtrain test` has measured."""
    return json.loads((report / "scores.json").read_text(encoding="utf-8"))["miou"]


def quality(path: Path, root: Path) -> float:
    """Return the mIoU of a store's masks with the true masks of the images that are learnt from."""
    store = MaskStore.open(path)
    n_classes = len(store.classes) + 1
    total = np.zeros((n_classes, n_classes), np.int64)
    for record in store.records():
        truth = read_mask(root / TRAIN_TRUTH_FOLDER / f"{record['id']}.png")
        total += confusion_matrix(truth, store.read_argmax(record), n_classes)
    return score(total).miou


def run(given: Namespace, name: str, seed: int) -> None:
    """Train one network and measure it on val, unless it is there."""
    store, more = given.store, []
    match name:
        case "truth":
            more = ["--data.masks", "truth", "--data.truth", given.root / TRAIN_TRUTH_FOLDER]
        case "argmax":
            more = ["--data.masks", "argmax"]
        case "confidence":
            more = ["--data.weights", "confidence"]
        case "bootstrapped":
            more = ["--model.loss.kind", "bootstrapped"]
        case "presence":
            more = ["--data.min_presence", "0.5"]
        case "early":
            more = ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "3"]
        case "sure_10" | "sure_20" | "sure_30":
            more = ["--data.masks", "truth", "--data.truth", sure_masks(given, int(name[-2:]) / 100)]
        case name if name in ROUNDS:
            first, shift, how = ROUNDS[name]
            by = given.seeds[(given.seeds.index(seed) + shift) % len(given.seeds)]
            store = given.output / f"store_{name}_{seed}"
            run(given, first, by)
            checkpoint = given.output / f"{first}_{by}" / "checkpoints" / "best.ckpt"
            where = ["--data.store", given.store, "--data.root", given.root]
            segtrain("relabel", "--ckpt_path", checkpoint, *where, *how, "--output", store)
    train(given, f"{name}_{seed}", store, seed, ["--data.root", given.root, *more])


def sure_masks(given: Namespace, share: float) -> Path:
    """Write the store's masks without the least confident share of each class's pixels; return their folder."""
    folder = given.output / f"masks_sure_{share}"
    store = MaskStore.open(given.store)
    if folder.exists():
        return folder
    masks, supports = {}, {}
    for record in store.records():
        soft = store.read_soft(record["id"])
        assert soft is not None
        masks[record["id"]] = store.read_mask(record["id"])
        supports[record["id"]] = confidence(soft, masks[record["id"]])
    every, support = np.stack([*masks.values()]), np.stack([*supports.values()])
    least = np.zeros(256)
    for label in set(np.unique(every).tolist()) - {IGNORE}:
        least[label] = np.quantile(support[every == label], share)
    folder.mkdir(parents=True)
    for name, mask in masks.items():
        write_mask(folder / f"{name}.png", np.where(supports[name] > least[mask], mask, np.uint8(IGNORE)))
    return folder


def summary(by_seed: dict[int, dict[str, float]]) -> dict[str, list[float]]:
    """Return the figures by split."""
    columns = ("calibration", "val", "masks")
    return {name: [row[name] for row in by_seed.values() if name in row] for name in columns}


def page(tables: dict[str, dict]) -> str:
    """Return the figures as Markdown."""
    header = ("network", "calibration", "val", "its masks", "seeds", "what")
    parts = [
        "# Errors of the masks: what helps the network",
        "mIoU in percent, mean and standard deviation over seeds: of the network on 200 calibration scenes, by "
        "which one would choose, and on val; of the masks that it learnt from, where they are a store's, on the "
        "600 scenes that they are of. All networks have the settings and the number of steps of "
        "`configs/train/demo.yaml`; a second round trains a new network. Seeds are those of val; where there are "
        "several of them and one calibration figure, that is of seed 0.",
    ]
    for masks, content in tables.items():
        lines = [
            (
                name,
                *(mean_and_spread(values) for values in row.values()),
                len(row["val"]) or "masks alone",
                REMEDIES[name],
            )
            for name, row in content["rows"].items()
        ]
        parts += [f"## {masks}", table(header, lines), machine_line(content)]
    return "\n\n".join(parts)


def mean_and_spread(values: list[float]) -> str:
    """Return the mean and, of several values, the standard deviation, in percent."""
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
