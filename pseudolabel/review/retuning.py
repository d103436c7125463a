"""Masks that a reviewer changes: by other settings, or by drawing on them at the size that they are shown at."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from pseudolabel.masks.config import CrfConfig, MaskConfig
from pseudolabel.masks.working import enlarged_to, shrunk_to, working_size

Mask = UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class Retuned:
    """Mask settings that a reviewer may change; None: as the store was made."""

    threshold: float | None = None
    crf: bool | None = None
    scale: float | None = None
    ignore_below: float | None = None


def retuned_settings(config: MaskConfig, change: Retuned) -> MaskConfig:
    """Return a store's mask settings with a reviewer's changes; a CRF that is turned on is the store's own kind.

    Raises:
        ConfigError: a value out of its range.

    """
    fuse, crf = config.fuse, config.crf
    if change.threshold is not None:
        fuse = replace(fuse, threshold=change.threshold)
    if change.crf is not None:
        own = crf.kind if crf.kind != "none" else CrfConfig.kind
        crf = replace(crf, kind=own if change.crf else "none")
    if change.scale is not None:
        crf = replace(crf, scale=change.scale)
    below = config.ignore_below if change.ignore_below is None else change.ignore_below
    return replace(config, fuse=fuse, crf=crf, ignore_below=below)


def display_size(image_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width that an image is shown and drawn on at: its own, or 2.1 million pixels."""
    return working_size(image_hw, CrfConfig())


def shrunk(rgb_u8: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Return an image at the size that it is shown at."""
    return shrunk_to(rgb_u8, display_size((rgb_u8.shape[0], rgb_u8.shape[1])))


def displayed(mask: Mask) -> UInt8[np.ndarray, "rows columns"]:
    """Return a mask at the size that its image is shown at; ids are kept."""
    return enlarged_to(mask, display_size((mask.shape[0], mask.shape[1])))


def drawn_over(under: Mask, drawn: UInt8[np.ndarray, "rows columns"]) -> Mask:
    """Return a mask of full size with what was drawn on it at the size it is shown at; all else stays to the pixel."""
    changed = drawn != displayed(under)
    size_hw = (under.shape[0], under.shape[1])
    where = enlarged_to(changed.astype(np.uint8), size_hw).astype(bool)
    return np.where(where, enlarged_to(drawn, size_hw), under)
