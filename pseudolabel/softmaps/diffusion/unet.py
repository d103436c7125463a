"""U-Nets (Stable Diffusion 1.x, 2.x, SDXL): their layers, recording them, and cutting off what comes after."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data.errors import ModelError
from pseudolabel.softmaps.attention import Layer, Recording, cross_columns, pick_heads
from pseudolabel.softmaps.diffusion.parts import Parts, TextEmbedding


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
    del attention.processor
    attention.processor = processor
    try:
        yield
    finally:
        del attention.processor
        attention.processor = original


@contextmanager
def record_attention(
    unet: nn.Module,
    cross: Sequence[Layer],
    self_layers: Sequence[Layer],
    columns: Float[Tensor, "batch columns tokens"],
    through_keys: bool = False,
) -> Iterator[Recording]:
    """Record chosen layers of every pass made inside the `with` block; the last pass is kept.

    Recorded cross-attention is reduced to the columns at once; of self-attention queries and keys are kept, never the
    map. The layers' outputs are computed by their own processors, bit for bit as without recording, and all
    processors are put back at the end, on exceptions too. With `through_keys` gradients reach the words' side of
    cross-attention alone, and not what the image looks like.
    """
    recording = Recording()

    def cross_sink(block: str, layer: Layer) -> Callable[[Tensor, Tensor], None]:
        def sink(queries: Tensor, keys: Tensor) -> None:
            seen = queries.detach() if through_keys else queries
            picked = pick_heads(seen, layer.heads), pick_heads(keys, layer.heads)
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


def use_plain_attention(unet: Any) -> None:
    """Compute attention as plain products: on a CPU the fused kernel's backward pass takes a third longer."""
    from diffusers.models.attention_processor import AttnProcessor

    unet.set_attn_processor(AttnProcessor())


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


def run_unet(
    parts: Parts,
    noised: Float[Tensor, "batch channels height width"],
    timesteps: Sequence[int],
    text: TextEmbedding,
    image_px_hw: tuple[int, int],
) -> Tensor:
    """Run one conditional pass and return its output; what it looked at is in the surrounding `record_attention`."""
    unet = parts.unet
    added = None
    if getattr(unet.config, "addition_embed_type", None) == "text_time":
        # SDXL's conditions: original size, crop corner, target size.
        sizes = torch.tensor([[*image_px_hw, 0, 0, *image_px_hw]], device=parts.device, dtype=parts.dtype)
        added = {"text_embeds": text.pooled.to(parts.dtype), "time_ids": sizes.expand(len(noised), -1)}  # type: ignore[union-attr]
    output: Tensor = unet(
        noised.to(parts.dtype),
        torch.tensor(list(timesteps), device=parts.device),
        encoder_hidden_states=text.tokens.to(parts.dtype),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return output
