"""From cached soft maps to a mask: background, image size, refinement, class ids and the ignore band.

Needs no diffusion model, and torch for PAMR, the dense CRF's torch engine and SAM alone; can be sent to worker
processes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8

from data.classes import IGNORE
from data.errors import ImageError, StoreError
from data.store.softmaps import SoftMaps
from pseudolabel.masks.config import MaskConfig
from pseudolabel.masks.crf import refine_scores, runs_on_gpu
from pseudolabel.masks.fuse import image_scores
from pseudolabel.masks.working import enlarged_to, shrunk_to, working_size


@dataclass(frozen=True)
class Labelled:
    """The labels of an image at its own size.

    Attributes:
        mask: class ids, 255 where it is unsure.
        argmax: the same without that band, which is what scoring uses.
        objects: connected parts that SAM was asked about; 0 where it is off.
        changed: number of those that it changed.

    """

    mask: UInt8[np.ndarray, "height width"]
    argmax: UInt8[np.ndarray, "height width"]
    objects: int = 0
    changed: int = 0


def label_map(
    rgb_u8: UInt8[np.ndarray, "rows columns 3"],
    soft: SoftMaps,
    config: MaskConfig,
    device: str = "cpu",
) -> tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"]]:
    """Return `labelled`'s mask and argmax; arguments and errors are the same."""
    found = labelled(rgb_u8, soft, config, device)
    return found.mask, found.argmax


def labelled(
    rgb_u8: UInt8[np.ndarray, "rows columns 3"],
    soft: SoftMaps,
    config: MaskConfig,
    device: str = "cpu",
) -> Labelled:
    """Return a mask with 255 where it is unsure, and the same mask without that band.

    Args:
        rgb_u8: the image as it is in its file, or at its working size.
        soft: its soft maps.
        config: threshold, refinement, SAM and ignore band.
        device: where PAMR, the dense CRF's torch engine and SAM run.

    Raises:
        ConfigError: the memory of a GPU does not hold the refinement, or SAM.
        ImageError: the image is not of the size the soft maps were made for.
        StoreError: NaN or infinite values in the soft maps.

    """
    marginals = image_marginals(rgb_u8, soft, config, device)
    return decided(rgb_u8, marginals, soft, config, device)


def decided(
    rgb_u8: UInt8[np.ndarray, "rows columns 3"],
    marginals: Float32[np.ndarray, "labels height width"],
    soft: SoftMaps,
    config: MaskConfig,
    device: str = "cpu",
) -> Labelled:
    """Return the labels that marginals at the working size stand for, after SAM where it is on; see `labelled`.

    Where SAM decides, nothing is unsure.
    """
    mask, argmax = mask_from_marginals(marginals, soft.labels, config.ignore_below)
    objects = changed = 0
    if config.sam.id is not None:
        from pseudolabel.masks.sam import sharpened

        small = shrunk_to(rgb_u8, (argmax.shape[0], argmax.shape[1]))
        found = sharpened(small, argmax, marginals, soft.labels, config.sam, device)
        mask, argmax = np.where(found.touched, found.argmax, mask), found.argmax
        objects, changed = found.objects, found.changed
    return Labelled(enlarged_to(mask, soft.image_hw), enlarged_to(argmax, soft.image_hw), objects, changed)


def runs_here(config: MaskConfig, device: str) -> bool:
    """Return whether masks are made in the process that holds the model: on its GPU, or with a SAM, loaded once."""
    return config.sam.id is not None or runs_on_gpu(config.crf, device)


def image_marginals(
    rgb_u8: UInt8[np.ndarray, "rows columns 3"], soft: SoftMaps, config: MaskConfig, device: str = "cpu"
) -> Float32[np.ndarray, "labels height width"]:
    """Return the marginals of background and labels at the image's working size; arguments and errors as `label_map`.

    An argmax over NaN would be background everywhere, and sure of it: soft maps that hold any are refused.
    """
    work_hw = working_size(soft.image_hw, config.crf)
    if rgb_u8.shape[:2] not in (soft.image_hw, work_hw):
        raise ImageError(
            f"The image is {rgb_u8.shape[:2]} but its soft maps are for {soft.image_hw}: the file has changed; "
            "generate it again (--run.overwrite)"
        )
    read = (soft.maps,) if soft.words is None else (soft.maps, soft.words)
    if not all(np.isfinite(maps).all() for maps in read):
        raise StoreError(
            "its soft maps hold NaN or infinite values; generate it again (--run.overwrite --run.dtype float32)"
        )
    shrunk = max(work_hw) / max(soft.image_hw)
    scores = image_scores(soft, config.fuse, work_hw)
    return refine_scores(shrunk_to(rgb_u8, work_hw), scores, config.crf, device, shrunk)


def mask_from_marginals(
    marginals: Float[np.ndarray, "rows height width"], labels: tuple[int, ...], ignore_below: float
) -> tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"]]:
    """Return the mask with the ignore band and the plain argmax, as class ids."""
    argmax = np.array([0, *labels], np.uint8)[marginals.argmax(axis=0)]
    mask = np.where(marginals.max(axis=0) < ignore_below, np.uint8(IGNORE), argmax)
    return mask, argmax
