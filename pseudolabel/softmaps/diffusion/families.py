"""What is done with a denoiser whatever its kind: its layers, sentences, one pass, and leaving out what is not read."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pseudolabel.softmaps.diffusion import flux, flux2, pixart, sd3, unet
from pseudolabel.softmaps.diffusion.blocks import cut_blocks
from pseudolabel.softmaps.diffusion.parts import Parts, TextEmbedding
from pseudolabel.softmaps.layers import Layer


def list_layers(parts: Parts) -> tuple[Layer, ...]:
    """Return every layer that can be read, in the order in which the denoiser runs them.

    Raises:
        ModelError: there is none.

    """
    match parts.family:
        case "unet":
            return unet.list_layers(parts.denoiser)
        case "sd3":
            return sd3.list_layers(parts.denoiser)
        case "flux" | "flux2":
            return flux.list_layers(parts.denoiser)
        case "pixart":
            return pixart.list_layers(parts.denoiser)


def encode_text(parts: Parts, text: str) -> TextEmbedding:
    """Return the embedding of one sentence, filled up to the windows of the text encoders.

    Raises:
        ModelError: there is no text encoder.

    """
    match parts.family:
        case "unet":
            return unet.encode_text(parts, text)
        case "sd3":
            return sd3.encode_text(parts, text)
        case "flux":
            return flux.encode_text(parts, text)
        case "pixart":
            return pixart.encode_text(parts, text)
        case "flux2":
            return flux2.encode_text(parts, text)


def run_denoiser(
    parts: Parts,
    noised: Float[Tensor, "batch channels height width"],
    timesteps: Sequence[int],
    text: TextEmbedding,
    image_px_hw: tuple[int, int],
) -> Tensor:
    """Run one conditional pass and return its output; `attention.record_attention` around it sees what it looked at."""
    match parts.family:
        case "unet":
            return unet.run_unet(parts, noised, timesteps, text, image_px_hw)
        case "sd3":
            return sd3.run(parts, noised, timesteps, text)
        case "flux":
            return flux.run(parts, noised, timesteps, text)
        case "pixart":
            return pixart.run(parts, noised, timesteps, text, image_px_hw)
        case "flux2":
            return flux2.run(parts, noised, timesteps, text)


def cut_denoiser(parts: Parts, cross: Sequence[Layer], self_layers: Sequence[Layer]) -> None:
    """Free, in place, the weights of what a denoiser runs after the last layer that is read."""
    denoiser: Any = parts.denoiser
    match parts.family:
        case "unet":
            unet.cut_unet(denoiser, cross, self_layers)
        case "sd3" | "flux" | "pixart" | "flux2":
            cut_blocks(denoiser, (*cross, *self_layers))
