"""Every quantity on the way from an image to its mask, by name; see `Pipeline.explain`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from data.store.softmaps import Frame, SoftMaps
from pseudolabel.config import FuseConfig, MaskConfig
from pseudolabel.masks.fuse import background_score, before_crf
from pseudolabel.softmaps.affinity import SelfAttention
from pseudolabel.softmaps.boxes import Box
from pseudolabel.softmaps.diffusion.parts import TextEmbedding
from pseudolabel.softmaps.prompt import Prompt, Span
from pseudolabel.softmaps.reading import Reading


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
        marginals: of background and labels at each pixel; this and what follows is None without an image.
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
        self, columns: Float[Tensor, "cells columns"], draw: int = 0, layer: int = 0, times: int = 1
    ) -> Float[Tensor, "cells columns"]:
        """Return S^times V of one draw for any columns V (cells row-major), as the pipeline computes it.

        Where an image's classes needed several sentences it is that of the first.
        """
        attention = self.self_attention[layer]
        one = SelfAttention(attention.queries[draw : draw + 1], attention.keys[draw : draw + 1], attention.grid_hw)
        return one.power(columns[None].to(one.queries.device), times)[0]


def given_text(embeds: Tensor | TextEmbedding) -> TextEmbedding:
    """Return given embeddings (tokens, dim) or (1, tokens, dim) as one sentence."""
    if isinstance(embeds, TextEmbedding):
        return embeds
    return TextEmbedding(embeds.reshape(1, *embeds.shape[-2:]))


def given_prompts(spans: Sequence[Sequence[int]], embeds: Any) -> tuple[Prompt, ...]:
    """Return one sentence without words for given spans; all tokens between start and the last one read are content."""
    placed = tuple(tuple(span) for span in spans)
    last = max(max(span) for span in placed)
    return (Prompt("", tuple(range(len(placed))), placed, tuple(range(1, last + 1))),)


def assemble(
    prompts: tuple[Prompt, ...],
    readings: Sequence[Reading],
    labels: tuple[int, ...],
    frame: Frame,
    fuse: FuseConfig,
) -> Explanation:
    """Gather what was read from one image's sentences, class by class in the order of the labels, and fuse it."""

    def gather(parts: Sequence[Tensor]) -> Tensor:
        whole = parts[0].new_zeros(parts[0].shape[0], len(labels), *parts[0].shape[2:])
        for prompt, part in zip(prompts, parts, strict=True):
            whole[:, list(prompt.rows)] = part[:, : len(prompt.rows)]
        return whole

    refined = gather([reading.refined for reading in readings])
    maps = refined.mean(dim=0)
    exact = maps.cpu().numpy()
    background = background_score(exact, fuse)
    half = np.clip(exact, 0, 1).astype(np.float16)
    soft = SoftMaps(half, labels, False, frame.padded_hw, frame.resized_hw, frame.image_hw)
    owners = {row: (which, place) for which, prompt in enumerate(prompts) for place, row in enumerate(prompt.rows)}
    order = [owners[row] for row in range(len(labels))]
    draws = range(len(refined) if readings[0].boxes else 0)
    return Explanation(
        frame=frame,
        prompts=prompts,
        spans=tuple(prompts[which].spans[place] for which, place in order),
        cross={name: gather([reading.cross[name] for reading in readings]) for name in readings[0].cross},
        class_maps=gather([reading.class_maps for reading in readings]),
        self_attention=readings[0].layers,
        boxes=tuple(tuple(readings[which].boxes[draw][place] for which, place in order) for draw in draws),
        refined=refined,
        maps=maps,
        background=background,
        cell_labels=np.array([0, *labels], np.uint8)[np.concatenate([background[None], exact]).argmax(axis=0)],
        soft=soft,
        argmax_before_crf=before_crf(soft, MaskConfig(fuse=fuse)),
    )
