"""Settings that `pseudolabel calibrate` tries: how they differ from the best so far, and how they are described."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

from data.errors import ModelError
from pseudolabel.config import GenerateConfig
from pseudolabel.masks.config import CrfKind, MaskConfig
from pseudolabel.softmaps.config import AffinityConfig

if TYPE_CHECKING:
    from pseudolabel.softmaps.layers import Layer


logger = logging.getLogger(__name__)

THETAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SHARPENINGS = (0.005, 0.015, 0.05, 0.1)
ITERATIONS = (1, 2, 3, 4, 6, 8)
TEMPERATURES = (0.05, 0.1, 0.2, 0.3, 0.5)
SATURATIONS = (0.0, 0.01, 0.03, 0.06)
# Kinds of affinity tried with each self-attention layer; small changes to the best one follow.
AFFINITIES: tuple[dict[str, Any], ...] = (
    {"kind": "caa", "boxes": True, "theta": 0.2},
    {"kind": "caa", "boxes": True, "theta": 0.5},
    {"kind": "caa", "boxes": False},
    {"kind": "iterated", "boxes": False, "iterations": 1},
    {"kind": "iterated", "boxes": False, "iterations": 4},
    {"kind": "iseg"},
    {"kind": "clipes", "boxes": True, "theta": 0.4},
    {"kind": "cda", "iterations": 1, "temperature": 0.3},
    {"kind": "cda", "iterations": 1, "temperature": 0.1},
)
# Image sizes, relative to the configured one, of which up to `MOST_SIZES` are averaged. Each is a third or so larger
# than the one before it; small ones see whole things, large ones their outlines.
SCALES = (0.4, 0.57, 0.75, 1.0, 1.25)
MOST_SIZES = 3
# Refinements along edges: the dense CRF as in arXiv 2309.04109 (and DeepLab v2), as in the example of pydensecrf and
# much code since, as in IRN, as was best for the demo's small scenes; TLP; and none.
REFINEMENTS: tuple[dict[str, Any], ...] = (
    {"kind": "densecrf", "sxy_bilateral": 67.0, "srgb_bilateral": 3.0, "compat_bilateral": 4.0},
    {"kind": "densecrf", "sxy_bilateral": 80.0, "srgb_bilateral": 13.0, "compat_bilateral": 10.0},
    {"kind": "densecrf", "sxy_bilateral": 50.0, "srgb_bilateral": 5.0, "compat_bilateral": 10.0},
    {"kind": "densecrf", "sxy_bilateral": 30.0, "srgb_bilateral": 8.0, "compat_bilateral": 4.0},
    {"kind": "tlp", "smoothness": 64.0, "edge": 10.0},
    {"kind": "tlp", "smoothness": 64.0, "edge": 20.0},
    {"kind": "none"},
)
# Guided filters before the refinement: none, and as was best for the demo's small scenes.
GUIDES: tuple[dict[str, float], ...] = (
    {"guide": 0.0},
    {"guide": 9.0, "guide_edge": 5.0},
    {"guide": 9.0, "guide_edge": 10.0},
)
# What small changes multiply each number of a refinement by.
FACTORS: dict[CrfKind, dict[str, tuple[float, ...]]] = {
    "densecrf": {"sxy_bilateral": (0.7, 1.4), "srgb_bilateral": (0.6, 1.6), "compat_bilateral": (0.5, 2.0)},
    "tlp": {"smoothness": (0.5, 2.0), "edge": (0.7, 1.4)},
    "pamr": {},
    "none": {},
}
# How GoCA lets tokens share a cell out, beside what was chosen.
GOCA_SHARING: dict[str, Any] = {"token_rescaling": True, "rescaled_tokens": "words", "blur": 5}


def with_attention(config: GenerateConfig, **values: Any) -> GenerateConfig:
    """Return settings with other attention settings."""
    return replace(config, attention=replace(config.attention, **values))


def with_affinity(config: GenerateConfig, **values: Any) -> GenerateConfig:
    """Return settings with other affinity settings."""
    return replace(config, affinity=replace(config.affinity, **values))


def with_timesteps(config: GenerateConfig, timesteps: Sequence[int]) -> GenerateConfig:
    """Return settings with other timesteps."""
    return replace(config, diffusion=replace(config.diffusion, timesteps=tuple(timesteps)))


def with_existing_layers(config: GenerateConfig, layers: "tuple[Layer, ...]") -> GenerateConfig:
    """Return settings to start from on this model: layers it does not have are replaced by the mean of all.

    A new model rarely has the layers of the configuration for another one. Self-attention that is not there is left
    out.
    """
    from pseudolabel.softmaps.layers import resolve_layers

    try:
        resolve_layers(layers, config.attention.cross_layers, "attention.cross_layers")
    except ModelError as error:
        logger.info("starting from the mean of all cross layers: %s", error)
        config = with_attention(config, cross_layers=("all",))
    try:
        resolve_layers(layers, config.attention.self_layers, "attention.self_layers")
    except ModelError as error:
        if config.affinity.kind != "none":
            logger.info("starting without affinity: %s", error)
        config = with_affinity(config, kind="none")
    return config


def describe(config: GenerateConfig) -> str:
    """Return what a search changes, in one line."""
    attention, affinity = config.attention, config.affinity
    parts = [f"t={'+'.join(map(str, config.diffusion.timesteps))}", f"cross {' '.join(attention.cross_layers)}"]
    parts += [f"named by {' '.join(attention.naming_layers)}"] if attention.naming_layers else []
    shared = attention.rescaled_tokens == "words"
    parts += ["rescaled" + " among words" * shared] if attention.token_rescaling else []
    parts += [f"{attention.weights} weighed"] if attention.weights != "mean" else []
    parts += [] if config.prompt.background_words else ["no background words"]
    parts += ["background words compete"] if config.fuse.background == "words" else []
    parts += [f"{config.resize.long_side_px} px"] if config.resize.long_side_px else []
    sizes = "+".join(f"{scale:g}" for scale in config.diffusion.scales)
    parts += [f"sizes {sizes}"] if config.diffusion.scales != (1.0,) else []
    if affinity.kind != "none":
        boxes = f"boxes {affinity.theta}" if affinity.uses_boxes else ""
        count = f"x{affinity.iterations}" if affinity.kind in ("iterated", "cda") else ""
        temperature = f"at {affinity.temperature}" if affinity.kind == "cda" else ""
        kind = f"balanced {affinity.kind}" if affinity.balance else affinity.kind
        parts += [" ".join(filter(None, [kind + count, temperature, boxes, "on", *attention.self_layers]))]
    parts += [f"saturated {affinity.saturate:g}"] if affinity.saturate else []
    return ", ".join(parts)


def size_sets(scales: Sequence[float]) -> list[tuple[float, ...]]:
    """Return the sets of image sizes that are tried, from single ones to sets of `MOST_SIZES`.

    >>> size_sets((0.5, 1.0))
    [(0.5,), (1.0,), (0.5, 1.0)]
    """
    return [chosen for number in range(1, MOST_SIZES + 1) for chosen in combinations(scales, number)]


def small_changes(config: GenerateConfig, names: Sequence[str], cell_names: Sequence[str]) -> list[GenerateConfig]:
    """Return settings that differ in one thing: a layer more or less, rescaling, or one number of the affinity.

    Args:
        config: the best settings so far.
        names: all layers that see the text.
        cell_names: all layers whose self-attention can spread maps.

    """
    attention, affinity = config.attention, config.affinity
    found = [with_attention(config, token_rescaling=not attention.token_rescaling)]
    naming = attention.naming_layers
    found += [with_attention(config, naming_layers=other) for other in one_more_or_less(naming, names)]
    found += [with_attention(config, naming_layers=())] if naming else []
    found += [with_attention(config, cross_layers=other) for other in one_more_or_less(attention.cross_layers, names)]
    if affinity.kind == "none":
        return found
    found += [
        with_attention(config, self_layers=other) for other in one_more_or_less(attention.self_layers, cell_names)
    ]
    found += [with_affinity(config, **change) for change in _affinity_changes(affinity)]
    return found


def _affinity_changes(affinity: AffinityConfig) -> list[dict[str, Any]]:
    """List changes to the numbers that the kind of affinity reads."""
    changes: list[dict[str, Any]] = []
    if affinity.kind in ("caa", "iterated", "clipes"):
        changes.append({"boxes": not affinity.boxes})
        changes += [{"boxes": True, "theta": theta} for theta in THETAS]
    if affinity.kind in ("caa", "iterated"):
        changes.append({"balance": not affinity.balance})
    changes += [{"saturate": share} for share in SATURATIONS if share != affinity.saturate]
    if affinity.kind in ("iterated", "cda"):
        changes += [{"iterations": count} for count in ITERATIONS]
    if affinity.kind == "cda":
        changes += [{"temperature": value} for value in TEMPERATURES]
    if affinity.kind == "iseg":
        changes += [{"sharpening": value} for value in SHARPENINGS]
    return changes


def with_sharing(config: GenerateConfig, sharing: dict[str, Any]) -> GenerateConfig:
    """Return settings with other rules of how tokens share a cell out; what is not named is at its default."""
    return with_attention(config, **({"token_rescaling": False, "rescaled_tokens": "content", "blur": 1} | sharing))


def weighings(config: GenerateConfig, names: Sequence[str], can_weigh_layers: bool) -> list[GenerateConfig]:
    """Return settings that weigh layers and heads otherwise, with the chosen cross layers and with all.

    Args:
        config: the best settings so far.
        names: all cross layers.
        can_weigh_layers: whether there is a self-attention layer whose dense features can say how much layers count.

    """
    kinds = ("mean", "layers", "heads", "both") if can_weigh_layers else ("mean", "heads")
    sharings = [config, with_sharing(config, GOCA_SHARING)] if config.prompt.background_words else [config]
    layers = dict.fromkeys((config.attention.cross_layers, tuple(names)))
    found = [
        with_attention(sharing, weights=kind, cross_layers=cross)
        for sharing, kind, cross in product(sharings, kinds, layers)
    ]
    return [other for other in found if other != config]


def one_more_or_less(chosen: Sequence[str], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the sets of layers that have one more or one less, in the model's order; never an empty one.

    >>> one_more_or_less(("a",), ("a", "b"))
    [('a', 'b')]
    """
    less = [tuple(name for name in chosen if name != left_out) for left_out in chosen if len(chosen) > 1]
    more = [tuple(sorted({*chosen, name}, key=names.index)) for name in names if name not in chosen]
    return less + more


