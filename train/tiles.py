"""Class probabilities of large images, one block after another, so that memory does not grow with the image.

The windows are those of `inference.probabilities`, and so is what is made of them; only what is held at a time differs.
An image is cut into strips of columns as wide as `HELD_BYTES` allows, each of which is gone through from top to bottom:
a row of windows is shown to the network, and what no later window adds to is handed on. Windows across the edge of two
strips are shown twice.

The result is that of `probabilities` but for rounding: some 1e-7; more at other scales than 1 in images of many
thousand pixels, whose places torch's interpolation computes in single precision, and this in double.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data.errors import ModelError
from train.inference import InferenceConfig, Network, merge, not_finite, padded_scores, view_size, window_starts

HELD_BYTES = 256 << 20  # of the scores of a row of windows, over all views; working on them takes some times that
BAND_ROWS = 256  # rows of a block; a multiple of CELL_PX
CELL_PX = 8  # edges of blocks lie on multiples of this, so that cells of this side are never cut


@dataclass(frozen=True)
class Block:
    """A part of an image's probabilities: where it lies, and float32 (classes, rows, columns)."""

    rows: slice
    columns: slice
    values: Float[np.ndarray, "classes height width"]


@dataclass(frozen=True)
class _Taps:
    """Where new samples lie among old ones: two neighbours each, and the share of the second."""

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray

    @property
    def span(self) -> slice:
        """The old samples that are read."""
        return slice(int(self.low[0]), int(self.high[-1]) + 1)


def needs_blocks(size_hw: tuple[int, int], n_classes: int, config: InferenceConfig) -> bool:
    """Return whether an image is predicted in blocks: large, cut into windows, and without a CRF (`crf_tiles`)."""
    windows = config.window is not None and max(size_hw) > config.window
    return windows and not config.crf.enabled and 4 * n_classes * size_hw[0] * size_hw[1] > HELD_BYTES


def probability_blocks(
    network: Network,
    rgb: UInt8[Tensor, "3 height width"],
    n_classes: int,
    config: InferenceConfig,
    fill: Tensor,
    model: str = "The network",
) -> Iterator[Block]:
    """Yield the class probabilities of an image in blocks that cover it once.

    Args:
        network: as in `inference.probabilities`.
        rgb: the image, wherever it lies; parts of it are moved to the network's device.
        n_classes: how many scores the network gives.
        config: scales, flip, and windows, which must be set.
        fill: what windows are padded with, on the network's device.
        model: what the network is called in an error.

    Raises:
        ModelError: scores that are NaN or infinite.

    """
    for columns in pieces(rgb.shape[-1], _strip_width(n_classes, config)):
        yield from strip_blocks(network, rgb, columns, config, fill, model)


def strip_blocks(
    network: Network,
    rgb: UInt8[Tensor, "3 height width"],
    columns: slice,
    config: InferenceConfig,
    fill: Tensor,
    model: str,
) -> Iterator[Block]:
    """Yield the class probabilities of some columns of an image in blocks from top to bottom; as above."""
    watched = _Watched(network, model)
    views = [
        _View(watched, rgb, scale, flipped, columns, config, fill)
        for scale in config.scales
        for flipped in ((False, True) if config.flip else (False,))
    ]
    for rows in pieces(rgb.shape[-2], BAND_ROWS):
        merged = views[0].rows(rows)
        for view in views[1:]:
            merged = merge(merged, view.rows(rows), config)
        if len(views) > 1:
            merged = merged / merged.sum(dim=1, keepdim=True)
        yield Block(rows, columns, merged[0].cpu().numpy())


def _strip_width(n_classes: int, config: InferenceConfig) -> int:
    """Return how many columns of the image a strip has."""
    assert config.window is not None
    views = sum(config.scales) * (2 if config.flip else 1)
    columns = int(HELD_BYTES / (4 * n_classes * config.window * views))
    return max(config.window, columns) // CELL_PX * CELL_PX


