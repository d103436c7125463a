"""Custom Diffusion: keys and values of every cross-attention layer, beside the token.

Source: Kumari et al., arXiv 2212.04488, section 3.1. The file is the one diffusers' training script writes.
"""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from data.files import write_atomically
from pseudolabel.softmaps.diffusion.adapters import CUSTOM

CHANGED = re.compile(r"(.+\.attn2)\.(to_k|to_v)$")


def start_custom(unet: Any) -> dict[str, nn.Parameter]:
    """Return the weights that are trained, the U-Net's own, by their names in the file; marks them as trainable."""
    found = {}
    for name, layer in unet.named_modules():
        match = CHANGED.fullmatch(name)
        if match is not None:
            layer.weight.requires_grad_(True)
            found[f"{match[1]}.processor.{match[2]}_{CUSTOM}.weight"] = layer.weight
    return found


def write_custom(path: Path, learned: dict[str, nn.Parameter]) -> None:
    """Write the trained weights, atomically."""
    tensors = {name: weight.detach().float().cpu().contiguous() for name, weight in learned.items()}
    write_atomically(path, save(tensors, metadata={"format": "pt"}))
