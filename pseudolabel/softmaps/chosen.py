"""Which layers of a model are read, and for what: found from what the settings name."""

from collections.abc import Sequence
from dataclasses import dataclass

from data.errors import ConfigError
from pseudolabel.softmaps.config import AffinityConfig, AttentionConfig
from pseudolabel.softmaps.layers import Layer, resolve_layers


@dataclass(frozen=True)
class ChosenLayers:
    """The layers that are read.

    Attributes:
        cross: those whose cross-attention is read.
        naming: those whose cross-attention tells classes apart, where others do than `cross`.
        cells: those whose self-attention spreads the maps.
        reference: the one whose self-attention the layers of `cross` are weighed by; None where they count alike.

    """

    cross: tuple[Layer, ...]
    naming: tuple[Layer, ...] = ()
    cells: tuple[Layer, ...] = ()
    reference: Layer | None = None


def choose_layers(available: Sequence[Layer], attention: AttentionConfig, affinity: AffinityConfig) -> ChosenLayers:
    """Find the layers that the settings name among those of a model.

    Raises:
        ModelError: a layer that the model does not have.
        ConfigError: affinity without a self-attention layer, or a layer that is to be read through two sets of heads.

    """
    cross = resolve_layers(available, attention.cross_layers, "attention.cross_layers")
    naming: tuple[Layer, ...] = ()
    if attention.naming_layers:
        naming = resolve_layers(available, attention.naming_layers, "attention.naming_layers")
        _refuse_other_heads(cross, naming)
    cells: tuple[Layer, ...] = ()
    if affinity.kind != "none":
        cells = resolve_layers(available, attention.self_layers, "attention.self_layers")
        if not cells:
            raise ConfigError("--attention.self_layers is empty: name a layer, or use --affinity.kind=none")
    reference = None
    if attention.weighs_layers:
        reference = resolve_layers(available, attention.self_layers, "attention.self_layers")[-1]
    return ChosenLayers(cross, naming, cells, reference)


def _refuse_other_heads(cross: Sequence[Layer], naming: Sequence[Layer]) -> None:
    """Refuse naming by other heads of a layer that is read: a layer is recorded through one set of heads."""
    heads = {block: layer.heads for layer in cross for block in layer.blocks}
    for layer in naming:
        if any(heads.get(block, layer.heads) != layer.heads for block in layer.blocks):
            raise ConfigError(
                f"--attention.naming_layers: {layer.name} is among --attention.cross_layers with other heads; name the "
                "same heads in both, or another layer"
            )
