"""What a diffusion model's layers looked at, kept small, so that many settings can be compared without the model.

One U-Net pass per noise draw records every layer at once. `refined_maps` then does offline what `reading.read_batch`
does for one choice of layers and affinity, with the same functions; a test holds the two against each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.errors import ConfigError
from data.store.softmaps import Frame
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.affinity import DENSE_CELLS, SelfAttention
from pseudolabel.softmaps.config import AttentionConfig
from pseudolabel.softmaps.grids import common_grid, regrid, resize_maps
from pseudolabel.softmaps.layers import Layer, layer_key
from pseudolabel.softmaps.passes import Pass, Reader
from pseudolabel.softmaps.reading import (
    class_weights,
    content_tokens,
    every_token,
    number_fault,
    refine_maps,
    rescaled_classes,
    run_passes,
)


@dataclass(frozen=True)
class KeptAttention(SelfAttention):
    """Self-attention whose matrix is computed once, where it is small."""

    def matrix(self) -> Float[Tensor, "batch cells cells"]:
        """Return S, in float32."""
        return self._kept if self.queries.shape[2] <= DENSE_CELLS else super().matrix()

    @cached_property
    def _kept(self) -> Tensor:
        return super().matrix()


@dataclass(frozen=True)
class Recorded:
    """A reading kept for calibration: what all draws of one picture at one timestep showed, for one sentence.

    Attributes:
        picture: the image.
        frame: its sizes.
        latent_hw: height and width of its latent.
        timestep: t.
        rows: positions, among the picture's prompted classes, of the classes of this sentence.
        plain: by layer, raw cross-attention maps on the layer's grid.
        rescaled: the same with token rescaling.
        attention: by layer, self-attention; empty where it was not recorded.

    """

    picture: Picture
    frame: Frame
    latent_hw: tuple[int, int]
    timestep: int
    rows: tuple[int, ...]
    plain: dict[str, Float[Tensor, "draws classes _ _"]]
    rescaled: dict[str, Float[Tensor, "draws classes _ _"]]
    attention: dict[str, SelfAttention]


Sentences = tuple[Recorded, ...]  # all of one picture at one timestep


def record(
    reader: Reader, pictures: Sequence[Picture], cross_layers: Sequence[Layer], self_layers: Sequence[Layer] = ()
) -> Iterator[Sentences]:
    """Run the passes of the reader's settings and yield what was recorded, for each picture and timestep.

    Args:
        reader: of a model that is whole, not cut; without mirror images and with one scale.
        pictures: images and the classes in their sentences.
        cross_layers: layers whose cross-attention is recorded.
        self_layers: layers whose self-attention is recorded, as queries and keys.

    """
    groups: dict[tuple[int, int], list[Picture]] = {}
    for picture in pictures:
        height, width, _ = picture.rgb_u8.shape
        frame = reader.frame((height, width))
        groups.setdefault(reader.latent_hw(frame), []).append(picture)
    for latent_hw, equal in groups.items():
        together = _pictures_together(reader, latent_hw)
        for start in range(0, len(equal), together):
            yield from _record_group(reader, equal[start : start + together], cross_layers, self_layers)


def _pictures_together(reader: Reader, latent_hw: tuple[int, int]) -> int:
    """Return how many pictures share a batch of passes; one where a batch is not even enough for one."""
    return max(
        1, reader.batch_size(latent_hw[0] * latent_hw[1]) // (len(reader.diffusion.timesteps) * reader.diffusion.draws)
    )


@torch.inference_mode()
def _record_group(
    reader: Reader, pictures: Sequence[Picture], cross_layers: Sequence[Layer], self_layers: Sequence[Layer]
) -> Iterator[Sentences]:
    """Record pictures of one padded size together."""
    reader.embed(prompt.text for picture in pictures for prompt in reader.plan(picture.prompted))
    passes = [
        item
        for index, picture in enumerate(pictures)
        for item in reader.passes(index, picture.rgb_u8, reader.plan(picture.prompted), picture.id)
    ]

    def read(batch: Sequence[Pass]) -> list[_Tables]:
        return _read_tables(reader, batch, cross_layers, self_layers)

    found = [pair for batch, tables in reader.batches(passes, read) for pair in zip(batch, tables, strict=True)]
    for index, picture in enumerate(pictures):
        for timestep in reader.diffusion.timesteps:
            mine = [(item, tables) for item, tables in found if (item.image, item.timestep) == (index, timestep)]
            _refuse_bad_numbers(reader, picture, [tables for _, tables in mine])
            prompts = dict.fromkeys(item.prompt for item, _ in mine)
            yield tuple(
                _recorded(picture, [pair for pair in mine if pair[0].prompt is prompt], self_layers)
                for prompt in prompts
            )


@dataclass
class _Tables:
    """What one pass showed, by layer."""

    plain: dict[str, Tensor]
    rescaled: dict[str, Tensor]
    queries: dict[str, Tensor]
    keys: dict[str, Tensor]


def _read_tables(
    reader: Reader, batch: Sequence[Pass], cross_layers: Sequence[Layer], self_layers: Sequence[Layer]
) -> list[_Tables]:
    """Run one batch; every token is recorded, and summed to classes with and without rescaling."""
    prompts, frames = [item.prompt for item in batch], [item.frame for item in batch]
    latent_hw = (batch[0].noised.shape[-2], batch[0].noised.shape[-1])
    weights = class_weights(prompts, batch[0].text.tokens.shape[1]).to(reader.parts.device)
    content = content_tokens(prompts, weights.shape[-1]).to(weights.device)
    recording = run_passes(reader.parts, cross_layers, self_layers, batch, every_token(weights))
    tables = [_Tables({}, {}, {}, {}) for _ in batch]
    for layer in cross_layers:
        plain = torch.einsum("bct,bthw->bchw", weights, recording.cross_map(layer, latent_hw)).cpu()
        valid_only = reader.resize.valid_only
        rescaled = rescaled_classes(recording, layer, latent_hw, weights, content, frames, valid_only).cpu()
        for own, table, item in zip(range(len(batch)), tables, batch, strict=True):
            table.plain[layer_key(layer)] = plain[own, : len(item.prompt.rows)]
            table.rescaled[layer_key(layer)] = rescaled[own, : len(item.prompt.rows)]
    for layer in self_layers:
        queries, keys = recording.queries_and_keys(layer)
        for own, table in enumerate(tables):
            table.queries[layer.name], table.keys[layer.name] = queries[own], keys[own]
    return tables


def _refuse_bad_numbers(reader: Reader, picture: Picture, tables: Sequence[_Tables]) -> None:
    """Raise ModelError if the model gave NaN or infinite values for a picture."""
    values = (value for each in tables for part in (each.plain, each.queries, each.keys) for value in part.values())
    fault = number_fault(reader.parts, picture.id, values)
    if fault is not None:
        raise fault


def _recorded(picture: Picture, mine: Sequence[tuple[Pass, _Tables]], self_layers: Sequence[Layer]) -> Recorded:
    """Put the draws of one sentence side by side."""
    first, tables = mine[0][0], [table for _, table in mine]
    latent_hw = (first.noised.shape[-2], first.noised.shape[-1])

    def stacked(which: str) -> dict[str, Tensor]:
        return {
            name: torch.stack([getattr(table, which)[name] for table in tables]) for name in getattr(tables[0], which)
        }

    queries, keys = stacked("queries"), stacked("keys")
    return Recorded(
        picture,
        first.frame,
        latent_hw,
        first.timestep,
        first.prompt.rows,
        stacked("plain"),
        stacked("rescaled"),
        {
            layer.name: KeptAttention(queries[layer.name], keys[layer.name], layer.grid_hw(latent_hw))
            for layer in self_layers
        },
    )


def raw_layers(recorded: Recorded, config: AttentionConfig) -> list[Float[Tensor, "draws classes _ _"]]:
    """Return the maps of each cross layer that the settings name, on the layer's grid, not scaled.

    Layers are named by module; of `name@0+3` the recordings of `name@0` and `name@3` are averaged, and of `name` those
    of all its heads where it was recorded head by head.
    """
    table = recorded.rescaled if config.token_rescaling else recorded.plain
    maps = []
    for spec in config.cross_layers:
        name, _, heads = spec.partition("@")
        if spec in table:
            names = [spec]
        elif heads:
            names = [f"{name}@{head}" for head in heads.split("+")]
        else:
            names = [key for key in table if key.startswith(f"{name}@")]
        if not names or any(each not in table for each in names):
            raise ConfigError(f"Layer {spec!r} was not recorded; there are {', '.join(table)}")
        maps.append(torch.stack([table[each] for each in names]).mean(dim=0))
    return maps


def raw_maps(
    recorded: Recorded, config: AttentionConfig, grid_hw: tuple[int, int]
) -> Float[Tensor, "draws classes grid_h grid_w"]:
    """Return the mean over the cross layers that the settings name, not scaled."""
    return torch.stack([resize_maps(maps, grid_hw) for maps in raw_layers(recorded, config)]).mean(dim=0)


@torch.inference_mode()
def refined_maps(
    sentences: Sentences, config: GenerateConfig, layers: Sequence[Layer]
) -> Float[Tensor, "classes grid_h grid_w"]:
    """Return the soft maps that the pipeline would make with these settings, from recordings.

    Args:
        sentences: one picture at one timestep.
        config: layers by module names, token rescaling and affinity; the rest as recorded.
        layers: all layers of the model.

    """
    attention, affinity = config.attention, config.affinity
    by_name = {layer.name: layer for layer in layers}
    cross = [by_name[spec.partition("@")[0]] for spec in attention.cross_layers]
    names = attention.self_layers if affinity.kind != "none" else ()
    grid_hw = common_grid(cross, [by_name[name] for name in names], sentences[0].latent_hw)
    total = torch.zeros(len(sentences[0].picture.prompted), *grid_hw)
    for recorded in sentences:
        spreading = [recorded.attention[name] for name in names]
        device = spreading[0].queries.device if spreading else torch.device("cpu")
        maps = [each.to(device) for each in raw_layers(recorded, attention)]
        frames = [recorded.frame] * len(maps[0])
        *_, refined = refine_maps(maps, spreading, frames, grid_hw, config.resize.valid_only, affinity)
        total[list(recorded.rows)] = refined.mean(dim=0).cpu()
    return total


def view(
    maps: Float[Tensor, "classes grid_h grid_w"], recorded: Recorded
) -> Float[np.ndarray, "classes view_h view_w"]:
    """Return maps at the size of the picture's ground truth view, without the padding."""
    assert recorded.picture.truth is not None
    height, width = recorded.picture.truth.shape
    whole = Frame((height, width), (height, width), recorded.frame.image_hw)
    return regrid(maps, recorded.frame, False, whole, (height, width)).numpy()
