"""What a U-Net's attention layers looked at: naming them, recording them, and cutting off what comes after.

Source: arXiv 2309.04109, sections 3.2 and 3.3. Attention of layer l and head h is softmax(Q K^T / sqrt(d)); queries
are grid cells, row-major. Cross-attention (`attn2` of a transformer block) has text tokens as keys; self-attention
(`attn1`) has cells.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from data.errors import ModelError

Kind = Literal["cross", "self"]


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


def list_layers(unet: Any) -> tuple[Layer, ...]:
    """Return every layer with cross-attention, in the order in which the U-Net runs them.

    Raises:
        ModelError: the model has no such layer, as an unconditional or a transformer-only model.

    """
    layers: list[Layer] = []
    factor = 1
    for index, block in enumerate(unet.down_blocks):
        layers += _layers_of(block, f"down_blocks.{index}", "down", factor)
        factor *= 2 if getattr(block, "downsamplers", None) else 1
    if unet.mid_block is not None:
        layers += _layers_of(unet.mid_block, "mid_block", "mid", factor)
    for index, block in enumerate(unet.up_blocks):
        layers += _layers_of(block, f"up_blocks.{index}", "up", factor)
        factor //= 2 if getattr(block, "upsamplers", None) else 1
    if not layers:
        raise ModelError("This U-Net has no cross-attention layers to read; --model.id must name a text-to-image model")
    return tuple(layers)


def _layers_of(block: nn.Module, name: str, place: Literal["down", "mid", "up"], factor: int) -> list[Layer]:
    """List the layers of one block of a U-Net."""
    layers = []
    for index, attention in enumerate(getattr(block, "attentions", None) or ()):
        prefix = f"{name}.attentions.{index}"
        transformers = getattr(attention, "transformer_blocks", ())
        if len(transformers) and all(getattr(inner, "attn2", None) is not None for inner in transformers):
            blocks = tuple(f"{prefix}.transformer_blocks.{k}" for k in range(len(transformers)))
            layers.append(Layer(prefix, blocks, place, factor))
    return layers


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


@dataclass(frozen=True)
class TokenColumns:
    """Which tokens are read, and how they are summed to columns.

    Attributes:
        weights: weight of each token in each column; unused columns are zero.
        content: with token rescaling, the tokens that share out a cell's attention; None leaves it as it is.

    """

    weights: Float[Tensor, "batch columns tokens"]
    content: Bool[Tensor, "batch tokens"] | None = None

    def to(self, device: torch.device) -> "TokenColumns":
        """Return the same on a device."""
        return TokenColumns(self.weights.to(device), None if self.content is None else self.content.to(device))


@dataclass
class Recording:
    """What was recorded in one pass, by module name of the transformer block."""

    cross: dict[str, Tensor] = field(default_factory=dict)
    queries: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, Tensor] = field(default_factory=dict)

    def cross_map(self, layer: Layer, latent_hw: tuple[int, int]) -> Float[Tensor, "batch columns height width"]:
        """Return the columns of a cross-attention layer on its grid, the mean over its transformer blocks."""
        columns = torch.stack([self.cross[block] for block in layer.blocks]).mean(dim=0)
        return columns.unflatten(-1, layer.grid_hw(latent_hw))

    def queries_and_keys(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Return queries and keys (batch, heads, cells, dim) of a self-attention layer, blocks' heads side by side."""
        queries = torch.cat([_pick_heads(self.queries[block], layer.heads) for block in layer.blocks], dim=1)
        keys = torch.cat([_pick_heads(self.keys[block], layer.heads) for block in layer.blocks], dim=1)
        return queries, keys


def _pick_heads(per_head: Float[Tensor, "batch heads rows dim"], heads: tuple[int, ...] | None) -> Tensor:
    """Keep some heads."""
    if heads is None:
        return per_head
    if max(heads) >= per_head.shape[1]:
        raise ModelError(f"Head {max(heads)} is asked for, but this layer has heads 0 to {per_head.shape[1] - 1}")
    return per_head[:, list(heads)]


def cross_columns(
    queries: Float[Tensor, "batch heads cells dim"],
    keys: Float[Tensor, "batch heads tokens dim"],
    columns: TokenColumns,
) -> Float[Tensor, "batch columns cells"]:
    """Return column sums of the cross-attention: softmax over tokens, mean over heads, then the tokens' weights.

    One head at a time, in float32, so that memory is that of a single head's map.
    With `columns.content`, start, end and filler tokens are dropped and a cell's remaining tokens sum to one
    (GoCA, CVPR 2026).
    """
    batch, heads, cells, dim = queries.shape
    total = torch.zeros(batch, cells, keys.shape[2], device=queries.device)
    for head in range(heads):
        scores = queries[:, head].float() @ keys[:, head].float().transpose(1, 2)
        total += torch.softmax(scores * dim**-0.5, dim=-1)
    probabilities = total / heads
    if columns.content is not None:
        probabilities = probabilities * columns.content[:, None, :]
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return columns.weights @ probabilities.transpose(1, 2)


