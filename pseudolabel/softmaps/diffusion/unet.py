"""U-Nets (Stable Diffusion 1.x, 2.x, SDXL): their layers, running them, and leaving out what is not read."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data.errors import ModelError
from pseudolabel.softmaps.diffusion.parts import CLIP, PROJECTED, Parts, TextEmbedding
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.tokens import TextWindow

DENOISER = "UNet2DConditionModel"
FLOW = False
PACKED = 1


def denoiser_class() -> Any:
    """Return the class of diffusers."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel


def encoder_classes(t5: bool) -> dict[str, tuple[str, ...]]:
    """Return the text encoders' folders, and the classes each may be of."""
    return {"text_encoder": (CLIP, PROJECTED), "text_encoder_2": (CLIP, PROJECTED)}


def cell(denoiser: Any) -> int:
    """Return how many latent pixels a side must be a multiple of."""
    return int(2 ** (len(denoiser.config.block_out_channels) - 1))  # whole cells at every level


def list_layers(denoiser: Any) -> tuple[Layer, ...]:
    """Return every layer with cross-attention, in the order in which the U-Net runs them.

    Raises:
        ModelError: the model has no such layer, as an unconditional or a transformer-only model.

    """
    layers: list[Layer] = []
    factor = 1
    for index, block in enumerate(denoiser.down_blocks):
        layers += _layers_of(block, f"down_blocks.{index}", "down", factor)
        factor *= 2 if getattr(block, "downsamplers", None) else 1
    if denoiser.mid_block is not None:
        layers += _layers_of(denoiser.mid_block, "mid_block", "mid", factor)
    for index, block in enumerate(denoiser.up_blocks):
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


def cut(denoiser: Any, layers: Sequence[Layer]) -> None:
    """Free, in place, the weights of what a U-Net runs after the last layer that is read.

    The pass ends at that layer (`attention.record_attention` with `stop`), so nothing misses them, and what is recorded
    is bit-equal to the whole U-Net's.
    """
    order = [block for layer in list_layers(denoiser) for block in layer.blocks]
    last = max((block for layer in layers for block in layer.blocks), key=order.index)
    owner, attention_text, block_text = re.fullmatch(
        r"(.+)\.attentions\.(\d+)\.transformer_blocks\.(\d+)", last
    ).groups()  # type: ignore[union-attr]
    attentions = int(attention_text) + 1
    place, _, position = owner.partition(".")

    unet = denoiser
    unet.conv_norm_out = unet.conv_act = unet.conv_out = None
    if place == "down_blocks":
        unet.down_blocks = unet.down_blocks[: int(position) + 1]
        unet.mid_block = None
    unet.up_blocks = unet.up_blocks[: int(position) + 1 if place == "up_blocks" else 0]
    block = unet.get_submodule(owner)
    block.attentions = block.attentions[:attentions]
    block.resnets = block.resnets[:attentions]
    if place == "mid_block":
        block.resnets.append(nn.Identity())  # the loop pairs each attention with the residual block after it
    else:
        setattr(block, "downsamplers" if place == "down_blocks" else "upsamplers", None)
    layer = block.attentions[-1]
    layer.transformer_blocks = layer.transformer_blocks[: int(block_text) + 1]
    layer.transformer_blocks[-1].ff = None


def run(
    parts: Parts,
    noised: Float[Tensor, "batch channels height width"],
    timesteps: Sequence[int],
    text: TextEmbedding,
    image_px_hw: tuple[int, int],
) -> Tensor:
    """Run one conditional pass and return its output; `attention.record_attention` around it sees what it looked at."""
    unet = parts.denoiser
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


def text_windows(
    tokenizers: Sequence[Any], encoders: Sequence[Any], denoiser: Any, pipeline: str
) -> tuple[TextWindow, ...]:
    """Return none: a U-Net's encoders stand side by side, in one window that `Parts` finds."""
    return ()


def encode_text(parts: Parts, text: str) -> TextEmbedding:
    """Return the embedding of one sentence, filled up to the window; tokens of SDXL's encoders side by side.

    Stable Diffusion reads the last hidden state, SDXL the last but one of both encoders and the second's projection.
    """
    several = len(parts.text_encoders) > 1
    tokens, pooled = [], None
    for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True):
        encoded = tokenizer(text, padding="max_length", max_length=parts.window, truncation=True, return_tensors="pt")
        ids = encoded["input_ids"].to(parts.device)
        # Filler takes part unless the text encoder says otherwise, as in diffusers' pipeline.
        mask = (
            encoded["attention_mask"].to(parts.device) if getattr(encoder.config, "use_attention_mask", False) else None
        )
        output = encoder(ids, attention_mask=mask, output_hidden_states=several)
        tokens.append(output.hidden_states[-2] if several else output.last_hidden_state)
        pooled = output[0] if several else None
    return TextEmbedding(torch.cat(tokens, dim=-1), pooled)
