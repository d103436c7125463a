"""What a U-Net's attention layers looked at: naming them, recording them, and cutting off what comes after.

Source: arXiv 2309.04109, sections 3.2 and 3.3. Attention of layer l and head h is softmax(Q K^T / sqrt(d)); queries
are grid cells, row-major. Cross-attention (`attn2` of a transformer block) has text tokens as keys; self-attention
(`attn1`) has cells.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.errors import ModelError


@dataclass(frozen=True)
class Layer:
    """An attention layer that is read.

    Attributes:
        name: diffusers' module name, such as "down_blocks.2.attentions.0", as far as it was asked for.
        blocks: module names of its transformer blocks; what is read is their mean.
        place: which part of the U-Net it is in.
        factor: side of the latent divided by the side of this layer's grid.
        heads: the heads read; None reads all.

    """

    name: str
    blocks: tuple[str, ...]
    place: Literal["down", "mid", "up"]
    factor: int
    heads: tuple[int, ...] | None = None

    def grid_hw(self, latent_hw: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of this layer's grid; strided convolutions round up."""
        return -(-latent_hw[0] // self.factor), -(-latent_hw[1] // self.factor)


def resolve_layers(available: Sequence[Layer], specs: Sequence[str], flag: str) -> tuple[Layer, ...]:
    """Find the layers a config names.

    A spec is a module name (`down_blocks.2.attentions.0`, or one of its transformer blocks), or a role: `1/4` for all
    layers at a quarter of the latent's side, `down:1/4`, `up:1/4`, `mid`, `up`, `all`. `@0+3` after it reads heads 0
    and 3 alone.

    Args:
        available: what `list_layers` returned.
        specs: what the config says.
        flag: the setting's name, for the error message.

    Returns:
        Each layer once, in the order in which the U-Net runs them.

    Raises:
        ModelError: a spec fits no layer; the message lists what there is.

    """
    chosen: dict[str, Layer] = {}
    for spec in specs:
        body, _, head_text = spec.strip().partition("@")
        found = [layer for layer in (_match(layer, body) for layer in available) if layer is not None]
        heads_valid = re.fullmatch(r"(\d+(\+\d+)*)?", head_text) is not None
        if not found or not heads_valid:
            raise ModelError(f"--{flag} names {spec!r}, which this U-Net does not have; it has {_describe(available)}")
        heads = tuple(int(head) for head in head_text.split("+")) if head_text else None
        chosen |= {layer.name: replace(layer, heads=heads) for layer in found}
    order = [layer.name for layer in available]
    return tuple(sorted(chosen.values(), key=lambda layer: (order.index(_owner(layer.name)), layer.blocks)))


def _owner(name: str) -> str:
    """Return the name of the layer that a transformer block belongs to."""
    return name.split(".transformer_blocks.")[0]


def _match(layer: Layer, body: str) -> Layer | None:
    """Return the layer, or its transformer block that the spec names, or None."""
    role = re.fullmatch(r"(?:(down|mid|up):)?1/(\d+)", body)
    if role is not None:
        fits = int(role[2]) == layer.factor and role[1] in (None, layer.place)
        return layer if fits else None
    if body in ("all", layer.place, layer.name):
        return layer
    if body in layer.blocks:
        return replace(layer, name=body, blocks=(body,))
    return None


def _describe(layers: Sequence[Layer]) -> str:
    """List layers with their grids for an error message."""
    several = {layer.name: f" x{len(layer.blocks)}" if len(layer.blocks) > 1 else "" for layer in layers}
    return ", ".join(f"{layer.name}{several[layer.name]} (1/{layer.factor})" for layer in layers)


@dataclass
class Recording:
    """What was recorded in one pass, by module name of the transformer block."""

    cross: dict[str, Tensor] = field(default_factory=dict)
    queries: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, Tensor] = field(default_factory=dict)

    def cross_map(
        self, layer: Layer, latent_hw: tuple[int, int], content: Bool[Tensor, "batch columns"] | None = None
    ) -> Float[Tensor, "batch columns height width"]:
        """Return the columns of a cross-attention layer on its grid, the mean over its transformer blocks.

        Args:
            layer: a layer that was recorded.
            latent_hw: height and width of the latent.
            content: where every token is a column: those that share out each cell's attention among them; the others
                become zero (GoCA, CVPR 2026). None leaves the columns as they are.

        """
        blocks = [self.cross[block] for block in layer.blocks]
        if content is not None:
            blocks = [_share_out(columns, content) for columns in blocks]
        return torch.stack(blocks).mean(dim=0).unflatten(-1, layer.grid_hw(latent_hw))

    def queries_and_keys(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Return queries and keys (batch, heads, cells, dim) of a self-attention layer, blocks' heads side by side."""
        queries = torch.cat([pick_heads(self.queries[block], layer.heads) for block in layer.blocks], dim=1)
        keys = torch.cat([pick_heads(self.keys[block], layer.heads) for block in layer.blocks], dim=1)
        return queries, keys


def pick_heads(per_head: Float[Tensor, "batch heads rows dim"], heads: tuple[int, ...] | None) -> Tensor:
    """Keep some heads."""
    if heads is None:
        return per_head
    if max(heads) >= per_head.shape[1]:
        raise ModelError(f"Head {max(heads)} is asked for, but this layer has heads 0 to {per_head.shape[1] - 1}")
    return per_head[:, list(heads)]


def _share_out(
    tokens: Float[Tensor, "batch tokens cells"], content: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens cells"]:
    """Let the content tokens of each cell sum to one and drop the others."""
    kept = tokens.transpose(1, 2).contiguous() * content[:, None, :]
    return (kept / kept.sum(dim=-1, keepdim=True).clamp_min(1e-12)).transpose(1, 2)


def cross_columns(
    queries: Float[Tensor, "batch heads cells dim"],
    keys: Float[Tensor, "batch heads tokens dim"],
    weights: Float[Tensor, "batch columns tokens"],
) -> Float[Tensor, "batch columns cells"]:
    """Return column sums of the cross-attention: softmax over tokens, mean over heads, then the tokens' weights.

    One head at a time, in float32, so that memory is that of a single head's map.
    """
    _, heads, cells, dim = queries.shape
    total = torch.zeros(len(queries), cells, keys.shape[2], device=queries.device)
    for head in range(heads):
        scores = queries[:, head].float() @ keys[:, head].float().transpose(1, 2)
        total += torch.softmax(scores * dim**-0.5, dim=-1)
    return weights @ (total / heads).transpose(1, 2)


def per_head(layers: Sequence[Layer], n_heads: int) -> list[list[Layer]]:
    """Return, for each head, all layers read through that head alone."""
    return [[replace(layer, heads=(head,)) for layer in layers] for head in range(n_heads)]


def layer_key(layer: Layer) -> str:
    """Return a layer's name as the config spells it, heads included.

    >>> layer_key(Layer("mid_block.attentions.0", (), "mid", 4, (0, 3)))
    'mid_block.attentions.0@0+3'
    """
    return layer.name if layer.heads is None else f"{layer.name}@{'+'.join(map(str, layer.heads))}"