def _project(
    attention: Any, processor: Any, hidden: Tensor, text: Tensor | None, temb: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute queries and keys as diffusers' attention processors do, per head: (batch, heads, rows, dim)."""
    if attention.spatial_norm is not None:
        hidden = attention.spatial_norm(hidden, temb)
    if hidden.ndim == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    if attention.group_norm is not None:
        hidden = attention.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
    source = hidden if text is None else text
    if text is not None and attention.norm_cross:
        source = attention.norm_encoder_hidden_states(text)
    # Custom Diffusion keeps its trained projections in the processor.
    to_q = processor.to_q_custom_diffusion if getattr(processor, "train_q_out", False) else attention.to_q
    to_k = processor.to_k_custom_diffusion if getattr(processor, "train_kv", False) else attention.to_k
    queries = to_q(hidden).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
    keys = to_k(source).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
    if attention.norm_q is not None:
        queries = attention.norm_q(queries)
    if attention.norm_k is not None:
        keys = attention.norm_k(keys)
    return queries, keys


class _RecordingProcessor:
    """An attention processor that hands queries and keys to `sink` and leaves the layer's output to the original."""

    def __init__(self, original: Any, sink: Callable[[Tensor, Tensor], None]) -> None:
        self.original = original
        self.sink = sink

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if attention_mask is not None:
            raise ModelError("Attention cannot be recorded under an attention mask; call the U-Net without one")
        self.sink(*_project(attn, self.original, hidden_states, encoder_hidden_states, temb))
        if temb is not None:  # not every processor has this argument
            kwargs["temb"] = temb
        output: Tensor = self.original(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        return output


@contextmanager
def _swap_processor(attention: nn.Module, processor: Any) -> Iterator[None]:
    """Replace an attention module's processor for a while; a processor with weights stays registered afterwards."""
    original = attention.processor
    attention._modules.pop("processor", None)
    attention.processor = processor
    try:
        yield
    finally:
        attention.__dict__.pop("processor", None)
        attention.processor = original


@contextmanager
def record_attention(
    unet: nn.Module, cross: Sequence[Layer], self_layers: Sequence[Layer], columns: TokenColumns
) -> Iterator[Recording]:
    """Record chosen layers of every pass made inside the `with` block; the last pass is kept.

    Recorded cross-attention is reduced to the columns at once; of self-attention queries and keys are kept, never the
    map. The layers' outputs are computed by their own processors, bit for bit as without recording, and all
    processors are put back at the end, on exceptions too.
    """
    recording = Recording()

    def cross_sink(block: str, layer: Layer) -> Callable[[Tensor, Tensor], None]:
        def sink(queries: Tensor, keys: Tensor) -> None:
            picked = _pick_heads(queries, layer.heads), _pick_heads(keys, layer.heads)
            recording.cross[block] = cross_columns(*picked, columns)

        return sink

    def self_sink(block: str) -> Callable[[Tensor, Tensor], None]:
        def sink(queries: Tensor, keys: Tensor) -> None:
            recording.queries[block], recording.keys[block] = queries, keys

        return sink

    with ExitStack() as stack:
        sinks: list[tuple[str, Callable[[Tensor, Tensor], None]]] = []
        sinks += [(f"{block}.attn2", cross_sink(block, layer)) for layer in cross for block in layer.blocks]
        sinks += [(f"{block}.attn1", self_sink(block)) for layer in self_layers for block in layer.blocks]
        for name, sink in sinks:
            attention = unet.get_submodule(name)
            stack.enter_context(_swap_processor(attention, _RecordingProcessor(attention.processor, sink)))
        yield recording


class _PassThrough(nn.Module):
    """Stands where a module of a cut U-Net was: returns its first input."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the input."""
        return hidden_states


def cut_unet(unet: Any, cross: Sequence[Layer], self_layers: Sequence[Layer]) -> None:
    """Remove, in place, everything a U-Net runs after the last layer that is read; the freed weights are released.

    The U-Net's own forward pass then runs what is left, and what is recorded is bit-equal to the whole U-Net's. Its
    output is no longer a prediction. Blocks after the last layer go; of the layer's own block, the residual blocks and
    layers after it and the resampling; of the layer, the transformer blocks after it and what follows the attention in
    its own.
    """
    order = [block for layer in list_layers(unet) for block in layer.blocks]
    read = [(order.index(block), 1, block) for layer in cross for block in layer.blocks]
    read += [(order.index(block), 0, block) for layer in self_layers for block in layer.blocks]
    _, is_cross, last = max(read)
    owner, attention_text, block_text = re.fullmatch(
        r"(.+)\.attentions\.(\d+)\.transformer_blocks\.(\d+)", last
    ).groups()  # type: ignore[union-attr]
    attention_index, block_index = int(attention_text), int(block_text)
    place, _, position = owner.partition(".")

    unet.conv_norm_out, unet.conv_act, unet.conv_out = None, None, _PassThrough()
    if place == "down_blocks":
        unet.down_blocks = unet.down_blocks[: int(position) + 1]
        unet.mid_block = None
    unet.up_blocks = unet.up_blocks[: int(position) + 1 if place == "up_blocks" else 0]

    block = unet.get_submodule(owner)
    block.attentions = block.attentions[: attention_index + 1]
    if place == "mid_block":
        block.resnets = nn.ModuleList([*block.resnets[: attention_index + 1], _PassThrough()])
    else:
        block.resnets = block.resnets[: attention_index + 1]
        setattr(block, "downsamplers" if place == "down_blocks" else "upsamplers", None)

    layer = block.attentions[attention_index]
    layer.transformer_blocks = layer.transformer_blocks[: block_index + 1]
    inner = layer.transformer_blocks[block_index]
    inner.ff = _PassThrough()
    if not is_cross:
        inner.attn2 = None
