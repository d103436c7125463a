"""Every quantity on the way from an image to its mask, by name; see `Pipeline.explain`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data.store.softmaps import Frame, SoftMaps
from pseudolabel.masks.config import MaskConfig
from pseudolabel.masks.fuse import background_score, before_crf
from pseudolabel.softmaps.affinity import SelfAttention
from pseudolabel.softmaps.boxes import Box
from pseudolabel.softmaps.diffusion.parts import TextEmbedding
from pseudolabel.softmaps.passes import Pass
from pseudolabel.softmaps.prompt import Prompt
from pseudolabel.softmaps.reading import Reading
from pseudolabel.softmaps.tokens import Span

Readings = list[tuple[Sequence[Pass], Reading]]  # batches of passes, and what each showed


@dataclass(frozen=True)
class Explanation:
    """Every quantity on the way from an image to its mask; "draws" counts timesteps times noise draws.

    Attributes:
        frame: sizes of the image, resized and padded.
        prompts: sentences, and the tokens of their classes.
        spans: token positions of each class, in the order of the labels.
        cross: by layer, cross-attention of each draw and class on that layer's grid, not scaled.
        class_maps: mean over layers on the grid of the self-attention, scaled to 0..1.
        self_attention: by layer, queries and keys of every draw.
        boxes: of each draw and class, (top, left, bottom, right) in cells, ends exclusive.
        refined: class maps after spreading, scaled to 0..1.
        maps: mean of `refined` over draws.
        background: score of the background on the grid.
        cell_labels: class id of the highest score in each cell.
        soft: the maps as the store keeps them.
        argmax_before_crf: class id of the highest score at each pixel, without refinement.
        latents: scaled latent of the image.
        noise: noise of each draw.
        timesteps: timestep of each draw.
        marginals: of background and labels at each pixel (of a large image: at its working size); this and what
            follows is None without an image.
        argmax: class id at each pixel after refinement.
        mask: the same with 255 where it is unsure.

    """

    frame: Frame
    prompts: tuple[Prompt, ...]
    spans: tuple[Span, ...]
    cross: dict[str, Float[Tensor, "draws classes _ _"]]
    class_maps: Float[Tensor, "draws classes grid_h grid_w"]
    self_attention: tuple[SelfAttention, ...]
    boxes: tuple[tuple[tuple[Box, ...], ...], ...]
    refined: Float[Tensor, "draws classes grid_h grid_w"]
    maps: Float[Tensor, "classes grid_h grid_w"]
    background: Float[np.ndarray, "grid_h grid_w"]
    cell_labels: UInt8[np.ndarray, "grid_h grid_w"]
    soft: SoftMaps
    argmax_before_crf: UInt8[np.ndarray, "image_h image_w"]
    latents: Tensor | None = None
    noise: Tensor | None = None
    timesteps: tuple[int, ...] = ()
    marginals: np.ndarray | None = None
    argmax: np.ndarray | None = None
    mask: np.ndarray | None = None

    def self_affinity(
        self, values: Float[Tensor, "cells maps"], draw: int = 0, layer: int = 0, times: int = 1
    ) -> Float[Tensor, "cells maps"]:
        """Return S^times V of one draw for any maps V (cells row-major), as the pipeline computes it.

        Where an image's classes needed several sentences it is that of the first.
        """
        attention = self.self_attention[layer]
        one = SelfAttention(attention.queries[draw : draw + 1], attention.keys[draw : draw + 1], attention.grid_hw)
        return one.power(values[None].to(one.queries.device), times)[0]


def given_text(embeds: Tensor | TextEmbedding) -> TextEmbedding:
    """Return given embeddings (tokens, dim) or (1, tokens, dim) as one sentence."""
    if isinstance(embeds, TextEmbedding):
        return embeds
    return TextEmbedding(embeds.reshape(1, *embeds.shape[-2:]))


def given_prompts(spans: Sequence[Sequence[int]]) -> tuple[Prompt, ...]:
    """Return one sentence without words for given spans; all tokens between start and the last one read are content."""
    placed = tuple(tuple(span) for span in spans)
    last = max(max(span) for span in placed)
    return (Prompt("", tuple(range(len(placed))), placed, tuple(range(1, last + 1))),)


def assemble(
    prompts: tuple[Prompt, ...],
    readings: Readings,
    maps: Float[Tensor, "classes grid_h grid_w"],
    soft: SoftMaps,
    frame: Frame,
    masks: MaskConfig,
) -> Explanation:
    """Gather what was read from one image's sentences, draw by draw and class by class, and fuse it.

    Args:
        prompts: the image's sentences.
        readings: every batch of its passes and what it showed, in the order of the draws.
        maps: the mean of the refined maps over draws.
        soft: the same as the store keeps them.
        frame: sizes of the image.
        masks: how the background's score is made, and at which size a large image is worked on.

    """

    def gather(which: Callable[[Reading], Tensor]) -> Tensor:
        """Return a quantity of every draw, with the classes of all sentences in the order of the labels."""
        by_prompt = [
            torch.stack([which(reading)[at][: len(prompt.rows)] for reading, at in _places(readings, prompt)])
            for prompt in prompts
        ]
        whole = by_prompt[0].new_zeros(len(by_prompt[0]), len(soft.labels), *by_prompt[0].shape[2:])
        for prompt, part in zip(prompts, by_prompt, strict=True):
            whole[:, list(prompt.rows)] = part
        return whole

    owners = {row: (prompt, place) for prompt in prompts for place, row in enumerate(prompt.rows)}
    order = [owners[row] for row in range(len(soft.labels))]
    exact = maps.cpu().numpy()
    background = background_score(exact, masks.fuse, None if soft.words is None else soft.words.astype(np.float32))
    first = readings[0][1]
    boxes = [[reading.boxes[at] for reading, at in _places(readings, prompt) if reading.boxes] for prompt, _ in order]
    return Explanation(
        frame=frame,
        prompts=prompts,
        spans=tuple(prompt.spans[place] for prompt, place in order),
        cross={name: gather(lambda reading, name=name: reading.cross[name]) for name in first.cross},  # type: ignore[misc]
        class_maps=gather(lambda reading: reading.class_maps),
        self_attention=tuple(_self_attention(readings, prompts[0], layer) for layer in range(len(first.layers))),
        boxes=tuple(
            tuple(boxes[row][draw][place] for row, (_, place) in enumerate(order)) for draw in range(len(boxes[0]))
        ),
        refined=gather(lambda reading: reading.refined),
        maps=maps,
        background=background,
        cell_labels=np.array([0, *soft.labels], np.uint8)[np.concatenate([background[None], exact]).argmax(axis=0)],
        soft=soft,
        argmax_before_crf=before_crf(soft, masks.fuse, masks.crf),
    )


def _places(readings: Readings, prompt: Prompt) -> list[tuple[Reading, int]]:
    """Return, for each draw of a sentence, what was read and its position in the batch."""
    return [(reading, at) for batch, reading in readings for at, item in enumerate(batch) if item.prompt is prompt]


def _self_attention(readings: Readings, prompt: Prompt, layer: int) -> SelfAttention:
    """Return one layer's self-attention in every draw of a sentence."""
    found = [(reading.layers[layer], at) for reading, at in _places(readings, prompt)]
    queries = torch.stack([attention.queries[at] for attention, at in found])
    return SelfAttention(queries, torch.stack([attention.keys[at] for attention, at in found]), found[0][0].grid_hw)
