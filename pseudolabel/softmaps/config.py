"""The settings of the figure's first half: model, sentence, noise, which attention is read and how it spreads.

Every default lives here, once. Each field's docstring is its help text on the command line; "(Paper)" marks the
switches that the preset `paper` turns on.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.config import changed, require, require_finite
from data.errors import ModelError

AffinityKind = Literal["none", "caa", "iterated", "iseg", "clipes", "cda"]

# Indices 4-8 and 11 of the 16 transformer blocks of Stable Diffusion 1.x in execution order.
PAPER_CROSS_LAYERS = (
    "down_blocks.2.attentions.0",
    "down_blocks.2.attentions.1",
    "mid_block.attentions.0",
    "up_blocks.1.attentions.0",
    "up_blocks.1.attentions.1",
)
PAPER_SELF_LAYERS = ("up_blocks.2.attentions.1",)


@dataclass(frozen=True)
class ModelConfig:
    """Which text-to-image diffusion model is read."""

    id: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """A folder in diffusers' layout (looked for first), or a model id on the Hugging Face hub."""

    revision: str | None = None
    """Branch, tag or commit on the hub; unused for a folder."""

    variant: str | None = None
    """Weight files of this variant, for example fp16 for model.fp16.safetensors; none: the plain files."""

    tokens: tuple[str, ...] = ()
    """Learned tokens (textual inversion): FILE, or TOKEN=FILE to name it; give the flag once for each file."""

    lora: tuple[str, ...] = ()
    """LoRA merged into the weights: FILE, or FILE:SCALE; give the flag once for each file."""

    custom_diffusion: Path | None = None
    """Custom Diffusion weights (safetensors or .bin) copied into the cross-attention layers."""

    t5: bool = False
    """SD3 and SD3.5: read the T5 text encoder too, 4.7 billion parameters more; Flux and PixArt always do."""

    vae: str | None = None
    """Folder or hub id of a tiny image encoder in place of the model's own, much quicker: madebyollin/taesd for Stable
    Diffusion 1, 2 and PixArt-alpha, taesdxl for SDXL and PixArt-Sigma, taesd3 for SD3, taef1 for Flux."""

    keep_text_encoders: bool = False
    """Transformers on a GPU: the text encoders stay there. False: they are there only while sentences are embedded."""

    vae_stripes: bool = False
    """The image encoder works through an image a few rows at a time: less memory, more time, the same latents up to
    rounding. False: only once a GPU's memory has run out."""

    offload: bool = False
    """The denoiser stays in main memory and a block of it at a time is sent to the GPU: slow, but it fits."""

    @property
    def folder(self) -> Path | None:
        """The local folder that the id names, `~` expanded; None where it is a model on the hub.

        Raises:
            ModelError: the id is neither a folder that is there nor of the hub's form (owner/name).

        """
        return local_folder(self.id, "model.id")

    @property
    def vae_folder(self) -> Path | None:
        """The local folder that `vae` names; None where it is on the hub, or none is named.

        Raises:
            ModelError: it is neither a folder that is there nor of the hub's form.

        """
        return None if self.vae is None else local_folder(self.vae, "model.vae")


def local_folder(name: str, flag: str) -> Path | None:
    """Return the folder of that name, `~` expanded, or None where it is an id of the hub.

    Args:
        name: what the setting says.
        flag: the setting's name, for the error message.

    Raises:
        ModelError: it is neither.

    """
    folder = Path(os.path.expanduser(name))  # pathlib's raises where there is no such user
    if name and folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"There is no model folder {name!r}, and it is not a hub id (owner/name); see --{flag}")
    return None


@dataclass(frozen=True)
class ResizeConfig:
    """How an image is brought to the size the diffusion model reads."""

    long_side_px: int | None = None
    """Longest side after resizing; none: 704 to 1024 by aspect ratio, scaled with the model's native size over 512."""

    valid_only: bool = True
    """Min-max and boxes see the image alone. False: the padding takes part too (Paper)."""

    def __post_init__(self) -> None:
        side = self.long_side_px
        require("resize.long_side_px", side, side is None or side >= 1, "at least 1, or none")


@dataclass(frozen=True)
class PromptConfig:
    """The sentence the text encoder reads."""

    template: str = "a photo including {}."
    """The sentence; {} stands for the list of classes and background words."""

    background_words: bool = True
    """Append each present class's background words; they soak up attention that would fall on the classes."""

    def __post_init__(self) -> None:
        require("prompt.template", self.template, self.template.count("{}") == 1, "a text with {} in it once")


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise the model looks through, and the ensembles averaged over."""

    timesteps: tuple[int, ...] = (150,)
    """Training timesteps at which the noised image is read, averaged over; of models of flow matching (SD3, Flux) 1000
    times the flow time, the share of noise: 150 there is less noise than in Stable Diffusion, whose 150 equals 313."""

    draws: int = 4
    """Noise draws averaged over; the published figures use 10 for VOC and 1 for COCO."""

    seed: int = 0
    """Noise depends on this seed, the image's id and the draw's number alone."""

    posterior: Literal["mode", "sample"] = "mode"
    """The latent is the mode of the image encoder's posterior, or one sample of it (Paper)."""

    flip: bool = False
    """Average over the image and its mirror image; doubles the cost."""

    scales: tuple[float, ...] = (1.0,)
    """Image sizes averaged over, relative to the resize rule."""

    def __post_init__(self) -> None:
        in_range = bool(self.timesteps) and all(0 <= step < 1000 for step in self.timesteps)
        require("diffusion.timesteps", self.timesteps, in_range, "one or more whole numbers from 0 to 999")
        require("diffusion.draws", self.draws, self.draws >= 1, "at least 1")
        positive = bool(self.scales) and all(0.1 <= scale <= 8 for scale in self.scales)
        require("diffusion.scales", self.scales, positive, "one or more numbers from 0.1 to 8")


