"""LoRA: low-rank changes of every attention layer of the U-Net, beside the token.

Source: Hu et al., arXiv 2106.09685, section 4.1. The file is the one diffusers writes and reads; alpha equals the rank.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from data.files import write_atomically

CHANGED = re.compile(r"attn[12]\.(to_q|to_k|to_v|to_out\.0)$")


def start_lora(unet: Any, rank: int, seed: int) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Add a low-rank side path to every attention layer; it gives nothing at first.

    Returns:
        A and B (rank, inputs), (outputs, rank) by the layer's name; B starts at zero.

    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear) and CHANGED.search(name):
            down = nn.Parameter((torch.randn(rank, layer.in_features, generator=generator) / rank).to(layer.weight))
            up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
            layer.register_forward_hook(side_path(down, up))
            found[name] = (down, up)
    return found


def side_path(down: Tensor, up: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a forward hook of a linear layer that adds B A x."""

    def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + inputs[0] @ down.T @ up.T

    return hook


def write_lora(path: Path, learned: dict[str, tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Write a LoRA, atomically."""
    tensors = {}
    for name, (down, up) in learned.items():
        tensors[f"unet.{name}.lora_A.weight"] = down.detach().float().cpu().contiguous()
        tensors[f"unet.{name}.lora_B.weight"] = up.detach().float().cpu().contiguous()
    write_atomically(path, save(tensors, metadata={"format": "pt"}))
