"""Stable Diffusion 3 and 3.5 (MMDiT): image and text attend to each other in one softmax in every block.

Source: arXiv 2403.03206. The text's tokens come behind the image's: 77 of the two CLIP encoders side by side, filled up
with zeros to the width of T5's, then 256 of T5. Without T5, which the model was trained to do without, they are zeros.
The last block reads the text and does not write it; SD3.5's additional attention among the image's tokens (`attn2`
of its first blocks) is read where it is named, as self-attention.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from data.errors import ModelError
from pseudolabel.softmaps.diffusion.blocks import cut_blocks, list_blocks, token_batch
from pseudolabel.softmaps.diffusion.parts import PROJECTED, T5, Parts, TextEmbedding, window_size
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.tokens import TextWindow

DENOISER = "SD3Transformer2DModel"
FLOW = True
PACKED = 1

T5_TOKENS = 256  # as diffusers' pipeline reads by default


def denoiser_class() -> Any:
    """Return the class of diffusers."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    return SD3Transformer2DModel


def encoder_classes(t5: bool) -> dict[str, tuple[str, ...]]:
    """Return the text encoders' folders, and the classes each may be of."""
    third = {"text_encoder_3": (T5,)} if t5 else {}
    return {"text_encoder": (PROJECTED,), "text_encoder_2": (PROJECTED,), **third}


def cell(denoiser: Any) -> int:
    """Return how many latent pixels a side must be a multiple of."""
    return int(denoiser.config.patch_size)


def list_layers(denoiser: Any) -> tuple[Layer, ...]:
    """Return every block, in the order in which they run."""
    return list_blocks(denoiser, int(denoiser.config.patch_size), "attn", "attn", "last", "attn2")


def text_windows(
    tokenizers: Sequence[Any], encoders: Sequence[Any], denoiser: Any, pipeline: str
) -> tuple[TextWindow, ...]:
    """Return where a word's tokens are: among CLIP's, and again among T5's where it is read."""
    size = min(window_size(tokenizer, encoder) for tokenizer, encoder in zip(tokenizers[:2], encoders[:2], strict=True))
    clip = TextWindow(tokenizers[0], size)
    return (clip, TextWindow(tokenizers[2], T5_TOKENS, size)) if len(encoders) > 2 else (clip,)


def encode_text(parts: Parts, text: str) -> TextEmbedding:
    """Return the embedding of one sentence by CLIP's two encoders and, where it was loaded, T5."""
    width = int(parts.denoiser.config.joint_attention_dim)
    found = [
        _encode_clip(encoder, token_batch(tokenizer, text, parts.window, parts.device)[0])
        for tokenizer, encoder in zip(parts.tokenizers[:2], parts.text_encoders[:2], strict=True)
    ]
    clip = torch.cat([tokens for tokens, _ in found], dim=-1)
    clip = functional.pad(clip, (0, width - clip.shape[-1]))
    if len(parts.text_encoders) > 2:
        ids, _ = token_batch(parts.tokenizers[2], text, T5_TOKENS, parts.device)
        behind = parts.text_encoders[2](ids)[0].to(clip.dtype)
    else:
        behind = clip.new_zeros(1, T5_TOKENS, width)
    return TextEmbedding(torch.cat([clip, behind], dim=1), torch.cat([pooled for _, pooled in found], dim=-1))


def _encode_clip(encoder: Any, ids: Int[Tensor, "1 tokens"]) -> tuple[Float[Tensor, "1 tokens dim"], Tensor]:
    """Return the last hidden states but one of a CLIP text encoder with projection, and the projected sentence."""
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-2], output[0]


def run(
    parts: Parts,
    noised: Float[Tensor, "batch channels height width"],
    timesteps: Sequence[int],
    text: TextEmbedding,
    image_px_hw: tuple[int, int],
) -> Tensor:
    """Run one conditional pass at flow times of timesteps / 1000 and return the model's output."""
    if text.pooled is None:
        raise ModelError("SD3 needs the embedding of the whole sentence too; give prompt_embeds= a TextEmbedding")
    output: Tensor = parts.denoiser(
        hidden_states=noised.to(parts.dtype),
        encoder_hidden_states=text.tokens.to(parts.dtype),
        pooled_projections=text.pooled.to(parts.dtype),
        timestep=torch.tensor(list(timesteps), device=parts.device),
        return_dict=False,
    )[0]
    return output


def cut(denoiser: Any, layers: Sequence[Layer]) -> None:
    """Free, in place, the blocks after the last of these layers."""
    cut_blocks(denoiser, layers)