def fewer_heads(config: GenerateConfig, n_heads: dict[str, int]) -> list[GenerateConfig]:
    """Return settings with one head less in one layer."""
    specs = config.attention.cross_layers
    found = []
    for position, spec in enumerate(specs):
        name, _, text = spec.partition("@")
        heads = text.split("+") if text else [str(head) for head in range(n_heads[name])]
        for left_out in heads:
            rest = [head for head in heads if head != left_out]
            if rest:
                changed = (*specs[:position], f"{name}@{'+'.join(rest)}", *specs[position + 1 :])
                found.append(with_attention(config, cross_layers=changed))
    return found


def with_threshold(masks: MaskConfig, threshold: float) -> MaskConfig:
    """Return mask settings with another threshold."""
    return replace(masks, fuse=replace(masks.fuse, threshold=round(threshold, 4)))


def other_refinements(masks: MaskConfig) -> list[MaskConfig]:
    """Return settings with each of `REFINEMENTS`; what one of them does not name stays as it is."""
    found = [replace(masks, crf=replace(masks.crf, **change)) for change in REFINEMENTS]
    return [other for other in found if other != masks]


def refinement_changes(masks: MaskConfig) -> list[MaskConfig]:
    """Return settings that differ in one number of the refinement, by `FACTORS`, or in what guides it."""
    changes: list[dict[str, Any]] = [
        {name: round(getattr(masks.crf, name) * factor, 3)}
        for name, factors in FACTORS[masks.crf.kind].items()
        for factor in factors
    ]
    changes += [] if masks.crf.kind == "none" else GUIDES
    found = [replace(masks, crf=replace(masks.crf, **change)) for change in changes]
    return [other for other in found if other != masks]


def other_backgrounds(masks: MaskConfig) -> list[MaskConfig]:
    """Return settings that make the background's score otherwise, from the same soft maps."""
    found = [replace(masks, fuse=replace(masks.fuse, clamp=not masks.fuse.clamp))]
    if masks.fuse.background == "words":
        found.append(replace(masks, fuse=replace(masks.fuse, background="rule")))
    return found


def describe_masks(masks: MaskConfig) -> str:
    """Return how soft maps become masks, in one line."""
    crf = masks.crf
    numbers = " ".join(f"{name} {getattr(crf, name):g}" for name in FACTORS[crf.kind])
    parts = [f"threshold {masks.fuse.threshold:g}", f"{crf.kind} {numbers}".rstrip()]
    parts += [f"guided over {crf.guide:g} px at {crf.guide_edge:g}"] if crf.guide and crf.kind != "none" else []
    parts += [] if masks.fuse.clamp else ["background rises again"]
    parts += ["background words compete"] if masks.fuse.background == "words" else []
    return ", ".join(parts)
