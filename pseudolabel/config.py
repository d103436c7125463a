"""All settings of stage one as frozen dataclasses, and what a store keeps of them; a YAML file states differences.

The groups of both halves of the figure lie beside what they set: `softmaps/config.py` and `masks/config.py`.

The defaults are the preset `default`. The preset `paper` is a file (`configs/pseudolabel/voc12_paper.yaml`,
`coco14_paper.yaml`) that turns on, one by one, the switches marked "Paper" below.
Each field's docstring is its help text on the command line.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data.config import DataConfig, changed, from_plain, require, to_plain
from data.errors import ConfigError, StoreError
from pseudolabel.masks.config import CrfConfig, FuseConfig, MaskConfig, SamConfig
from pseudolabel.softmaps.config import (
    AffinityConfig,
    AttentionConfig,
    DiffusionConfig,
    ModelConfig,
    PromptConfig,
    ResizeConfig,
)

SKIPPED_DATA_FIELDS = ("root", "split", "labels", "truth", "cache")  # they describe this machine or the small set

Dtype = Literal["auto", "float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class RunConfig:
    """Settings that change speed, never the masks (up to rounding where `dtype`, `device` or the cores differ)."""

    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto: the first GPU there is, else the CPU."""

    dtype: Dtype = "auto"
    """Number format of the networks; auto: on a GPU float16, for transformers bfloat16; on a CPU float32, for
    transformers bfloat16 where the CPU multiplies it. Maps are always summed in float32."""

    batch_size: int | Literal["auto"] = "auto"
    """Noised images (images x draws x flips) a GPU takes at once; auto finds what fits. A CPU takes an image's own."""

    workers: int | None = None
    """Processes that refine masks while the denoiser runs; none: one for each core but one; 0: no extra process."""

    shard: str = "1/1"
    """Work on every n-th image alone: i/n with i from 1 to n."""

    on_error: Literal["stop", "skip"] = "stop"
    """An image that cannot be processed stops the run, or is counted and named at the end."""

    overwrite: bool = False
    """Make masks again that the store already has; the only way to lose one."""

    limit: int | None = None
    """Stop after this many images that are left to do, in the data set's order; none: all."""

    engine: Literal["local", "ray"] = "local"
    """local: this process and its workers. ray: Ray Data, one machine or a cluster (extra [ray])."""

    compile: bool = False
    """Compile the denoiser with torch.compile: a slow start, then quicker on a GPU."""

    def __post_init__(self) -> None:
        require(
            "run.batch_size", self.batch_size, self.batch_size == "auto" or self.batch_size >= 1, "auto or at least 1"
        )
        require("run.workers", self.workers, self.workers is None or self.workers >= 0, "at least 0")
        require("run.limit", self.limit, self.limit is None or self.limit >= 0, "at least 0")
        index, _, count = self.shard.partition("/")
        valid = index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)
        require("run.shard", self.shard, valid, "i/n with i from 1 to n")


