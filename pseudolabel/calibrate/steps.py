"""The steps of a calibration, each starting from the best settings so far; `search` says in which order."""

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.console import progress_bar
from pseudolabel.calibrate.candidates import (
    AFFINITIES,
    SCALES,
    fewer_heads,
    size_sets,
    small_changes,
    weighings,
    with_affinity,
    with_attention,
    with_timesteps,
)
from pseudolabel.calibrate.judge import Verdict, competed, judge_sizes
from pseudolabel.calibrate.kept import digest
from pseudolabel.calibrate.offline import refined_maps, view
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.calibrate.recordings import PLAIN, Sentences, TokenRule, Wanted, in_reading_order
from pseudolabel.calibrate.state import (
    MIN_GAIN,
    Search,
    candidate_key,
    judge,
    judge_read,
    known,
    read,
    reader_of,
    recordings,
)
from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.diffusion.families import largest_px
from pseudolabel.softmaps.layers import Layer, per_head, resolve_layers

SIZE_GAIN = 0.005  # that each further image size must bring, since it costs a pass
ROUNDS = 3  # of small changes, and of heads left out
NEAR = 2  # timesteps on either side of the chosen one that are tried again


def choose_layers(search: Search, timesteps: Sequence[int]) -> None:
    """Choose timestep, cross layers and token rescaling, without affinity."""
    base = with_affinity(with_timesteps(search.config, timesteps), kind="none")
    wanted = Wanted(search.cross_layers, words=base.fuse.background == "words")
    recorded = cache(lambda: recordings(search, base, wanted, "read all layers"))
    found = [
        forward_selection(
            search,
            partial(_at, timestep, recorded),
            with_attention(with_timesteps(base, (timestep,)), token_rescaling=on),
        )
        for timestep in progress_bar(timesteps, desc=f"{search.place} choose layers", unit="timestep", leave=False)
        for on in (False, True)
    ]
    tried = " ".join(map(str, timesteps))
    search.take(f"timestep (of {tried}) and cross layers, no affinity", found)


def _at(timestep: int, recorded: Callable[[], Sequence[Sentences]]) -> list[Sentences]:
    return [item for item in recorded() if item[0].timestep == timestep]


def forward_selection(
    search: Search, recorded: Callable[[], Sequence[Sentences]], base: GenerateConfig
) -> tuple[GenerateConfig, Verdict]:
    """Start from the best single layer and add the layer that helps most, while one helps."""
    names = [layer.name for layer in search.cross_layers]
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


def choose_words(search: Search) -> None:
    """Choose background words in the sentence, in it and competing, or none; layers are chosen anew for each."""
    with_words = replace(search.config, prompt=replace(search.config.prompt, background_words=True))
    without = replace(search.config, prompt=replace(search.config.prompt, background_words=False))
    competing = replace(with_words, fuse=replace(search.config.fuse, background="words"))
    variants = [other for other in (with_words, without, competing) if other != search.config]
    _try_readings(search, "background words", variants)


def choose_long_side(search: Search, long_sides: Sequence[int]) -> None:
    """Choose among image sizes; layers are chosen anew for each."""
    variants = [
        replace(search.config, resize=replace(search.config.resize, long_side_px=side))
        for side in long_sides
        if side != search.config.resize.long_side_px
    ]
    if variants:
        _try_readings(search, f"image size ({' '.join(map(str, long_sides))} px tried)", variants)


def _try_readings(search: Search, title: str, variants: Sequence[GenerateConfig]) -> None:
    found = []
    for variant in variants:
        wanted = Wanted(search.cross_layers, words=variant.fuse.background == "words")
        recorded = cache(partial(recordings, search, variant, wanted, title))
        found.append(forward_selection(search, recorded, variant))
    search.take(title, found)


def choose_affinity(search: Search) -> None:
    """Choose self-attention layer and kind of affinity."""
    cross, _ = chosen_layers(search)
    candidates = [
        with_affinity(with_attention(search.config, self_layers=(layer.name,)), **kind)
        for layer in search.cell_layers
        for kind in AFFINITIES
    ]
    wanted = _wanted(search, cross, search.cell_layers, rules=(TokenRule.of(search.config.attention),))
    search.take("affinity", judge_read(search, search.config, candidates, wanted, "affinity"), 2 * MIN_GAIN)


