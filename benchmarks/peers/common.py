"""What the peers share: the model's layers, the mean of cross-attention, and spreading by self-attention."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pseudolabel.calibrate.offline import raw_layers
from pseudolabel.calibrate.recordings import Recorded
from pseudolabel.softmaps.config import AttentionConfig
from pseudolabel.softmaps.grids import common_grid, min_max, resize_maps, valid_mask
from pseudolabel.softmaps.layers import Layer

Maps = Float[Tensor, "draws classes grid_h grid_w"]


@dataclass(frozen=True)
class Model:
    """The layers of the model that is read.

    Attributes:
        layers: all of them.
        spreading: whose self-attention spreads maps.

    """

    layers: tuple[Layer, ...]
    spreading: Layer

    def at(self, *factors: int) -> tuple[Layer, ...]:
        """Return the layers whose grid is the latent's divided by one of these."""
        return tuple(layer for layer in self.layers if layer.factor in factors)


def weighted_mean(recorded: Recorded, layers: Sequence[Layer], weights: Sequence[float], model: Model) -> Maps:
    """Return the weighted mean of some layers' cross-attention on the spreading layer's grid, not scaled."""
    grid_hw = common_grid((), (model.spreading,), recorded.latent_hw)
    maps = raw_layers(recorded, AttentionConfig(cross_layers=tuple(layer.name for layer in layers)))
    total = sum(weight * resize_maps(each, grid_hw) for weight, each in zip(weights, maps, strict=True))
    assert isinstance(total, Tensor)
    return total / sum(weights)


def mean(recorded: Recorded, layers: Sequence[Layer], model: Model) -> Maps:
    """Return the mean of some layers' cross-attention on the spreading layer's grid, not scaled."""
    return weighted_mean(recorded, layers, [1.0] * len(layers), model)


def scaled(maps: Maps, recorded: Recorded) -> Maps:
    """Scale each map to 0..1 over the cells that hold image."""
    grid_hw = (maps.shape[-2], maps.shape[-1])
    return min_max(maps, valid_mask([recorded.frame] * len(maps), grid_hw, True))


def spread(maps: Maps, recorded: Recorded, model: Model, times: int) -> Maps:
    """Apply self-attention some times, without scaling in between."""
    values = recorded.attention[model.spreading.name].power(maps.flatten(2).transpose(1, 2), times)
    return values.transpose(1, 2).unflatten(-1, maps.shape[-2:])
