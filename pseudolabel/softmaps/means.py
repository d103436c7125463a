"""The last step of the figure's first half: what the passes of some images showed becomes their soft maps."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.store.softmaps import Frame, SoftMaps
from pseudolabel.softmaps.grids import regrid
from pseudolabel.softmaps.passes import Pass
from pseudolabel.softmaps.reading import Reading

Batches = Iterable[tuple[Sequence[Pass], Reading]]


def mean_maps(
    batches: Batches,
    n_labels: Sequence[int],
    words: Sequence[dict[str, int]],
    frames: Sequence[Frame],
    grids: Sequence[tuple[int, int]],
    device: torch.device,
    watch: Callable[[Sequence[Pass], Reading], None] | None = None,
) -> list[Float[Tensor, "_classes _grid_h _grid_w"]]:
    """Return each image's maps: the mean over its passes on its own grid; those of its background words follow.

    Args:
        batches: passes of the images, in any order, and what they showed.
        n_labels: number of classes of each image.
        words: of each image, its background words by number; none where they are not read.
        frames: frame of each image.
        grids: grid that each image's maps are kept on.
        device: where the maps are.
        watch: is called with every batch and what it showed.

    """
    sizes = [n + len(own) for n, own in zip(n_labels, words, strict=True)]
    totals = [torch.zeros(n, *grid, device=device) for n, grid in zip(sizes, grids, strict=True)]
    counts = [torch.zeros(n, 1, 1, device=device) for n in sizes]

    def add(batch: Sequence[Pass], reading: Reading) -> None:
        for item, maps in zip(batch, reading.refined, strict=True):
            rows = [*item.prompt.rows]
            if words[item.image]:
                rows += [n_labels[item.image] + words[item.image][word] for word, _ in item.prompt.words]
            own = maps[: len(rows)]
            target, grid_hw = frames[item.image], grids[item.image]
            totals[item.image][rows] += regrid(own, item.frame, item.mirrored, target, grid_hw)
            counts[item.image][rows] += 1

    for batch, reading in batches:
        add(batch, reading)
        if watch is not None:
            watch(batch, reading)
        del reading  # the next batch needs its memory
    return [total / count for total, count in zip(totals, counts, strict=True)]


def to_soft_maps(
    maps: Float[Tensor, "classes grid_h grid_w"], labels: tuple[int, ...], frame: Frame, words: bool = False
) -> SoftMaps:
    """Return maps as the store keeps them; with `words` what follows the labels' maps are those of background words."""
    half = maps.clamp(0, 1).cpu().numpy().astype(np.float16)
    own, others = half[: len(labels)], half[len(labels) :]
    most = others.max(axis=0, initial=0) if words else None
    return SoftMaps(own, tuple(labels), False, frame.padded_hw, frame.resized_hw, frame.image_hw, most)