@dataclass(frozen=True)
class GenerateConfig:
    """All settings of `pseudolabel generate`."""

    data: DataConfig
    """Images and labels."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The diffusion model."""

    resize: ResizeConfig = field(default_factory=ResizeConfig)
    """Image size."""

    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Sentence."""

    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Noise and ensembles."""

    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Layers read."""

    affinity: AffinityConfig = field(default_factory=AffinityConfig)
    """Spreading by self-attention."""

    fuse: FuseConfig = field(default_factory=FuseConfig)
    """Background score."""

    crf: CrfConfig = field(default_factory=CrfConfig)
    """Refinement along the image's edges."""

    sam: SamConfig = field(default_factory=SamConfig)
    """Labels sharpened by a Segment Anything model."""

    ignore_below: float = 0.95
    """Pixels whose best marginal is below this are written as 255 (ignore); 0 writes none."""

    run: RunConfig = field(default_factory=RunConfig)
    """Speed and machine."""

    def __post_init__(self) -> None:
        require("ignore_below", self.ignore_below, 0 <= self.ignore_below <= 1, "from 0 to 1")
        has_words = self.fuse.background == "rule" or self.prompt.background_words
        rule = "rule where --prompt.background_words is false"
        require("fuse.background", self.fuse.background, has_words, rule)

    def idle(self) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect under the chosen kinds."""
        reads_none = self.affinity.kind == "none" and not self.attention.weighs_layers
        unread = changed(self.attention, ("self_layers",)) if reads_none else ()
        groups = (
            ("attention", (*unread, *self.attention.idle())),
            ("affinity", self.affinity.idle()),
            ("crf", self.crf.idle()),
            ("sam", self.sam.idle()),
        )
        return tuple(f"{group}.{name}" for group, names in groups for name in names)


SOFT_FIELDS = ("model", "resize", "prompt", "diffusion", "attention", "affinity")
MASK_FIELDS = ("fuse", "crf", "sam", "ignore_below")
# Settings that the first stores did not have.
LATER = {
    "attention": ("rescaled_tokens", "blur", "weights", "naming_layers"),
    "affinity": ("temperature", "balance", "saturate"),
    "fuse": ("background",),
    "crf": ("max_megapixels", "engine", "smoothness", "grid", "edge", "guide", "guide_edge"),
}
ADAPTERS = ("tokens", "lora", "custom_diffusion")  # of the model: what is put into a U-Net
UNNAMED = (*ADAPTERS, "t5", "vae")  # of the model: a store that was made without them does not name them
PLACING = ("keep_text_encoders", "offload", "vae_stripes")  # of the model: how it fits, which changes no mask


def stored_settings(config: GenerateConfig) -> dict[str, Any]:
    """Return the settings that change masks as JSON values, for a store header; data and run settings stay out.

    Settings that older versions did not have are left out at their defaults, as in `stored_mask_settings`.
    """
    stored = {name: to_plain(getattr(config, name)) for name in SOFT_FIELDS}
    stored["model"] = {
        name: value for name, value in stored["model"].items() if name not in PLACING and (value or name not in UNNAMED)
    }
    return _without_later_defaults(config, stored) | stored_mask_settings(mask_config(config))


def stored_mask_settings(config: MaskConfig) -> dict[str, Any]:
    """Return the mask settings for a store header.

    A setting that older versions of the program did not have is left out at its default, so that their stores are
    resumed as they are.
    """
    stored = {name: to_plain(getattr(config, name)) for name in MASK_FIELDS}
    if config.sam.id is None:
        del stored["sam"]
    return _without_later_defaults(config, stored)


def _without_later_defaults(config: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """Leave out what `LATER` lists where it is at its default."""
    for group, names in LATER.items():
        if group in stored:
            settings = getattr(config, group)
            left_out = {name for name in names if getattr(settings, name) == getattr(type(settings), name)}
            stored[group] = {name: value for name, value in stored[group].items() if name not in left_out}
    return stored


def mask_settings(stored: dict[str, Any]) -> MaskConfig:
    """Read the mask settings out of a store header's config (`stored_settings`); absent keys take their defaults.

    So does the CRF's engine, which belongs to the machine and not to the masks.

    Raises:
        StoreError: a setting that this version does not know, or a value of another type or out of its range.

    """
    rest = {name: stored[name] for name in ("ignore_below",) if name in stored}
    try:
        return replace(
            from_plain(MaskConfig, rest, "config"),
            fuse=from_plain(FuseConfig, stored.get("fuse", {}), "config.fuse"),
            crf=replace(from_plain(CrfConfig, stored.get("crf", {}), "config.crf"), engine="auto"),
            sam=from_plain(SamConfig, stored.get("sam", {}), "config.sam"),
        )
    except ConfigError as error:
        raise StoreError(
            f"The settings in the store cannot be read ({error}): restore its store.json, or make the store again; "
            "--store names it."
        ) from error


def differences(config: GenerateConfig) -> dict[str, Any]:
    """Return what differs from the defaults, as YAML values.

    Data folders and run settings stay out, and so does what has no effect under the chosen kinds.
    """
    defaults, idle = to_plain(GenerateConfig(data=DataConfig(root=Path()))), set(config.idle())
    found: dict[str, Any] = {}
    for group, value in to_plain(config).items():
        if isinstance(value, dict):
            left_out = SKIPPED_DATA_FIELDS if group == "data" else ()
            value = {
                name: entry
                for name, entry in value.items()
                if entry != defaults[group][name] and name not in left_out and f"{group}.{name}" not in idle
            }
        if group != "run" and value not in ({}, defaults[group]):
            found[group] = value
    return found


def mask_config(config: GenerateConfig) -> MaskConfig:
    """Return the part of the settings that turns soft maps into a mask."""
    return MaskConfig(fuse=config.fuse, crf=config.crf, sam=config.sam, ignore_below=config.ignore_below)
