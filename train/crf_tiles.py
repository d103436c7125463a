"""The dense CRF over large images, one tile after another, so that its memory does not grow with the image.

Each tile is made with a margin around it, which is dropped again. Each pixel of the CRF hangs on all others, but less
and less with their distance: with a margin of `REACH` widths of the colour term one pixel of a million gets another
label than from the whole image, and no probability moves by more than 0.05 (`benchmarks/crf_tiles.md`). The lattice on
which the CRF filters lies where that of the whole image lies (`origin_yx`); without that, one pixel of a thousand would
change its label.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from train.inference import CrfConfig, InferenceConfig, Network, probabilities, sharpen
from train.tiles import CELL_PX, Block, needs_blocks, pieces, probability_blocks, strip_blocks

WHOLE_PX = 2**21  # pixels that the CRF sees at a time; images up to this size are seen whole
REACH = 4  # of a tile's margin, in widths of the colour term
LEAST_SIDE_PX = 256  # of a tile without its margin, however wide that is


def blocks_of_large(
    network: Network,
    rgb: UInt8[Tensor, "3 height width"],
    n_classes: int,
    config: InferenceConfig,
    fill: Tensor,
    model: str,
) -> Iterator[tuple[Block, Block]] | None:
    """Return the class probabilities of a large image before and after the CRF, in blocks that cover it once.

    None for an image that is small enough to be held, which is then predicted in one piece. Without a CRF both are the
    same. Arguments as of `tiles.probability_blocks`.
    """
    height, width = rgb.shape[-2:]
    if config.crf.enabled:
        return sharpened_blocks(network, rgb, config, fill, model) if height * width > WHOLE_PX else None
    if not needs_blocks((height, width), n_classes, config):
        return None
    return ((block, block) for block in probability_blocks(network, rgb, n_classes, config, fill, model))


def sharpened_blocks(
    network: Network, rgb: UInt8[Tensor, "3 height width"], config: InferenceConfig, fill: Tensor, model: str
) -> Iterator[tuple[Block, Block]]:
    """Yield the class probabilities of an image before and after the CRF, in blocks that cover it once.

    Without windows the network sees the whole image, and its probabilities are held; the CRF works in tiles all the
    same. Arguments as of `tiles.probability_blocks`.
    """
    height, width = rgb.shape[-2:]
    pixels = rgb.permute(1, 2, 0).cpu().numpy()
    side, margin = tile_side(config.crf)
    whole = None
    if config.window is None or max(height, width) <= config.window:
        whole = probabilities(network, rgb[None].to(fill.device).float(), config, fill, model)[0].float().cpu().numpy()
    for columns in pieces(width, side):
        wide = _widened(columns, margin, width)
        tall = [_widened(rows, margin, height) for rows in pieces(height, side)]
        if whole is None:
            parts = _rows(strip_blocks(network, rgb, wide, config, fill, model), tall)
        else:
            parts = (whole[:, rows, wide] for rows in tall)
        for rows, outer, before in zip(pieces(height, side), tall, parts, strict=True):
            origin = outer.start, wide.start
            after = sharpen(pixels[outer, wide], before, config.crf, str(fill.device), origin)
            inner = (..., _within(rows, outer), _within(columns, wide))
            yield Block(rows, columns, before[inner]), Block(rows, columns, after[inner])


def tile_side(crf: CrfConfig) -> tuple[int, int]:
    """Return the side of a tile without its margin, and the margin, in pixels: multiples of `CELL_PX`."""
    margin = CELL_PX * math.ceil(REACH * crf.sxy_bilateral / CELL_PX)
    return max(LEAST_SIDE_PX, (math.isqrt(WHOLE_PX) - 2 * margin) // CELL_PX * CELL_PX), margin


def _widened(part: slice, margin: int, length: int) -> slice:
    return slice(max(0, part.start - margin), min(length, part.stop + margin))


def _within(part: slice, outer: slice) -> slice:
    return slice(part.start - outer.start, part.stop - outer.start)


def _rows(blocks: Iterable[Block], wanted: Iterable[slice]) -> Iterator[Float[np.ndarray, "classes height width"]]:
    """Yield the wanted rows of a strip, out of its blocks from top to bottom; what lies above them is dropped."""
    blocks = iter(blocks)
    held, first = next(blocks).values, 0
    for rows in wanted:
        parts = [held[:, rows.start - first :]]
        stop, first = first + held.shape[1], rows.start
        while stop < rows.stop:
            block = next(blocks)
            parts.append(block.values)
            stop = block.rows.stop
        held = np.concatenate(parts, axis=1)
        yield held[:, : rows.stop - first]
