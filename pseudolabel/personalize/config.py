"""The settings of learning a thing of one's own; as in `pseudolabel.config`, a field's docstring is its help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.config import require
from pseudolabel.softmaps.config import PAPER_CROSS_LAYERS, ModelConfig


@dataclass(frozen=True)
class LookConfig:
    """Teaching a token where to look, from what the class word shows: beside the diffusion loss, and without masks.

    In the pictures to learn from, the token is to look where the class word looks; in pictures of others of the kind,
    anywhere else.
    """

    weight: float = 0.0
    """Weight beside the diffusion loss; 0 leaves it out, and what is trained is what was published."""

    cross_layers: tuple[str, ...] = PAPER_CROSS_LAYERS
    """Layers it is taught in, named as in attention.cross_layers."""

    timesteps: tuple[int, ...] = (150,)
    """Timesteps it is taught at: those that are read later (diffusion.timesteps)."""

    inside: float = 0.55
    """Where the class word's map, scaled to 0..1, is above this, is the object."""

    outside: float = 0.25
    """Where it is below this, is not."""

    drawn: int = 24
    """Pictures of others that the model draws, where no folder of them is given in others."""

    def __post_init__(self) -> None:
        require("look.weight", self.weight, 0 <= self.weight <= 1000, "from 0 to 1000")
        require("look.cross_layers", self.cross_layers, bool(self.cross_layers), "at least one layer")
        in_range = bool(self.timesteps) and all(0 <= step < 1000 for step in self.timesteps)
        require("look.timesteps", self.timesteps, in_range, "one or more whole numbers from 0 to 999")
        between = 0 < self.outside <= self.inside < 1
        require("look.inside", self.inside, between, "between look.outside and 1, both above 0")
        require("look.drawn", self.drawn, self.drawn >= 1, "at least 1")


PersonalMethod = Literal["textual_inversion", "lora", "custom_diffusion", "dreambooth"]


@dataclass(frozen=True)
class PersonalizeConfig:
    """All settings of `pseudolabel personalize`."""

    images: Path
    """Folder of two or more (best three to six) photographs of one thing; no masks."""

    init_word: str
    """The word for its kind, one token of the model's vocabulary (mug); the token starts as a copy of it."""

    token: str
    """What to call it, a new word such as <my-mug>."""

    output: Path
    """File to write (.safetensors); for dreambooth a folder."""

    method: PersonalMethod = "textual_inversion"
    """textual_inversion: the token alone. The others learn the token too, and: lora, low-rank changes of attention;
    custom_diffusion, keys and values of cross-attention; dreambooth, the whole U-Net."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The diffusion model."""

    steps: int = 400
    """Training steps."""

    vectors: int = 1
    """Tokens the placeholder stands for."""

    rank: int = 4
    """Rank of a LoRA."""

    batch_size: int = 4
    """Views of the photographs in a step."""

    token_rate: float = 5e-3
    """Learning rate of the token; about a third of the spread of the vocabulary's embeddings in Stable Diffusion."""

    weight_rate: float | None = None
    """Learning rate of weights; none: 1e-4 for lora, 1e-5 for custom_diffusion, 5e-6 for dreambooth."""

    timesteps: tuple[int, int] = (0, 1000)
    """Noise levels trained on: from the first to below the second."""

    templates: tuple[str, ...] = ("a photo of {}", "a photo including {}.", "a picture with {}", "{}")
    """Sentences; {} stands for the token."""

    look: LookConfig = field(default_factory=LookConfig)
    """Teaching the token where to look."""

    others: Path | None = None
    """Folder of pictures of other things of its kind, for look; none: the model draws some."""

    seed: int = 0
    """Everything drawn at random depends on this alone."""

    save_every: int = 50
    """Steps between checkpoints, from which the same command goes on."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        for name in ("steps", "vectors", "rank", "batch_size", "save_every"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("token_rate", "weight_rate"):
            rate = getattr(self, name)
            require(name, rate, rate is None or 0 < rate < 10, "above 0 and below 10")
        low, high = self.timesteps
        require("timesteps", self.timesteps, 0 <= low < high <= 1000, "two numbers, 0 <= first < second <= 1000")
        whole = bool(self.templates) and all(text.count("{}") == 1 for text in self.templates)
        require("templates", self.templates, whole, "one or more texts with {} in each once")
