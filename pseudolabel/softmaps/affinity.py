"""Spreading a class's map over its object by self-attention.

Source: arXiv 2309.04109, section 3.3 (class-aware affinity), with the refinements of later papers beside it.
S is the mean over heads of softmax(Q K^T / sqrt(d)): row-stochastic, rows are queries; neither transposed nor
symmetrised. Few kinds need S as a matrix: S V for a few maps V is scaled-dot-product attention with V as values,
O(N K) memory for N cells and K maps.

Our own is `AffinityConfig.balance`, which takes one round of what CLIP-ES (arXiv 2212.09506, section 3.3) does three
times, and neither its symmetry nor its square: S' = R S C, C dividing columns and R rows by their sums. Some cells draw
attention from everywhere; in S they, not the object's other cells, decide what a cell is told.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from pseudolabel.softmaps.config import AffinityConfig
from pseudolabel.softmaps.grids import min_max, resize_maps

# Up to this many cells S is built once and multiplied; above, attention is applied twice. On two cores of an AMD EPYC,
# two applications to 3 maps, 8 heads of 80, the matrix takes 0.59 of the other's time at 576 cells and 1.35 at 1,024
# (benchmarks/stage_one.md); on a single core it stayed ahead to 1,728 cells.
DENSE_CELLS = 800
ISEG_ROUNDS = 10
SINKHORN_ROUNDS = 3
DIVERGENCE_ELEMENTS = 1 << 24  # cells x cells x classes that are compared at once
SMALLEST = 1e-12  # what is divided by, at least
SLICE_ELEMENTS = 1 << 24  # cells x cells of a head that are there at once where columns are summed


@dataclass(frozen=True)
class SelfAttention:
    """Self-attention of a batch at one layer, kept as queries and keys.

    Attributes:
        queries: of every cell, all heads.
        keys: of every cell, all heads.
        grid_hw: height and width of the grid; cells are row-major.

    """

    queries: Float[Tensor, "batch heads cells dim"]
    keys: Float[Tensor, "batch heads cells dim"]
    grid_hw: tuple[int, int]

    def matrix(self) -> Float[Tensor, "batch cells cells"]:
        """Return S itself, in float32; memory grows with the square of the cells."""
        batch, heads, cells, dim = self.queries.shape
        total = torch.zeros(batch, cells, cells, device=self.queries.device)
        for head in range(heads):
            scores = self.queries[:, head].float() @ self.keys[:, head].float().transpose(1, 2)
            total += torch.softmax(scores * dim**-0.5, dim=-1)
        return total / heads

    def apply(self, values: Float[Tensor, "batch cells maps"]) -> Float[Tensor, "batch cells maps"]:
        """Return S times the maps without building S, in float32.

        The values are padded to the width of the queries, for which fused kernels ask; more maps go in several
        passes.
        """
        heads, dim = self.queries.shape[1], self.queries.shape[3]
        queries, keys = self.queries.float(), self.keys.float()
        parts = []
        for part in values.float().split(dim, dim=-1):
            padded = functional.pad(part, (0, dim - part.shape[-1]))[:, None].expand(-1, heads, -1, -1)
            applied = functional.scaled_dot_product_attention(queries, keys, padded)
            parts.append(applied.mean(dim=1)[..., : part.shape[-1]])
        return torch.cat(parts, dim=-1)

    def drawn(self) -> Float[Tensor, "batch cells"]:
        """Return the column sums of S, the attention that each cell draws from all, without building S."""
        cells, dim = self.queries.shape[2:]
        total = torch.zeros(len(self.queries), cells, device=self.queries.device)
        keys = self.keys.float().transpose(2, 3)
        for rows in self.queries.float().split(max(1, SLICE_ELEMENTS // cells), dim=2):
            for head in range(keys.shape[1]):
                total += torch.softmax(rows[:, head] @ keys[:, head] * dim**-0.5, dim=-1).sum(dim=1)
        return total / keys.shape[1]

    def power(
        self, values: Float[Tensor, "batch cells maps"], times: int, balance: bool = False
    ) -> Float[Tensor, "batch cells maps"]:
        """Return S, or S with its columns and rows balanced once, applied `times` times, the quicker way."""
        if self.queries.shape[2] <= DENSE_CELLS:
            matrix = columns_then_rows(self.matrix()) if balance else self.matrix()
            for _ in range(times):
                values = matrix @ values.float()
            return values
        shares = 1 / self.drawn().clamp_min(SMALLEST)[..., None] if balance else None
        for _ in range(times):
            if shares is None:
                values = self.apply(values)
            else:  # R S C V = S C V / S C 1
                applied = self.apply(torch.cat([shares * values.float(), shares], dim=-1))
                values = applied[..., :-1] / applied[..., -1:]
        return values


def spread(
    maps: Float[Tensor, "batch classes height width"],
    layers: Sequence[SelfAttention],
    masks: Float[Tensor, "batch classes height width"] | None,
    valid: Bool[Tensor, "batch 1 height width"],
    config: AffinityConfig,
) -> Float[Tensor, "batch classes height width"]:
    """Spread each map by self-attention and scale it to 0..1 again.

    Args:
        maps: class maps, 0 to 1.
        layers: self-attention, each applied at its own grid; the results are averaged.
        masks: 1 inside the class's boxes; None spreads every cell.
        valid: cells that hold image; min-max looks at these alone.
        config: kind and its parameters.

    """
    grid_hw = (maps.shape[-2], maps.shape[-1])
    source = maps if masks is None else maps * masks
    match config.kind:
        case "none":
            return maps
        case "iterated":
            for _ in range(config.iterations):
                source = min_max(_mean_over_layers(source, layers, grid_hw, config), valid)
            return source
        case "caa" | "iseg" | "clipes" | "cda":
            return min_max(_mean_over_layers(source, layers, grid_hw, config), valid)


def told_apart(
    maps: Float[Tensor, "batch classes height width"],
    naming: Sequence[Float[Tensor, "batch classes _ _"]],
    layers: Sequence[SelfAttention],
    valid: Bool[Tensor, "batch 1 height width"],
    n_classes: Sequence[int],
    balance: bool = False,
) -> Float[Tensor, "batch classes height width"]:
    """Let other layers say which class a cell belongs to, and the maps how far things reach.

    F_c = (max over classes of the maps) * n_c / (max over classes of n), where n_c is the mean over the naming layers
    of a class's map divided by its own mean, spread once by self-attention. The strongest map of a cell is as high as
    before, but it may be another class's. One class alone stays as it is, and so does a cell that no class has
    anything of. This is our own: on the demo's model coarse layers know best what a thing is, and fine ones where it
    ends.

    Args:
        maps: class maps after spreading, 0 to 1.
        naming: maps of the naming layers, not scaled, each on its own grid.
        layers: self-attention; without any, what names is not spread.
        valid: cells that hold image; means are taken over these alone.
        n_classes: of each element, how many maps are classes; those behind them stay as they are.
        balance: see `AffinityConfig`.

    """
    grid_hw = (maps.shape[-2], maps.shape[-1])
    relative = []
    for each in naming:
        resized = resize_maps(each, grid_hw)
        mean = (resized * valid).sum(dim=(-2, -1), keepdim=True) / valid.sum(dim=(-2, -1), keepdim=True)
        relative.append(resized / mean.clamp_min(SMALLEST))
    names = torch.stack(relative).mean(dim=0)
    if layers:
        names = _mean_over_layers(names, layers, grid_hw, AffinityConfig(kind="iterated", balance=balance))
    numbers = torch.arange(maps.shape[1], device=maps.device)
    is_class = (numbers[None] < torch.tensor(n_classes, device=maps.device)[:, None])[:, :, None, None]
    reach = (maps * is_class).amax(dim=1, keepdim=True)
    strongest = (names * is_class).amax(dim=1, keepdim=True)
    return torch.where(is_class & (strongest > 0), reach * names / strongest.clamp_min(SMALLEST), maps)


def spread_between_alike(
    matrix: Float[Tensor, "batch cells cells"], values: Float[Tensor, "batch cells maps"], config: AffinityConfig
) -> Float[Tensor, "batch cells maps"]:
    """Apply A_d, `iterations` times: the rows of `alike_classes` * S, made to sum to 1. Source: as `alike_classes`."""
    spread_out = []
    for affinity, maps in zip(matrix, values, strict=True):
        weighted = alike_classes(maps.T, config.temperature) * affinity
        weighted = weighted / weighted.sum(dim=-1, keepdim=True).clamp_min(SMALLEST)
        for _ in range(config.iterations):
            maps = weighted @ maps
        spread_out.append(maps)
    return torch.stack(spread_out)


def alike_classes(maps: Float[Tensor, "classes cells"], temperature: float) -> Float[Tensor, "cells cells"]:
    """Return how alike the classes of two cells are: the softmax over each row of (1 - JS(P_i, P_j)) / temperature.

    P_i is the softmax over the classes and the background at cell i, JS the Jensen-Shannon divergence in bits, 0 to 1.
    Background words that are read count as classes; maps that are zero everywhere, as those of classes of other
    sentences are, take no part.

    Source: class distribution-induced affinity of CD-CLIP, CVPR 2026. Where we differ: the background's map is 1 minus
    the largest of the classes' maps, as no threshold is known here.
    """
    used = maps[maps.amax(dim=1) > 0]
    background = 1 - used.amax(dim=0, keepdim=True) if len(used) else torch.ones_like(maps[:1])
    shares = torch.softmax(torch.cat([background, used]), dim=0).T
    own = _entropy_bits(shares)
    step = max(1, DIVERGENCE_ELEMENTS // shares.numel())
    parts = []
    for rows, entropy in zip(shares.split(step), own.split(step), strict=True):
        mixed = _entropy_bits((rows[:, None] + shares[None]) / 2)
        divergence = (mixed - (entropy[:, None] + own[None]) / 2).clamp(0, 1)
        parts.append(torch.softmax((1 - divergence) / temperature, dim=-1))
    return torch.cat(parts)


def _entropy_bits(shares: Float[Tensor, "*cells classes"]) -> Float[Tensor, "*cells"]:
    return torch.special.entr(shares).sum(dim=-1) / math.log(2)


def _mean_over_layers(
    source: Tensor, layers: Sequence[SelfAttention], grid_hw: tuple[int, int], config: AffinityConfig
) -> Tensor:
    """Apply the affinity of each layer at its own grid and average."""
    total = torch.zeros_like(source)
    for layer in layers:
        values = resize_maps(source, layer.grid_hw).flatten(2).transpose(1, 2)
        applied = _apply_kind(layer, values, config)
        total += resize_maps(applied.transpose(1, 2).unflatten(-1, layer.grid_hw), grid_hw)
    return total / len(layers)


def _apply_kind(
    layer: SelfAttention, values: Float[Tensor, "batch cells maps"], config: AffinityConfig
) -> Float[Tensor, "batch cells maps"]:
    """Apply one layer's affinity to maps."""
    match config.kind:
        case "caa":
            return layer.power(values, 2, config.balance)
        case "iterated":
            return layer.power(values, 1, config.balance)
        case "iseg":
            return iterate_normalised(sharpened(layer.matrix(), config.sharpening), values)
        case "clipes":
            return balanced(layer.matrix()) @ values
        case "cda":
            return spread_between_alike(layer.matrix(), values, config)
        case "none":
            return values