def choose_small_changes(search: Search) -> None:
    """Try rounds of small changes to everything chosen, layers that name classes among it."""
    names = [layer.name for layer in search.cross_layers]
    for _ in range(ROUNDS):
        candidates = small_changes(search.config, names, [layer.name for layer in search.cell_layers])
        wanted = _wanted(search, search.cross_layers, search.cell_layers)
        if not search.take("small changes", judge_read(search, search.config, candidates, wanted, "small changes")):
            break


def choose_given(search: Search, given: GenerateConfig) -> None:
    """Go on from the settings given, at one image size, where they are better than what was found so far."""
    given = _named_in_full(search, replace(given, diffusion=replace(given.diffusion, scales=(1.0,), flip=False)))
    names = {layer.name for layer in search.cell_layers}
    attention = given.attention
    whole = {*attention.cross_layers, *attention.naming_layers, *attention.self_layers} <= names
    if len(given.diffusion.timesteps) != 1 or attention.weights != "mean" or not whole:
        return  # these are not searched for, or not in this form
    cross, cells = chosen_layers(search, given)
    wanted = Wanted(cross, cells, (TokenRule.of(given.attention),), words=given.fuse.background == "words")
    if search.take("settings given", judge_read(search, given, [given], wanted, "settings given")):
        choose_small_changes(search)


def _named_in_full(search: Search, config: GenerateConfig) -> GenerateConfig:
    """Return settings that name layers by module, as the search does, in place of roles; heads are left out."""

    def names(flag: str) -> tuple[str, ...]:
        specs = getattr(config.attention, flag)
        return tuple(layer.name for layer in resolve_layers(search.layers, specs, f"attention.{flag}"))

    flags = ("cross_layers", "naming_layers", *(("self_layers",) if config.affinity.kind != "none" else ()))
    return with_attention(config, **{flag: names(flag) for flag in flags})


def _wanted(search: Search, cross: Sequence[Layer], cells: Sequence[Layer], **more: Any) -> Wanted:
    """Return what is recorded for the best settings so far and others like them."""
    return Wanted(cross, cells, words=search.config.fuse.background == "words", **more)


def choose_weights(search: Search) -> None:
    """Weigh layers and heads, and let tokens share cells out as GoCA does; U-Nets alone."""
    if search.parts.family != "unet":
        return
    _, cells = chosen_layers(search)
    reference = cells[-1] if cells else None
    candidates = weighings(search.config, [layer.name for layer in search.layers], reference is not None)
    rules = tuple(dict.fromkeys(TokenRule.of(other.attention) for other in (search.config, *candidates)))
    title = "weights of layers and heads"
    wanted = _wanted(search, search.layers, cells, rules=rules, reference=reference)
    search.take(title, judge_read(search, search.config, candidates, wanted, title), 2 * MIN_GAIN)


def choose_sizes(search: Search) -> None:
    """Average over image sizes; each further size must gain `SIZE_GAIN`, since it costs a pass."""
    limited = largest_px(search.parts) is not None
    scales = [scale for scale in SCALES if scale <= 1 or not limited]
    sets = size_sets(scales)
    candidates = [replace(search.config, diffusion=replace(search.config.diffusion, scales=each)) for each in sets]

    def verdicts(missing: Sequence[GenerateConfig]) -> list[Verdict]:
        by_scale = {scale: views(search, scale) for scale in scales}
        wanted = [each.diffusion.scales for each in missing]
        return judge_sizes(by_scale, search.pictures, wanted, search.n_classes)

    found = [
        (candidate, verdict, SIZE_GAIN * (len(candidate.diffusion.scales) - 1))
        for candidate, verdict in known(search, candidates, verdicts)
    ]
    best, verdict, cost = max(found, key=lambda entry: entry[1].score - entry[2])
    better = verdict.score > search.verdict.score + MIN_GAIN + cost
    if better:
        search.sizes, search.sized = best.diffusion.scales, verdict
    tried, chosen = (" ".join(f"{scale:g}" for scale in each) for each in (scales, search.sizes))
    score = verdict.score if better else search.verdict.score
    search.note(f"image sizes (of {tried}), averaged", score, chosen if better else "nothing better")


