"""The settings of the figure's second half: what turns soft maps into masks, retuned without the diffusion model.

Every default lives here, once. Each field's docstring is its help text on the command line; "(Paper)" marks the
switches that the preset `paper` turns on.
"""

from dataclasses import dataclass, field
from typing import Literal

from data.config import CrfEngine, changed, require

CrfKind = Literal["densecrf", "pamr", "tlp", "none"]


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

    guide: float = 0.0
    """Range in pixels of a guided filter, which moves the enlarged scores onto the image's edges before the refinement;
    0: none."""

    guide_edge: float = 8.0
    """With guide: changes of colour, in grey levels, below which there is no edge."""

    wrapped_image: bool = False
    """Subtract a mean from the BGR image and let bytes wrap, as the published code does (Paper)."""

    def __post_init__(self) -> None:
        require("crf.iterations", self.iterations, self.iterations >= 0, "at least 0")
        require("crf.scale", self.scale, 0 < self.scale <= 1, "above 0 and at most 1")
        require("crf.max_megapixels", self.max_megapixels, self.max_megapixels >= 0.001, "at least 0.001")
        require("crf.smoothness", self.smoothness, self.smoothness >= 0, "at least 0")
        require("crf.grid", self.grid, self.grid >= 2, "at least 2 cells")
        require("crf.guide", self.guide, self.guide >= 0, "at least 0")
        for name in ("sxy_gaussian", "sxy_bilateral", "srgb_bilateral", "edge", "guide_edge"):
            require(f"crf.{name}", getattr(self, name), getattr(self, name) > 0, "above 0")

    def idle(self) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect under this kind."""
        dense = ("sxy_gaussian", "compat_gaussian", "sxy_bilateral", "srgb_bilateral", "compat_bilateral")
        lattice = ("smoothness", "grid", "edge")
        unread: dict[CrfKind, tuple[str, ...]] = {
            "densecrf": lattice,
            "pamr": ("engine", *dense, *lattice),
            "tlp": ("engine", *dense, *(("iterations",) if self.iterations else ())),
            "none": ("engine", "iterations", "scale", "wrapped_image", "guide", *dense, *lattice),
        }
        guided = self.guide > 0 and self.kind != "none"
        return changed(self, (*unread.get(self.kind, ()), *(() if guided else ("guide_edge",))))


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
