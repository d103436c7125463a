"""What the trainings of the shipped models share: where they work, their log, their record, averaged weights."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.machine import commit


@dataclass(frozen=True)
class Session:
    """Where and how a training runs; nothing here changes the weights beyond rounding.

    Attributes:
        work_dir: caches, checkpoints and the log.
        device: where networks run.
        workers: processes that draw scenes.
        save_every: steps between checkpoints and measurements.

    """

    work_dir: Path
    device: torch.device
    workers: int
    save_every: int


def provenance(device: torch.device) -> dict[str, str]:
    """Return what training.json says of the machine and the code: hardware, version of torch, commit."""
    cores = f"{torch.get_num_threads()} CPU cores"
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else cores
    return {"hardware": hardware, "torch": torch.__version__, "commit": commit(marked=False)}


def write_log(
    work_dir: Path, phase: str, step: int, samples: int, loss: float, accuracy: float | None = None, seconds: float = 0
) -> None:
    """Append a row to training_log.csv; `seconds` of training so far, 0 where they are not counted."""
    path = work_dir / "training_log.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["phase", "step", "samples", "seconds", "loss", "class_accuracy"])
        writer.writerow([phase, step, samples, round(seconds), f"{loss:.5f}", "" if accuracy is None else accuracy])


def warming_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return the update of a moving average of weights that follows quickly at first, so that early figures count."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - now)

    return torch.no_grad()(update)
