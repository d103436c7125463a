"""What is done with a denoiser whatever its family: its layers, sentences, one pass, and leaving out what is not read.

A family is a file of this folder with the names of `FamilyFile`; a new one is such a file and a line in `FILES`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from data.errors import ModelError
from pseudolabel.softmaps.diffusion import flux, flux2, pixart, sd3, unet
from pseudolabel.softmaps.diffusion.parts import Parts, TextEmbedding
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.tokens import TextWindow


class FamilyFile(Protocol):
    """What the file of a family holds."""

    DENOISER: str
    """Class of the denoiser in diffusers; its subclasses are read too."""
    FLOW: bool
    """Whether noise is mixed in on a straight line (flow matching), not as in DDPM."""
    PACKED: int
    """Latent pixels on the side of one input of the denoiser; 1 unless latents are packed before it sees them."""

    def denoiser_class(self) -> Any:
        """Return the class of diffusers."""

    def encoder_classes(self, t5: bool) -> dict[str, tuple[str, ...]]:
        """Return the text encoders' folders, and the classes each may be of; `t5`: SD3's third is read."""

    def cell(self, denoiser: Any) -> int:
        """Return how many latent pixels a side must be a multiple of."""

    def text_windows(
        self, tokenizers: Sequence[Any], encoders: Sequence[Any], denoiser: Any, pipeline: str
    ) -> tuple[TextWindow, ...]:
        """Return where a word's tokens are among those that the denoiser sees; none: where `Parts` puts a U-Net's."""

    def list_layers(self, denoiser: Any) -> tuple[Layer, ...]:
        """Return every layer that can be read, in the order in which the denoiser runs them."""

    def encode_text(self, parts: Parts, text: str) -> TextEmbedding:
        """Return the embedding of one sentence."""

    def run(
        self, parts: Parts, noised: Tensor, timesteps: Sequence[int], text: TextEmbedding, image_px_hw: tuple[int, int]
    ) -> Tensor:
        """Run one conditional pass and return its output."""

    def cut(self, denoiser: Any, layers: Sequence[Layer]) -> None:
        """Free, in place, the weights of what runs after the last of these layers."""


FILES: dict[str, FamilyFile] = {
    "unet": unet,
    "sd3": sd3,
    "flux": flux,
    "flux2": flux2,
    "pixart": pixart,
}


def family_of(class_name: str) -> str | None:
    """Return the family whose denoiser is of this class of diffusers; None where its attention cannot be read here.

    >>> family_of("SD3Transformer2DModel")
    'sd3'
    """
    return next((family for family, file in FILES.items() if class_name == file.DENOISER), None)


def family_in_memory(denoiser: Any) -> str:
    """Return the family of a denoiser by its class or those it derives from.

    Raises:
        ModelError: one that cannot be read.

    """
    found = (family_of(each.__name__) for each in type(denoiser).__mro__)
    family = next((family for family in found if family is not None), None)
    if family is None:
        raise ModelError(f"The attention of a {type(denoiser).__name__} cannot be read; change --model.id")
    return family


def is_flow(parts: Parts) -> bool:
    """Return whether noise is mixed in on a straight line (flow matching), not as in DDPM."""
    return FILES[parts.family].FLOW


def cell_px(parts: Parts) -> int:
    """Return the pixels that a side must be a multiple of: a token, or whole cells at every level of a U-Net."""
    return parts.vae_factor * FILES[parts.family].cell(parts.denoiser)


def native_px(parts: Parts) -> int:
    """Return the side of the images that the model was trained on."""
    sample_size = getattr(parts.denoiser.config, "sample_size", None)  # Flux has none and knows latents of 128
    side = max(sample_size) if isinstance(sample_size, (tuple, list)) else sample_size
    return int((side or (64 if parts.family == "unet" else 128)) * parts.vae_factor)


def largest_px(parts: Parts) -> int | None:
    """Return the longest side that the model has positions for (SD3); None where there is no end."""
    positions = getattr(parts.denoiser.config, "pos_embed_max_size", None)
    return None if positions is None else int(positions * cell_px(parts))


def list_layers(parts: Parts) -> tuple[Layer, ...]:
    """Return every layer that can be read, in the order in which the denoiser runs them.

    Raises:
        ModelError: there is none.

    """
    return FILES[parts.family].list_layers(parts.denoiser)


def encode_text(parts: Parts, text: str) -> TextEmbedding:
    """Return the embedding of one sentence, filled up to the windows of the text encoders.

    Raises:
        ModelError: there is no text encoder.

    """
    if not parts.text_encoders:
        raise ModelError("This model has no text encoder; give prompt_embeds= and spans=")
    return FILES[parts.family].encode_text(parts, text)


def run_denoiser(
    parts: Parts,
    noised: Float[Tensor, "batch channels height width"],
    timesteps: Sequence[int],
    text: TextEmbedding,
    image_px_hw: tuple[int, int],
) -> Tensor:
    """Run one conditional pass and return its output; `attention.record_attention` around it sees what it looked at."""
    return FILES[parts.family].run(parts, noised, timesteps, text, image_px_hw)


def cut_denoiser(parts: Parts, cross: Sequence[Layer], self_layers: Sequence[Layer]) -> None:
    """Free, in place, the weights of what a denoiser runs after the last layer that is read."""
    FILES[parts.family].cut(parts.denoiser, (*cross, *self_layers))
