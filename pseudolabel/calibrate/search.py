"""Choosing layers, heads, timestep, affinity, refinement and threshold for a model and data set, from a few images.

Fixed lists of layers do not transfer between diffusion models. Each image is read once per timestep, all layers at
once, and candidates are compared offline on the small maps (see `recordings`). With ground truth the mIoU decides:
before the refinement, and after it for what comes last. Without it `criteria.label_score` does, which knows image-level
labels alone.

The search, each step starting from the best settings so far, those that usually gain most first (`steps_of`):

1. timestep, cross-attention layers (forward selection from the best single layer) and token rescaling, no affinity;
2. with ground truth: background words in the sentence, in it and competing, or out of it, and the image
   sizes asked for;
3. with ground truth: self-attention layer and kind of affinity; rounds of small changes to everything chosen (layers
   that name classes among it); the settings given, should they be better, and small changes to these; sets of image
   sizes whose maps are averaged; the timestep again;
4. weights of layers and heads, and GoCA's sharing of tokens, of U-Nets;
5. with ground truth: heads, where leaving some out helps;
6. the threshold, after the refinement, at full size and with all draws; without ground truth by Otsu's method;
7. with ground truth: the refinement and its numbers, and how the background's score is made (`finish`).

What is chosen must win by more than `MIN_GAIN`, so that the simpler of two equal settings stays. Where the settings
given are better in the end, they stay. Time that is limited (`Budget`) ends the search between two pictures.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from data.config import to_plain
from data.errors import ConfigError
from data.files import file_sha256
from data.machine import available_cpus, written_by
from data.samples import Sample, SampleSet, evenly_spaced
from data.wording import count
from pseudolabel.calibrate import finish, steps
from pseudolabel.calibrate.budget import OutOfTime
from pseudolabel.calibrate.candidates import with_attention, with_existing_layers, with_sharing
from pseudolabel.calibrate.criteria import otsu_threshold
from pseudolabel.calibrate.finish import Maps, Measured
from pseudolabel.calibrate.kept import Kept, digest
from pseudolabel.calibrate.pictures import Picture, load_picture
from pseudolabel.calibrate.state import Search
from pseudolabel.config import GenerateConfig, mask_config, stored_settings
from pseudolabel.softmaps.diffusion.families import is_flow, list_layers
from pseudolabel.softmaps.diffusion.load import load_model
from pseudolabel.softmaps.diffusion.parts import Parts

TIMESTEPS = (30, 60, 100, 150, 250, 400)
FLOW_TIMESTEPS = (100, 200, 300, 400, 500, 600, 700)
DECOYS = 3  # absent classes put into the sentence where there is no ground truth

Step = tuple[str, Callable[[], object]]  # its name, and what it does

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What is searched, beside the settings to start from; the fields are the flags of `pseudolabel calibrate`."""

    timesteps: tuple[int, ...] = ()
    long_sides: tuple[int, ...] = ()
    draws: int = 2
    heads: bool = True
    refinement: bool = True
    use_truth: bool = True