def views(search: Search, scale: float) -> list[np.ndarray]:
    """Return the maps of each picture read at another size, at the size of its ground truth."""
    config = search.config
    cross, cells = chosen_layers(search)
    reference = cells[-1] if config.attention.weighs_layers else None
    wanted = _wanted(search, cross, cells, rules=(TokenRule.of(config.attention),), reference=reference)
    reader = reader_of(search, config, scale)

    def make(rest: Sequence[Picture]) -> Iterator[dict[str, Tensor]]:
        for item in read(search, reader, wanted, f"size {scale:g}", rest):
            maps = competed(view(refined_maps(item, config, search.cell_layers), item[0]), config)
            yield {"view": torch.from_numpy(np.ascontiguousarray(maps))}

    key, pictures = digest("views", candidate_key(config), scale), in_reading_order(reader, search.pictures)
    found = {picture.id: kept["view"].numpy() for picture, kept in search.kept.by_picture(key, pictures, make)}
    return [found[picture.id] for picture in search.pictures]


def choose_timestep(search: Search, timesteps: Sequence[int]) -> None:
    """Try the timesteps near the chosen one again with everything else chosen."""
    [chosen] = search.config.diffusion.timesteps
    at = list(timesteps).index(chosen) if chosen in timesteps else bisect(timesteps, chosen)
    others = [timestep for timestep in timesteps[max(0, at - NEAR) : at + NEAR + 1] if timestep != chosen]
    candidates = [with_timesteps(search.config, (timestep,)) for timestep in others]
    if candidates:
        cross, cells = chosen_layers(search)
        wanted = _wanted(search, cross, cells, rules=(TokenRule.of(search.config.attention),))
        config = with_timesteps(search.config, others)
        search.take("timestep again", judge_read(search, config, candidates, wanted, "timestep again"))


def chosen_layers(search: Search, config: GenerateConfig | None = None) -> tuple[list[Layer], list[Layer]]:
    """Return the cross layers, those that name classes among them, and the self layers of the best settings so far.

    With `config`, of those instead.
    """
    config = search.config if config is None else config
    attention = config.attention
    named = (*attention.cross_layers, *attention.naming_layers)
    cross = resolve_layers(search.layers, named, "attention.cross_layers")
    self_names = attention.self_layers if config.affinity.kind != "none" else ()
    return list(cross), [layer for layer in search.cell_layers if layer.name in self_names]


def choose_heads(search: Search) -> None:
    """Leave out one head of one chosen layer after the other, while that helps."""
    attention = search.config.attention
    if attention.token_rescaling or attention.weights != "mean" or attention.naming_layers:
        return  # none of these is linear in the heads, so heads recorded one by one say nothing
    cross, cells = chosen_layers(search)
    n_heads = {layer.name: head_count(search.parts.denoiser, layer) for layer in cross}
    recorded = cache(lambda: _by_heads(search, cross, cells, n_heads))
    for _ in range(ROUNDS):
        candidates = fewer_heads(search.config, n_heads)
        if not candidates or not search.take("heads", judge(search, recorded, candidates), 2 * MIN_GAIN):
            break


def _by_heads(
    search: Search, cross: Sequence[Layer], cells: Sequence[Layer], n_heads: dict[str, int]
) -> list[Sentences]:
    """Return what each head of the chosen layers showed; one reading for each head."""
    runs, reader = [], reader_of(search, search.config)
    for layers in per_head(cross, max(n_heads.values())):
        head = layers[0].heads[0] if layers[0].heads else 0
        there = [layer for layer in layers if head < n_heads[layer.name]]
        wanted = _wanted(search, there, cells, rules=(PLAIN,))
        runs.append(read(search, reader, wanted, f"head {head}", search.pictures))
    return [merge_heads(items) for items in zip(*runs, strict=True)]


def head_count(denoiser: Any, layer: Layer) -> int:
    """Return the number of heads of a layer's cross-attention."""
    return int(denoiser.get_submodule(f"{layer.blocks[0]}.{layer.cross}").heads)


def merge_heads(items: Sequence[Sentences]) -> Sentences:
    """Put recordings of the same passes, through one head each, into one; self-attention is taken from the first."""
    return tuple(
        replace(same[0], maps={PLAIN: {name: maps for recorded in same for name, maps in recorded.maps[PLAIN].items()}})
        for same in zip(*items, strict=True)
    )
