"""Flux.1 (schnell, dev): image and text in one softmax, first in blocks with weights for each, then in single ones.

The text's tokens, T5's, come before the image's; of CLIP the embedding of the whole sentence alone is used. Latents are
packed two by two, and a token's place is its row and column (rotary embedding), so that any size will do.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.errors import ModelError
from pseudolabel.softmaps.diffusion.blocks import cut_blocks, list_blocks, token_batch
from pseudolabel.softmaps.diffusion.parts import CLIP, T5, Parts, TextEmbedding
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.tokens import TextWindow

DENOISER = "FluxTransformer2DModel"
FLOW = True

PACKED = 2  # latent pixels a token has on a side
T5_TOKENS = 512
T5_TOKENS_SCHNELL = 256  # what the distilled model without guidance was trained with
GUIDANCE = 1.0  # of dev, which has it as an input: as if without, as every other model is read


def denoiser_class() -> Any:
    """Return the class of diffusers."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    return FluxTransformer2DModel


def encoder_classes(t5: bool) -> dict[str, tuple[str, ...]]:
    """Return the text encoders' folders, and the classes each may be of."""
    return {"text_encoder": (CLIP,), "text_encoder_2": (T5,)}


def cell(denoiser: Any) -> int:
    """Return how many latent pixels a side must be a multiple of."""
    return PACKED


def list_layers(denoiser: Any) -> tuple[Layer, ...]:
    """Return every block, then every single block, in the order in which they run."""
    return list_blocks(denoiser, PACKED, "attn", "attn", "first")


def text_windows(
    tokenizers: Sequence[Any], encoders: Sequence[Any], denoiser: Any, pipeline: str
) -> tuple[TextWindow, ...]:
    """Return where a word's tokens are: among T5's."""
    return (TextWindow(tokenizers[1], T5_TOKENS if denoiser.config.guidance_embeds else T5_TOKENS_SCHNELL),)


def encode_text(parts: Parts, text: str) -> TextEmbedding:
    """Return the embedding of one sentence: T5's tokens, filler included and unmasked as in training, CLIP's pooled."""
    (clip_tokenizer, t5_tokenizer), (clip, t5) = parts.tokenizers, parts.text_encoders
    # CLIP sums the sentence up; a long one is cut off there, as diffusers' pipeline cuts it.
    ids, _ = token_batch(clip_tokenizer, text, int(clip.config.max_position_embeddings), parts.device)
    pooled = clip(ids).pooler_output
    ids, _ = token_batch(t5_tokenizer, text, parts.window, parts.device)
    return TextEmbedding(t5(ids)[0], pooled)


def pack(latents: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens values"]:
    """Put each two by two pixels of a latent into one token, row by row; channels vary slowest."""
    batch, channels, height, width = latents.shape
    cells = latents.reshape(batch, channels, height // PACKED, PACKED, width // PACKED, PACKED)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PACKED**2)


def image_places(grid_hw: tuple[int, int]) -> Float[Tensor, "tokens 3"]:
    """Return (0, row, column) of every token of the image."""
    rows, columns = torch.meshgrid(torch.arange(grid_hw[0]), torch.arange(grid_hw[1]), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def run(
    parts: Parts,
    noised: Float[Tensor, "batch channels height width"],
    timesteps: Sequence[int],
    text: TextEmbedding,
    image_px_hw: tuple[int, int],
) -> Tensor:
    """Run one conditional pass at flow times of timesteps / 1000 and return the model's output, a row a token."""
    if text.pooled is None:
        raise ModelError("Flux needs CLIP's embedding of the whole sentence too; give prompt_embeds= a TextEmbedding")
    device, dtype = parts.device, parts.dtype
    grid_hw = (noised.shape[-2] // PACKED, noised.shape[-1] // PACKED)
    guided = bool(parts.denoiser.config.guidance_embeds)
    output: Tensor = parts.denoiser(
        hidden_states=pack(noised).to(dtype),
        encoder_hidden_states=text.tokens.to(dtype),
        pooled_projections=text.pooled.to(dtype),
        timestep=torch.tensor(list(timesteps), device=device) / 1000,
        img_ids=image_places(grid_hw).to(device, dtype),
        txt_ids=torch.zeros(text.tokens.shape[1], 3, device=device, dtype=dtype),
        guidance=torch.full((len(noised),), GUIDANCE, device=device) if guided else None,
        return_dict=False,
    )[0]
    return output


def cut(denoiser: Any, layers: Sequence[Layer]) -> None:
    """Free, in place, the blocks after the last of these layers."""
    cut_blocks(denoiser, layers)
