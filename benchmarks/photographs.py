"""What ImageNet weights bring on real photographs, and every step a user takes on them, on a CPU.

    python -m benchmarks.photographs --root VOCdevkit [--train train --val val] [--epochs 20] [--output runs/photos]

Trains `configs/train/voc12_small.yaml` on the true masks of one split, once from the weights that ship with the demo
and once from nothing (--only imagenet leaves that out), measures both on the other split, plainly and with three scales
and mirrored, and runs validate, predict, score, report, export and the ONNX predictor on the first. Runs that are done
are not repeated, and a row that is not asked for stays as it was measured. Writes photographs.json and photographs.md
beside itself; each row carries its hardware and commit, and the time of the wall as well as of the processors, so that
a busy machine can be told from a slow one.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import HERE, machine, machine_line, table, write_json, write_text
from data.images import read_image
from data.store.store import MaskStore

CONFIG = HERE.parent / "configs/train/voc12_small.yaml"
FIRST = {"imagenet": (), "random": ("--model.network.weights", "null")}
VIEWS = ("--inference.scales", "[0.75,1.0,1.25]", "--inference.flip", "true")
LOOKED_AT = 20  # images on which the ONNX predictor is compared with `segtrain predict`


def main() -> None:
    """Train, measure, try every step, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--train", default="train")
    parser.add_argument("--val", default="val")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", choices=tuple(FIRST), help="leave the other out")
    parser.add_argument("--output", type=Path, default=Path("runs/photos"))
    given = parser.parse_args()
    rows = {name: train(given, name, more) for name, more in FIRST.items() if given.only in (None, name)}
    steps = try_steps(given, given.output / "imagenet" / "checkpoints" / "last.ckpt") if "imagenet" in rows else {}
    found = {"epochs": given.epochs, "train": given.train, "val": given.val, "images": count_images(given)}
    found |= {"networks": kept_rows(found) | rows, "steps": steps, **machine()}
    write_json(HERE / "photographs.json", found)
    write_text(HERE / "photographs.md", page(found))
    print(page(found))


def kept_rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of photographs.json, if they are of the same images and the same length of training."""
    written = json.loads((HERE / "photographs.json").read_text(encoding="utf-8"))
    return written["networks"] if all(written[key] == value for key, value in found.items()) else {}


def train(given: argparse.Namespace, name: str, more: Sequence[str]) -> dict[str, Any]:
    """Return how the training went and its mIoU, plain and with scales and mirrored; what is there already is read."""
    run, notes = given.output / name, given.output / name / "training.json"
    val = ("--data.val.root", given.root, "--data.val.split", given.val)
    quiet = ("--trainer.enable_progress_bar", "false")
    if not notes.exists():
        start, worked, load, on = time.perf_counter(), processor_seconds(), os.getloadavg()[0], machine()
        length = ("--trainer.max_epochs", given.epochs, "--trainer.check_val_every_n_epoch", given.epochs)
        data = ("--data.root", given.root, "--data.split", given.train, "--data.masks", "truth")
        anew = ("--output", run, "--overwrite", "true")
        program("segtrain", "fit", "--config", CONFIG, *data, *length, *more, *quiet, *anew)
        minutes, processor = (time.perf_counter() - start) / 60, (processor_seconds() - worked) / 60
        loads = [round(load, 1), round(os.getloadavg()[0], 1)]
        write_json(notes, {"minutes": minutes, "processor_minutes": processor, "load": loads, **on})
    found = json.loads(notes.read_text(encoding="utf-8"))
    for kind, views in (("plain", ()), ("views", VIEWS)):
        report = run / kind
        if not (report / "scores.json").exists():
            checkpoint = run / "checkpoints" / "last.ckpt"
            program("segtrain", "test", "--ckpt_path", checkpoint, *val, *views, *quiet, "--report.output", report)
        found[kind] = json.loads((report / "scores.json").read_text(encoding="utf-8"))["miou"]
    return found


def processor_seconds() -> float:
    """Return the processor time of the programs that have run so far, their loader's workers among them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def try_steps(given: argparse.Namespace, checkpoint: Path) -> dict[str, str]:
    """Run the other commands on the photographs; return what each ended with."""
    predictions, deploy = given.output / "predictions", given.output / "deploy"
    val, quiet = ("--data.val.root", given.root, "--data.val.split", given.val), "--trainer.enable_progress_bar"
    data = ("--data.root", given.root, "--data.split", given.val)
    # What is run, and how the line begins that tells what came of it.
    commands = {
        "validate": (("segtrain", "validate", "--ckpt_path", checkpoint, *val, quiet, "false"), "mIoU"),
        "predict": (("segtrain", "predict", "--ckpt_path", checkpoint, *data, "--output", predictions), "Written"),
        "score": (("pseudolabel", "score", "--store", predictions), "mean"),
        "report": (("pseudolabel", "report", "--store", predictions), str(predictions)),
        "export": (("segtrain", "export", "--ckpt_path", checkpoint, "--output", deploy), "Largest"),
    }
    found = {}
    for name, (command, telling) in commands.items():
        start = time.perf_counter()
        lines = program(*command).strip().splitlines()
        line = next((each for each in lines if each.startswith(telling)), lines[-1])
        said = " ".join(line.replace(f"{given.output}/", "").split())
        found[name] = f"{said} ({time.perf_counter() - start:.0f} s)"
    return found | {"ONNX predictor": compare_predictor(predictions, deploy)}


