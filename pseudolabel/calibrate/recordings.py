"""What a diffusion model's layers looked at, kept small, so that many settings can be compared without the model.

One U-Net pass a noise draw records every layer at once. `refined_maps` then does offline what `reading.read_batch` does
for one choice of layers and affinity, with the same functions; a test holds the two against each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.errors import ConfigError
from data.store.softmaps import Frame
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.config import GenerateConfig
from pseudolabel.pipeline import CPU_BATCH_PIXELS, GPU_BATCH_PIXELS, Pipeline, stack_texts
from pseudolabel.softmaps.affinity import DENSE_CELLS, SelfAttention, spread
from pseudolabel.softmaps.attention import Layer, TokenColumns, layer_key
from pseudolabel.softmaps.boxes import batch_boxes, box_mask
from pseudolabel.softmaps.diffusion.unet import list_layers, record_attention, run_unet
from pseudolabel.softmaps.grids import common_grid, min_max, regrid, resize_maps, valid_cells
from pseudolabel.softmaps.passes import Pass
from pseudolabel.softmaps.reading import token_columns


@dataclass(frozen=True)
class KeptAttention(SelfAttention):
    """Self-attention whose matrix is computed once, where it is small."""

    def matrix(self) -> Float[Tensor, "batch cells cells"]:
        """Return S, in float32."""
        kept: Tensor | None = self.__dict__.get("_matrix")
        if kept is None:
            kept = super().matrix()
            if self.queries.shape[2] <= DENSE_CELLS:
                object.__setattr__(self, "_matrix", kept)
        return kept


@dataclass(frozen=True)
class Part:
    """What the passes of one sentence at one timestep looked at.

    Attributes:
        rows: positions, among the picture's prompted classes, of the classes of this sentence.
        plain: by layer, raw cross-attention maps on the layer's grid.
        rescaled: the same with token rescaling.
        attention: by layer, self-attention; empty where it was not recorded.

    """

    rows: tuple[int, ...]
    plain: dict[str, Float[Tensor, "draws classes _ _"]]
    rescaled: dict[str, Float[Tensor, "draws classes _ _"]]
    attention: dict[str, SelfAttention]


@dataclass(frozen=True)
class Recorded:
    """What all passes of one picture at one timestep looked at."""

    picture: Picture
    frame: Frame
    latent_hw: tuple[int, int]
    timestep: int
    parts: tuple[Part, ...]


def record(
    pipeline: Pipeline,
    pictures: Sequence[Picture],
    cross_layers: Sequence[Layer],
    self_layers: Sequence[Layer] = (),
    latents: dict[tuple[str, Frame], Tensor] | None = None,
) -> Iterator[Recorded]:
    """Run the passes of the pipeline's settings and yield what was recorded, for each picture and timestep.

    Mirror images and scales of the settings are left out.

    Args:
        pipeline: whole, not cut.
        pictures: images and the classes in their sentences.
        cross_layers: layers whose cross-attention is recorded.
        self_layers: layers whose self-attention is recorded, as queries and keys.
        latents: the images' latents are kept in here, for the next time.

    """
    latents = {} if latents is None else latents
    frames = {picture.id: pipeline.frame(picture.rgb_u8.shape[:2]) for picture in pictures}
    for padded_hw in dict.fromkeys(frame.padded_hw for frame in frames.values()):
        equal = [picture for picture in pictures if frames[picture.id].padded_hw == padded_hw]
        together = _pictures_together(pipeline, padded_hw)
        for start in range(0, len(equal), together):
            yield from _record_group(pipeline, equal[start : start + together], cross_layers, self_layers, latents)


def _pictures_together(pipeline: Pipeline, padded_hw: tuple[int, int]) -> int:
    """Return how many pictures share a batch of passes; one where a batch is not even enough for one."""
    diffusion, factor = pipeline.config.diffusion, pipeline.models.vae_factor
    passes = len(diffusion.timesteps) * diffusion.draws
    return max(1, _batch_size(pipeline, padded_hw[0] * padded_hw[1] // factor**2) // passes)


def _record_group(
    pipeline: Pipeline,
    pictures: Sequence[Picture],
    cross_layers: Sequence[Layer],
    self_layers: Sequence[Layer],
    latents: dict[tuple[str, Frame], Tensor],
) -> Iterator[Recorded]:
    """Record pictures of one padded size together."""
    passes: list[Pass] = []
    for index, picture in enumerate(pictures):
        passes += _passes(pipeline, index, picture, latents)
    readings = _read_passes(pipeline, passes, cross_layers, self_layers)
    latent_hw = (passes[0].noised.shape[-2], passes[0].noised.shape[-1])
    for index, picture in enumerate(pictures):
        for timestep in pipeline.config.diffusion.timesteps:
            mine = [i for i, item in enumerate(passes) if item.image == index and item.timestep == timestep]
            prompts = dict.fromkeys(passes[i].prompt for i in mine)
            parts = [readings.part(prompt.rows, [i for i in mine if passes[i].prompt is prompt]) for prompt in prompts]
            yield Recorded(picture, passes[mine[0]].frame, latent_hw, timestep, tuple(parts))


def _passes(
    pipeline: Pipeline, index: int, picture: Picture, latents: dict[tuple[str, Frame], Tensor]
) -> Iterator[Pass]:
    """Yield the passes of one picture, its latent encoded once and for all."""
    frame = pipeline.frame(picture.rgb_u8.shape[:2])
    if (picture.id, frame) not in latents:
        with torch.inference_mode():
            latents[picture.id, frame] = pipeline._latent(picture.rgb_u8, frame, picture.id)
    latent = latents[picture.id, frame]
    prompts = pipeline.plan(picture.prompted)
    for timestep in pipeline.config.diffusion.timesteps:
        for noise in pipeline._noise(latent, picture.id):
            for prompt in prompts:
                yield Pass(index, prompt, frame, pipeline._noised(latent, noise, timestep), timestep)


@dataclass
class _Readings:
    """Recorded tensors of all passes of one picture, pass by pass."""

    plain: dict[str, Tensor]
    rescaled: dict[str, Tensor]
    queries: dict[str, Tensor]
    keys: dict[str, Tensor]
    grids: dict[str, tuple[int, int]]

    def part(self, rows: tuple[int, ...], passes: list[int]) -> Part:
        """Pick the passes of one sentence and timestep."""
        return Part(
            rows,
            {name: maps[passes][:, : len(rows)] for name, maps in self.plain.items()},
            {name: maps[passes][:, : len(rows)] for name, maps in self.rescaled.items()},
            {
                name: KeptAttention(self.queries[name][passes], self.keys[name][passes], self.grids[name])
                for name in self.queries
            },
        )


@torch.inference_mode()
def _read_passes(
    pipeline: Pipeline, passes: Sequence[Pass], cross_layers: Sequence[Layer], self_layers: Sequence[Layer]
) -> _Readings:
    """Run passes of one size in batches that fit, and keep what was recorded."""
    latent_hw = (passes[0].noised.shape[-2], passes[0].noised.shape[-1])
    step = _batch_size(pipeline, latent_hw[0] * latent_hw[1])
    groups = [passes[start : start + step] for start in range(0, len(passes), step)]
    whole = [_read_batch(pipeline, group, latent_hw, cross_layers, self_layers) for group in groups]

    def joined(table: str) -> dict[str, Tensor]:
        names = getattr(whole[0], table)
        return {name: torch.cat([getattr(readings, table)[name] for readings in whole]) for name in names}

    return _Readings(joined("plain"), joined("rescaled"), joined("queries"), joined("keys"), whole[0].grids)


def _batch_size(pipeline: Pipeline, latent_pixels: int) -> int:
    chosen = pipeline.config.run.batch_size
    if chosen != "auto":
        return chosen
    budget = CPU_BATCH_PIXELS if pipeline.models.device.type == "cpu" else GPU_BATCH_PIXELS
    return max(1, budget // latent_pixels)


def _read_batch(
    pipeline: Pipeline,
    passes: Sequence[Pass],
    latent_hw: tuple[int, int],
    cross_layers: Sequence[Layer],
    self_layers: Sequence[Layer],
) -> _Readings:
    """Run one batch; every token is recorded, and summed to classes with and without rescaling."""
    models, prompts = pipeline.models, [item.prompt for item in passes]
    text = stack_texts([pipeline._text(prompt.text) for prompt in prompts])
    n_tokens = text.tokens.shape[1]
    columns, pooling = token_columns(prompts, n_tokens, per_token=True)
    columns, pooling = columns.to(models.device), pooling.to(models.device)
    assert columns.content is not None
    everything = TokenColumns(columns.weights)
    with record_attention(models.unet, cross_layers, self_layers, everything) as recording:
        noised = torch.stack([item.noised for item in passes])
        run_unet(models, noised, [item.timestep for item in passes], text, passes[0].frame.padded_hw)

    plain, rescaled, queries, keys, grids = {}, {}, {}, {}, {}
    for layer in cross_layers:
        name = layer_key(layer)
        tokens = recording.cross_map(layer, latent_hw)
        plain[name] = torch.einsum("bct,bthw->bchw", pooling, tokens).cpu()
        content = tokens * columns.content[:, :, None, None]
        content = content / content.sum(dim=1, keepdim=True).clamp_min(1e-12)
        valid = valid_cells(passes[0].frame, (tokens.shape[-2], tokens.shape[-1]), pipeline.config.resize.valid_only)
        scaled = min_max(content, valid.to(models.device).expand(len(passes), -1, -1, -1))
        rescaled[name] = torch.einsum("bct,bthw->bchw", pooling, scaled).cpu()
    for layer in self_layers:
        queries[layer.name], keys[layer.name] = recording.queries_and_keys(layer)
        grids[layer.name] = layer.grid_hw(latent_hw)
    return _Readings(plain, rescaled, queries, keys, grids)


def raw_maps(
    part: Part, config: GenerateConfig, grid_hw: tuple[int, int]
) -> Float[Tensor, "draws classes grid_h grid_w"]:
    """Return the mean over the config's cross layers, not scaled.

    Layers are named by module; of `name@0+3` the recordings of `name@0` and `name@3` are averaged, and of `name` those
    of all its heads where it was recorded head by head.
    """
    table = part.rescaled if config.attention.token_rescaling else part.plain
    maps = []
    for spec in config.attention.cross_layers:
        name, _, heads = spec.partition("@")
        if spec in table:
            names = [spec]
        elif heads:
            names = [f"{name}@{head}" for head in heads.split("+")]
        else:
            names = [key for key in table if key.startswith(f"{name}@")]
        if not names or any(each not in table for each in names):
            raise ConfigError(f"Layer {spec!r} was not recorded; there are {', '.join(table)}")
        maps.append(resize_maps(torch.stack([table[each] for each in names]).mean(dim=0), grid_hw))
    return torch.stack(maps).mean(dim=0)


@torch.inference_mode()
def refined_maps(
    recorded: Recorded, config: GenerateConfig, layers: Sequence[Layer]
) -> Float[Tensor, "classes grid_h grid_w"]:
    """Return the soft maps that the pipeline would make with these settings, from a recording.

    Args:
        recorded: one picture at one timestep.
        config: layers by module names, token rescaling and affinity; the rest as recorded.
        layers: all layers of the model.

    """
    by_name = {layer.name: layer for layer in layers}
    cross = [by_name[spec.partition("@")[0]] for spec in config.attention.cross_layers]
    chosen = [by_name[name] for name in config.attention.self_layers] if config.affinity.kind != "none" else []
    grid_hw = common_grid(cross, chosen, recorded.latent_hw)
    valid_only = config.resize.valid_only
    valid = valid_cells(recorded.frame, grid_hw, valid_only)
    size_hw = recorded.frame.valid_cells(grid_hw) if valid_only else grid_hw
    total = torch.zeros(len(recorded.picture.prompted), *grid_hw)
    for part in recorded.parts:
        attention = [part.attention[name] for name in config.attention.self_layers] if chosen else []
        device = attention[0].queries.device if attention else torch.device("cpu")
        raw = raw_maps(part, config, grid_hw).to(device)
        here = valid.to(device).expand(len(raw), -1, -1, -1)
        maps = min_max(raw, here)
        masks = None
        if config.affinity.boxes and config.affinity.kind in ("caa", "iterated", "clipes"):
            boxes = batch_boxes(maps, [size_hw] * len(maps), config.affinity)
            drawn = np.stack([[box_mask(found, grid_hw) for found in row] for row in boxes])
            masks = torch.from_numpy(drawn).to(device)
        total[list(part.rows)] = spread(maps, attention, masks, here, config.affinity).mean(dim=0).cpu()
    return total


def view(
    maps: Float[Tensor, "classes grid_h grid_w"], recorded: Recorded
) -> Float[np.ndarray, "classes view_h view_w"]:
    """Return maps at the size of the picture's ground truth view, without the padding."""
    assert recorded.picture.truth is not None
    height, width = recorded.picture.truth.shape
    whole = Frame((height, width), (height, width), recorded.frame.image_hw)
    return regrid(maps, recorded.frame, False, whole, (height, width)).numpy()


def every_layer(pipeline: Pipeline) -> tuple[Layer, ...]:
    """Return all layers of the pipeline's U-Net."""
    return list_layers(pipeline.models.unet)
