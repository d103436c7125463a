"""How the weights are moved: groups of parameters, the optimizer, its schedule."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from data.config import require
from train.network import Segmenter


@dataclass(frozen=True)
class OptimizerConfig:
    """How the weights are moved."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = 0.007
    """Learning rate of the encoder at the start."""
    head_lr_factor: float = 10.0
    """The decoder's learning rate as a multiple of the encoder's."""
    bias_lr_factor: float = 1.0
    """A further factor for the decoder's biases, which have no weight decay (DeepLabV2: 2)."""
    momentum: float = 0.9
    """Of SGD; the first beta of AdamW."""
    weight_decay: float = 1e-4
    """Decay of weights."""
    poly_power: float = 0.9
    """The rate falls as (1 - step / steps) ** power."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly at the start."""
    fused: bool | None = None
    """Move all weights in one go; when not given, on a GPU, where it pays, but for 16-mixed, whose scaling of gradients
    does not go with it when they are clipped."""

    def __post_init__(self) -> None:
        require("model.optimizer.lr", self.lr, self.lr > 0, "above 0")
        require("model.optimizer.momentum", self.momentum, 0 <= self.momentum < 1, "at least 0 and below 1")
        for name in ("head_lr_factor", "bias_lr_factor", "weight_decay", "poly_power", "warmup_steps"):
            require(f"model.optimizer.{name}", getattr(self, name), getattr(self, name) >= 0, "at least 0")


def fuse(config: OptimizerConfig, device: str, precision: str, clips: bool) -> bool | None:
    """Return whether the optimizer moves all weights in one go; None leaves it to torch, which loops over them.

    Args:
        config: what was asked for.
        device: type of the device, such as cuda.
        precision: Lightning's, such as 16-mixed.
        clips: whether gradients are clipped.

    Raises:
        ConfigError: what was asked for cannot be done; Lightning finds that out at the first step.

    >>> fuse(OptimizerConfig(), "cuda", "bf16-mixed", True), fuse(OptimizerConfig(), "cpu", "32-true", True)
    (True, None)

    """
    scaled = precision == "16-mixed"
    rule = "false with --trainer.precision 16-mixed and --trainer.gradient_clip_val; bf16-mixed goes with both"
    require("model.optimizer.fused", config.fused, not (config.fused and scaled and clips), rule)
    if config.fused is None:
        return True if device == "cuda" and not scaled else None
    return config.fused or None


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool | None) -> torch.optim.Optimizer:
    """Return the optimizer; fused None leaves it to torch, which loops over the weights."""
    match config.name:
        case "sgd":
            return torch.optim.SGD(groups, momentum=config.momentum, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, betas=(config.momentum, 0.999), fused=fused)


def limited(trainer: pl.Trainer, batches: int) -> int:
    """Return how many of an epoch's batches are trained on."""
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))


def total_steps(trainer: pl.Trainer, batches: int) -> int:
    """Return the number of optimizer steps of a run that trains on this many batches per epoch."""
    by_epochs = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.max_epochs or 0)
    by_steps = trainer.max_steps
    limits = [steps for steps in (by_epochs, by_steps) if steps > 0]
    return min(limits, default=1)


def poly_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """Return what the learning rate is multiplied with: linear warm-up, then (1 - step / steps) ** power.

    >>> poly_factor(50, 100, OptimizerConfig(poly_power=1.0))
    0.5
    """
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return warm * max(0.0, 1 - step / steps) ** config.poly_power


def parameter_groups(network: Segmenter, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the parameters in groups: encoder and decoder have their own rates; norms and biases do not decay."""
    groups = []
    head_lr = config.lr * config.head_lr_factor
    for part, lr in ((network.encoder, config.lr), (network.decoder, head_lr), (network.head, head_lr)):
        trained = [value for value in part.parameters() if value.requires_grad]
        matrices = [value for value in trained if value.ndim > 1]
        vectors = [value for value in trained if value.ndim <= 1]  # biases and factors of norms
        bias_lr = lr if part is network.encoder else lr * config.bias_lr_factor
        groups.append({"params": matrices, "lr": lr, "weight_decay": config.weight_decay})
        groups.append({"params": vectors, "lr": bias_lr, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
