"""Choosing layers, heads, timestep, affinity and threshold for a model and data set, from a small set of images.

Fixed lists of layers do not transfer between diffusion models. Each image is read once per timestep, all layers at
once, and candidates are compared offline on the small maps (see `recordings`). With ground truth the mIoU decides
(before the CRF, but for the threshold); without it `criteria.label_score`, which knows image-level labels alone.

The search, each step starting from the best settings so far:

1. timestep, cross-attention layers (forward selection from the best single layer) and token rescaling, no affinity;
2. with ground truth: prompts with and without background words, and the image sizes asked for;
3. with ground truth: self-attention layer and kind of affinity, rounds of small changes to everything chosen, then the
   timestep again;
4. with ground truth: heads, where leaving some out helps;
5. the threshold: the best one after the CRF, at full size and with all draws, since that is what `generate` writes (the
   CRF prefers a lower one than the maps by themselves do); without ground truth by Otsu's method.

The rest, the CRF among it, stays as configured. What is chosen must win by more than `MIN_GAIN`, so that the simpler of
two equal settings stays.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.classes import ClassSet
from data.config import changed
from data.console import available_cpus, count
from data.errors import ConfigError
from data.samples import Sample, SampleSet, evenly_spaced
from pseudolabel.calibrate.candidates import (
    AFFINITIES,
    describe,
    fewer_heads,
    small_changes,
    with_affinity,
    with_attention,
    with_existing_layers,
    with_timesteps,
)
from pseudolabel.calibrate.criteria import otsu_threshold
from pseudolabel.calibrate.judge import Measured, Verdict, judge_by_labels, judge_by_truth, measured
from pseudolabel.calibrate.pictures import Picture, load_picture
from pseudolabel.calibrate.recordings import PLAIN, Sentences, Wanted, record
from pseudolabel.config import GenerateConfig
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.diffusion.families import list_layers
from pseudolabel.softmaps.diffusion.load import load_model
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.layers import Layer, per_head
from pseudolabel.softmaps.passes import Reader

THRESHOLD_STEPS = tuple(0.025 * step for step in range(-4, 3))  # tried around the best one before the CRF
TIMESTEPS = (50, 100, 150, 200, 250, 300, 350, 400)
FLOW_TIMESTEPS = (100, 200, 300, 400, 500, 600, 700)
DECOYS = 3  # absent classes put into the sentence where there is no ground truth

logger = logging.getLogger(__name__)

MIN_GAIN = 0.002  # what is chosen must win by more, so that the simpler of two equal settings stays
ROUNDS = 3  # of small changes, and of heads left out


@dataclass
class Search:
    """Everything a calibration works on, and the best it has found.

    Attributes:
        parts: the whole model.
        classes: phrases and background words.
        pictures: the images.
        layers: all layers of the model.
        by_truth: whether ground truth decides.
        config: best settings so far.
        verdict: what they reached.
        steps: what was tried and chosen, one line each.
        latents: of the images, encoded once.

    """

    parts: Parts
    classes: ClassSet
    pictures: Sequence[Picture]
    layers: tuple[Layer, ...]
    by_truth: bool
    config: GenerateConfig
    verdict: Verdict = field(default_factory=lambda: Verdict(-1.0, 0.5))
    steps: list[str] = field(default_factory=list)
    latents: dict[Any, Any] = field(default_factory=dict)

    def take(self, step: str, found: Iterable[tuple[GenerateConfig, Verdict]], least: float = MIN_GAIN) -> bool:
        """Take over the best of some settings if it beats what there is; return whether it did."""
        config, verdict = max(found, key=lambda entry: entry[1].score)
        better = verdict.score > self.verdict.score + least
        if better:
            self.config, self.verdict = config, verdict
        text = describe(self.config) if better else "nothing better"
        self.steps.append(f"{self.verdict.score:.4f} {step}: {text}")
        logger.info("%s", self.steps[-1])
        return better


def read(
    search: Search,
    config: GenerateConfig,
    *,
    cross: Sequence[Layer] | None = None,
    self_layers: Sequence[Layer] = (),
    title: str,
) -> Iterable[Sentences]:
    """Read all pictures once with some settings; every cross layer unless `cross` names fewer."""
    diffusion = replace(config.diffusion, scales=(1.0,), flip=False)
    shared = (config.prompt, diffusion, config.resize, config.run)
    reader = Reader(search.parts, search.classes, *shared, latents=search.latents)
    found = record(reader, search.pictures, Wanted(search.layers if cross is None else cross, self_layers))
    total = len(search.pictures) * len(config.diffusion.timesteps)
    return tqdm(found, title, total=total, unit="map", leave=False, mininterval=1.0)


def judge(
    search: Search, recorded: Iterable[Sentences], candidates: Sequence[GenerateConfig]
) -> list[tuple[GenerateConfig, Verdict]]:
    """Return how good each candidate is on what was recorded at its timestep."""
    if search.by_truth:
        verdicts = judge_by_truth(recorded, candidates, search.layers, len(search.classes) + 1)
    else:
        verdicts = judge_by_labels(recorded, candidates, search.layers)
    return list(zip(candidates, verdicts, strict=True))


def choose_layers(search: Search, timesteps: Sequence[int]) -> None:
    """Step 1: the best timestep, layers and token rescaling, without affinity."""
    base = with_affinity(with_timesteps(search.config, timesteps), kind="none")
    recordings: dict[int, list[Sentences]] = {timestep: [] for timestep in timesteps}
    for item in read(search, base, title="read all layers"):
        recordings[item[0].timestep].append(item)
    found = [
        forward_selection(
            search, recordings[timestep], with_attention(with_timesteps(base, (timestep,)), token_rescaling=on)
        )
        for timestep in tqdm(timesteps, "choose layers", unit="timestep", leave=False)
        for on in (False, True)
    ]
    tried = " ".join(map(str, timesteps))
    search.take(f"timestep (of {tried}) and cross layers, no affinity", found)


def forward_selection(
    search: Search, recorded: Sequence[Sentences], base: GenerateConfig
) -> tuple[GenerateConfig, Verdict]:
    """Start from the best single layer and add the layer that helps most, while one helps."""
    names = [layer.name for layer in search.layers]
    best: tuple[GenerateConfig, Verdict] | None = None
    chosen: tuple[str, ...] = ()
    while len(chosen) < len(names):
        grown = [sorted({*chosen, name}, key=names.index) for name in names if name not in chosen]
        candidates = [with_attention(base, cross_layers=tuple(layers)) for layers in grown]
        winner = max(judge(search, recorded, candidates), key=lambda entry: entry[1].score)
        if best is not None and winner[1].score <= best[1].score + MIN_GAIN:
            break
        best, chosen = winner, winner[0].attention.cross_layers
    assert best is not None
    return best


def choose_reading(search: Search, long_sides: Sequence[int]) -> None:
    """Step 2: background words or none, and image sizes; layers are chosen anew for each."""
    words = search.config.prompt.background_words
    variants = [replace(search.config, prompt=replace(search.config.prompt, background_words=not words))]
    _try_readings(search, "background words", variants)
    current = search.config.resize.long_side_px
    variants = [
        replace(search.config, resize=replace(search.config.resize, long_side_px=side))
        for side in long_sides
        if side != current
    ]
    if variants:
        _try_readings(search, f"image size ({' '.join(map(str, long_sides))} px tried)", variants)


def _try_readings(search: Search, title: str, variants: Sequence[GenerateConfig]) -> None:
    found = []
    for variant in variants:
        recorded = list(read(search, variant, title=title))
        found.append(forward_selection(search, recorded, variant))
    search.take(title, found)


def choose_affinity(search: Search) -> None:
    """Step 3: self-attention layer and kind of affinity, then rounds of small changes."""
    candidates = [
        with_affinity(with_attention(search.config, self_layers=(layer.name,)), **kind)
        for layer in search.layers
        for kind in AFFINITIES
    ]
    search.take("affinity", judge(search, _read_both(search, "affinity"), candidates), 2 * MIN_GAIN)
    for _ in range(ROUNDS):
        candidates = small_changes(search.config, [layer.name for layer in search.layers])
        if not search.take("small changes", judge(search, _read_both(search, "small changes"), candidates)):
            break


def _read_both(search: Search, title: str) -> Iterable[Sentences]:
    return read(search, search.config, self_layers=search.layers, title=title)


def choose_timestep(search: Search, timesteps: Sequence[int]) -> None:
    """Try the other timesteps again with everything else chosen."""
    others = [timestep for timestep in timesteps if (timestep,) != search.config.diffusion.timesteps]
    candidates = [with_timesteps(search.config, (timestep,)) for timestep in others]
    if candidates:
        config = with_timesteps(search.config, others)
        cross, self_layers = chosen_layers(search)
        recorded = read(search, config, cross=cross, self_layers=self_layers, title="timestep again")
        search.take("timestep again", judge(search, recorded, candidates))


def chosen_layers(search: Search) -> tuple[list[Layer], list[Layer]]:
    """Return the cross layers and self layers of the best settings so far."""
    by_name, attention = {layer.name: layer for layer in search.layers}, search.config.attention
    self_names = attention.self_layers if search.config.affinity.kind != "none" else ()
    return [by_name[name] for name in attention.cross_layers], [by_name[name] for name in self_names]


def choose_heads(search: Search) -> None:
    """Step 4: leave out one head of one chosen layer after the other, while that helps."""
    if search.config.attention.token_rescaling:
        return  # rescaling is not linear in the heads, so heads recorded one by one say nothing
    cross, self_layers = chosen_layers(search)
    n_heads = {layer.name: head_count(search.parts.denoiser, layer) for layer in cross}
    runs = []
    for layers in per_head(cross, max(n_heads.values())):
        head = layers[0].heads[0] if layers[0].heads else 0
        there = [layer for layer in layers if head < n_heads[layer.name]]
        runs.append(read(search, search.config, cross=there, self_layers=self_layers, title=f"head {head}"))
    recorded = [merge_heads(items) for items in zip(*runs, strict=True)]
    for _ in range(ROUNDS):
        candidates = fewer_heads(search.config, n_heads)
        if not candidates or not search.take("heads", judge(search, recorded, candidates), 2 * MIN_GAIN):
            break


def head_count(denoiser: Any, layer: Layer) -> int:
    """Return the number of heads of a layer's cross-attention."""
    return int(denoiser.get_submodule(f"{layer.blocks[0]}.{layer.cross}").heads)


