"""The steps of a calibration, each starting from the best settings so far; `search` says in which order."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from pseudolabel.calibrate.candidates import (
    AFFINITIES,
    SCALE_SETS,
    SCALES,
    fewer_heads,
    small_changes,
    weighings,
    with_affinity,
    with_attention,
    with_timesteps,
)
from pseudolabel.calibrate.judge import Verdict, competed, judge_sizes
from pseudolabel.calibrate.offline import refined_maps, view
from pseudolabel.calibrate.recordings import PLAIN, Sentences, TokenRule
from pseudolabel.calibrate.state import MIN_GAIN, Search, judge, read
from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.diffusion.families import largest_px
from pseudolabel.softmaps.layers import Layer, per_head, resolve_layers

SIZE_GAIN = 0.005  # that each further image size must bring, since it costs a pass
ROUNDS = 3  # of small changes, and of heads left out
NEAR = 2  # timesteps on either side of the chosen one that are tried again


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
    with_words = replace(search.config, prompt=replace(search.config.prompt, background_words=True))
    without = replace(search.config, prompt=replace(search.config.prompt, background_words=False))
    competing = replace(with_words, fuse=replace(search.config.fuse, background="words"))
    variants = [other for other in (with_words, without, competing) if other != search.config]
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


def choose_weights(search: Search) -> None:
    """Step 4: weigh layers and heads, and let tokens share cells out as GoCA does; U-Nets alone."""
    if search.parts.family != "unet":
        return
    _, self_layers = chosen_layers(search)
    reference = self_layers[-1] if self_layers else None
    candidates = weighings(search.config, [layer.name for layer in search.layers], reference is not None)
    rules = tuple(dict.fromkeys(TokenRule.of(other.attention) for other in (search.config, *candidates)))
    title = "weights of layers and heads"
    recorded = read(search, search.config, self_layers=self_layers, title=title, rules=rules, reference=reference)
    search.take(title, judge(search, recorded, candidates), 2 * MIN_GAIN)


def choose_sizes(search: Search) -> None:
    """Step 5: average over image sizes; each further size must gain `SIZE_GAIN`, since it costs a pass."""
    limited = largest_px(search.parts) is not None
    by_scale = {scale: _views(search, scale) for scale in SCALES if scale <= 1 or not limited}
    sets = [chosen for chosen in SCALE_SETS if set(chosen) <= set(by_scale)]
    verdicts = judge_sizes(by_scale, search.pictures, sets, len(search.classes) + 1)
    found = [(chosen, verdict, SIZE_GAIN * (len(chosen) - 1)) for chosen, verdict in zip(sets, verdicts, strict=True)]
    best, verdict, cost = max(found, key=lambda entry: entry[1].score - entry[2])
    config = replace(search.config, diffusion=replace(search.config.diffusion, scales=best))
    tried = " ".join(f"{scale:g}" for scale in by_scale)
    search.take(f"image sizes (of {tried}), averaged", [(config, verdict)], MIN_GAIN + cost)


def _views(search: Search, scale: float) -> list[np.ndarray]:
    """Return the maps of each picture read at another size, at the size of its ground truth."""
    attention = search.config.attention
    cross, self_layers = chosen_layers(search)
    reference = self_layers[-1] if attention.weighs_layers else None
    wanted: dict[str, Any] = {"rules": (TokenRule.of(attention),), "reference": reference}
    title = f"size {scale:g}"
    found = read(search, search.config, cross=cross, self_layers=self_layers, title=title, scale=scale, **wanted)
    views = {
        item[0].picture.id: competed(view(refined_maps(item, search.config, search.layers), item[0]), search.config)
        for item in found
    }
    return [views[picture.id] for picture in search.pictures]


def choose_timestep(search: Search, timesteps: Sequence[int]) -> None:
    """Try the timesteps near the chosen one again with everything else chosen."""
    [chosen] = search.config.diffusion.timesteps
    at = list(timesteps).index(chosen)
    others = [timestep for timestep in timesteps[max(0, at - NEAR) : at + NEAR + 1] if timestep != chosen]
    candidates = [with_timesteps(search.config, (timestep,)) for timestep in others]
    if candidates:
        config = with_timesteps(search.config, others)
        cross, self_layers = chosen_layers(search)
        recorded = read(search, config, cross=cross, self_layers=self_layers, title="timestep again")
        search.take("timestep again", judge(search, recorded, candidates))


def chosen_layers(search: Search) -> tuple[list[Layer], list[Layer]]:
    """Return the cross layers, those that name classes among them, and the self layers of the best settings so far."""
    attention = search.config.attention
    named = (*attention.cross_layers, *attention.naming_layers)
    cross = resolve_layers(search.layers, named, "attention.cross_layers")
    self_names = attention.self_layers if search.config.affinity.kind != "none" else ()
    return list(cross), [layer for layer in search.layers if layer.name in self_names]


def choose_heads(search: Search) -> None:
    """Step 5: leave out one head of one chosen layer after the other, while that helps."""
    attention = search.config.attention
    if attention.token_rescaling or attention.weights != "mean" or attention.naming_layers:
        return  # none of these is linear in the heads, so heads recorded one by one say nothing
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
