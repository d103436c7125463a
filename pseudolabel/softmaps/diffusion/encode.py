"""Image to latent, latent to noised latent.

Source: arXiv 2309.04109, section 3.1: z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps; one evaluation of the conditional
model a draw, no denoising chain, no guidance.
"""

import logging
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data.errors import ConfigError, ModelError
from pseudolabel.softmaps.diffusion import flux2
from pseudolabel.softmaps.diffusion.families import is_flow
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.diffusion.stripes import in_stripes

logger = logging.getLogger(__name__)


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
    """Return the scaled latent of one image in float32: the posterior's mode, or one sample of it.

    Raises:
        ConfigError: a GPU's memory does not hold it, not even in stripes; a tiny encoder is asked for a sample.
        ModelError: there is no image encoder.

    """
    if parts.vae is None:
        raise ModelError("This model has no image encoder; give latents=")
    pixels = torch.from_numpy(np.ascontiguousarray(padded_u8)).to(parts.device).permute(2, 0, 1)[None]
    encoded = _encoded(parts, (pixels.float() / 127.5 - 1).to(parts.vae.dtype))
    distribution = getattr(encoded, "latent_dist", None)
    latent: Tensor = (encoded.latents if distribution is None else distribution.mean).float().contiguous()
    if posterior == "sample":
        if distribution is None:
            raise ConfigError("A tiny image encoder (--model.vae) has no posterior: use --diffusion.posterior=mode")
        noise = torch.randn(latent.shape, generator=generator).to(latent.device)
        latent = latent + distribution.std.float() * noise
    if hasattr(parts.vae, "bn"):
        return flux2.normalised(latent, parts.vae)[0]
    shift = getattr(parts.vae.config, "shift_factor", None) or 0.0
    return (latent[0] - shift) * float(parts.vae.config.scaling_factor)


def _encoded(parts: Parts, pixels: Float[Tensor, "1 3 height width"]) -> Any:
    """Run the image encoder; where a GPU's memory runs out, in stripes from then on."""
    if not parts.vae_in_stripes:
        try:
            return parts.vae.encode(pixels)
        except torch.cuda.OutOfMemoryError:
            parts.vae_in_stripes = True
        torch.cuda.empty_cache()  # out of the except clause, which holds what the encoder had in hand
        logger.info("The image encoder did not fit into GPU memory: in stripes from now on (model.vae_stripes)")
    try:
        with in_stripes(parts.vae):
            return parts.vae.encode(pixels)
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(
            f"The GPU's memory does not hold the image encoder on {pixels.shape[3]} x {pixels.shape[2]} px; use a "
            "smaller --resize.long_side_px, or a tiny image encoder (--model.vae)"
        ) from error


def add_noise(
    latents: Float[Tensor, "*batch channels height width"],
    noise: Float[Tensor, "*batch channels height width"],
    alpha_bar: float,
) -> Float[Tensor, "*batch channels height width"]:
    """Return z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps."""
    return alpha_bar**0.5 * latents + (1 - alpha_bar) ** 0.5 * noise


def add_flow_noise(
    latents: Float[Tensor, "*batch channels height width"],
    noise: Float[Tensor, "*batch channels height width"],
    sigma: float,
) -> Float[Tensor, "*batch channels height width"]:
    """Return z_sigma = (1 - sigma) z + sigma eps, the straight path of flow matching (rectified flow)."""
    return (1 - sigma) * latents + sigma * noise


def noised_latent(
    parts: Parts,
    latent: Float[Tensor, "channels height width"],
    noise: Float[Tensor, "channels height width"],
    timestep: int,
) -> Float[Tensor, "channels height width"]:
    """Return a latent at a timestep (0 to 999) of the model's own kind of noise; of a flow it is 1000 sigma."""
    if is_flow(parts):
        return add_flow_noise(latent, noise, timestep / 1000)
    return add_noise(latent, noise, float(parts.alphas_cumprod[timestep]))