@dataclass(frozen=True)
class AttentionConfig:
    """Which attention layers are read.

    A layer is a diffusers module name (`down_blocks.2.attentions.0`: mean over its transformer blocks;
    `down_blocks.2.attentions.0.transformer_blocks.1`: that block alone) or a role: `1/4` (every layer at a quarter of
    the latent's side), `down:1/4`, `up:1/4`, `mid`, `all`; in transformers (SD3, Flux, PixArt) `block:9`,
    `blocks:15-18`, and of Flux's single stream `single:12`. `@0+3` after either reads heads 0 and 3 alone.
    """

    cross_layers: tuple[str, ...] = PAPER_CROSS_LAYERS
    """Layers whose cross-attention maps are averaged, by module name or role: 1/4, up:1/4, mid, all, block:9."""

    self_layers: tuple[str, ...] = PAPER_SELF_LAYERS
    """Layers whose self-attention spreads the maps; with several, each at its own grid, averaged."""

    naming_layers: tuple[str, ...] = ()
    """Layers by whose cross-attention the classes of an image compete for a cell, while cross_layers say how far things
    reach: coarse layers often know better what a thing is, fine ones where it ends. None: cross_layers do both. Masks
    that may overlap (--independent of ground and refer) do without."""

    token_rescaling: bool = False
    """Drop start, end and filler tokens, let a cell's content tokens sum to 1, then min-max per token (GoCA)."""

    rescaled_tokens: Literal["content", "words"] = "content"
    """With token_rescaling: which tokens share a cell out: all content tokens, or those of classes and background words
    alone (words: GoCA), where a sentence has more than one of these."""

    blur: int = 1
    """With token_rescaling: width in cells of a Gaussian over each token's map, odd; 1: none; GoCA: 5."""

    weights: Literal["mean", "layers", "heads", "both"] = "mean"
    """mean: layers and heads count alike. layers: by how their self-attention agrees with dense features, those of the
    last of self_layers. heads (U-Nets, PixArt): cell by cell, by what each adds to the layer's output. both: GoCA."""

    @property
    def weighs_layers(self) -> bool:
        """Whether layers count by their self-attention."""
        return self.weights in ("layers", "both")

    @property
    def weighs_heads(self) -> bool:
        """Whether heads count by what they add."""
        return self.weights in ("heads", "both")

    def idle(self) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect with the others."""
        return () if self.token_rescaling else changed(self, ("rescaled_tokens", "blur"))

    def __post_init__(self) -> None:
        require("attention.cross_layers", self.cross_layers, bool(self.cross_layers), "at least one layer")
        require("attention.blur", self.blur, self.blur >= 1 and self.blur % 2 == 1, "an odd number of cells")


@dataclass(frozen=True)
class AffinityConfig:
    """How self-attention spreads a class's map over its object."""

    kind: AffinityKind = "caa"
    """caa: S S (boxes * map). iterated: norm(S map) repeated. iseg: sharpened S. clipes: balanced, squared S.
    cda: S weighted by how alike the classes of two cells are, repeated."""

    boxes: bool = True
    """Kinds caa, iterated and clipes: only cells inside the boxes around a class's high values are spread."""

    theta: float = 0.2
    """A box surrounds values above this share of the map's maximum; published: 0.2 for VOC, 0.5 for COCO."""

    clamp_box_edge: bool = False
    """The grid's last row and column are never inside a box (Paper)."""

    balance: bool = False
    """Kinds caa and iterated, naming_layers with them: divide S by its column sums, then its rows by theirs, so that
    cells which all others look at do not decide what all are told."""

    iterations: int = 2
    """Kinds iterated and cda: how many times the map is spread."""

    sharpening: float = 0.015
    """Kind iseg: weight of the entropy term; published: 0.015 for VOC, 0.1 for COCO."""

    saturate: float = 0.0
    """Share of an image's cells, those with the strongest maps, that are cut at 1 at last, so that a bright spot does
    not set the scale of everything else; 0: none."""

    temperature: float = 0.3
    """Kind cda: the lower, the less is spread between cells of different classes."""

    @property
    def uses_boxes(self) -> bool:
        """Whether only cells inside boxes are spread."""
        return self.boxes and self.kind in ("caa", "iterated", "clipes")

    @property
    def balances(self) -> bool:
        """Whether the columns and rows of S are balanced."""
        return self.balance and self.kind in ("caa", "iterated")

    def idle(self) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect under this kind."""
        idle = {
            "none": ("boxes", "theta", "clamp_box_edge", "balance", "iterations", "sharpening", "temperature"),
            "caa": ("iterations", "sharpening", "temperature"),
            "iterated": ("sharpening", "temperature"),
            "iseg": ("boxes", "theta", "clamp_box_edge", "balance", "iterations", "temperature"),
            "clipes": ("balance", "iterations", "sharpening", "temperature"),
            "cda": ("boxes", "theta", "clamp_box_edge", "balance", "sharpening"),
        }[self.kind]
        return changed(self, dict.fromkeys([*idle, *(() if self.uses_boxes else ("theta", "clamp_box_edge"))]))

    def __post_init__(self) -> None:
        require_finite("affinity", self)
        require("affinity.theta", self.theta, 0 <= self.theta < 1, "at least 0 and below 1")
        require("affinity.iterations", self.iterations, self.iterations >= 1, "at least 1")
        require("affinity.saturate", self.saturate, 0 <= self.saturate < 1, "at least 0 and below 1")
        require("affinity.temperature", self.temperature, self.temperature > 0, "above 0")
        require("affinity.sharpening", self.sharpening, self.sharpening >= 0, "at least 0")
