"""What a diffusion model's layers looked at, kept small, so that many settings can be compared without the model.

One U-Net pass per noise draw records every layer at once, and a second one where heads are weighed.
`offline.refined_maps` then does what `reading.read_batch` does for one choice of layers and affinity, with the same
functions; a test holds the two against each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product

import torch
from jaxtyping import Float
from torch import Tensor

from data.store.softmaps import Frame
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.softmaps.affinity import DENSE_CELLS, SelfAttention
from pseudolabel.softmaps.attention import Recording
from pseudolabel.softmaps.config import AttentionConfig
from pseudolabel.softmaps.layers import Layer, layer_key
from pseudolabel.softmaps.passes import Pass, Reader
from pseudolabel.softmaps.reading import (
    class_weights,
    every_token,
    number_fault,
    rescaled_classes,
    run_passes,
    sharing_tokens,
)
from pseudolabel.softmaps.weights import weigh_heads, weigh_layers


@dataclass(frozen=True)
class TokenRule:
    """How a layer's tokens and heads become a class's map: what of `AttentionConfig` a recording fixes.

    Attributes:
        rescaling: as `AttentionConfig.token_rescaling`.
        named: classes and background words alone share a cell out, not all content tokens.
        blur: width in cells of the Gaussian over a token's map.
        by_head: heads are weighed.

    """

    rescaling: bool = False
    named: bool = False
    blur: int = 1
    by_head: bool = False

    @classmethod
    def of(cls, config: AttentionConfig) -> "TokenRule":
        """Return the rule of some settings."""
        if not config.token_rescaling:
            return cls(by_head=config.weighs_heads)
        return cls(True, config.rescaled_tokens == "words", config.blur, config.weighs_heads)


PLAIN, RESCALED = TokenRule(), TokenRule(rescaling=True)


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
        maps: by rule and layer, raw cross-attention maps on the layer's grid; those of background words, where they
            were recorded, follow the classes'.
        attention: by layer, self-attention; empty where it was not recorded.
        agreement: by layer, how much it counts where layers are weighed; empty where that was not recorded.

    """

    picture: Picture
    frame: Frame
    latent_hw: tuple[int, int]
    timestep: int
    rows: tuple[int, ...]
    maps: dict[TokenRule, dict[str, Float[Tensor, "draws classes _ _"]]]
    attention: dict[str, SelfAttention]
    agreement: dict[str, Float[Tensor, " draws"]]


Sentences = tuple[Recorded, ...]  # all of one picture at one timestep


@dataclass(frozen=True)
class Wanted:
    """What is recorded.

    Attributes:
        cross_layers: layers whose cross-attention is recorded.
        self_layers: layers whose self-attention is recorded, as queries and keys.
        rules: how tokens and heads become maps, each recorded.
        reference: the layer whose dense features `cross_layers` are weighed by; None: they are not.
        words: the maps of background words are recorded too.

    """

    cross_layers: Sequence[Layer]
    self_layers: Sequence[Layer] = ()
    rules: Sequence[TokenRule] = (PLAIN, RESCALED)
    reference: Layer | None = None
    words: bool = False