def compare_predictor(predictions: Path, deploy: Path) -> str:
    """Return how far the ONNX predictor's masks are those of `segtrain predict`."""
    from train.predictor import Predictor

    predictor, store = Predictor(deploy), MaskStore.open(predictions)
    shares = [
        float((predictor(read_image(store.image_path(record))) == store.read_argmax(record)).mean())
        for record in list(store.records())[:LOOKED_AT]
    ]
    return f"{100 * np.mean(shares):.3f} % of the pixels of {len(shares)} images as `segtrain predict` has them"


def count_images(given: argparse.Namespace) -> dict[str, int]:
    """Return how many images each split lists."""
    folder = next(path.parent for path in given.root.rglob(f"Segmentation/{given.val}.txt"))
    return {
        split: len((folder / f"{split}.txt").read_text(encoding="utf-8").split()) for split in (given.train, given.val)
    }


def program(name: str, *arguments: object) -> str:
    """Run a command line in a process of its own and return what it printed."""
    module = {"pseudolabel": "pseudolabel", "segtrain": "train"}[name]
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def page(found: dict) -> str:
    """Return the figures as Markdown."""
    names = {"imagenet": "ImageNet weights (as shipped)", "random": "from nothing"}
    rows = [
        (
            names[name],
            f"{100 * row['plain']:.1f}",
            f"{100 * row['views']:.1f}",
            f"{row['minutes']:.0f}",
            f"{row['processor_minutes']:.0f}" if "processor_minutes" in row else "not measured",
            " to ".join(map(str, row["load"])),
            row["commit"],
        )
        for name, row in found["networks"].items()
    ]
    header = (
        "first weights of the encoder",
        "mIoU",
        "three scales, mirrored",
        "minutes",
        "of the processors",
        "load",
        "commit",
    )
    train_images, val_images = found["images"].values()
    lines = [
        "# Photographs: what ImageNet weights bring",
        "",
        f"{train_images} photographs of VOC 2012 with true masks to learn from, {val_images} others to measure on, "
        f"{found['epochs']} epochs of `configs/train/voc12_small.yaml` (EfficientNet-Lite0, crops of 256 pixels, "
        "single precision). Nothing was chosen on the photographs that are measured on.",
        "",
        table(header, rows),
        "",
        "Minutes are of the whole training on the wall's clock and summed over the processors; the load is the "
        "machine's before and after, with whatever else ran on it. "
        f"{machine_line(found)} With VOC at hand:",
        "",
        "    python -m benchmarks.photographs --root VOCdevkit --train train --val val",
        "",
    ]
    if found["steps"]:
        lines += ["Every step after training, on the photographs that are measured on:", ""]
        lines += [f"- {name}: {said}" for name, said in found["steps"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
