"""What one call of a model's attention says: columns of cross-attention, and self-attention among cells.

Source: arXiv 2309.04109, sections 3.2 and 3.3. Attention of layer l and head h is softmax(Q K^T / sqrt(d)); queries
are grid cells, row-major. In a U-Net cross-attention has text tokens as keys and self-attention cells; in joint
attention both kinds of tokens are queries and keys at once, and the cross-attention is the image's rows of the softmax
over all tokens, cut to the text's columns.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from data.errors import ModelError
from pseudolabel.softmaps.layers import Layer

# Queries times keys of one head, of each element of a batch, that are held at once; above, the queries are taken in
# slices.
SLICE_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Call:
    """One call of scaled_dot_product_attention.

    Attributes:
        queries: of every row, all heads.
        keys: of every column; heads that share keys have them side by side already.
        mask: what is added to the scores, or where columns take part; None where all do.
        scale: what the scores are multiplied by.
        values: of each column, all heads.

    """

    queries: Float[Tensor, "batch heads rows dim"]
    keys: Float[Tensor, "batch heads columns dim"]
    mask: Tensor | None
    scale: float
    values: Float[Tensor, "batch heads columns value_dim"] | None = None

    def of_image(self, layer: Layer, n_text: int) -> "Call":
        """Return the image's rows of joint attention; any other call as it is."""
        if layer.text == "all":
            return self
        rows = _image_part(layer, n_text)
        mask = self.mask
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., rows, :]
        return replace(self, queries=self.queries[:, :, rows], mask=mask)

    def among_cells(self, layer: Layer, n_text: int) -> tuple[Tensor, Tensor]:
        """Return queries and keys of the cells alone, such that the usual scale 1 / sqrt(dim) gives their attention.

        A softmax over some columns of a row is the whole row's, made to sum to one over these columns.

        Raises:
            ModelError: a mask between cells, which queries and keys cannot express.

        """
        image = self.of_image(layer, n_text)
        keys, mask = self.keys, image.mask
        if layer.text != "all":
            columns = _image_part(layer, n_text)
            keys, mask = keys[:, :, columns], None if mask is None else mask[..., columns]
        if mask is not None and not bool((mask if mask.dtype == torch.bool else mask == 0).all()):
            raise ModelError(f"{layer.name} has a mask between cells, under which its self-attention cannot be read")
        usual = self.queries.shape[-1] ** -0.5
        return image.queries if self.scale == usual else image.queries * (self.scale / usual), keys


def _image_part(layer: Layer, n_text: int) -> slice:
    """Return where the image's tokens are among those of joint attention."""
    return slice(n_text, None) if layer.text == "first" else slice(None, -n_text)


def pick_heads(per_head: Shaped[Tensor, "batch heads *rest"], heads: tuple[int, ...] | None) -> Tensor:
    """Keep some heads; None keeps all.

    Raises:
        ModelError: a head that the layer does not have.

    """
    if heads is None:
        return per_head
    if max(heads) >= per_head.shape[1]:
        raise ModelError(f"Head {max(heads)} is asked for, but this layer has heads 0 to {per_head.shape[1] - 1}")
    return per_head[:, list(heads)]


def cross_columns(
    call: Call,
    layer: Layer,
    weights: Float[Tensor, "batch columns tokens"],
    beside: Float[Tensor, "batch more tokens"] | None = None,
    by_head: Float[Tensor, "batch heads cells"] | None = None,
) -> Float[Tensor, "batch columns_and_more cells"]:
    """Return column sums of the cross-attention: softmax over all keys, mean over heads, then the tokens' weights.

    One head and so many cells at a time, in float32, that memory is linear in the cells. `beside` are further columns,
    appended by a product of their own: the bits of the first ones do not depend on them. `by_head` weighs the heads
    that are read at each cell, in place of their mean.
    """
    n_text = weights.shape[-1]
    image = call.of_image(layer, n_text)
    queries, keys = pick_heads(image.queries, layer.heads), pick_heads(image.keys, layer.heads)
    mask = _mask_of_heads(image.mask, layer.heads)
    text = {"all": slice(None), "first": slice(None, n_text), "last": slice(-n_text, None)}[layer.text]
    cells, step = queries.shape[2], max(1, SLICE_ELEMENTS // keys.shape[2])
    parts = []
    for start in range(0, cells, step):
        rows = slice(start, start + step)
        total = torch.zeros(len(queries), len(range(cells)[rows]), n_text, device=queries.device)
        for head in range(queries.shape[1]):
            scores = queries[:, head, rows].float() @ keys[:, head].float().transpose(1, 2) * call.scale
            shares = torch.softmax(_masked(scores, mask, head, rows), dim=-1)[..., text]
            total += shares if by_head is None else by_head[:, head, rows, None] * shares
        mean = (total / queries.shape[1] if by_head is None else total).transpose(1, 2)
        parts.append(weights @ mean if beside is None else torch.cat([weights @ mean, beside @ mean], dim=1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _mask_of_heads(mask: Tensor | None, heads: tuple[int, ...] | None) -> Tensor | None:
    """Return the mask of a call on four axes, of the heads that are read; a single one holds for all heads."""
    if mask is None:
        return None
    whole = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    return whole if whole.shape[1] == 1 else pick_heads(whole, heads)


def _masked(scores: Float[Tensor, "batch rows columns"], mask: Tensor | None, head: int, rows: slice) -> Tensor:
    """Return scores under a mask of four axes: a truth value keeps a column, a number is added."""
    if mask is None:
        return scores
    own = mask[:, head if mask.shape[1] > 1 else 0]
    own = own[:, rows] if own.shape[1] > 1 else own
    return scores.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else scores + own.float()


def call_of(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **more: Any) -> Call:
    """Return what is read of the arguments of scaled_dot_product_attention."""
    scale = more.get("scale")
    if key.shape[1] != query.shape[1]:  # enable_gqa: several heads share a key
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    return Call(query, key, attn_mask, query.shape[-1] ** -0.5 if scale is None else float(scale), value)
