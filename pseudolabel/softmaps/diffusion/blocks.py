"""What diffusion transformers (SD3, Flux, PixArt) have in common: lists of equal blocks, and sentences of one size."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from pseudolabel.softmaps.layers import Layer

# Module lists, in the order in which they run, and what a config calls a block of each.
BLOCKS: tuple[tuple[str, Literal["block", "single"]], ...] = (
    ("transformer_blocks", "block"),
    ("single_transformer_blocks", "single"),
)


def list_blocks(
    transformer: Any,
    factor: int,
    cross: str,
    cells: str,
    text: Literal["all", "first", "last"],
    beside: str | None = None,
) -> tuple[Layer, ...]:
    """Return every transformer block as a layer, in the order in which they run.

    Args:
        transformer: the denoiser.
        factor: side of the latent divided by the side of the grid of tokens.
        cross: module of a block whose queries are cells and whose keys are, or hold, the text.
        cells: module of a block whose queries and keys are, or hold, cells.
        text: where the text is among the keys of `cross`.
        beside: module whose queries and keys are cells alone, of the blocks that have it.

    """
    found = []
    for owner, place in BLOCKS:
        for index, block in enumerate(getattr(transformer, owner, ())):
            own = beside if beside is not None and getattr(block, beside, None) is not None else None
            name = f"{owner}.{index}"
            found.append(Layer(name, (name,), place, factor, None, cross, cells, text, own))
    return tuple(found)


def cut_blocks(transformer: Any, layers: Sequence[Layer]) -> None:
    """Free, in place, the blocks that a transformer runs after the last layer that is read; the pass ends there."""
    order = [f"{owner}.{index}" for owner, _ in BLOCKS for index in range(len(getattr(transformer, owner, ())))]
    last = max((layer.blocks[0] for layer in layers), key=order.index)
    kept = order[: order.index(last) + 1]
    for owner, _ in BLOCKS:
        if hasattr(transformer, owner):
            count = sum(name.startswith(f"{owner}.") for name in kept)
            setattr(transformer, owner, getattr(transformer, owner)[:count])
    transformer.norm_out = transformer.proj_out = None


def token_batch(
    tokenizer: Any, text: str, size: int, device: torch.device
) -> tuple[Int[Tensor, "1 tokens"], Int[Tensor, "1 tokens"]]:
    """Return token ids of a sentence, filled up or cut off to a size, and which of them are no filler."""
    encoded = tokenizer(text, padding="max_length", max_length=size, truncation=True, return_tensors="pt")
    return encoded["input_ids"].to(device), encoded["attention_mask"].to(device)