@dataclass(frozen=True)
class Task:
    """What is calibrated: a model in memory, images, and the settings to start from.

    Attributes:
        parts: the whole model.
        samples: the images that are looked at, with the classes of the data set.
        pictures: the same, in memory.
        given: the settings to start from, as far as the model has their layers.
        options: what is searched.
        by_truth: whether ground truth decides.
        content: what decides the result, by a word for it.

    """

    parts: Parts
    samples: SampleSet
    pictures: tuple[Picture, ...]
    given: GenerateConfig
    options: Options
    by_truth: bool
    content: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a calibration has come to.

    Attributes:
        search: the settings found, and the steps.
        before: what the settings given reach; None without ground truth, or without the time to measure it.
        after: what the settings found reach.
        untried: steps for which there was no time.
        aside_s: seconds of the time that were set aside to measure the result.

    """

    search: Search
    before: Measured | None
    after: Measured | None
    untried: tuple[str, ...]
    aside_s: float = 0.0


def prepare(config: GenerateConfig, samples: SampleSet, chosen: Sequence[Sample], options: Options) -> Task:
    """Load the model and the images; everything that can be wrong with them is found here.

    Raises:
        UserError: a model, an image or a mask that cannot be read, or images that tell nothing.

    """
    torch.set_num_threads(available_cpus())
    by_truth = options.use_truth and any(sample.truth_path is not None for sample in chosen)
    chosen = usable(chosen, len(samples.classes), by_truth)
    parts = load_model(config.model, config.run)
    given = with_existing_layers(config, list_layers(parts))
    n_decoys = 0 if by_truth else min(DECOYS, len(samples.classes) - 1)
    pictures = tuple(load_picture(sample, len(samples.classes), n_decoys, by_truth) for sample in chosen)
    files = [
        (one.id, one.labels, file_sha256(one.image_path), one.truth_path and file_sha256(one.truth_path), one.white)
        for one in chosen
    ]
    content = {
        "program": written_by("pseudolabel"),
        "model": parts.identity(),
        "settings": stored_settings(config),
        "data": digest(files, samples.classes),
        "options": to_plain(options),
    }
    return Task(parts, replace(samples, samples=chosen), pictures, given, options, by_truth, content)


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


def run_search(task: Task, kept: Kept) -> Found:
    """Search, going on from what is kept; also measures the given and the found settings, where there is ground truth.

    Args:
        task: what is calibrated.
        kept: what an interrupted run has found, and the time there is.

    """
    search = start(task, kept)
    known: list[Measured] = []
    first: list[Step] = [("the settings given", lambda: known.append(finish.measure_given(search)))]
    untried = take_steps(search, [*(first if task.by_truth else ()), *steps_of(search, task)])
    if task.by_truth and not known:
        search.config = search.given
        return Found(search, None, None, untried)
    kept.budget.lifted, search.place = True, "last"  # what is set aside for the end begins
    if not task.by_truth:
        search.config = found_by_labels(search)
        set_threshold(search, otsu(search))
        return Found(search, None, None, untried)
    [before], aside_s = known, kept.budget.reserve_s
    search.config = found_by_truth(search)
    maps = Maps(search, search.config)
    start_at = search.config.fuse.threshold if search.verdict.score < 0 else (search.sized or search.verdict).threshold
    reached = finish.choose_threshold(maps, start_at)
    kept.budget.lifted, kept.budget.reserve_s = False, 0.0
    if task.options.refinement and search.config.crf.kind != "none":
        untried += take_steps(search, [("refinement", lambda: finish.choose_refinement(maps, reached))])
    kept.budget.lifted = True
    [after] = finish.measure(maps, [mask_config(search.config)])
    if after.after_crf <= before.after_crf:
        search.config, after = search.given, before
        search.note("the settings given", before.after_crf, "better than what was found, so they stay")
    return Found(search, before, after, untried, aside_s)


def take_steps(search: Search, tried: Sequence[Step]) -> tuple[str, ...]:
    """Take some steps until the time is up; return the names of those that were not taken or not finished."""
    for number, (_, step) in enumerate(tried):
        search.place = f"{number + 1}/{len(tried)}"
        try:
            step()
        except OutOfTime:
            return tuple(name for name, _ in tried[number:])
        search.kept.drop_pictures()
    return ()


def steps_of(search: Search, task: Task) -> list[Step]:
    """Return the steps of a search by name, in the order in which they are taken: what usually gains most first."""
    options = task.options
    timesteps = tuple(sorted({*(options.timesteps or usual_timesteps(task.parts))}))
    layers: Step = ("timestep and cross layers", lambda: steps.choose_layers(search, timesteps))
    weights: Step = ("weights of layers and heads", lambda: steps.choose_weights(search))
    if not task.by_truth:
        return [layers, weights] if task.parts.family == "unet" else [layers]
    found: list[Step] = [
        layers,
        ("background words", lambda: steps.choose_words(search)),
        ("long sides", lambda: steps.choose_long_side(search, options.long_sides)),
        ("affinity", lambda: steps.choose_affinity(search)),
        ("small changes", lambda: steps.choose_small_changes(search)),
        ("comparison with the settings given", lambda: steps.choose_given(search, search.given)),
        ("image sizes", lambda: steps.choose_sizes(search)),
        ("timestep again", lambda: steps.choose_timestep(search, timesteps)),
        weights,
        ("heads", lambda: steps.choose_heads(search)),
    ]
    idle = {
        "long sides": not options.long_sides,
        weights[0]: task.parts.family != "unet",
        "heads": not options.heads,
    }
    return [step for step in found if not idle.get(step[0], False)]


def start(task: Task, kept: Kept) -> Search:
    """Return the state a search starts from: the settings given, without what is chosen anew."""
    given = task.given
    config = with_sharing(with_attention(given, weights="mean", naming_layers=()), {})
    diffusion = replace(config.diffusion, draws=task.options.draws, scales=(1.0,), flip=False)
    config = replace(config, diffusion=diffusion, fuse=replace(config.fuse, background="rule"))
    samples = {sample.id: sample for sample in task.samples.samples}
    layers = list_layers(task.parts)
    return Search(task.parts, task.samples.classes, task.pictures, layers, task.by_truth, given, config, kept, samples)


def found_by_truth(search: Search) -> GenerateConfig:
    """Return the best settings, with what is not searched as given; if there are none, the settings given."""
    if search.verdict.score < 0:
        return search.given
    given = search.given.diffusion
    diffusion = replace(search.config.diffusion, draws=given.draws, flip=given.flip, scales=search.sizes)
    return replace(search.config, diffusion=diffusion)


def found_by_labels(search: Search) -> GenerateConfig:
    """Return the settings given with timestep, cross layers and their weights as found."""
    given, found = search.given, search.config
    if search.verdict.score < 0:
        return given
    diffusion = replace(given.diffusion, timesteps=found.diffusion.timesteps)
    attention = replace(
        found.attention, naming_layers=given.attention.naming_layers, self_layers=given.attention.self_layers
    )
    return replace(given, diffusion=diffusion, attention=attention)


def usual_timesteps(parts: Parts) -> tuple[int, ...]:
    """Return the timesteps that are tried: at those of a flow about as much of the image is left as at DDPM's."""
    return FLOW_TIMESTEPS if is_flow(parts) else TIMESTEPS