def in_reading_order(reader: Reader, pictures: Sequence[Picture]) -> list[Picture]:
    """Return the pictures as `record` takes them: those of one padded size together."""
    groups: dict[tuple[int, int], list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(_latent_hw(reader, picture), []).append(picture)
    return [picture for equal in groups.values() for picture in equal]


def record(reader: Reader, pictures: Sequence[Picture], wanted: Wanted) -> Iterator[Sentences]:
    """Run the passes of the reader's settings and yield what was recorded, for each picture and timestep.

    Args:
        reader: of a model that is whole, not cut; without mirror images and with one scale.
        pictures: images and the classes in their sentences; they come `in_reading_order`.
        wanted: layers and rules.

    """
    ordered = in_reading_order(reader, pictures)
    for latent_hw, group in groupby(ordered, lambda picture: _latent_hw(reader, picture)):
        equal = list(group)
        together = _pictures_together(reader, latent_hw)
        for start in range(0, len(equal), together):
            yield from _record_group(reader, equal[start : start + together], wanted)


def _latent_hw(reader: Reader, picture: Picture) -> tuple[int, int]:
    return reader.latent_hw(reader.frame(picture.size_hw))


def _pictures_together(reader: Reader, latent_hw: tuple[int, int]) -> int:
    """Return how many pictures share a batch of passes; one where a batch is not even enough for one."""
    return max(
        1, reader.batch_size(latent_hw[0] * latent_hw[1]) // (len(reader.diffusion.timesteps) * reader.diffusion.draws)
    )


@torch.inference_mode()
def _record_group(reader: Reader, pictures: Sequence[Picture], wanted: Wanted) -> Iterator[Sentences]:
    """Record pictures of one padded size together."""
    reader.embed(prompt.text for picture in pictures for prompt in reader.plan(picture.prompted))
    passes = [
        item
        for index, picture in enumerate(pictures)
        for item in reader.passes(index, picture.rgb_u8, reader.plan(picture.prompted), picture.id)
    ]

    def read(batch: Sequence[Pass]) -> list[_Tables]:
        return _read_tables(reader, batch, wanted)

    found = [pair for batch, tables in reader.batches(passes, read) for pair in zip(batch, tables, strict=True)]
    for index, picture in enumerate(pictures):
        for timestep in reader.diffusion.timesteps:
            mine = [(item, tables) for item, tables in found if (item.image, item.timestep) == (index, timestep)]
            _refuse_bad_numbers(reader, picture, [tables for _, tables in mine])
            prompts = dict.fromkeys(item.prompt for item, _ in mine)
            yield tuple(
                _recorded(picture, [pair for pair in mine if pair[0].prompt is prompt], wanted) for prompt in prompts
            )


@dataclass
class _Tables:
    """What one pass showed, by layer."""

    maps: dict[TokenRule, dict[str, Tensor]]
    queries: dict[str, Tensor]
    keys: dict[str, Tensor]
    agreement: dict[str, Tensor]


def _read_tables(reader: Reader, batch: Sequence[Pass], wanted: Wanted) -> list[_Tables]:
    """Run one batch; every token is recorded, and summed to classes by every rule."""
    latent_hw = batch[0].latent_hw
    weights = class_weights([item.prompt for item in batch], batch[0].text.tokens.shape[1], wanted.words)
    weights = weights.to(reader.parts.device)
    cells, reference = list(wanted.self_layers), wanted.reference
    if reference is not None:
        cells += [layer for layer in wanted.cross_layers if layer not in cells]
    columns = every_token(weights)
    recording = run_passes(reader.parts, wanted.cross_layers, cells, batch, columns, reference=reference)
    tables = [_Tables({rule: {} for rule in wanted.rules}, {}, {}, {}) for _ in batch]
    _keep_maps(reader, batch, wanted, recording, weights, tables, by_head=False)
    if any(rule.by_head for rule in wanted.rules):
        weighed = run_passes(reader.parts, wanted.cross_layers, (), batch, columns, weigh=weigh_heads)
        _keep_maps(reader, batch, wanted, weighed, weights, tables, by_head=True)
    for layer in wanted.self_layers:
        queries, keys = recording.queries_and_keys(layer)
        for own, table in enumerate(tables):
            table.queries[layer.name], table.keys[layer.name] = queries[own], keys[own]
    if reference is not None:
        agreement = weigh_layers(recording, wanted.cross_layers, reference, latent_hw).cpu()
        for layer, values in zip(wanted.cross_layers, agreement, strict=True):
            for table, value in zip(tables, values, strict=True):
                table.agreement[layer_key(layer)] = value
    return tables


def _keep_maps(
    reader: Reader,
    batch: Sequence[Pass],
    wanted: Wanted,
    recording: Recording,
    weights: Float[Tensor, "batch classes tokens"],
    tables: Sequence[_Tables],
    by_head: bool,
) -> None:
    """Put the maps of each layer by each rule, of those that weigh heads or of those that do not, into the tables."""
    prompts, frames = [item.prompt for item in batch], [item.frame for item in batch]
    latent_hw, n_tokens = batch[0].latent_hw, weights.shape[-1]
    for rule, layer in product(wanted.rules, wanted.cross_layers):
        if rule.by_head != by_head:
            continue
        if rule.rescaling:
            sharing = sharing_tokens(prompts, n_tokens, "words" if rule.named else "content").to(weights.device)
            valid_only = reader.resize.valid_only
            found = rescaled_classes(recording, layer, latent_hw, weights, sharing, frames, valid_only, rule.blur).cpu()
        else:
            found = torch.einsum("bct,bthw->bchw", weights, recording.cross_map(layer, latent_hw)).cpu()
        for own, table, prompt in zip(found, tables, prompts, strict=True):
            table.maps[rule][layer_key(layer)] = own[: len(prompt.rows) + len(prompt.words) * wanted.words]


def _refuse_bad_numbers(reader: Reader, picture: Picture, tables: Sequence[_Tables]) -> None:
    """Raise ModelError if the model gave NaN or infinite values for a picture."""
    values = (
        value for each in tables for part in (*each.maps.values(), each.queries, each.keys) for value in part.values()
    )
    fault = number_fault(reader.parts, picture.id, values)
    if fault is not None:
        raise fault


def _recorded(picture: Picture, mine: Sequence[tuple[Pass, _Tables]], wanted: Wanted) -> Recorded:
    """Put the draws of one sentence side by side."""
    first, tables = mine[0][0], [table for _, table in mine]
    queries, keys = _side_by_side([each.queries for each in tables]), _side_by_side([each.keys for each in tables])
    return Recorded(
        picture,
        first.frame,
        first.latent_hw,
        first.timestep,
        first.prompt.rows,
        {rule: _side_by_side([each.maps[rule] for each in tables]) for rule in wanted.rules},
        {
            layer.name: KeptAttention(queries[layer.name], keys[layer.name], layer.grid_hw(first.latent_hw))
            for layer in wanted.self_layers
        },
        _side_by_side([each.agreement for each in tables]),
    )


def _side_by_side(tables: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the values of tables with the same keys."""
    return {name: torch.stack([table[name] for table in tables]) for name in tables[0]}


def packed(items: Sequence[Sentences]) -> dict[str, Tensor]:
    """Return what was recorded of one picture, at all timesteps, as tensors by name; self-attention is left out."""
    return {
        f"{place}/{name}": tensor
        for place, recorded in enumerate(recorded for item in items for recorded in item)
        for name, tensor in (
            *(
                (f"{number}/{key}", each)
                for number, table in enumerate(recorded.maps.values())
                for key, each in table.items()
            ),
            *((f"agreement/{key}", each) for key, each in recorded.agreement.items()),
        )
    }


def unpacked(reader: Reader, picture: Picture, tensors: Mapping[str, Tensor], wanted: Wanted) -> Iterator[Sentences]:
    """Yield, for each timestep, what `packed` made of a picture's recordings by the same reader."""
    frame = reader.frame(picture.size_hw)
    prompts = reader.plan(picture.prompted)
    tables: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, kind, key = name.split("/", 2)
        tables.setdefault(f"{place}/{kind}", {})[key] = tensor
    for first, timestep in enumerate(reader.diffusion.timesteps):
        yield tuple(
            Recorded(
                picture,
                frame,
                reader.latent_hw(frame),
                timestep,
                prompt.rows,
                {rule: tables[f"{place}/{number}"] for number, rule in enumerate(wanted.rules)},
                {},
                tables.get(f"{place}/agreement", {}),
            )
            for place, prompt in enumerate(prompts, start=first * len(prompts))
        )
