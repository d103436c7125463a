"""One batch of passes: what they looked at, as class maps, boxes and refined maps.

Joins diffusion, attention and affinity (arXiv 2309.04109, sections 3.2 and 3.3) for passes of equal size, whatever
image, noise draw, timestep, mirror image or sentence they belong to.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.errors import ModelError
from data.store.softmaps import Frame
from pseudolabel.softmaps.affinity import SelfAttention, spread, told_apart
from pseudolabel.softmaps.attention import HeadWeights, Recording, record_attention
from pseudolabel.softmaps.boxes import Box, batch_boxes, box_mask
from pseudolabel.softmaps.config import AffinityConfig, AttentionConfig
from pseudolabel.softmaps.diffusion.families import run_denoiser
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.grids import common_grid, min_max, resize_maps, saturated, valid_mask, valid_sizes
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.passes import Pass, stack_texts
from pseudolabel.softmaps.prompt import Prompt
from pseudolabel.softmaps.weights import blurred, weigh_heads, weigh_layers


@dataclass(frozen=True)
class Reading:
    """What was read in a batch of passes; maps are those of the classes of each pass's sentence, then unused ones.

    Where background words are read, their maps follow the classes'.

    Attributes:
        cross: by layer, cross-attention on the layer's grid.
        class_maps: mean over layers on the common grid, scaled to 0..1.
        layers: self-attention of each layer read.
        boxes: of each pass and map; empty where no boxes are used.
        refined: class maps after spreading, scaled to 0..1.
        attention: what each class's tokens have of a cell's attention, 0 to 1, then what the tokens have that are no
            words (start, end, filler); the mean over layers on the common grid, not scaled. None if not asked for.

    """

    cross: dict[str, Float[Tensor, "batch classes _ _"]]
    class_maps: Float[Tensor, "batch classes grid_h grid_w"]
    layers: tuple[SelfAttention, ...]
    boxes: list[list[tuple[Box, ...]]]
    refined: Float[Tensor, "batch classes grid_h grid_w"]
    attention: Float[Tensor, "batch columns grid_h grid_w"] | None = None


def number_fault(parts: Parts, image_id: str, values: Iterable[Tensor]) -> ModelError | None:
    """Return the error of an image for which the model gave NaN or infinite values, or None.

    NaN passes through means, min-max and affinity alike, so that it is enough to look at what comes out; an argmax over
    NaN would be background everywhere, and sure of it.

    Args:
        parts: the model.
        image_id: names the image.
        values: its maps, or anything they are made of.

    """
    if all(bool(torch.isfinite(each).all()) for each in values):
        return None
    dtype = str(parts.dtype).removeprefix("torch.")
    cause = "its weights or this image's latent are damaged: fetch or train the model again"
    if parts.dtype != torch.float32:
        cause = f"numbers too large for {dtype}: use --run.dtype float32"
    return ModelError(f"The model {parts.id} in {dtype} gives NaN or infinite values for image {image_id!r}; {cause}.")


def read_batch(
    parts: Parts,
    cross_layers: Sequence[Layer],
    self_layers: Sequence[Layer],
    passes: Sequence[Pass],
    *,
    settings: AttentionConfig,
    valid_only: bool,
    affinity: AffinityConfig,
    attention: bool = False,
    words: bool = False,
    reference: Layer | None = None,
    naming_layers: Sequence[Layer] = (),
) -> Reading:
    """Run passes of equal size in one batch and return what was read.

    Args:
        parts: the diffusion model.
        cross_layers: layers whose cross-attention is read.
        self_layers: layers whose self-attention spreads the maps.
        passes: at least one, all with latents of one size.
        settings: how tokens, heads and layers count.
        valid_only: see `ResizeConfig`.
        affinity: how the maps are spread.
        attention: read the share of each cell's attention too, which `Reading.attention` is.
        words: make maps of the background words too.
        reference: the layer whose dense features layers are weighed by; None where they are not.
        naming_layers: layers by which classes are told apart (`told_apart`).

    """
    latent_hw, prompts = passes[0].latent_hw, [item.prompt for item in passes]
    weights = class_weights(prompts, passes[0].text.tokens.shape[1], words).to(parts.device)
    columns = every_token(weights) if settings.token_rescaling else weights
    beside = token_shares(prompts, weights.shape[-1]).to(parts.device) if attention else None
    weigh, weighed = weigh_heads if settings.weighs_heads else None, cross_layers if reference is not None else ()
    recorded = _each_once(cross_layers, naming_layers), _each_once(self_layers, weighed)
    recording = run_passes(parts, *recorded, passes, columns, beside, weigh, reference)
    by_layer = None if reference is None else weigh_layers(recording, weighed, reference, latent_hw)
    grid_hw, shares = common_grid(cross_layers, self_layers, latent_hw), None
    if attention:
        shares = _shares(recording, cross_layers, latent_hw, grid_hw, columns.shape[1])
        recording = recording.first_columns(columns.shape[1])
    maps, naming = (
        _class_maps(recording, chosen, passes, weights, settings, valid_only)
        for chosen in (cross_layers, naming_layers)
    )
    layers = tuple(SelfAttention(*recording.queries_and_keys(layer), layer.grid_hw(latent_hw)) for layer in self_layers)
    frames, counts = [item.frame for item in passes], [len(prompt.rows) for prompt in prompts]
    refined = refine_maps(maps, layers, frames, grid_hw, valid_only, affinity, by_layer, naming, counts)
    cross = {layer.name: own for layer, own in zip(cross_layers, maps, strict=True)}
    return Reading(cross, *refined, attention=shares)


def _each_once(layers: Sequence[Layer], more: Sequence[Layer]) -> list[Layer]:
    """Return layers, and those of `more` that are not among them."""
    return [*layers, *(layer for layer in more if layer not in layers)]


def _shares(
    recording: Recording,
    layers: Sequence[Layer],
    latent_hw: tuple[int, int],
    grid_hw: tuple[int, int],
    first: int,
) -> Float[Tensor, "batch columns grid_h grid_w"]:
    """Return `Reading.attention` from a recording whose columns from `first` on are those of `token_shares`."""
    maps = [recording.cross_map(layer, latent_hw)[:, first:] for layer in layers]
    return torch.stack([resize_maps(each, grid_hw) for each in maps]).mean(dim=0)


def _class_maps(
    recording: Recording,
    layers: Sequence[Layer],
    passes: Sequence[Pass],
    weights: Float[Tensor, "batch classes tokens"],
    settings: AttentionConfig,
    valid_only: bool,
) -> list[Float[Tensor, "batch classes _ _"]]:
    """Return the class maps of each layer, on its grid."""
    latent_hw = passes[0].latent_hw
    if not settings.token_rescaling:
        return [recording.cross_map(layer, latent_hw) for layer in layers]
    content = sharing_tokens([item.prompt for item in passes], weights.shape[-1], settings.rescaled_tokens)
    content, frames = content.to(weights.device), [item.frame for item in passes]
    return [
        rescaled_classes(recording, layer, latent_hw, weights, content, frames, valid_only, settings.blur)
        for layer in layers
    ]


def run_passes(
    parts: Parts,
    cross_layers: Sequence[Layer],
    self_layers: Sequence[Layer],
    passes: Sequence[Pass],
    columns: Float[Tensor, "batch columns tokens"],
    beside: Float[Tensor, "batch more tokens"] | None = None,
    weigh: HeadWeights | None = None,
    reference: Layer | None = None,
) -> Recording:
    """Run passes of equal size in one batch and return what the layers recorded; see `record_attention`."""
    text = stack_texts([item.text for item in passes])
    watched = record_attention(
        parts.denoiser, cross_layers, self_layers, columns, stop=True, beside=beside, weigh=weigh, features=reference
    )
    with watched as recording:
        noised = torch.stack([item.noised for item in passes])
        run_denoiser(parts, noised, [item.timestep for item in passes], text, passes[0].frame.padded_hw)
    return recording


def class_weights(
    prompts: Sequence[Prompt], n_tokens: int, words: bool = False
) -> Float[Tensor, "batch classes tokens"]:
    """Return the weight of each token in each class of a sentence: the mean over its tokens, or `Prompt.shares`.

    With `words` those in its background words follow.
    """
    placed = [[*prompt.spans, *(span for _, span in prompt.words if words)] for prompt in prompts]
    weights = torch.zeros(len(prompts), max(map(len, placed)), n_tokens)
    for element, prompt, spans in zip(weights, prompts, placed, strict=True):
        for place, (row, span) in enumerate(zip(element, spans, strict=False)):
            own = prompt.shares[place] if prompt.shares is not None and place < len(prompt.spans) else None
            row[list(span)] = 1 / len(span) if own is None else torch.tensor(own)
    return weights


def token_shares(prompts: Sequence[Prompt], n_tokens: int) -> Float[Tensor, "batch columns tokens"]:
    """Return the weights that sum up the tokens of each class and, in the last column, those that are no words."""
    summed = (class_weights([replace(prompt, shares=None) for prompt in prompts], n_tokens) > 0).float()
    return torch.cat([summed, (~content_tokens(prompts, n_tokens)).float()[:, None]], dim=1)


def _weighted(
    weights: Float[Tensor, "batch columns tokens"], tokens: Float[Tensor, "batch tokens height width"]
) -> Float[Tensor, "batch columns height width"]:
    """Return weighted sums of token maps."""
    return torch.einsum("bct,bthw->bchw", weights, tokens)


def every_token(weights: Float[Tensor, "batch classes tokens"]) -> Float[Tensor, "batch tokens tokens"]:
    """Return the weights that read each token by itself."""
    return torch.eye(weights.shape[-1], device=weights.device).expand(len(weights), -1, -1)


def content_tokens(prompts: Sequence[Prompt], n_tokens: int) -> Bool[Tensor, "batch tokens"]:
    """Return which tokens of each sentence are words: neither start, nor end, nor filler."""
    content = torch.zeros(len(prompts), n_tokens, dtype=torch.bool)
    for row, prompt in zip(content, prompts, strict=True):
        row[list(prompt.content)] = True
    return content


def named_tokens(prompts: Sequence[Prompt], n_tokens: int) -> Bool[Tensor, "batch tokens"]:
    """Return which tokens of each sentence belong to its classes or its background words.

    Of a sentence with a single class and no background words they are all content tokens: nothing would be left to
    share a cell with, and a map that is the same everywhere shows nothing.
    """
    named = content_tokens(prompts, n_tokens)
    for row, prompt in zip(named, prompts, strict=True):
        spans = [*prompt.spans, *(span for _, span in prompt.words)]
        if len(spans) > 1:
            row[:] = False
            row[[position for span in spans for position in span]] = True
    return named


def sharing_tokens(
    prompts: Sequence[Prompt], n_tokens: int, which: Literal["content", "words"]
) -> Bool[Tensor, "batch tokens"]:
    """Return which tokens of each sentence share a cell out under token rescaling (`AttentionConfig`)."""
    match which:
        case "content":
            return content_tokens(prompts, n_tokens)
        case "words":
            return named_tokens(prompts, n_tokens)


def rescaled_classes(
    recording: Recording,
    layer: Layer,
    latent_hw: tuple[int, int],
    weights: Float[Tensor, "batch classes tokens"],
    content: Bool[Tensor, "batch tokens"],
    frames: Sequence[Frame],
    valid_only: bool,
    blur: int = 1,
) -> Float[Tensor, "batch classes height width"]:
    """Return a layer's class maps with token rescaling (GoCA, CVPR 2026), from a recording of every token.

    Tokens that are not `content` are dropped and a cell's remaining tokens sum to one; each token's map is smoothed
    (`blurred`) and scaled to 0..1; a class is the mean over its tokens.
    """
    tokens = blurred(recording.cross_map(layer, latent_hw, content), blur)
    valid = valid_mask(frames, (tokens.shape[-2], tokens.shape[-1]), valid_only).to(tokens.device)
    return _weighted(weights, min_max(tokens, valid))


def refine_maps(
    cross: Sequence[Float[Tensor, "batch classes _ _"]],
    layers: Sequence[SelfAttention],
    frames: Sequence[Frame],
    grid_hw: tuple[int, int],
    valid_only: bool,
    affinity: AffinityConfig,
    by_layer: Float[Tensor, "layers batch"] | None = None,
    naming: Sequence[Float[Tensor, "batch classes _ _"]] = (),
    n_classes: Sequence[int] = (),
) -> tuple[
    Float[Tensor, "batch classes grid_h grid_w"],
    tuple[SelfAttention, ...],
    list[list[tuple[Box, ...]]],
    Float[Tensor, "batch classes grid_h grid_w"],
]:
    """Average layers and spread the mean by self-attention (arXiv 2309.04109, sections 3.2 and 3.3).

    Args:
        cross: class maps of each layer, on its grid.
        layers: self-attention of the same passes.
        frames: frame of each pass.
        grid_hw: the grid that everything is brought to.
        valid_only: see `ResizeConfig`.
        affinity: how the maps are spread.
        by_layer: how much each layer of `cross` counts, summing to 1; None: all alike.
        naming: maps of the layers by which classes are told apart; none: those of `cross` do it.
        n_classes: with `naming` or `affinity.saturate`: of each pass, how many maps are classes.

    Returns:
        class_maps, layers, boxes and refined of a `Reading`.

    """
    device = cross[0].device
    valid = valid_mask(frames, grid_hw, valid_only).to(device)
    stacked = torch.stack([resize_maps(maps, grid_hw) for maps in cross])
    mean = stacked.mean(dim=0) if by_layer is None else (by_layer[:, :, None, None, None] * stacked).sum(dim=0)
    class_maps = min_max(mean, valid)
    boxes: list[list[tuple[Box, ...]]] = []
    masks = None
    if affinity.uses_boxes:
        boxes = batch_boxes(class_maps, valid_sizes(frames, grid_hw, valid_only), affinity)
        drawn = np.stack([[box_mask(found, grid_hw) for found in row] for row in boxes])
        masks = torch.from_numpy(drawn).to(device)
    refined = spread(class_maps, layers, masks, valid, affinity)
    if naming:
        refined = told_apart(refined, naming, layers, valid, n_classes, affinity.balances)
    if affinity.saturate > 0:
        refined = saturated(refined, valid, n_classes, affinity.saturate)
    return class_maps, tuple(layers), boxes, refined
