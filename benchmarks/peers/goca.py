"""GoCA (CVPR 2026, arXiv 2603.06178): layers, heads and tokens weighed by what the model itself says, then S twice."""

import torch

from benchmarks.peers.common import Maps, Model, scaled, spread
from pseudolabel.calibrate.offline import layer_weights, raw_layers
from pseudolabel.calibrate.recordings import Recorded, TokenRule, Wanted
from pseudolabel.softmaps.config import AttentionConfig
from pseudolabel.softmaps.grids import common_grid, resize_maps

RULE = TokenRule(rescaling=True, named=True, blur=5, by_head=True)


def wanted(model: Model) -> Wanted:
    """Return what is recorded; the dense features are those of the spreading layer, as published."""
    return Wanted(model.layers, (model.spreading,), (RULE,), model.spreading)


def soft_maps(recorded: Recorded, model: Model) -> Maps:
    """Return class maps. Where we differ: see `pseudolabel.softmaps.weights`."""
    names = tuple(layer.name for layer in model.layers)
    settings = AttentionConfig(
        cross_layers=names, token_rescaling=True, rescaled_tokens="words", blur=RULE.blur, weights="both"
    )
    by_layer = layer_weights(recorded, settings)
    assert by_layer is not None
    grid_hw = common_grid((), (model.spreading,), recorded.latent_hw)
    maps = torch.stack([resize_maps(each, grid_hw) for each in raw_layers(recorded, settings)])
    weighed = scaled((by_layer[:, :, None, None, None] * maps).sum(dim=0), recorded)
    return scaled(spread(weighed, recorded, model, 2), recorded)
