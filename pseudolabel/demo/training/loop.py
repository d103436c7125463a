"""What the trainings of the shipped model share: where they work, their log, the average of their weights."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Session:
    """Where and how a training runs; nothing here changes the weights beyond rounding."""

    work_dir: Path
    device: torch.device
    workers: int
    save_every: int
    measured_scenes: int


def write_log(
    work_dir: Path, phase: str, step: int, samples: int, loss: float, accuracy: float | None = None, seconds: float = 0
) -> None:
    """Append a row to the training log."""
    path = work_dir / "training_log.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["phase", "step", "samples", "seconds", "loss", "class_accuracy"])
        writer.writerow([phase, step, samples, round(seconds), f"{loss:.5f}", "" if accuracy is None else accuracy])


def warming_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average of weights that follows quickly at first, so that early figures mean something."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - now)

    return torch.no_grad()(update)
