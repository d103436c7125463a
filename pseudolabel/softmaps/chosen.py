"""Which layers of a model are read, and for what: found from what the settings name."""

from collections.abc import Sequence
from dataclasses import dataclass

from data.errors import ConfigError, ModelError
from pseudolabel.softmaps.config import AffinityConfig, AttentionConfig
from pseudolabel.softmaps.layers import Layer, resolve_layers


@dataclass(frozen=True)
class ChosenLayers:
    """The layers that are read.

    Attributes:
        cross: those whose cross-attention is read.
        naming: those whose cross-attention tells classes apart, where others do than `cross`.
        cells: those whose self-attention spreads the maps.
        reference: the one by whose dense features the layers of `cross` are weighed; None where they count alike.

    """

    cross: tuple[Layer, ...]
    naming: tuple[Layer, ...] = ()
    cells: tuple[Layer, ...] = ()
    reference: Layer | None = None


def choose_layers(available: Sequence[Layer], attention: AttentionConfig, affinity: AffinityConfig) -> ChosenLayers:
    """Find the layers that the settings name among those of a model.

    Raises:
        ModelError: a layer that the model does not have, or that cannot be weighed, or weighed by.
        ConfigError: affinity, or weights of layers, without a self-attention layer; a layer that is to be read through
            two sets of heads.

    """
    cross = resolve_layers(available, attention.cross_layers, "attention.cross_layers")
    naming = resolve_layers(available, attention.naming_layers, "attention.naming_layers")
    _refuse_other_heads(cross, cross, "attention.cross_layers")
    _refuse_other_heads(cross, naming, "attention.naming_layers")
    cells: tuple[Layer, ...] = ()
    if affinity.kind != "none" or attention.weighs_layers:
        cells = resolve_layers(available, attention.self_layers, "attention.self_layers")
        if not cells:
            remedy = "--affinity.kind=none" if affinity.kind != "none" else "--attention.weights=mean"
            raise ConfigError(f"--attention.self_layers is empty: name a layer, or use {remedy}")
    reference = _reference(cells) if attention.weighs_layers else None
    if attention.weighs_heads:
        _refuse_joint([*cross, *naming])
    return ChosenLayers(cross, naming, cells if affinity.kind != "none" else (), reference)


def _reference(cells: Sequence[Layer]) -> Layer:
    """Return the last of the self-attention layers, by whose dense features others are weighed."""
    if not cells[-1].sees_text:
        raise ModelError(
            f"--attention.weights: layers are weighed by queries of the words, and {cells[-1].name}, the last of "
            "--attention.self_layers, sees no text; name a later one that does, or use mean"
        )
    return cells[-1]


def _refuse_joint(layers: Sequence[Layer]) -> None:
    """Refuse heads of joint attention: what a head adds to the image there is of words and image together."""
    joint = [layer.name for layer in layers if layer.text != "all"]
    if joint:
        raise ModelError(
            f"--attention.weights: the heads of {joint[0]} cannot be weighed, as image and text share its attention; "
            "use layers or mean"
        )


def _refuse_other_heads(cross: Sequence[Layer], others: Sequence[Layer], flag: str) -> None:
    """Refuse other heads of a transformer block that is among the cross layers: it is recorded through one set."""
    heads = {block: layer.heads for layer in cross for block in layer.blocks}
    for layer in others:
        if any(heads.get(block, layer.heads) != layer.heads for block in layer.blocks):
            raise ConfigError(
                f"--{flag}: {layer.name} is among --attention.cross_layers with other heads; name the same heads in "
                "both, or another layer"
            )
