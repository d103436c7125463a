"""High-dimensional Gaussian filtering on the permutohedral lattice, in torch's words, on any of its devices.

Source: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010, as
Kraehenbuehl's dense CRF uses it: rounding, ties, the order of sums and the scale are those of its C++ code in float32,
so that both create the same lattice points and give the same filter up to the last bits. Where we differ: the hash
table is a sort. A point's coordinates are packed into one integer, equal points lie together once they are sorted, and
since a step along an axis adds the same number to every packed point, neighbours are found by binary search. Splat,
blur and slice are weighted sums of rows, each one call of `embedding_bag`.

Both stages run the dense CRF, they meet in `data/` alone, and `data/` imports no torch: the caller hands it in.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.errors import ConfigError

PIXELS_AT_ONCE = 1 << 17  # of which the simplices are found together: the scratch arrays stay in the cache
LARGEST_KEY = 1 << 62
# Lattice values of a CPU that are blurred together. An array above 32 MB is mapped anew by the C library each time,
# and 21 columns at once took 1.8 times as long as three times 7.
VALUES_AT_ONCE = 6_000_000
FEWEST_COLUMNS = 4


@dataclass(frozen=True)
class Bags:
    """Rows that are weighted sums of other rows: a sparse matrix.

    Attributes:
        rows: int32; two axes: the rows in each sum; one axis: those of all sums, one sum after the other.
        weights: float32, of each of these rows.
        starts: int32, where each sum begins in `rows`; None where `rows` has two axes.

    """

    rows: Any
    weights: Any
    starts: Any = None

    def sums(self, torch: Any, values: Any) -> Any:
        """Return the sums of rows of `values` (rows, columns)."""
        return torch.nn.functional.embedding_bag(
            self.rows, values, self.starts, mode="sum", per_sample_weights=self.weights
        )


@dataclass(frozen=True)
class Lattice:
    """A Gaussian filter over some points: `sliced` of `blurs` of `splat`.

    Attributes:
        splat: lattice points as sums of the points; the last one, which nothing reaches, stands for all missing ones.
        blurs: lattice points as sums of themselves and their two neighbours, along each axis.
        sliced: points as sums of lattice points.

    """

    splat: Bags
    blurs: tuple[Bags, ...]
    sliced: Bags

    def filtered(self, torch: Any, values: Any) -> Any:
        """Return the filtered values (points, columns)."""
        if values.device.type != "cpu":
            return self._filtered(torch, values)
        columns = max(FEWEST_COLUMNS, VALUES_AT_ONCE // len(self.blurs[0].rows))
        parts = values.split(math.ceil(values.shape[1] / math.ceil(values.shape[1] / columns)), dim=1)
        return torch.cat([self._filtered(torch, part.contiguous()) for part in parts], dim=1)

    def _filtered(self, torch: Any, values: Any) -> Any:
        values = self.splat.sums(torch, values)
        for blur in self.blurs:
            values = blur.sums(torch, values)
        return self.sliced.sums(torch, values)

    def normalised(self, torch: Any, weight: float) -> "Lattice":
        """Return D K D times a weight, where K is this filter and D = diag(K 1)^(-1/2)."""
        ones = torch.ones(len(self.sliced.rows), 1, device=self.sliced.weights.device)
        scale = (self.filtered(torch, ones)[:, 0] + 1e-20).rsqrt()
        splat = replace(self.splat, weights=self.splat.weights * scale[self.splat.rows])
        sliced = replace(self.sliced, weights=self.sliced.weights * (weight * scale)[:, None])
        return Lattice(splat, self.blurs, sliced)


def gaussian_lattice(torch: Any, features: Sequence[Any]) -> Lattice:
    """Return the filter with weights exp(-|f_i - f_j|^2 / 2), approximately and up to a factor.

    Args:
        torch: the module.
        features: coordinates of the points, each at least 0, in units of the filter's standard deviation; one float32
            tensor (points,) for each dimension.

    Raises:
        ConfigError: the points are spread over more standard deviations than a key can hold.

    """
    strides, offset = _packing(features)
    n, axes = len(features[0]), len(features) + 1
    parts = [_simplices(torch, [each[at] for each in features], strides, offset) for at in _slices(n)]
    keys, weights = (torch.cat([part[i] for part in parts]).reshape(-1) for i in (0, 1))
    del parts
    keys, order = torch.sort(keys, stable=True)  # stable: sums in the order of the points, whatever the number of cores
    is_new = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    is_new[1:] = keys[1:] != keys[:-1]
    number = torch.cumsum(is_new, 0, dtype=torch.int32) - 1
    keys = keys[is_new]
    ends = order.new_tensor([len(order)])
    starts = torch.cat([is_new.nonzero()[:, 0], ends]).int()  # the last sum is of nothing
    splat = Bags((order // axes).int(), weights[order], starts)
    vertices = torch.empty_like(number)
    vertices[order] = number
    del order, number, is_new
    sliced = Bags(vertices.reshape(n, axes), weights.reshape(n, axes) / (1 + 2.0 ** (1 - axes)))
    taps = torch.tensor([1, 0.5, 0.5], device=keys.device).expand(len(keys) + 1, 3).contiguous()
    steps = [axes * stride - sum(strides) for stride in strides]
    return Lattice(splat, tuple(Bags(_neighbours(torch, keys, step), taps) for step in steps), sliced)


def _slices(n: int) -> Iterator[slice]:
    return (slice(start, start + PIXELS_AT_ONCE) for start in range(0, n, PIXELS_AT_ONCE))


def _scales(n_features: int) -> list[float]:
    """Return what the features are multiplied by (Adams et al., page 5), rounded as the C++ code does."""
    deviation = _float32(math.sqrt(2 / 3) * (n_features + 1))
    return [_float32(deviation / math.sqrt((i + 2) * (i + 1))) for i in range(n_features)]


def _float32(value: float) -> float:
    import numpy as np

    return float(np.float32(value))


def _packing(features: Sequence[Any]) -> tuple[list[int], int]:
    """Return strides and offset of packed coordinates: a lattice point's key is offset + sum of stride * coordinate.

    The last coordinate follows from the others and has stride 0. Each coordinate has room for points two simplices
    outside, so that no neighbour's key is another point's.
    """
    axes, largest = len(features) + 1, [float(each.max()) for each in features]
    reach = [scale * value for scale, value in zip(_scales(len(features)), largest, strict=True)]
    low = [-axis * reach[axis - 1] if axis else 0.0 for axis in range(axes - 1)]
    high = [sum(reach[axis:]) for axis in range(axes - 1)]
    first = [math.floor(each) - 3 * axes for each in low]
    spans = [math.ceil(end) + 3 * axes - start + 1 for start, end in zip(first, high, strict=True)]
    strides = [math.prod(spans[axis + 1 :]) for axis in range(axes - 1)]
    if math.prod(spans) >= LARGEST_KEY:
        raise ConfigError(
            "The dense CRF's ranges are too small for an image of this size (their standard deviations span it "
            f"{max(largest):.0f} times): raise crf.sxy_bilateral and crf.srgb_bilateral."
        )
    return [*strides, 0], -sum(start * stride for start, stride in zip(first, strides, strict=True))


def _simplices(torch: Any, features: Sequence[Any], strides: Sequence[int], offset: int) -> tuple[Any, Any]:
    """Return keys (int64) and barycentric weights (float32) of the corners of each point's simplex (points, axes)."""
    axes = len(features) + 1
    elevated = _elevated(torch, features)
    share = elevated * _float32(1 / axes)
    nearest = torch.round(share)
    rank = _ranks(torch, elevated - axes * nearest) + nearest.sum(dim=0).to(torch.int8)  # off the plane: brought back
    around = (rank < 0).to(torch.int8) - (rank >= axes).to(torch.int8)
    place = (axes - 1 - rank - axes * around).long()
    origin = axes * (nearest + around)
    rest = torch.empty_like(origin).scatter_(0, place, (elevated - origin) * _float32(1 / axes))
    weights = rest.clone()
    weights[1:] -= rest[:-1]
    weights[0] += 1 - rest[-1]
    stride = torch.tensor(strides, device=origin.device)[:, None]
    placed = torch.empty_like(place).scatter_(0, place, stride.expand_as(place))
    keys = [(origin.long() * stride).sum(dim=0) + offset]
    for step in placed[:-1]:
        keys.append(keys[-1] + (sum(strides) - axes * step))
    return torch.stack(keys, dim=1), weights.T.contiguous()


