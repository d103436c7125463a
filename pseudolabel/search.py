"""The search of `pseudolabel calibrate`: settings judged on recordings, step by step from the best so far."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pseudolabel.attention import Layer
from pseudolabel.candidates import (
    AFFINITIES,
    any_layers,
    describe,
    fewer_heads,
    small_changes,
    with_affinity,
    with_attention,
    with_timesteps,
)
from pseudolabel.config import GenerateConfig
from pseudolabel.criteria import best_threshold, count_pixels, image_edges, label_score
from pseudolabel.pipeline import Pipeline
from pseudolabel.reading import common_grid
from pseudolabel.recordings import Picture, Recorded, per_head, raw_maps, record, refined_maps, view

logger = logging.getLogger(__name__)

MIN_GAIN = 0.002  # what is chosen must win by more, so that the simpler of two equal settings stays
ROUNDS = 3  # of small changes, and of heads left out


@dataclass(frozen=True)
class Verdict:
    """How good some settings are: the score, and the threshold that goes with it."""

    score: float
    threshold: float


@dataclass
class Search:
    """Everything a calibration works on, and the best it has found.

    Attributes:
        pipeline: the whole model; its settings are not used, only its parts.
        pictures: the images.
        layers: all layers of the model.
        n_classes: number of classes, the background included.
        by_truth: whether ground truth decides.
        config: best settings so far.
        verdict: what they reached.
        steps: what was tried and chosen, one line each.
        latents: of the images, encoded once.

    """

    pipeline: Pipeline
    pictures: Sequence[Picture]
    layers: tuple[Layer, ...]
    n_classes: int
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
) -> Iterable[Recorded]:
    """Read all pictures once with some settings; every cross layer unless `cross` names fewer."""
    pipeline = Pipeline(search.pipeline.models, any_layers(config), search.pipeline.classes, cut=False)
    found = record(pipeline, search.pictures, search.layers if cross is None else cross, self_layers, search.latents)
    total = len(search.pictures) * len(config.diffusion.timesteps)
    return tqdm(found, title, total=total, unit="map", leave=False, mininterval=1.0)


def judge(
    search: Search, recorded: Iterable[Recorded], candidates: Sequence[GenerateConfig]
) -> list[tuple[GenerateConfig, Verdict]]:
    """Return how good each candidate is on what was recorded at its timestep."""
    if search.by_truth:
        verdicts = judge_by_truth(recorded, candidates, search.layers, search.n_classes)
    else:
        verdicts = judge_by_labels(recorded, candidates, search.layers)
    return list(zip(candidates, verdicts, strict=True))


def judge_by_truth(
    recorded: Iterable[Recorded], candidates: Sequence[GenerateConfig], layers: tuple[Layer, ...], n_classes: int
) -> list[Verdict]:
    """Return the highest mIoU over thresholds of each candidate (one confusion matrix over all pictures)."""
    counts: list[Any] = [0] * len(candidates)
    for item in recorded:
        assert item.picture.truth is not None
        for index, candidate in enumerate(candidates):
            if candidate.diffusion.timesteps != (item.timestep,):
                continue
            maps = view(refined_maps(item, candidate, layers), item)
            counts[index] = counts[index] + count_pixels(maps, item.picture.prompted, item.picture.truth, n_classes)
    return [Verdict(*best_threshold(count)) for count in counts]


def judge_by_labels(
    recorded: Iterable[Recorded], candidates: Sequence[GenerateConfig], layers: tuple[Layer, ...]
) -> list[Verdict]:
    """Return `criteria.label_score` of each candidate's raw maps; the affinity of the candidates plays no part."""
    present: list[list[Any]] = [[] for _ in candidates]
    absent: list[list[Any]] = [[] for _ in candidates]
    edges: list[list[Any]] = [[] for _ in candidates]
    for item in recorded:
        lines = image_edges(item.picture.rgb_u8)
        for index, candidate in enumerate(candidates):
            if candidate.diffusion.timesteps != (item.timestep,):
                continue
            first, second = present_and_absent(item, candidate, layers)
            present[index].append(first)
            absent[index].append(second)
            edges[index].append(lines)
    scores = [label_score(*maps) for maps in zip(present, absent, edges, strict=True)]
    return [Verdict(score, candidate.fuse.threshold) for score, candidate in zip(scores, candidates, strict=True)]


def present_and_absent(
    item: Recorded, config: GenerateConfig, layers: tuple[Layer, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the raw maps (mean over draws) of the classes a picture holds, and of its decoys, without the padding."""
    names = {spec.partition("@")[0] for spec in config.attention.cross_layers}
    grid_hw = common_grid([layer for layer in layers if layer.name in names], (), item.latent_hw)
    maps = torch.zeros(len(item.picture.prompted), *grid_hw)
    for part in item.parts:
        maps[list(part.rows)] = raw_maps(part, config, grid_hw).mean(dim=0)
    rows, columns = item.frame.valid_cells(grid_hw)
    cells = maps[:, :rows, :columns].numpy()
    holds = np.array([label in item.picture.labels for label in item.picture.prompted])
    return cells[holds], cells[~holds]


def choose_layers(search: Search, timesteps: Sequence[int]) -> None:
    """Step 1: the best timestep, layers and token rescaling, without affinity."""
    base = with_affinity(with_timesteps(search.config, timesteps), kind="none")
    recordings: dict[int, list[Recorded]] = {timestep: [] for timestep in timesteps}
    for item in read(search, base, title="read all layers"):
        recordings[item.timestep].append(item)
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
    search: Search, recorded: Sequence[Recorded], base: GenerateConfig
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


def _read_both(search: Search, title: str) -> Iterable[Recorded]:
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
    n_heads = {layer.name: head_count(search.pipeline.models.unet, layer) for layer in cross}
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


def head_count(unet: Any, layer: Layer) -> int:
    """Return the number of heads of a layer's cross-attention."""
    return int(unet.get_submodule(f"{layer.blocks[0]}.attn2").heads)


def merge_heads(items: Sequence[Recorded]) -> Recorded:
    """Put recordings of the same passes, through one head each, into one; self-attention is taken from the first."""
    parts = [
        replace(same[0], plain={name: maps for part in same for name, maps in part.plain.items()})
        for same in zip(*(item.parts for item in items), strict=True)
    ]
    return replace(items[0], parts=tuple(parts))
