"""PixArt-alpha and -Sigma: a transformer with self-attention and ordinary cross-attention to T5's tokens in each block.

Noise and timesteps are those of DDPM, as in Stable Diffusion 1.x. Filler tokens are masked out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pseudolabel.softmaps.diffusion.blocks import cut_blocks, list_blocks, token_batch
from pseudolabel.softmaps.diffusion.parts import T5, Parts, TextEmbedding
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.tokens import TextWindow

DENOISER = "PixArtTransformer2DModel"
FLOW = False
PACKED = 1

T5_TOKENS = 120  # PixArt-alpha
T5_TOKENS_SIGMA = 300


def denoiser_class() -> Any:
    """Return the class of diffusers."""
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    return PixArtTransformer2DModel


def encoder_classes(t5: bool) -> dict[str, tuple[str, ...]]:
    """Return the text encoders' folders, and the classes each may be of."""
    return {"text_encoder": (T5,)}


def cell(denoiser: Any) -> int:
    """Return how many latent pixels a side must be a multiple of."""
    return int(denoiser.config.patch_size)


def list_layers(denoiser: Any) -> tuple[Layer, ...]:
    """Return every block, in the order in which they run."""
    return list_blocks(denoiser, int(denoiser.config.patch_size), "attn2", "attn1", "all")


def text_windows(
    tokenizers: Sequence[Any], encoders: Sequence[Any], denoiser: Any, pipeline: str
) -> tuple[TextWindow, ...]:
    """Return where a word's tokens are: among T5's; the pipeline's class alone tells alpha and Sigma apart."""
    return (TextWindow(tokenizers[0], T5_TOKENS_SIGMA if "Sigma" in pipeline else T5_TOKENS),)


def encode_text(parts: Parts, text: str) -> TextEmbedding:
    """Return the embedding of one sentence's tokens, and which of them are no filler."""
    ids, mask = token_batch(parts.tokenizers[0], text, parts.window, parts.device)
    return TextEmbedding(parts.text_encoders[0](ids, attention_mask=mask)[0], None, mask)


def run(
    parts: Parts,
    noised: Float[Tensor, "batch channels height width"],
    timesteps: Sequence[int],
    text: TextEmbedding,
    image_px_hw: tuple[int, int],
) -> Tensor:
    """Run one conditional pass and return the model's output, noise and its variance side by side."""
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if parts.denoiser.use_additional_conditions:  # alpha at 1024 px was trained with sizes
        height, width = image_px_hw
        sizes = torch.tensor([[height, width, height / width]]).to(parts.device, parts.dtype).expand(len(noised), -1)
        added = {"resolution": sizes[:, :2], "aspect_ratio": sizes[:, 2:]}
    output: Tensor = parts.denoiser(
        noised.to(parts.dtype),
        encoder_hidden_states=text.tokens.to(parts.dtype),
        encoder_attention_mask=text.mask,
        timestep=torch.tensor(list(timesteps), device=parts.device),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return output


def cut(denoiser: Any, layers: Sequence[Layer]) -> None:
    """Free, in place, the blocks after the last of these layers."""
    cut_blocks(denoiser, layers)
