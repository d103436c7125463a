"""The settings of `ground`, `refer` and `synthesize`; as in `pseudolabel.config`, a field's docstring is its help."""

from argparse import ArgumentError
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from data.config import DataConfig, require, to_plain
from data.config_files import find_paths
from data.errors import ConfigError
from pseudolabel.config import GenerateConfig, RunConfig
from pseudolabel.masks.config import CrfConfig, FuseConfig, SamConfig
from pseudolabel.softmaps.config import (
    AffinityConfig,
    AttentionConfig,
    DiffusionConfig,
    ModelConfig,
    PromptConfig,
    ResizeConfig,
)


@dataclass(frozen=True)
class MatchConfig:
    """What phrases have and classes have not."""

    words: Literal["mean", "similarity"] = "mean"
    """Tokens of a phrase: their mean (the paper), or weighted by the likeness of their embeddings to the last one's."""

    background: tuple[str, ...] = ()
    """Words added to a sentence that is made from the phrases; they soak up attention and are not read out."""

    presence_min: float = 0.0
    """A phrase whose presence is lower gets an empty mask and competes with no other; 0 keeps all."""

    def __post_init__(self) -> None:
        require("match.presence_min", self.presence_min, 0 <= self.presence_min <= 1, "from 0 to 1")


@dataclass(frozen=True)
class GroundConfig:
    """All settings of finding phrases in images; a configuration file of `generate` fits."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The diffusion model."""

    resize: ResizeConfig = field(default_factory=ResizeConfig)
    """Image size."""

    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Sentence made from the phrases."""

    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Noise and ensembles."""

    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Layers read."""

    affinity: AffinityConfig = field(default_factory=AffinityConfig)
    """Spreading by self-attention."""

    match: MatchConfig = field(default_factory=MatchConfig)
    """Phrases."""

    fuse: FuseConfig = field(default_factory=FuseConfig)
    """Background score."""

    crf: CrfConfig = field(default_factory=CrfConfig)
    """Refinement along the image's edges."""

    sam: SamConfig = field(default_factory=SamConfig)
    """Masks sharpened by a Segment Anything model."""

    ignore_below: float = 0.95
    """Pixels of a data set's masks whose best marginal is below this are 255; a phrase's own mask has no such band."""

    run: RunConfig = field(default_factory=RunConfig)
    """Device and number format; of the others only what concerns the diffusion model."""

    data: dict[str, Any] = field(default_factory=dict)
    """Not read; a configuration file of `generate` may hold it."""

    @property
    def generate_config(self) -> GenerateConfig:
        """The same settings as `Pipeline` takes them; the data group is empty."""
        shared = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("match", "data")}
        return GenerateConfig(data=DataConfig(root=Path()), **shared)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; those of a Segment Anything model only where one is named."""
        plain: dict[str, Any] = to_plain(self)
        return plain if self.sam.id is not None else {name: value for name, value in plain.items() if name != "sam"}


def ground_config(path: Path | None) -> GroundConfig:
    """Return settings as `pseudolabel ground --config` reads them; without a file, the defaults.

    Raises:
        ConfigError: the file cannot be read, or holds settings that do not exist or cannot be.

    """
    if path is None:
        return GroundConfig()
    from jsonargparse import ArgumentParser

    from data.texts import CONFIG_FILE, read_yaml

    given = read_yaml(path, CONFIG_FILE)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GroundConfig, "ground")
    try:
        settings = parser.parse_object({"ground": {} if given is None else given})
        find_paths(settings.ground, path)
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before 4.49
        found: GroundConfig = instantiate(settings).ground
    except (ArgumentError, TypeError) as error:
        raise ConfigError(f"The config file {path} cannot be used for phrases ({error}).") from error
    return found