def set_threshold(search: Search, threshold: float) -> None:
    """Put the threshold into the settings."""
    search.config = replace(search.config, fuse=replace(search.config.fuse, threshold=round(threshold, 4)))


def otsu(search: Search) -> float:
    """Return Otsu's threshold over the soft maps of the settings found, decoys left out."""
    maps = Maps(search, search.config)
    threshold = otsu_threshold([each.maps.astype(np.float32) for each in maps.soft.values()])
    search.steps.append(f"threshold by Otsu's method: {threshold}")
    search.seconds.append(search.kept.budget.spent_s - sum(search.seconds))
    return threshold


def evenly(samples: Sequence[Sample], number: int) -> list[Sample]:
    """Return up to `number` samples, spread evenly over all of them.

    Raises:
        ConfigError: there are none.

    """
    if not len(samples):
        raise ConfigError("There are no labelled images to calibrate on; check --data.root and --data.split.")
    return [samples[position] for position in evenly_spaced(len(samples), number)]


def report_of(found: Found, split: str) -> str:
    """Return the header comment of the config: what was measured on what."""
    search = found.search
    images, model = count(len(search.pictures), "image"), search.parts.identity()
    lines = [f"Chosen by `pseudolabel calibrate` on {images}, split {split!r}; only differences from"]
    lines += ["the defaults are stated.", f"Model {model['id']}, fingerprint {model['fingerprint']}."]
    if found.before is not None and found.after is not None:
        lines.append("mIoU on these images, before / after the CRF:")
        lines.append(f"{found.before} with the settings given, {found.after} with these.")
        lines.append(
            "Steps, with the mIoU each reached (fewer draws, ground truth at reduced size, best threshold; from"
        )
        lines.append("the threshold on: after the refinement, at full size, all draws):")
    elif search.by_truth:
        lines.append("There was no time to measure anything: these are the settings given.")
    else:
        lines.append("No ground truth was used. Steps, with the label-only score each reached (0 to 1):")
    lines += [f"  {step}" for step in search.steps]
    if found.untried:
        lines.append(f"The time was up before: {', '.join(found.untried)}.")
    return "".join(f"# {line}\n" for line in lines)
