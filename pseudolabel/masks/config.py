"""The settings of the figure's second half: what turns soft maps into masks, retuned without the diffusion model.

Every default lives here, once. Each field's docstring is its help text on the command line; "(Paper)" marks the
switches that the preset `paper` turns on.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from data.config import CrfEngine, changed, require, require_finite

CrfKind = Literal["densecrf", "pamr", "tlp", "none"]


@dataclass(frozen=True)
class FuseConfig:
    """How a background score is made from the class maps."""

    threshold: float = 0.5
    """Tau: the background's score is (2 tau - the highest class map)^2, so that it wins where no class map exceeds 0.38
    (tau 0.5) or 0.23 (tau 0.35); published: 0.5 for VOC, 0.35 for COCO."""

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
    """Mean-field steps (densecrf) or rounds (pamr); 0 is as kind none, also under tlp, which otherwise goes on until it
    has converged, for 500 steps at most."""

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
    """Kind tlp: range in grey levels of a difference of colours; neighbours that differ by three times as much hardly
    hold together."""

    guide: float = 0.0
    """Range in pixels of a guided filter, which moves the enlarged scores onto the image's edges before the refinement;
    0: none."""

    guide_edge: float = 8.0
    """With guide: changes of colour, in grey levels, below which there is no edge."""

    wrapped_image: bool = False
    """Subtract a mean from the BGR image and let bytes wrap, as the published code does (Paper)."""

    def __post_init__(self) -> None:
        require_finite("crf", self)
        require("crf.iterations", self.iterations, self.iterations >= 0, "at least 0")
        require("crf.scale", self.scale, 0 < self.scale <= 1, "above 0 and at most 1")
        require("crf.max_megapixels", self.max_megapixels, self.max_megapixels >= 0.001, "at least 0.001")
        require("crf.smoothness", self.smoothness, self.smoothness >= 0, "at least 0")
        require("crf.grid", self.grid, self.grid >= 2, "at least 2 cells")
        for name in ("guide", "compat_gaussian", "compat_bilateral"):
            require(f"crf.{name}", getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name in ("sxy_gaussian", "sxy_bilateral", "srgb_bilateral", "edge"):
            require(f"crf.{name}", getattr(self, name), getattr(self, name) > 0, "above 0")
        require("crf.guide_edge", self.guide_edge, self.guide_edge >= 0.5, "at least 0.5: bytes know no finer edge")

    @property
    def refines(self) -> bool:
        """Whether scores are refined at all, and not only divided by their sum."""
        return self.kind != "none" and self.iterations > 0

    def idle(self) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect under this kind, or without iterations."""
        dense = ("sxy_gaussian", "compat_gaussian", "sxy_bilateral", "srgb_bilateral", "compat_bilateral")
        lattice = ("smoothness", "grid", "edge")
        if not self.refines:
            read = ("kind", "max_megapixels", *(() if self.kind == "none" else ("iterations",)))
            return changed(self, (field.name for field in fields(self) if field.name not in read))
        match self.kind:
            case "pamr":
                unread: tuple[str, ...] = ("engine", *dense, *lattice)
            case "tlp":
                unread = ("engine", *dense, "iterations")
            case _:
                unread = lattice
        return changed(self, (*unread, *(() if self.guide > 0 else ("guide_edge",))))


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
class MaskConfig:
    """What turns cached soft maps into a mask: all that can be retuned without the diffusion model."""

    fuse: FuseConfig = field(default_factory=FuseConfig)
    """Background score."""

    crf: CrfConfig = field(default_factory=CrfConfig)
    """Refinement along the image's edges."""

    ignore_below: float = 0.95
    """Pixels whose best marginal is below this are written as 255 (ignore); 0 writes none."""

    sam: SamConfig = field(default_factory=SamConfig)
    """Labels sharpened by a Segment Anything model."""

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