def merge_heads(items: Sequence[Sentences]) -> Sentences:
    """Put recordings of the same passes, through one head each, into one; self-attention is taken from the first."""
    return tuple(
        replace(same[0], maps={PLAIN: {name: maps for recorded in same for name, maps in recorded.maps[PLAIN].items()}})
        for same in zip(*items, strict=True)
    )


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
    apart = changed(config.attention, ("weights", "rescaled_tokens", "blur")) + changed(config.fuse, ("background",))
    if apart:
        logger.warning(
            "%s: counts in the last figures; in the search layers and heads count alike and words do not compete.",
            ", ".join(apart),
        )
    by_truth = use_truth and any(sample.truth_path is not None for sample in chosen)
    chosen = usable(chosen, len(samples.classes), by_truth)
    n_decoys = 0 if by_truth else min(DECOYS, len(samples.classes) - 1)
    pictures = [load_picture(sample, len(samples.classes), n_decoys, by_truth) for sample in chosen]
    start = replace(config, diffusion=replace(config.diffusion, draws=draws))
    search = Search(parts, samples.classes, pictures, layers, by_truth, start)
    timesteps = tuple(sorted({*(timesteps or usual_timesteps(parts))}))
    choose_layers(search, timesteps)
    if by_truth:
        choose_reading(search, long_sides)
        choose_affinity(search)
        choose_timestep(search, timesteps)
        if heads:
            choose_heads(search)
    search.config = replace(search.config, diffusion=replace(search.config.diffusion, draws=config.diffusion.draws))
    if not by_truth:
        search.config = replace(search.config, affinity=config.affinity)
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
    return FLOW_TIMESTEPS if parts.is_flow else TIMESTEPS


def set_threshold(search: Search, threshold: float) -> None:
    """Put the threshold into the settings."""
    search.config = replace(search.config, fuse=replace(search.config.fuse, threshold=round(threshold, 4)))


def otsu(search: Search) -> float:
    """Step 5 without ground truth: Otsu's threshold over the soft maps of the settings found, decoys left out."""
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
