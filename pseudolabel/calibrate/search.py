"""Choosing layers, heads, timestep, affinity and threshold for a model and data set, from a small set of images.

Fixed lists of layers do not transfer between diffusion models. Each image is read once per timestep, all layers at
once, and candidates are compared offline on the small maps (see `recordings`). With ground truth the mIoU decides
(before the CRF, but for the threshold); without it `criteria.label_score`, which knows image-level labels alone.

The search, each step starting from the best settings so far:

1. timestep, cross-attention layers (forward selection from the best single layer) and token rescaling, no affinity;
2. with ground truth: background words in the sentence, in it and competing, or out of it, and the image
   sizes asked for;
3. with ground truth: self-attention layer and kind of affinity, rounds of small changes to everything chosen (layers
   that name classes among it), then the timestep again;
4. weights of layers and heads, and GoCA's sharing of tokens, of U-Nets;
5. with ground truth: heads, where leaving some out helps, then sets of image sizes whose maps are averaged;
6. the threshold: the best one after the CRF, at full size and with all draws, since that is what `generate` writes (the
   CRF prefers a lower one than the maps by themselves do); without ground truth by Otsu's method.

The rest, the CRF among it, stays as configured. What is chosen must win by more than `MIN_GAIN`, so that the simpler of
two equal settings stays.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from data.console import available_cpus, count
from data.errors import ConfigError
from data.samples import Sample, SampleSet, evenly_spaced
from pseudolabel.calibrate.candidates import with_attention, with_existing_layers, with_sharing
from pseudolabel.calibrate.criteria import otsu_threshold
from pseudolabel.calibrate.judge import Measured, measured
from pseudolabel.calibrate.pictures import load_picture
from pseudolabel.calibrate.state import Search
from pseudolabel.calibrate.steps import (
    choose_affinity,
    choose_heads,
    choose_layers,
    choose_reading,
    choose_sizes,
    choose_timestep,
    choose_weights,
)
from pseudolabel.config import GenerateConfig
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.diffusion.families import is_flow, list_layers
from pseudolabel.softmaps.diffusion.load import load_model
from pseudolabel.softmaps.diffusion.parts import Parts

THRESHOLD_STEPS = tuple(0.025 * step for step in range(-4, 3))  # tried around the best one before the CRF
TIMESTEPS = (50, 100, 150, 200, 250, 300, 350, 400)
FLOW_TIMESTEPS = (100, 200, 300, 400, 500, 600, 700)
DECOYS = 3  # absent classes put into the sentence where there is no ground truth

logger = logging.getLogger(__name__)


def usable(chosen: Sequence[Sample], n_classes: int, by_truth: bool) -> list[Sample]:
    """Return the images that can tell good settings from bad ones: those with ground truth, or without some class.

    Raises:
        ConfigError: by labels alone, and every image holds all classes.

    """
    if by_truth:
        return [sample for sample in chosen if sample.truth_path is not None]
    found = [sample for sample in chosen if len(sample.labels) < n_classes]
    if not found:
        raise ConfigError(
            f"Without ground truth, settings are judged by how they tell classes that an image holds from others, but "
            f"each of the {count(len(chosen), 'image')} holds all of {count(n_classes, 'class')}: add images without "
            "some of them, name further classes in a class file (--data.classes), or give ground truth (--data.truth)"
        )
    if len(found) < len(chosen):
        logger.warning(
            "%s hold all classes, which tells nothing without ground truth; left out.",
            f"{len(chosen) - len(found)} of {count(len(chosen), 'image')}",
        )
    return found


def run_search(
    config: GenerateConfig,
    samples: SampleSet,
    chosen: Sequence[Sample],
    timesteps: Sequence[int],
    long_sides: Sequence[int],
    draws: int,
    heads: bool,
    use_truth: bool,
) -> tuple[Search, Measured | None, Measured | None]:
    """Search on some samples; also measures the given and the found settings (None without ground truth)."""
    torch.set_num_threads(available_cpus())
    parts = load_model(config.model, config.run)
    layers = list_layers(parts)
    config = with_existing_layers(config, layers)
    by_truth = use_truth and any(sample.truth_path is not None for sample in chosen)
    chosen = usable(chosen, len(samples.classes), by_truth)
    n_decoys = 0 if by_truth else min(DECOYS, len(samples.classes) - 1)
    pictures = [load_picture(sample, len(samples.classes), n_decoys, by_truth) for sample in chosen]
    start = with_sharing(with_attention(config, weights="mean", naming_layers=()), {})
    diffusion = replace(config.diffusion, draws=draws, scales=(1.0,), flip=False)
    start = replace(start, diffusion=diffusion, fuse=replace(config.fuse, background="rule"))
    search = Search(parts, samples.classes, pictures, layers, by_truth, start)
    timesteps = tuple(sorted({*(timesteps or usual_timesteps(parts))}))
    choose_layers(search, timesteps)
    if by_truth:
        choose_reading(search, long_sides)
        choose_affinity(search)
        choose_timestep(search, timesteps)
    else:
        search.config = replace(search.config, affinity=config.affinity)
    choose_weights(search)
    if by_truth:
        if heads:
            choose_heads(search)
        choose_sizes(search)
    search.config = replace(search.config, diffusion=replace(search.config.diffusion, draws=config.diffusion.draws))
    if not by_truth:
        set_threshold(search, otsu(search))
        return search, None, None
    set_threshold(search, search.verdict.threshold)
    before = measured(Pipeline(parts, config, samples.classes, cut=False), chosen, pictures, (config.fuse.threshold,))
    around = [search.verdict.threshold + step for step in THRESHOLD_STEPS]
    found = Pipeline(parts, search.config, samples.classes, cut=False)
    after = measured(found, chosen, pictures, [tau for tau in around if 0 < tau <= 1])
    set_threshold(search, after.threshold)
    return search, before, after


def usual_timesteps(parts: Parts) -> tuple[int, ...]:
    """Return the timesteps that are tried: at those of a flow about as much of the image is left as at DDPM's."""
    return FLOW_TIMESTEPS if is_flow(parts) else TIMESTEPS


