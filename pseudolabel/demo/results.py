"""How much the demo does, what it found, and how that is told."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
