"""The settings of stage one as frozen dataclasses: every default lives here, once; a YAML file states differences.

The defaults are the preset `default`. The preset `paper` is a file (`configs/pseudolabel/voc12_paper.yaml`,
`coco14_paper.yaml`) that turns on, one by one, the switches marked "Paper" below.
Each field's docstring is its help text on the command line.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data.config import CrfEngine, DataConfig, changed, from_plain, require, to_plain
from data.errors import ConfigError, ModelError, StoreError

SKIPPED_DATA_FIELDS = ("root", "split", "labels", "truth", "cache")  # they describe this machine or the small set

AffinityKind = Literal["none", "caa", "iterated", "iseg", "clipes", "cda"]
CrfKind = Literal["densecrf", "pamr", "tlp", "none"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]

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

    offload: bool = False
    """The denoiser stays in main memory and a block of it at a time is sent to the GPU: slow, but it fits."""

    @property
    def folder(self) -> Path | None:
        """The local folder that the id names, `~` expanded; None where it is a model on the hub.

        Raises:
            ModelError: the id is neither a folder that is there nor of the hub's form (owner/name).

        """
        return _local_folder(self.id, "model.id")

    @property
    def vae_folder(self) -> Path | None:
        """The local folder that `vae` names; None where it is on the hub, or none is named.

        Raises:
            ModelError: it is neither a folder that is there nor of the hub's form.

        """
        return None if self.vae is None else _local_folder(self.vae, "model.vae")


def _local_folder(name: str, flag: str) -> Path | None:
    """Return the folder of that name, or None where it is an id of the hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
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

    token_rescaling: bool = False
    """Drop start, end and filler tokens, let a cell's content tokens sum to 1, then min-max per token (GoCA)."""

    rescaled_tokens: Literal["content", "words"] = "content"
    """With token_rescaling: which tokens share a cell out: all content tokens, or those of classes and background words
    alone (words: GoCA)."""

    blur: int = 1
    """With token_rescaling: width in cells of a Gaussian over each token's map, odd; 1: none; GoCA: 5."""

    weights: Literal["mean", "layers", "heads", "both"] = "mean"
    """mean: layers and heads count alike. layers: by how their self-attention agrees with dense features, those of the
    last of self_layers. heads: cell by cell, by what each adds to the layer's output. both: GoCA. U-Nets alone."""

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

    iterations: int = 2
    """Kinds iterated and cda: how many times the map is spread."""

    sharpening: float = 0.015
    """Kind iseg: weight of the entropy term; published: 0.015 for VOC, 0.1 for COCO."""

    temperature: float = 0.3
    """Kind cda: the lower, the less is spread between cells of different classes."""

    @property
    def uses_boxes(self) -> bool:
        """Whether only cells inside boxes are spread."""
        return self.boxes and self.kind in ("caa", "iterated", "clipes")

    def idle(self) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect under this kind."""
        idle = {
            "none": ("boxes", "theta", "clamp_box_edge", "iterations", "sharpening", "temperature"),
            "caa": ("iterations", "sharpening", "temperature"),
            "iterated": ("sharpening", "temperature"),
            "iseg": ("boxes", "theta", "clamp_box_edge", "iterations", "temperature"),
            "clipes": ("iterations", "sharpening", "temperature"),
            "cda": ("boxes", "theta", "clamp_box_edge", "sharpening"),
        }[self.kind]
        return changed(self, dict.fromkeys([*idle, *(() if self.uses_boxes else ("theta", "clamp_box_edge"))]))

    def __post_init__(self) -> None:
        require("affinity.theta", self.theta, 0 <= self.theta < 1, "at least 0 and below 1")
        require("affinity.iterations", self.iterations, self.iterations >= 1, "at least 1")
        require("affinity.temperature", self.temperature, self.temperature > 0, "above 0")
        require("affinity.sharpening", self.sharpening, self.sharpening >= 0, "at least 0")


@dataclass(frozen=True)
class FuseConfig:
    """How a background score is made from the class maps."""

    threshold: float = 0.5
    """Tau: a cell is background where no class map exceeds about this value; published: 0.5 for VOC, 0.35 for COCO."""

    clamp: bool = True
    """Background is zero where a map exceeds twice the threshold. False: it rises again there (Paper)."""

    background: Literal["rule", "words"] = "rule"
    """rule: what the class maps leave, by the threshold. words: at least the maps of the background words, which are
    then read out and compete with the classes; soft maps made so serve both."""

    def __post_init__(self) -> None:
        require("fuse.threshold", self.threshold, 0 < self.threshold <= 1, "above 0 and at most 1")


@dataclass(frozen=True)
class CrfConfig:
    """The refinement of scores along the image's edges."""

    kind: CrfKind = "densecrf"
    """densecrf: fully connected CRF. pamr: local affinities. tlp: smoothness between alike neighbours, solved on a
    coarse grid. none: scores as they are, divided by their sum; they seldom reach 0.95, so lower ignore_below with
    it, and with tlp."""

    engine: CrfEngine = "auto"
    """Kind densecrf: pydensecrf (a CPU alone; needs a C++ compiler to install) or torch (a CPU or a CUDA GPU; the same
    marginals within 0.001); auto: torch beside a model on a CUDA GPU or without pydensecrf, else pydensecrf."""

    iterations: int = 10
    """Mean-field steps (densecrf) or rounds (pamr); 0 returns the normalised scores, also under tlp, which otherwise
    goes on until it has converged."""

    scale: float = 1.0
    """Side length, relative to the image's, at which the refinement runs; 0.5 takes a quarter of the time."""

    max_megapixels: float = 2.1
    """An image of more million pixels is worked on at this many, fusing and kind none included, and its labels are
    enlarged by nearest neighbour; memory grows by up to 1.3 GB a million, in each worker."""

    sxy_gaussian: float = 1.0
    """Range in pixels of the smoothness term."""

    compat_gaussian: float = 3.0
    """Weight of the smoothness term."""

    sxy_bilateral: float = 67.0
    """Range in pixels of the appearance term."""

    srgb_bilateral: float = 3.0
    """Range in grey levels of the appearance term."""

    compat_bilateral: float = 4.0
    """Weight of the appearance term."""

    smoothness: float = 64.0
    """Kind tlp: weight of the smoothness between neighbours; 0 changes nothing but the grid."""

    grid: int = 160
    """Kind tlp: cells of the longer side of the grid it works on; published: 80."""

    edge: float = 10.0
    """Kind tlp: difference of colours, in grey levels, from which on neighbours hardly hold together."""

    wrapped_image: bool = False
    """Subtract a mean from the BGR image and let bytes wrap, as the published code does (Paper)."""

    def __post_init__(self) -> None:
        require("crf.iterations", self.iterations, self.iterations >= 0, "at least 0")
        require("crf.scale", self.scale, 0 < self.scale <= 1, "above 0 and at most 1")
        require("crf.max_megapixels", self.max_megapixels, self.max_megapixels >= 0.001, "at least 0.001")
        require("crf.smoothness", self.smoothness, self.smoothness >= 0, "at least 0")
        require("crf.grid", self.grid, self.grid >= 2, "at least 2 cells")
        for name in ("sxy_gaussian", "sxy_bilateral", "srgb_bilateral", "edge"):
            require(f"crf.{name}", getattr(self, name), getattr(self, name) > 0, "above 0")

    def idle(self) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect under this kind."""
        dense = ("sxy_gaussian", "compat_gaussian", "sxy_bilateral", "srgb_bilateral", "compat_bilateral")
        lattice = ("smoothness", "grid", "edge")
        match self.kind:
            case "densecrf":
                return changed(self, lattice)
            case "pamr":
                return changed(self, ("engine", *dense, *lattice))
            case "tlp":
                unread = ("iterations",) if self.iterations else ()
                return changed(self, ("engine", *unread, *dense))
            case "none":
                return changed(self, ("engine", "iterations", "scale", "wrapped_image", *dense, *lattice))


@dataclass(frozen=True)
class SamConfig:
    """A Segment Anything model that sharpens the labels after the refinement; off unless one is named."""

    id: str | None = None
    """SAM 1 or 2 as transformers has them: a folder, or a model id on the hub (facebook/sam-vit-base); none: off."""

    rule: Literal["prompts", "overlap"] = "prompts"
    """prompts: each connected part asks with points, box and mask (SAMRefiner). overlap: SAM's masks of everything go
    to the classes that they overlap (SEPL)."""

    rounds: int = 5
    """Rule prompts: how many times a part asks, with its latest mask."""

    points: int = 32
    """Rule overlap: points a side of the grid that SAM is asked about."""

    least_iou: float = 0.5
    """A part (prompts) or class (overlap) of which less is left than this, as IoU, stays as it was."""

    least_score: float = 0.5
    """Rule prompts: an answer whose IoU SAM itself guesses below this is not taken."""

    def idle(self) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect with the others."""
        if self.id is None:
            return changed(self, ("rule", "rounds", "points", "least_iou", "least_score"))
        return changed(self, ("points",) if self.rule == "prompts" else ("rounds", "least_score"))

    def __post_init__(self) -> None:
        require("sam.rounds", self.rounds, self.rounds >= 1, "at least 1")
        require("sam.points", self.points, 1 <= self.points <= 128, "from 1 to 128")
        for name in ("least_iou", "least_score"):
            require(f"sam.{name}", getattr(self, name), 0 <= getattr(self, name) <= 1, "from 0 to 1")


