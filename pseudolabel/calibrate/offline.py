"""The soft maps that some settings would give, made from recordings instead of the model."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.errors import ConfigError
from data.store.softmaps import Frame
from pseudolabel.calibrate.recordings import Recorded, Sentences, TokenRule
from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.config import AttentionConfig
from pseudolabel.softmaps.grids import common_grid, regrid, resize_maps
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.reading import refine_maps


def raw_layers(
    recorded: Recorded, config: AttentionConfig, specs: Sequence[str] | None = None
) -> list[Float[Tensor, "draws classes _ _"]]:
    """Return the maps of each cross layer that the settings (or `specs`) name, on the layer's grid, not scaled.

    Layers are named by module; of `name@0+3` the recordings of `name@0` and `name@3` are averaged, and of `name` those
    of all its heads where it was recorded head by head.
    """
    table = recorded.maps[TokenRule.of(config)]
    maps = []
    for spec in config.cross_layers if specs is None else specs:
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


def layer_weights(recorded: Recorded, config: AttentionConfig) -> Float[Tensor, "layers draws"] | None:
    """Return how much each cross layer that the settings name counts; None where all count alike."""
    if not config.weighs_layers:
        return None
    agreement = torch.stack([recorded.agreement[spec] for spec in config.cross_layers])
    return agreement / agreement.sum(dim=0, keepdim=True).clamp_min(1e-12)


def raw_maps(
    recorded: Recorded, config: AttentionConfig, grid_hw: tuple[int, int]
) -> Float[Tensor, "draws classes grid_h grid_w"]:
    """Return the mean over the cross layers that the settings name, weighed as they say, not scaled."""
    maps = torch.stack([resize_maps(each, grid_hw) for each in raw_layers(recorded, config)])
    by_layer = layer_weights(recorded, config)
    return maps.mean(dim=0) if by_layer is None else (by_layer[:, :, None, None, None] * maps).sum(dim=0)


@torch.inference_mode()
def refined_maps(
    sentences: Sentences, config: GenerateConfig, layers: Sequence[Layer]
) -> Float[Tensor, "classes grid_h grid_w"]:
    """Return the soft maps that the pipeline would make with these settings, from recordings.

    Where background words compete (`fuse.background`), a last map follows the classes': the largest of theirs.

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
    words = torch.zeros(1, *grid_hw)
    for recorded in sentences:
        mean = _refined(recorded, config, names, grid_hw)
        total[list(recorded.rows)] = mean[: len(recorded.rows)]
        if len(mean) > len(recorded.rows):
            words = torch.maximum(words, mean[len(recorded.rows) :].amax(dim=0, keepdim=True))
    return torch.cat([total, words]) if config.fuse.background == "words" else total


def _refined(
    recorded: Recorded, config: GenerateConfig, names: Sequence[str], grid_hw: tuple[int, int]
) -> Float[Tensor, "maps grid_h grid_w"]:
    """Return the mean over draws of one sentence's maps, spread by the self-attention of the layers named."""
    attention = config.attention
    spreading = [recorded.attention[name] for name in names]
    device = spreading[0].queries.device if spreading else torch.device("cpu")
    maps = [each.to(device) for each in raw_layers(recorded, attention)]
    naming = [each.to(device) for each in raw_layers(recorded, attention, attention.naming_layers)]
    frames = [recorded.frame] * len(maps[0])
    by_layer, counts = layer_weights(recorded, attention), [len(recorded.rows)] * len(frames)
    by_layer = None if by_layer is None else by_layer.to(device)
    valid_only, affinity = config.resize.valid_only, config.affinity
    *_, refined = refine_maps(maps, spreading, frames, grid_hw, valid_only, affinity, by_layer, naming, counts)
    return refined.mean(dim=0).cpu()


def view(
    maps: Float[Tensor, "classes grid_h grid_w"], recorded: Recorded
) -> Float[np.ndarray, "classes view_h view_w"]:
    """Return maps at the size of the picture's ground truth view, without the padding."""
    assert recorded.picture.truth is not None
    height, width = recorded.picture.truth.shape
    whole = Frame((height, width), (height, width), recorded.frame.image_hw)
    return regrid(maps, recorded.frame, False, whole, (height, width)).numpy()
