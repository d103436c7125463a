"""How much of a picture's attention a phrase draws, kept draw by draw: what its presence is judged from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from data.store.softmaps import Frame, SoftMaps
from pseudolabel.softmaps.grids import regrid
from pseudolabel.softmaps.passes import Pass
from pseudolabel.softmaps.reading import Reading


@dataclass(frozen=True)
class PhraseMaps:
    """What was read of an image's phrases.

    Attributes:
        soft: their maps, scaled to 0..1; `soft.labels` numbers them from 1.
        attention: for each phrase the share of each cell's attention that its tokens have together, in every pass that
            read it: timesteps, noise draws, flips, scales, and sentences where it stands in several. Cells of padding
            are left out. Not scaled: a phrase whose thing is not there has little everywhere.
        idle: beside it, the share of the tokens that are no words: start, end and filler. Phrases may have different
            numbers of passes.

    """

    soft: SoftMaps
    attention: tuple[Float32[np.ndarray, "_passes rows columns"], ...]
    idle: tuple[Float32[np.ndarray, "_passes rows columns"], ...]


class AttentionShares:
    """Collects `Reading.attention` of the passes of some images, phrase by phrase."""

    def __init__(self, frames: Sequence[Frame], grids: Sequence[tuple[int, int]], counts: Sequence[int]) -> None:
        """Start empty, for images of these frames, grids and numbers of phrases."""
        self._frames, self._grids = frames, grids
        self._found: list[list[list[tuple[np.ndarray, np.ndarray]]]] = [[[] for _ in range(n)] for n in counts]

    def add(self, batch: Sequence[Pass], reading: Reading) -> None:
        """Keep what a batch showed."""
        assert reading.attention is not None
        for item, maps in zip(batch, reading.attention, strict=True):
            target, grid_hw = self._frames[item.image], self._grids[item.image]
            own = torch.cat([maps[: len(item.prompt.rows)], maps[-1:]])
            rows, columns = target.valid_cells(grid_hw)
            shares = regrid(own, item.frame, item.mirrored, target, grid_hw)[:, :rows, :columns].float().cpu().numpy()
            for row, share in zip(item.prompt.rows, shares, strict=False):
                self._found[item.image][row].append((share, shares[-1]))

    def of(
        self, image: int
    ) -> tuple[
        tuple[Float32[np.ndarray, "_passes rows columns"], ...], tuple[Float32[np.ndarray, "_passes rows columns"], ...]
    ]:
        """Return attention and idle of an image's phrases, as `PhraseMaps` has them."""
        phrases = self._found[image]
        attention = tuple(np.stack([share for share, _ in passes]) for passes in phrases)
        return attention, tuple(np.stack([idle for _, idle in passes]) for passes in phrases)
