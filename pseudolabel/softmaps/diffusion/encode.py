"""Image to latent, latent to noised latent, sentence to embedding.

Source: arXiv 2309.04109, section 3.1: z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps; one evaluation of the conditional
model a draw, no denoising chain, no guidance.
"""

from hashlib import blake2b
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data.errors import ModelError
from pseudolabel.softmaps.diffusion.parts import Parts, TextEmbedding


def seeded_generator(seed: int, image_id: str, draw: int | Literal["posterior"]) -> torch.Generator:
    """Return a CPU generator that depends on seed, image and draw alone, not on order, batch, process or device."""
    digest = blake2b(f"{seed}\0{image_id}\0{draw}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_noise(
    latent_shape: tuple[int, int, int], seed: int, image_id: str, draw: int
) -> Float[Tensor, "channels height width"]:
    """Return standard normal noise for one draw of one image."""
    return torch.randn(latent_shape, generator=seeded_generator(seed, image_id, draw))


def encode_image(
    parts: Parts,
    padded_u8: UInt8[np.ndarray, "height width 3"],
    posterior: Literal["mode", "sample"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "channels latent_h latent_w"]:
    """Return the scaled latent of one image in float32: the posterior's mode, or one sample of it."""
    if parts.vae is None:
        raise ModelError("This model has no image encoder; give latents=")
    pixels = torch.from_numpy(np.ascontiguousarray(padded_u8)).to(parts.device).permute(2, 0, 1)[None]
    distribution = parts.vae.encode((pixels.float() / 127.5 - 1).to(parts.vae.dtype)).latent_dist
    latent: Tensor = distribution.mean.float()
    if posterior == "sample":
        noise = torch.randn(latent.shape, generator=generator).to(latent.device)
        latent = latent + distribution.std.float() * noise
    shift = getattr(parts.vae.config, "shift_factor", None) or 0.0
    return (latent[0] - shift) * float(parts.vae.config.scaling_factor)


def add_noise(
    latents: Float[Tensor, "*batch channels height width"],
    noise: Float[Tensor, "*batch channels height width"],
    alpha_bar: float,
) -> Float[Tensor, "*batch channels height width"]:
    """Return z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps."""
    return alpha_bar**0.5 * latents + (1 - alpha_bar) ** 0.5 * noise


def encode_text(parts: Parts, text: str) -> TextEmbedding:
    """Return the embedding of one sentence, filled up to the window; tokens of SDXL's encoders side by side.

    Stable Diffusion reads the last hidden state, SDXL the last but one of both encoders and the second's projection.
    """
    if not parts.text_encoders:
        raise ModelError("This model has no text encoder; give prompt_embeds= and spans=")
    several = len(parts.text_encoders) > 1
    tokens, pooled = [], None
    for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True):
        encoded = tokenizer(text, padding="max_length", max_length=parts.window, truncation=True, return_tensors="pt")
        ids = encoded["input_ids"].to(parts.device)
        mask = (
            encoded["attention_mask"].to(parts.device) if getattr(encoder.config, "use_attention_mask", False) else None
        )
        output = encoder(ids, attention_mask=mask, output_hidden_states=several)
        tokens.append(output.hidden_states[-2] if several else output.last_hidden_state)
        pooled = output[0] if several else None
    return TextEmbedding(torch.cat(tokens, dim=-1), pooled)