def _elevated(torch: Any, features: Sequence[Any]) -> Any:
    """Return the points on the plane in which coordinates sum to 0 (axes, points); page 5."""
    total = torch.zeros_like(features[0])
    rows = []
    for axis, scale in reversed(list(enumerate(_scales(len(features)), start=1))):
        scaled = features[axis - 1] * scale
        rows.append(total - axis * scaled)
        total = total + scaled
    return torch.stack([total, *reversed(rows)])


def _ranks(torch: Any, rest: Any) -> Any:
    """Return how many of a point's coordinates are larger (axes, points), int8; of equal ones the first ranks first."""
    rank = torch.zeros(rest.shape, dtype=torch.int8, device=rest.device)
    for i in range(len(rest)):
        for j in range(i + 1, len(rest)):
            smaller = rest[i] < rest[j]
            rank[i] += smaller
            rank[j] += ~smaller
    return rank


def _neighbours(torch: Any, keys: Any, step: int) -> Any:
    """Return each lattice point and its neighbours a step up and down (points + 1, 3), int32.

    Where there is none, it is the last row, whose value is 0.
    """
    count = len(keys)
    own = torch.arange(count, dtype=torch.int32, device=keys.device)
    wanted = keys + step
    found = torch.searchsorted(keys, wanted, out_int32=True).clamp_max_(count - 1)
    exists = keys[found] == wanted
    table = torch.full((count + 2, 3), count, dtype=torch.int32, device=keys.device)
    table[:count, 0] = own
    table[:count, 1] = torch.where(exists, found, count)
    table[torch.where(exists, found, count + 1), 2] = own  # the way back; a row too many takes what has none
    return table[: count + 1]