@dataclass(frozen=True)
class RunConfig:
    """Settings that change speed, never the masks (up to rounding where `dtype`, `device` or the cores differ)."""

    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto: the first GPU there is, else the CPU."""

    dtype: Dtype = "auto"
    """Number format of the networks; auto: float32 on a CPU, on a GPU float16, for transformers bfloat16. Maps are
    always summed in float32."""

    batch_size: int | Literal["auto"] = "auto"
    """Noised images (images x draws x flips) a GPU takes at once; auto finds what fits. A CPU takes an image's own."""

    workers: int | None = None
    """Processes that refine masks while the U-Net runs; none: one for each core but one; 0: no extra process."""

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
    """Compile the U-Net with torch.compile: a slow start, then quicker on a GPU."""

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
class MaskConfig:
    """What turns cached soft maps into a mask: all that can be retuned without the diffusion model."""

    fuse: FuseConfig = field(default_factory=FuseConfig)
    """Background score."""

    crf: CrfConfig = field(default_factory=CrfConfig)
    """Refinement along the image's edges."""

    sam: SamConfig = field(default_factory=SamConfig)
    """Labels sharpened by a Segment Anything model."""

    ignore_below: float = 0.95
    """Pixels whose best marginal is below this are written as 255 (ignore); 0 writes none."""

    def __post_init__(self) -> None:
        require("ignore_below", self.ignore_below, 0 <= self.ignore_below <= 1, "from 0 to 1")

    def idle(self, background: bool = False) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect under the chosen kind of refinement.

        Args:
            background: the soft maps hold a background of their own (a network's predictions), so none is fused.

        """
        fuse = changed(self.fuse, ("threshold", "clamp", "background")) if background else ()
        groups = (("fuse", fuse), ("crf", self.crf.idle()), ("sam", self.sam.idle()))
        return tuple(f"{group}.{name}" for group, names in groups for name in names)


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
    "attention": ("rescaled_tokens", "blur", "weights"),
    "affinity": ("temperature",),
    "fuse": ("background",),
    "crf": ("max_megapixels", "engine", "smoothness", "grid", "edge"),
}
ADAPTERS = ("tokens", "lora", "custom_diffusion")  # of the model: what is put into a U-Net
UNNAMED = (*ADAPTERS, "t5", "vae")  # of the model: a store that was made without them does not name them
PLACING = ("keep_text_encoders", "offload")  # of the model: where it lies, which changes no mask


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
