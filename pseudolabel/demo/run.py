"""Both stages end to end on the shipped world and model, step by step.

Each step is a command a person could type; it runs in a process of its own, so that its memory is given back, and is
printed before it runs. The stages meet on disk alone.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import data
from data.demo.world import TRAIN_TRUTH_FOLDER
from data.errors import ConfigError, UserError
from data.files import write_atomically
from data.machine import REPOSITORY, commit
from data.store.store import MaskStore
from pseudolabel.demo.page import demo_page, strip_figure, strips
from pseudolabel.demo.results import Device, Result, Size, Step
from pseudolabel.review.score import score_store

MODEL = Path(data.__file__).resolve().parent / "demo" / "model"
ENCODER = MODEL.parent / "encoder" / "tf_efficientnet_lite0.safetensors"
CONFIGS = REPOSITORY / "configs"


def make_masks(result: Result, folder: Path, size: Size, device: Device) -> None:
    """Make masks of train and of a few val scenes, and score those of train."""
    shared = ["--config", str(CONFIGS / "pseudolabel" / "demo.yaml"), "--root", str(folder / "world")]
    shared += ["--model.id", str(MODEL), "--classes", str(MODEL.parent / "classes.yaml"), "--device", device]
    train = ["--split", "train", "--store", str(folder / "masks")]
    run_step(result, "Masks from labels", "pseudolabel", "generate", *shared, *train)
    shown = folder / "masks_val"
    there = len(MaskStore.open(shown).finished()) if (shown / "store.json").exists() else 0
    val = ["--split", "val", "--store", str(shown), "--limit", str(max(0, size.shown - there))]  # it counts new ones
    run_step(result, "Masks of a few test scenes, to be shown", "pseudolabel", "generate", *shared, *val)
    start = time.perf_counter()
    scores = score_store(MaskStore.open(folder / "masks"), truth=TRAIN_TRUTH_FOLDER)
    command = f"pseudolabel score --store {folder / 'masks'} --truth {TRAIN_TRUTH_FOLDER}"
    result.masks = scores.to_json()
    result.steps.append(Step("Score the masks", command, time.perf_counter() - start))


def train_network(result: Result, folder: Path, size: Size, device: Device, true_masks: bool = False) -> None:
    """Train the network on the masks (or on the true ones), test it on val and write its masks of val."""
    run = folder / ("network_true_masks" if true_masks else "network")
    suffix = ", on true masks" if true_masks else ""
    world, store = folder / "world", folder / "masks"
    fit = ["--config", str(CONFIGS / "train" / "demo.yaml"), "--data.store", str(store), "--output", str(run)]
    fit += ["--data.val.root", str(world), "--data.val.split", "val", "--overwrite", "true"]
    if true_masks:
        fit += ["--data.masks", "truth", "--data.truth", str(world / TRAIN_TRUTH_FOLDER)]
    if size.epochs is not None:
        fit += ["--trainer.max_epochs", str(size.epochs), "--trainer.check_val_every_n_epoch", str(size.epochs)]
    where = ["--trainer.accelerator", {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[device]]
    run_step(result, "Train a network" + suffix, "segtrain", "fit", *fit, *where)
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    test = ["--ckpt_path", checkpoint, "--data.val.root", str(world), "--data.val.split", "val"]
    run_step(
        result, "Test it" + suffix, "segtrain", "test", *test, "--report.output", str(run / "test"), *where, show=False
    )
    scores = json.loads((run / "test" / "scores.json").read_text(encoding="utf-8"))
    if true_masks:
        result.network_true_masks = scores
        return
    result.network = scores
    predictions = folder / "predictions"
    if (predictions / "store.json").exists():
        shutil.rmtree(predictions)  # of the network of an earlier run
    predict = ["--ckpt_path", checkpoint, "--data.root", str(world), "--data.split", "val", "--device", device]
    run_step(result, "Write its masks", "segtrain", "predict", *predict, "--output", str(predictions))


def run_step(result: Result, title: str, program: str, *arguments: str, show: bool = True) -> None:
    """Run a command of either stage in a process of its own and note its time.

    Args:
        result: the step is added to it.
        title: what is printed and shown on the page.
        program: pseudolabel or segtrain.
        arguments: the command's arguments.
        show: let its standard output through; progress and errors are always let through.

    Raises:
        UserError: it did not end well.

    """
    command = shlex.join([program, *arguments])
    print(f"\n== {title}\n$ {command}", flush=True)
    module = {"pseudolabel": "pseudolabel", "segtrain": "train"}[program]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], stdout=None if show else subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise UserError(
            f"the step {title!r} ended with status {done.returncode}, see above; after a change of settings choose "
            "another --output or delete the folder"
        )
    result.steps.append(Step(title, command, time.perf_counter() - start))


def require_files(draw_only: bool) -> None:
    """Raise ConfigError unless the configurations and the models are where an editable install has them."""
    wanted = [CONFIGS / "pseudolabel" / "demo.yaml", CONFIGS / "train" / "demo.yaml", MODEL / "unet", ENCODER]
    for path in [] if draw_only else wanted:
        if not path.exists():
            raise ConfigError(
                f"{path} is missing: the demo needs the project's folder; clone it and install it with pip install -e ."
            )


def write_results(result: Result, folder: Path, size: Size) -> None:
    """Write results.json, the page and the figure."""
    content = {"format": "pseudolabel-demo", "format_version": 1, "commit": commit(), **asdict(result)}
    write_atomically(folder / "results.json", (json.dumps(content, indent=1) + "\n").encode())
    shown = strips(folder, size.shown)
    write_atomically(folder / "demo.html", demo_page(result, folder, shown).encode())
    write_atomically(folder / "figure.png", strip_figure(shown[:5], MaskStore.open(folder / "masks").classes))
