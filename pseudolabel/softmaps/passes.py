"""From images to passes: sentences, latents, noise, and batches that fit into memory."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from data.store.softmaps import Frame
from pseudolabel.softmaps.prompt import Prompt


@dataclass(frozen=True)
class Pass:
    """One U-Net evaluation: a noised latent of one image, read for the classes of one sentence.

    Attributes:
        image: position of the image among those worked on.
        prompt: the sentence and its classes' tokens.
        frame: sizes of the image.
        noised: z_t.
        timestep: t.
        mirrored: the image was mirrored, left to right, before it was padded.

    """

    image: int
    prompt: Prompt
    frame: Frame
    noised: Float[Tensor, "channels height width"]
    timestep: int
    mirrored: bool = False
