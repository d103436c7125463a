"""What every training of stage one shares: its schedule of the learning rate, its optimiser step, its checkpoints."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def schedule(step: int, steps: int, decay_from: float, warm_up: int = 100) -> float:
    """Return the factor of the learning rate: linear warm-up, constant, linear decay to zero.

    Args:
        step: from 0 on.
        steps: how many there are.
        decay_from: share of the steps after which the factor falls, below 1.
        warm_up: steps in which it rises to 1.

    """
    decay = (1 - step / steps) / (1 - decay_from)
    return min(1.0, (step + 1) / warm_up, max(0.0, decay))


def optimise(loss: Tensor, parameters: Any, optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Take an optimiser step, the gradient's norm clipped to 1.

    A group of the optimiser that has a "rate" of its own takes that, times `learning_rate`.

    Raises:
        FloatingPointError: the loss is not finite; the weights are as they were.

    """
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"the loss is {loss.item()}: resume with a smaller learning rate (--recipe.lr)")
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate", 1.0)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def save_state(path: Path, step: int, **parts: Any) -> None:
    """Write a checkpoint of a step through a temporary file, so that a kill leaves the former one."""
    temporary = path.with_suffix(".tmp")
    torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, temporary)
    temporary.replace(path)


def restore(path: Path, device: torch.device, **parts: Any) -> int:
    """Load a checkpoint into its parts, where there is one; return the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
