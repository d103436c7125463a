"""Maps on grids: which cells hold image, min-max over them, and from one grid to another."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from data.store.softmaps import Frame
from pseudolabel.softmaps.layers import Layer

LEAST_DIVISOR = 0.2  # of `saturated`


def min_max(
    maps: Float[Tensor, "batch classes height width"], valid: Bool[Tensor, "batch #classes height width"] | None = None
) -> Float[Tensor, "batch classes height width"]:
    """Scale each map to 0..1 by its smallest and largest value in the valid region; a constant map becomes zero.

    Outside the valid region values are clipped to 0..1.
    """
    if valid is None:
        low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    else:
        low = maps.masked_fill(~valid, torch.inf).amin(dim=(-2, -1), keepdim=True)
        high = maps.masked_fill(~valid, -torch.inf).amax(dim=(-2, -1), keepdim=True)
    span = high - low
    scaled = (maps - low) / torch.where(span > 0, span, torch.ones_like(span))
    return scaled.clamp(0, 1)


def saturated(
    maps: Float[Tensor, "batch maps height width"],
    valid: Bool[Tensor, "batch 1 height width"],
    n_classes: Sequence[int],
    share: float,
) -> Float[Tensor, "batch maps height width"]:
    """Divide the maps of each element by what their strongest cells reach, and cut at 1; our own.

    A map scaled by its maximum lies low where one spot of an object stands out. The divisor is the same for all maps of
    an element (a pass: the classes of one sentence), so that these keep their order: the quantile 1 - `share`, over the
    cells that hold image, of a cell's highest class map; at least LEAST_DIVISOR, so that images with little to find are
    not blown up.

    Args:
        maps: 0 to 1; those of classes come first.
        valid: cells that hold image.
        n_classes: of each element, how many maps are classes; the others are divided alike.
        share: of the cells.

    """
    divisors = []
    for own, cells, count in zip(maps, valid, n_classes, strict=True):
        strongest = own[:count].amax(dim=0)[cells[0]]
        divisors.append(torch.quantile(strongest.float(), 1 - share).clamp_min(LEAST_DIVISOR))
    return (maps / torch.stack(divisors)[:, None, None, None]).clamp(0, 1)


def resize_maps(maps: Float[Tensor, "batch classes height width"], grid_hw: tuple[int, int]) -> Tensor:
    """Resize maps to another grid, bilinear, half-pixel centres."""
    if tuple(maps.shape[-2:]) == grid_hw:
        return maps
    return functional.interpolate(maps, size=grid_hw, mode="bilinear", align_corners=False)


def common_grid(
    cross_layers: Sequence[Layer], self_layers: Sequence[Layer], latent_hw: tuple[int, int]
) -> tuple[int, int]:
    """Return the grid maps are kept on: the finest self-attention grid, else the finest cross-attention grid."""
    return max(layer.grid_hw(latent_hw) for layer in self_layers or cross_layers)


def valid_sizes(frames: Sequence[Frame], grid_hw: tuple[int, int], valid_only: bool) -> list[tuple[int, int]]:
    """Return rows and columns of the grid that hold image, of each frame; all of them where padding takes part."""
    return [frame.valid_cells(grid_hw) if valid_only else grid_hw for frame in frames]


def valid_mask(
    frames: Sequence[Frame], grid_hw: tuple[int, int], valid_only: bool
) -> Bool[Tensor, "batch 1 height width"]:
    """Return which cells hold image, of each frame."""
    mask = torch.zeros(len(frames), 1, *grid_hw, dtype=torch.bool)
    for element, (rows, columns) in zip(mask, valid_sizes(frames, grid_hw, valid_only), strict=True):
        element[0, :rows, :columns] = True
    return mask


def regrid(
    maps: Float[Tensor, "classes height width"], source: Frame, mirrored: bool, target: Frame, grid_hw: tuple[int, int]
) -> Float[Tensor, "classes grid_h grid_w"]:
    """Resample maps of one frame onto another frame's grid so that the same part of the image stays at the same place.

    Args:
        maps: maps over the padded source frame.
        source: frame the maps were made in.
        mirrored: the image in it was mirrored, left to right.
        target: frame of the result.
        grid_hw: grid of the result, over the padded target frame.

    """
    if source == target and not mirrored:
        return resize_maps(maps[None], grid_hw)[0]
    axes = []
    for axis in (0, 1):
        cells = torch.arange(grid_hw[axis], device=maps.device, dtype=torch.float32) + 0.5
        share = cells * target.padded_hw[axis] / grid_hw[axis] / target.resized_hw[axis]  # of the image's side
        if mirrored and axis == 1:
            share = 1 - share
        axes.append(2 * share * source.resized_hw[axis] / source.padded_hw[axis] - 1)
    rows, columns = torch.meshgrid(axes[0], axes[1], indexing="ij")
    where = torch.stack([columns, rows], dim=-1)[None]
    return functional.grid_sample(maps[None], where, padding_mode="border", align_corners=False)[0]