def pieces(length: int, size: int) -> list[slice]:
    """Return parts of a length from its beginning to its end, each of this size but the last."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class _Watched:
    """A network whose scores are checked."""

    def __init__(self, network: Network, model: str) -> None:
        self.network, self.model = network, model

    def __call__(self, images: Tensor) -> Tensor:
        scores = self.network(images)
        if not scores.isfinite().all():
            raise ModelError(not_finite(self.model, {scores.dtype}))
        return scores


class _View:
    """The image at one scale, mirrored or not: its probabilities in a strip of columns, from top to bottom."""

    def __init__(
        self,
        network: Network,
        rgb: Tensor,
        scale: float,
        flipped: bool,
        columns: slice,
        config: InferenceConfig,
        fill: Tensor,
    ) -> None:
        assert config.window is not None
        self.network, self.rgb, self.fill, self.flipped = network, rgb, fill, flipped
        self.size_hw, self.window = (rgb.shape[-2], rgb.shape[-1]), config.window
        self.view_hw = view_size(self.size_hw, scale)
        width = self.size_hw[1]
        seen = slice(width - columns.stop, width - columns.start) if flipped else columns
        self.columns = _taps(self.view_hw[1], width, seen)
        first, last = self.columns.span.start, self.columns.span.stop
        lefts = window_starts(self.view_hw[1], self.window, config.overlap)
        self.lefts = [left for left in lefts if left < last and left + self.window > first]
        self.tops = window_starts(self.view_hw[0], self.window, config.overlap)
        self.first_row = 0
        self.held: Tensor | None = None  # from `first_row` on: sums of scores, and in the last channel of how many

    def rows(self, rows: slice) -> Float[Tensor, "1 classes height width"]:
        """Return the probabilities of rows of the image; each call must ask for rows below those of the last one."""
        taps = _taps(self.view_hw[0], self.size_hw[0], rows)
        if self.held is not None:
            self.held = self.held[..., taps.span.start - self.first_row :, :]
            self.first_row = taps.span.start
        while self.tops and self.tops[0] < taps.span.stop:
            self._add_windows(self.tops.pop(0))
        assert self.held is not None
        sums = self.held[..., : taps.span.stop - self.first_row, :]
        part = (sums[:, :-1] / sums[:, -1:]).softmax(dim=1)
        part = _interpolate(part, taps, -2, self.first_row)
        part = _interpolate(part, self.columns, -1, self.columns.span.start)
        return part.flip(-1) if self.flipped else part

    def _add_windows(self, top: int) -> None:
        """Show a row of windows to the network and add its scores."""
        span = self.columns.span
        rows = slice(top, min(top + self.window, self.view_hw[0]))
        start = max(top, self.first_row)  # what lies above is not asked for again
        for left in self.lefts:
            columns = slice(left, min(left + self.window, self.view_hw[1]))
            scores = padded_scores(self.network, self._pixels(rows, columns), self.fill)
            held = self._room(rows.stop, scores)[..., start - self.first_row : rows.stop - self.first_row, :]
            inner = slice(max(left, span.start), min(columns.stop, span.stop))
            there = held[..., inner.start - span.start : inner.stop - span.start]
            there[:, :-1] += scores[..., start - top :, inner.start - left : inner.stop - left]
            there[:, -1:] += 1

    def _room(self, stop: int, scores: Tensor) -> Tensor:
        """Return what is held, with zeros for the rows above `stop` that were not held yet."""
        width = self.columns.span.stop - self.columns.span.start
        missing = stop - self.first_row - (0 if self.held is None else self.held.shape[-2])
        if missing > 0:
            more = scores.new_zeros(1, scores.shape[1] + 1, missing, width)
            self.held = more if self.held is None else torch.cat([self.held, more], dim=-2)
        assert self.held is not None
        return self.held

    def _pixels(self, rows: slice, columns: slice) -> Float[Tensor, "1 3 height width"]:
        """Return a part of the view, as the network takes it."""
        if self.flipped:
            width = self.view_hw[1]
            columns = slice(width - columns.stop, width - columns.start)
        device = self.fill.device
        if self.view_hw == self.size_hw:
            part = self.rgb[:, rows, columns].to(device).float()
        else:
            down, span_down = _weights(self.size_hw[0], self.view_hw[0], rows)
            across, span_across = _weights(self.size_hw[1], self.view_hw[1], columns)
            part = self.rgb[:, span_down, span_across].to(device).float()
            part = down.to(device) @ part @ across.to(device).T
        return (part.flip(-1) if self.flipped else part)[None]


def _taps(old: int, new: int, wanted: slice) -> _Taps:
    """Return where some of `new` samples lie among `old` ones, for bilinear interpolation without aligned corners."""
    place = np.maximum((np.arange(wanted.start, wanted.stop) + 0.5) * (old / new) - 0.5, 0)
    low = np.minimum(place.astype(np.int64), old - 1)
    return _Taps(low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32))


def _interpolate(values: Tensor, taps: _Taps, dim: int, first: int) -> Tensor:
    """Return values along a dimension at other places; the values begin at old sample `first`."""
    if not taps.share.any() and (np.diff(taps.low) == 1).all():  # at an odd number of times the size: each third one
        return values.narrow(dim, int(taps.low[0]) - first, len(taps.low))
    low, high = (torch.from_numpy(at - first).to(values.device) for at in (taps.low, taps.high))
    share = torch.from_numpy(taps.share).to(values.device)
    shape = (-1, 1) if dim == -2 else (-1,)
    return torch.lerp(values.index_select(dim, low), values.index_select(dim, high), share.view(shape))


def _weights(old: int, new: int, wanted: slice) -> tuple[Float[Tensor, "new old"], slice]:
    """Return what makes some of `new` samples of `old` ones, and which of these it reads.

    Bilinear; where samples become fewer, the triangle widens with their distance, so that none is passed over. That is
    torch's interpolation with antialias, and, where they become more, without.
    """
    ratio = old / new
    support = max(ratio, 1.0)
    centre = (np.arange(wanted.start, wanted.stop) + 0.5) * ratio
    span = slice(max(0, int(centre[0] - support)), min(old, int(centre[-1] + support) + 1))
    distance = np.abs(np.arange(span.start, span.stop) + 0.5 - centre[:, None])
    weights = np.maximum(0, 1 - distance / support)
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)), span
