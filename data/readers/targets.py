"""What phrase data sets share: a thing to find in an image, and the mask that says where it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from data.errors import ImageError
from data.images import as_shown, open_image, size_of


@dataclass(frozen=True)
class MaskFile:
    """A picture in which everything but black is the thing."""

    path: Path


@dataclass(frozen=True)
class MaskArray:
    """A mask in memory; anything but zero is the thing."""

    values: np.ndarray


@dataclass(frozen=True)
class CocoShape:
    """Polygons or a run-length code as `data.readers.coco_json` has checked them, and the size of their image."""

    shape: Any
    size_hw: tuple[int, int]


@dataclass(frozen=True)
class PanopticSegments:
    """Segments of a COCO panoptic PNG, whose colours are segment ids: red + 256 green + 65536 blue."""

    path: Path
    ids: tuple[int, ...]


Region = MaskFile | MaskArray | CocoShape | PanopticSegments


@dataclass(frozen=True)
class Target:
    """One thing to find in one image.

    Attributes:
        id: of the target; no two of a set share one.
        image_path: the image.
        phrase: what to look for: words, or a concept's name where tokens are learned for concepts.
        region: where it is; an empty mask where the image does not show it.
        sentence: the sentence the phrase stands in, where there is one.
        group: the concept or subset it belongs to, a row of tables.
        tags: other rows of tables it counts in.

    """

    id: str
    image_path: Path
    phrase: str
    region: Region
    sentence: str | None = None
    group: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetSet:
    """The targets of a data set.

    Attributes:
        kind: which protocol the figures follow.
        targets: what is to be found.
        concepts: of each concept (by `Target.phrase`) what is known: "token", "class_word"; empty for phrase sets.
        notes: what was left out and why, one sentence each.

    """

    kind: str
    targets: Sequence[Target]
    concepts: dict[str, dict[str, str]]
    notes: tuple[str, ...] = ()


def read_region(target: Target) -> Bool[np.ndarray, "height width"]:
    """Return the true mask of a target, upright as its image.

    Raises:
        ImageError: missing, damaged, or not of the image's size.

    """
    mask, size_hw = _drawn(target.region), size_of(target.image_path)
    mask = as_shown(mask.astype(np.uint8), size_hw, target.image_path) > 0
    if mask.shape != size_hw:
        where = f" {target.region.path}" if isinstance(target.region, MaskFile | PanopticSegments) else ""
        raise ImageError(
            f"The mask{where} of {target.id} has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), its image "
            f"{size_hw[0]} x {size_hw[1]}: they must be equal; is it another image's mask?"
        )
    return mask


def _drawn(region: Region) -> np.ndarray:
    match region:
        case MaskFile(path):
            return read_binary(path)
        case MaskArray(values):
            return values != 0
        case CocoShape(shape, size_hw):
            return _draw_coco(shape, size_hw)
        case PanopticSegments(path, ids):
            return np.isin(_segment_ids(path), ids)


def read_binary(path: Path) -> Bool[np.ndarray, "height width"]:
    """Return where a picture of any mode is not black; what is wholly transparent is black.

    Raises:
        ImageError: missing, damaged or too large.

    """
    if not path.exists():
        raise ImageError(f"There is no mask {path}; an image without the thing has a black mask.")
    with open_image(path, "mask") as image:
        if image.mode == "P":  # values, not colours: a palette may paint 0 in any colour
            return np.array(image) > 0
        if "A" in image.getbands():
            values = np.array(image.convert("RGBA"))
            return (values[..., :3].max(axis=-1) > 0) & (values[..., 3] > 0)
        values = np.array(image)
        return (values if values.ndim == 2 else values.max(axis=-1)) > 0


def _draw_coco(shape: Any, size_hw: tuple[int, int]) -> np.ndarray:
    from data.readers.coco import render_truth

    segment = {"label": 1, "crowd": 0, "area": 0, "shape": shape}
    return render_truth([segment], size_hw) > 0


def _segment_ids(path: Path) -> np.ndarray:
    if not path.exists():
        raise ImageError(f"There is no panoptic mask {path}; unpack COCO's panoptic annotations there.")
    with open_image(path, "mask") as image:
        colours = np.array(image.convert("RGB")).astype(np.int64)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
