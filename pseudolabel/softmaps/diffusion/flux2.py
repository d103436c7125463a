"""Flux.2 klein: as Flux.1, with three hidden layers of Qwen3 side by side for the text.

Places have four numbers (time, row, column, place in the sentence), single blocks compute queries, keys, values and
their own feed-forward part in one matrix, and latents are normalised by running statistics of the image encoder, packed
two by two. Blocks are named and read as Flux.1's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pseudolabel.softmaps.diffusion.blocks import cut_blocks, list_blocks, token_batch
from pseudolabel.softmaps.diffusion.flux import GUIDANCE, image_places, pack
from pseudolabel.softmaps.diffusion.flux import PACKED as PACKED
from pseudolabel.softmaps.diffusion.parts import QWEN, Parts, TextEmbedding
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.tokens import TextWindow, chat_text

DENOISER = "Flux2Transformer2DModel"
FLOW = True

TOKENS = 512
HIDDEN_LAYERS = (9, 18, 27)  # of Qwen3, as diffusers' pipeline reads


def denoiser_class() -> Any:
    """Return the class of diffusers."""
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel


def encoder_classes(t5: bool) -> dict[str, tuple[str, ...]]:
    """Return the text encoders' folders, and the classes each may be of."""
    return {"text_encoder": (QWEN,)}


def cell(denoiser: Any) -> int:
    """Return how many latent pixels a side must be a multiple of."""
    return PACKED


def list_layers(denoiser: Any) -> tuple[Layer, ...]:
    """Return every block, then every single block, in the order in which they run."""
    return list_blocks(denoiser, PACKED, "attn", "attn", "first")


def text_windows(
    tokenizers: Sequence[Any], encoders: Sequence[Any], denoiser: Any, pipeline: str
) -> tuple[TextWindow, ...]:
    """Return where a word's tokens are: among Qwen3's, behind the opening of a user's turn."""
    return (TextWindow(tokenizers[0], TOKENS),)


def encode_text(parts: Parts, text: str) -> TextEmbedding:
    """Return the embedding of one sentence's tokens; filler is masked within Qwen3 and not in the transformer."""
    [tokenizer], [encoder] = parts.tokenizers, parts.text_encoders
    ids, mask = token_batch(tokenizer, chat_text(text, tokenizer), parts.window, parts.device)
    output = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    return TextEmbedding(torch.cat([output.hidden_states[layer] for layer in HIDDEN_LAYERS], dim=-1))


def normalised(
    latents: Float[Tensor, "batch channels height width"], vae: Any
) -> Float[Tensor, "batch channels height width"]:
    """Return latents whose channels, packed two by two pixels, have the mean and deviation that the model knows."""
    packed = functional.pixel_unshuffle(latents, PACKED)
    mean = vae.bn.running_mean.to(packed).view(1, -1, 1, 1)
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(packed)
    return functional.pixel_shuffle((packed - mean) / deviation, PACKED)


def run(
    parts: Parts,
    noised: Float[Tensor, "batch channels height width"],
    timesteps: Sequence[int],
    text: TextEmbedding,
    image_px_hw: tuple[int, int],
) -> Tensor:
    """Run one conditional pass at flow times of timesteps / 1000 and return the model's output, a row a token."""
    device, dtype = parts.device, parts.dtype
    grid_hw, n_text = (noised.shape[-2] // PACKED, noised.shape[-1] // PACKED), text.tokens.shape[1]
    guided = bool(parts.denoiser.config.guidance_embeds)
    output: Tensor = parts.denoiser(
        hidden_states=pack(noised).to(dtype),
        encoder_hidden_states=text.tokens.to(dtype),
        timestep=torch.tensor(list(timesteps), device=device) / 1000,
        img_ids=functional.pad(image_places(grid_hw), (0, 1)).to(device),
        txt_ids=functional.pad(torch.arange(n_text, dtype=torch.float32)[:, None], (3, 0)).to(device),
        guidance=torch.full((len(noised),), GUIDANCE, device=device) if guided else None,
        return_dict=False,
    )[0]
    return output


def cut(denoiser: Any, layers: Sequence[Layer]) -> None:
    """Free, in place, the blocks after the last of these layers."""
    cut_blocks(denoiser, layers)
