"""An auxiliary loss on cross-attention scores: the words of a scene's caption against those of the other captions.

The diffusion loss alone binds words to places slowly: it needs millions of scenes. This loss asks of every
cross-attention layer what image-level labels can answer: does the scene show what this word names? A word's scores
(query times key, mean over heads) are pooled over the places of the scene by the logarithm of their mean exponential,
as in multiple-instance learning (Pinheiro and Collobert, arXiv 1411.6228, equation 6), so that the model finds out by
itself *where* the evidence is. It sees captions alone, never masks.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from data.demo.captions import class_word
from data.demo.measure_model import phrase_positions

POSITIVE_WEIGHT = 4.0  # a scene shows about one class in ten


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
    """A cross-attention layer, and the queries of its last pass."""

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


def class_words(
    tokenizer: Any, tokens: Int[Tensor, "batch length"], captions: list[str], labels: list[tuple[int, ...]]
) -> Words:
    """Find the class words of each caption; an empty caption has none."""
    rows, places, named = [], [], []
    for row, (ids, text, present) in enumerate(zip(tokens.tolist(), captions, labels, strict=True)):
        for label in present if text else ():
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
    sharpness: float = 1.0,
) -> Tensor:
    """Weighted binary cross-entropy of every word's pooled score in every scene, mean over layers.

    Args:
        queries: Cross-attention layers with the queries of a pass.
        text: The text encoder's output for the batch's captions.
        words: The class words in it.
        weights: Of each scene.
        sharpness: r of the pooling log(mean(exp(r s))) / r: large is the maximum, near zero the mean.

    """
    embedded = text[words.captions, words.positions]
    losses = []
    for query in queries:
        heads = query.layer.heads
        q = query.last["query"].float().unflatten(-1, (heads, -1))
        k = query.layer.to_k(embedded).unflatten(-1, (heads, -1))
        scores = torch.einsum("bphc,whc->bpw", q, k) * (query.layer.scale / heads)
        pooled = ((sharpness * scores).logsumexp(1) - math.log(scores.shape[1])) / sharpness
        losses.append(
            F.binary_cross_entropy_with_logits(
                pooled, words.present, weights[:, None], pos_weight=torch.tensor(POSITIVE_WEIGHT, device=pooled.device)
            )
        )
    return torch.stack(losses).mean()
