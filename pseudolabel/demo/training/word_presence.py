"""A contrastive loss on cross-attention scores: which words belong to which scene, as CLIP asks of images and texts.

The diffusion loss alone binds words to places slowly: it needs millions of scenes. This loss asks of cross-attention
layers what image-level labels can answer: which scenes of the batch show what this word names, and which words name
what this scene shows? A word's scores (query times key, mean over heads) are pooled over the places of the scene by
the logarithm of their mean exponential, as in multiple-instance learning (Pinheiro and Collobert, arXiv 1411.6228,
equation 6), so that the model finds out by itself *where* the evidence is; the pooled scores are contrasted along words
and along scenes (Radford et al., arXiv 2103.00020, section 2.3; here several scenes may show a word). It sees captions
alone, never masks.

Only the first layer is asked about every scene. A later layer's queries come from features to which the layers before
it have added the words of the caption: it would learn to repeat them instead of looking. It is asked about the scenes
that were shown without a caption.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pseudolabel.demo.training.captions import class_word
from pseudolabel.demo.training.measure_model import phrase_positions

BY_SCENE = 0.5  # weight of the contrast along words beside that along scenes


@dataclass(frozen=True)
class Words:
    """The tokens of class words in a batch of captions, and which scenes show what they name.

    Attributes:
        captions: index of the caption each token stands in.
        positions: its position there.
        present: 1 where a scene (row) shows the class a token (column) names.

    """

    captions: Int[Tensor, " words"]
    positions: Int[Tensor, " words"]
    present: Float[Tensor, "batch words"]


@dataclass(frozen=True)
class Query:
    """A cross-attention layer, and the queries of its last pass under the key "query"."""

    layer: Any
    last: dict[str, Float[Tensor, "batch places channels"]]


def record_queries(unet: Any) -> list[Query]:
    """Keep every cross-attention layer's queries of the last pass, from now on."""
    found = []
    for name, layer in unet.named_modules():
        if name.endswith("attn2"):
            query = Query(layer, {})
            layer.to_q.register_forward_hook(
                lambda _module, _inputs, output, last=query.last: last.__setitem__("query", output)
            )
            found.append(query)
    return found


def class_words(tokenizer: Any, tokens: Int[Tensor, "batch length"], labels: list[tuple[int, ...]]) -> Words:
    """Find the class words of each caption."""
    rows, places, named = [], [], []
    for row, (ids, present) in enumerate(zip(tokens.tolist(), labels, strict=True)):
        for label in present:
            positions = phrase_positions(ids, tokenizer(class_word(label)).input_ids[1:-1])
            rows += [row] * len(positions)
            places += positions
            named += [label] * len(positions)
    shown = torch.zeros(len(labels), 21)
    for row, present in enumerate(labels):
        shown[row, list(present)] = 1
    device = tokens.device
    return Words(torch.tensor(rows, device=device), torch.tensor(places, device=device), shown[:, named].to(device))


def word_presence_loss(
    queries: list[Query],
    text: Float[Tensor, "batch length channels"],
    words: Words,
    weights: Float[Tensor, " batch"],
    told: Bool[Tensor, " batch"],
) -> Tensor:
    """Contrast of the pooled scores of every word in every scene.

    Args:
        queries: Cross-attention layers with the queries of a pass, in the order they run in.
        text: The text encoder's output for the batch's captions.
        words: The class words in it.
        weights: Of each scene, in [0, 1].
        told: Which scenes were shown with their caption; later layers are asked about the others.

    Returns:
        The first layer's loss plus the mean of the later ones'.

    """
    embedded = text[words.captions, words.positions]
    first, *later = [
        contrast(pooled_scores(query, embedded), words.present, weights * ~told if number else weights)
        for number, query in enumerate(queries)
    ]
    return first + sum(later) / max(1, len(later))


def pooled_scores(query: Query, words: Float[Tensor, "words channels"]) -> Float[Tensor, "batch words"]:
    """Return the score of each word in each scene: the logarithm of the mean exponential over its places."""
    heads = query.layer.heads
    q = query.last["query"].float().unflatten(-1, (heads, -1))
    k = query.layer.to_k(words).unflatten(-1, (heads, -1))
    scores = torch.einsum("bphc,whc->bpw", q, k) * (query.layer.scale / heads)
    return scores.logsumexp(1) - math.log(scores.shape[1])


def contrast(
    scores: Float[Tensor, "batch words"], present: Float[Tensor, "batch words"], weights: Float[Tensor, " batch"]
) -> Tensor:
    """Return the cross-entropy of the scenes that show a word, and of the words that name what a scene shows.

    A scene of weight w stands for w scenes; at weight 0 it is not there.
    """
    rows = weights[:, None]
    showing = present * rows
    by_word = (scores + rows.clamp(min=1e-6).log()).log_softmax(0) * showing / showing.sum(0).clamp(min=1e-6)
    by_scene = scores.log_softmax(1) * showing / present.sum(1, keepdim=True).clamp(min=1) / weights.sum().clamp(min=1)
    return -by_word.sum(0).mean() - BY_SCENE * by_scene.sum()