def sharpened(matrix: Float[Tensor, "batch cells cells"], weight: float) -> Float[Tensor, "batch cells cells"]:
    """Lower the entropy of each row: S/max, then max(0, S + weight * log10(e S)), rows summing to 1 again.

    Source: iSeg, arXiv 2409.03209, section 3.2. Entries that are small beside their row's largest are removed.
    """
    relative = matrix / matrix.amax(dim=-1, keepdim=True)
    entropy = weight * torch.log10((torch.e * relative).clamp_min(1e-20))
    kept = (relative + entropy).clamp_min(0)
    return kept / kept.sum(dim=-1, keepdim=True).clamp_min(SMALLEST)


def iterate_normalised(
    matrix: Float[Tensor, "batch cells cells"], values: Float[Tensor, "batch cells maps"]
) -> Float[Tensor, "batch cells maps"]:
    """Apply a matrix ten times; each time subtract the smallest value and divide by the sum. Source: as `sharpened`."""
    for _ in range(ISEG_ROUNDS):
        values = matrix @ values
        values = values - values.amin(dim=1, keepdim=True)
        values = values / values.sum(dim=1, keepdim=True).clamp_min(SMALLEST)
    return values


def balanced(matrix: Float[Tensor, "batch cells cells"]) -> Float[Tensor, "batch cells cells"]:
    """Balance columns and rows three times, make symmetric, square. Source: CLIP-ES, arXiv 2212.09506, section 3.3."""
    for _ in range(SINKHORN_ROUNDS):
        matrix = columns_then_rows(matrix)
    symmetric = (matrix + matrix.transpose(1, 2)) / 2
    return symmetric @ symmetric


def columns_then_rows(matrix: Float[Tensor, "batch cells cells"]) -> Float[Tensor, "batch cells cells"]:
    """Divide columns by their sums, then rows by theirs: one round of Sinkhorn and Knopp's balancing.

    A column may be zero to the last bit, where attention is sharp.
    """
    matrix = matrix / matrix.sum(dim=1, keepdim=True).clamp_min(SMALLEST)
    return matrix / matrix.sum(dim=2, keepdim=True)
