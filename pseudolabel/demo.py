"""Both stages end to end on the shipped world and model: draw, label, score, train, test, and a page that shows it.

Each step is a command a person could type; it runs in a process of its own, so that its memory is given back, and is
printed before it runs. The stages meet on disk alone.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import data
from data.demo.world import TRAIN_TRUTH_FOLDER, write_world
from data.errors import ConfigError, UserError
from data.masks import write_atomically
from data.store import MaskStore
from pseudolabel.score import score_store
from pseudolabel.workers import available_cpus

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL = Path(data.__file__).resolve().parent / "demo" / "model"
CONFIGS = REPOSITORY / "configs"

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Size:
    """How much of everything the demo does."""

    train: int
    val: int
    shown: int
    epochs: int | None


FULL = Size(train=600, val=200, shown=12, epochs=None)
QUICK = Size(train=48, val=16, shown=4, epochs=4)


@dataclass(frozen=True)
class Step:
    """A command that was run."""

    title: str
    command: str
    seconds: float


@dataclass
class Result:
    """What the demo found.

    Attributes:
        steps: the commands, in order.
        masks: figures of the pseudo-masks (`StoreScores.to_json`).
        network: what `segtrain test` measured on val.
        network_true_masks: the same for the network trained on the true masks, if it was.
        seconds: all steps together.
        machine: processor, cores, device.

    """

    steps: list[Step] = field(default_factory=list)
    masks: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    network_true_masks: dict[str, Any] | None = None
    seconds: float = 0.0
    machine: str = ""


def demo(
    output: Path = Path("demo_output"),
    quick: bool = False,
    draw_only: bool = False,
    device: Device = "auto",
    true_masks: bool = False,
) -> None:
    """Run both stages end to end on the shipped world and diffusion model.

    Args:
        output: Folder for everything; --quick uses its subfolder quick. Drawing and masks are resumed.
        quick: A few scenes and epochs, to see that everything works; the figures mean nothing.
        draw_only: Stop after drawing the world.
        device: Where the networks run; auto: a GPU if there is one.
        true_masks: Also train the same network on the true masks, for comparison.

    """
    size = QUICK if quick else FULL
    folder = Path(output) / "quick" if quick else Path(output)
    world = folder / "world"
    _require_files(draw_only)
    start = time.perf_counter()
    drawn = write_world(world, train=size.train, val=size.val)
    seconds = time.perf_counter() - start
    print(
        f"{'Drew' if drawn else 'Found'} {size.train} scenes to label and {size.val} to test on in {world}", flush=True
    )
    if draw_only:
        print(f"Next: pseudolabel demo --output {output}")
        return
    result = Result(machine=describe_machine(device))
    result.steps.append(
        Step("Draw the world", f"pseudolabel demo {'--quick ' if quick else ''}--draw_only --output {output}", seconds)
    )
    make_masks(result, folder, size, device)
    train_network(result, folder, size, device)
    if true_masks:
        train_network(result, folder, size, device, true_masks=True)
    result.seconds = sum(step.seconds for step in result.steps)
    write_results(result, folder, size)
    print(summary(result, folder))


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
    scores = json.loads((run / "test" / "scores.json").read_text())
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
    module = {"pseudolabel": "pseudolabel.cli", "segtrain": "train.cli"}[program]
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


def _require_files(draw_only: bool) -> None:
    """Raise unless the configurations and the model are where an editable install has them."""
    wanted = (
        [] if draw_only else [CONFIGS / "pseudolabel" / "demo.yaml", CONFIGS / "train" / "demo.yaml", MODEL / "unet"]
    )
    for path in wanted:
        if not path.exists():
            raise ConfigError(
                f"{path} is missing: the demo needs the project's folder; clone it and install it with pip install -e ."
            )


def describe_machine(device: Device) -> str:
    """Return processor, number of cores and device in a few words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
        name = next(lines, name)
    return f"{name}, {available_cpus()} cores, device {device}"


def commit() -> str:
    """Return the commit of the project's folder, or "unknown"."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def write_results(result: Result, folder: Path, size: Size) -> None:
    """Write results.json, the page and the figure."""
    from pseudolabel.demo_page import demo_page, strip_figure, strips

    content = {"format": "pseudolabel-demo", "format_version": 1, "commit": commit(), **asdict(result)}
    write_atomically(folder / "results.json", (json.dumps(content, indent=1) + "\n").encode())
    shown = strips(folder, size.shown)
    write_atomically(folder / "demo.html", demo_page(result, folder, shown).encode())
    write_atomically(folder / "figure.png", strip_figure(shown[:5], MaskStore.open(folder / "masks").classes))


def summary(result: Result, folder: Path) -> str:
    """Return the table that ends the demo, and where everything lies."""
    minutes = result.seconds / 60
    rows = [
        ("pseudo-masks, before CRF", _miou(result.masks["before_crf"])),
        ("pseudo-masks, after CRF", _miou(result.masks["after_crf"])),
        ("network trained on them, on val", _miou(result.network)),
    ]
    if result.network_true_masks is not None:
        rows.append(("the same network trained on true masks", _miou(result.network_true_masks)))
    lines = ["", f"{'mIoU in percent':<40}", *(f"  {name:<40} {value:>5}" for name, value in rows)]
    lines.append(f"  {minutes:.1f} minutes on {result.machine}")
    places = (
        ("the page", "demo.html"),
        ("the figure", "figure.png"),
        ("the figures as JSON", "results.json"),
        ("images, labels and truth", "world"),
        ("pseudo-masks (a store)", "masks"),
        ("the network", f"network{os.sep}checkpoints{os.sep}best.ckpt"),
        ("its masks of val (a store)", "predictions"),
    )
    lines += ["", *(f"  {name:<28} {folder / place}" for name, place in places)]
    lines += ["", f"Open {(folder / 'demo.html').resolve()} in a browser."]
    return "\n".join(lines)


def _miou(scores: dict[str, Any] | None) -> str:
    return "-" if scores is None or scores["miou"] is None else f"{100 * scores['miou']:.1f}"
