"""The attention layers of a model: what they are called, and finding those that a config names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from data.errors import ModelError


@dataclass(frozen=True)
class Layer:
    """An attention layer that is read.

    Attributes:
        name: diffusers' module name, such as "down_blocks.2.attentions.0", as far as it was asked for.
        blocks: module names of its transformer blocks; what is read is their mean.
        place: which part of the model it is in: of a U-Net the way down, the middle or the way up; of a transformer its
            blocks, or those of Flux that image and text go through in a single stream.
        factor: side of the latent divided by the side of this layer's grid.
        heads: the heads read; None reads all.
        cross: module in a transformer block whose queries are cells and whose keys are, or hold, the text.
        cells: module in a transformer block whose queries are, or hold, cells and whose keys are too.
        text: where the text is among the keys of `cross`: it is all of them, or comes before or after the image's.
        beside: another module of a transformer block, whose queries and keys are cells alone (SD3.5's `attn2`).

    """

    name: str
    blocks: tuple[str, ...]
    place: Literal["down", "mid", "up", "block", "single"]
    factor: int
    heads: tuple[int, ...] | None = None
    cross: str = "attn2"
    cells: str = "attn1"
    text: Literal["all", "first", "last"] = "all"
    beside: str | None = None

    def grid_hw(self, latent_hw: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of this layer's grid; strided convolutions round up."""
        return -(-latent_hw[0] // self.factor), -(-latent_hw[1] // self.factor)

    @property
    def sees_text(self) -> bool:
        """Whether this layer has cross-attention to read."""
        return self.cross != ""

    def key(self, block: str) -> str:
        """Return what self-attention of one of the blocks is recorded under."""
        return block if self.sees_text else f"{block}.{self.cells}"

    def image_part(self) -> "Layer":
        """Return the attention among cells alone that stands beside the joint one, as a layer of its own."""
        assert self.beside is not None
        name = f"{self.name}.{self.beside}"
        return replace(self, name=name, cross="", cells=self.beside, text="all", beside=None)


def resolve_layers(available: Sequence[Layer], specs: Sequence[str], flag: str) -> tuple[Layer, ...]:
    """Find the layers a config names.

    A spec is a module name (`down_blocks.2.attentions.0`, or one of its transformer blocks), or a role: `1/4` for all
    layers at a quarter of the latent's side, `down:1/4`, `up:1/4`, `mid`, `up`, `all`; in a transformer `block:9`,
    `blocks:15-18`, `single:12`, `block` (all of them), `single`. `.attn2` after a block of SD3.5 (`block:9.attn2`) is
    its attention among cells alone, for self-attention. `@0+3` at the end reads heads 0 and 3 alone.

    Args:
        available: what `list_layers` returned.
        specs: what the config says.
        flag: the setting's name, for the error message.

    Returns:
        Each layer once, in the order in which the model runs them.

    Raises:
        ModelError: a spec fits no layer, the message lists what there is; it sees no text and is to be read as
            cross-attention; or two specs name other heads of one layer.

    """
    chosen: dict[str, Layer] = {}
    for spec in specs:
        body, _, head_text = spec.strip().partition("@")
        found = _matches(available, body)
        heads_valid = re.fullmatch(r"(\d+(\+\d+)*)?", head_text) is not None
        if len(found) < _least(body) or not heads_valid:
            raise ModelError(f"--{flag} names {spec!r}, which this model does not have; it has {_describe(available)}")
        if flag.endswith(("cross_layers", "naming_layers")) and not all(layer.sees_text for layer in found):
            raise ModelError(
                f"--{flag} names {spec!r}, which sees no text; name it in --attention.self_layers, or leave it out"
            )
        heads = tuple(int(head) for head in head_text.split("+")) if head_text else None
        for layer in found:
            if chosen.setdefault(layer.name, replace(layer, heads=heads)).heads != heads:
                raise ModelError(
                    f"--{flag} names {layer.name} twice, in {spec!r} with other heads: name it once, with all heads "
                    "that are to be read (name@0+3)"
                )
    order = {layer.name: (place, layer.blocks.index) for place, layer in enumerate(available)}

    def when(layer: Layer) -> tuple[int, list[int]]:
        place, index = order[_owner(layer.name)]
        return place, [index(block) for block in layer.blocks]

    return tuple(sorted(chosen.values(), key=when))


def _owner(name: str) -> str:
    """Return the name of the layer that a transformer block belongs to."""
    return name.split(".transformer_blocks.")[0].removesuffix(f".{_BESIDE}")


_BESIDE = "attn2"
_NUMBERED = re.compile(r"(block|single)(?::(\d+)|s:(\d+)-(\d+))")  # block:9, blocks:15-18, single:12, singles:3-5


def _least(body: str) -> int:
    """Return how many layers a spec must find: all that it names by number, of others one."""
    numbered = _NUMBERED.fullmatch(body.removesuffix(f".{_BESIDE}"))
    return 1 if numbered is None or numbered[3] is None else max(1, int(numbered[4]) - int(numbered[3]) + 1)


def _matches(available: Sequence[Layer], body: str) -> list[Layer]:
    """Return the layers that a spec without its heads names."""
    whole = [layer for layer in (_match(layer, body) for layer in available) if layer is not None]
    if whole or not body.endswith(f".{_BESIDE}"):
        return whole
    beside = [layer for layer in available if layer.beside == _BESIDE]
    return [layer.image_part() for layer in _matches(beside, body.removesuffix(f".{_BESIDE}"))]


def _match(layer: Layer, body: str) -> Layer | None:
    """Return the layer, or its transformer block that the spec names, or None."""
    role = re.fullmatch(r"(?:(down|mid|up):)?1/(\d+)", body)
    if role is not None:
        fits = int(role[2]) == layer.factor and role[1] in (None, layer.place)
        return layer if fits else None
    numbered = _NUMBERED.fullmatch(body)
    if numbered is not None:
        first, last = numbered[2] or numbered[3], numbered[2] or numbered[4]
        return layer if numbered[1] == layer.place and int(first) <= _number(layer) <= int(last) else None
    if body in ("all", layer.place, layer.name):
        return layer
    if body in layer.blocks:
        return replace(layer, name=body, blocks=(body,))
    return None


def _number(layer: Layer) -> int:
    """Return the number of a transformer's block among those of its kind."""
    return int(layer.name.rpartition(".")[2])


def _describe(layers: Sequence[Layer]) -> str:
    """List layers with their grids for an error message; a transformer's blocks, many and alike, as ranges."""
    found = []
    for place, group in groupby(layers, lambda layer: layer.place):
        own = list(group)
        if place in ("block", "single"):
            found.append(f"{place}:0 to {place}:{len(own) - 1} (1/{own[0].factor})")
            beside = [layer for layer in own if layer.beside is not None]
            if beside:
                found.append(f"{place}:{_number(beside[0])}.{_BESIDE} to {place}:{_number(beside[-1])}.{_BESIDE}")
            continue
        several = {layer.name: f" x{len(layer.blocks)}" if len(layer.blocks) > 1 else "" for layer in own}
        found += [f"{layer.name}{several[layer.name]} (1/{layer.factor})" for layer in own]
    return ", ".join(found)


def per_head(layers: Sequence[Layer], n_heads: int) -> list[list[Layer]]:
    """Return, for each head, all layers read through that head alone."""
    return [[replace(layer, heads=(head,)) for layer in layers] for head in range(n_heads)]


def layer_key(layer: Layer) -> str:
    """Return a layer's name as the config spells it, heads included.

    >>> layer_key(Layer("mid_block.attentions.0", (), "mid", 4, (0, 3)))
    'mid_block.attentions.0@0+3'
    """
    return layer.name if layer.heads is None else f"{layer.name}@{'+'.join(map(str, layer.heads))}"