def set_threshold(search: Search, threshold: float) -> None:
    """Put the threshold into the settings."""
    search.config = replace(search.config, fuse=replace(search.config.fuse, threshold=round(threshold, 4)))


def otsu(search: Search) -> float:
    """Step 6 without ground truth: Otsu's threshold over the soft maps of the settings found, decoys left out."""
    pipeline = Pipeline(search.parts, search.config, search.classes, cut=False)
    soft = (pipeline.soft_maps([p.rgb_u8], [p.labels], [p.id])[0] for p in search.pictures)
    threshold = otsu_threshold([each.maps.astype(np.float32) for each in soft])
    search.steps.append(f"threshold by Otsu's method: {threshold}")
    return threshold


def evenly(samples: Sequence[Sample], number: int) -> list[Sample]:
    """Return up to `number` samples, spread evenly over all of them.

    Raises:
        ConfigError: there are none.

    """
    if not len(samples):
        raise ConfigError("There are no labelled images to calibrate on; check --data.root and --data.split.")
    return [samples[position] for position in evenly_spaced(len(samples), number)]


def report_of(search: Search, split: str, before: Measured | None, after: Measured | None) -> str:
    """Return the header comment of the config: what was measured on what."""
    images, model = count(len(search.pictures), "image"), search.parts.identity()
    lines = [f"Chosen by `pseudolabel calibrate` on {images}, split {split!r}; only differences from"]
    lines += ["the defaults are stated.", f"Model {model['id']}, fingerprint {model['fingerprint']}."]
    if before is not None and after is not None:
        lines.append("mIoU on these images, before / after the CRF:")
        lines.append(f"{before} with the settings given, {after} with these.")
        lines.append("Steps, with the mIoU each reached (fewer draws, ground truth at reduced size, best threshold):")
    else:
        lines.append("No ground truth was used. Steps, with the label-only score each reached (0 to 1):")
    lines += [f"  {step}" for step in search.steps]
    return "".join(f"# {line}\n" for line in lines)
