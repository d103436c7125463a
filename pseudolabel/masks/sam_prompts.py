"""What SAM is asked about a mask, and what its answers mean: geometry alone, no model.

Sources: SAMRefiner, ICLR 2025 (prompts from a coarse mask); SEPL, "Segment Anything is A Good Pseudo-label Generator
for Weakly Supervised Semantic Segmentation", 2023 (the overlap rule). All coordinates are (x, y) in pixels of the mask.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

SMALLEST_PX = 16  # a component of fewer pixels is left as it is
STRENGTH, GAMMA = 30.0, 4.0  # of the mask prompt, as published
MOSTLY_INSIDE, MOSTLY_COVERED = 0.5, 0.85  # SEPL's thresholds


@dataclass(frozen=True)
class Component:
    """A connected part of a class's mask.

    Attributes:
        label: class id.
        mask: where it is.

    """

    label: int
    mask: Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class Prompt:
    """What SAM is told about a component.

    Attributes:
        points: the positive and the negative point.
        labels: 1 for a positive, 0 for a negative one.
        box: left, top, right, bottom of the component, the last pixel included.
        logits: the mask prompt, at the mask's own size.

    """

    points: Float32[np.ndarray, "2 2"]
    labels: tuple[int, int]
    box: Float32[np.ndarray, "4"]
    logits: Float32[np.ndarray, "height width"]


def components(argmax: UInt8[np.ndarray, "height width"]) -> list[Component]:
    """Return the connected parts (8 neighbours) of each class's mask, in order of class, top and left.

    Parts of fewer than `SMALLEST_PX` pixels are none.
    """
    found = []
    for label in np.unique(argmax[argmax > 0]):
        _, numbered, stats, _ = cv2.connectedComponentsWithStats((argmax == label).astype(np.uint8), connectivity=8)
        parts = [number for number in range(1, len(stats)) if stats[number, cv2.CC_STAT_AREA] >= SMALLEST_PX]
        found += [Component(int(label), numbered == number) for number in parts]
    return found


def depth(mask: Bool[np.ndarray, "height width"]) -> Float32[np.ndarray, "height width"]:
    """Return the distance of each pixel inside to the nearest one outside, the border counting as outside."""
    padded = np.pad(mask.astype(np.uint8), 1)
    return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1].astype(np.float32)


def prompt_of(mask: Bool[np.ndarray, "height width"], support: Float[np.ndarray, "height width"]) -> Prompt:
    """Return the prompts for one component (SAMRefiner, section 3.2).

    The positive point is the deepest pixel; the negative one the pixel outside the mask but inside its box that
    supports the class least; where the mask fills its box the positive one is said twice. The mask prompt is
    +-30 exp(-(d - d_max)^2 / (area / 4)), d the depth, positive inside.

    Args:
        mask: the component.
        support: marginal of its class.

    """
    inside = depth(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    deepest = np.unravel_index(inside.argmax(), mask.shape)
    within = (slice(top, bottom + 1), slice(left, right + 1))
    against = np.where(mask[within], np.inf, support[within])
    row, column = np.unravel_index(against.argmin(), against.shape)
    positive = (float(deepest[1]), float(deepest[0]))
    has_outside = bool(np.isfinite(against.min()))
    negative = (float(left + column), float(top + row)) if has_outside else positive
    sure = STRENGTH * np.exp(-((inside - inside.max()) ** 2) / (mask.sum() / GAMMA))
    return Prompt(
        np.array([positive, negative], np.float32),
        (1, 0 if has_outside else 1),
        np.array([left, top, right, bottom], np.float32),
        np.where(mask, sure, -sure).astype(np.float32),
    )


def overlap(first: Bool[np.ndarray, "height width"], second: Bool[np.ndarray, "height width"]) -> float:
    """Return the IoU of two masks; 0 where both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0


def is_unchanged(part: Component, argmax: UInt8[np.ndarray, "height width"]) -> bool:
    """Return whether a part of former labels is a connected part of these ones, to the pixel."""
    return bool((argmax[part.mask] == part.label).all()) and not (argmax[_rim(part.mask)] == part.label).any()


def _rim(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return the pixels outside a mask that touch it (8 neighbours)."""
    return (cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & ~mask


def labels_by_overlap(
    argmax: UInt8[np.ndarray, "height width"], masks: Iterable[Bool[np.ndarray, "height width"]]
) -> UInt8[np.ndarray, "height width"]:
    """Return the labels after SAM's masks of everything have been given to classes (SEPL, section 3.2).

    A mask s goes to the class c with which it shares the most pixels, where 2 |s and P_c| > |s| or
    |s and P_c| / |P_c| >= 0.85. Pixels outside all masks keep their label; those that lie in masks of no class alone
    become background. Where we differ: smaller masks are laid over larger ones, of equal ones the later, and a class
    that no mask went to keeps its pixels. One mask is held at a time.
    """
    result, covered = np.zeros_like(argmax), np.zeros(argmax.shape, bool)
    smallest = np.full(argmax.shape, argmax.size + 1)  # area of the mask that a pixel has its label from
    areas = {int(label): int((argmax == label).sum()) for label in np.unique(argmax[argmax > 0])}
    given = set()
    for mask in masks:
        covered |= mask
        area = int(mask.sum())
        shared = {label: int((argmax[mask] == label).sum()) for label in areas}
        label = max(shared, key=lambda each: shared[each], default=0)
        inside = label and shared[label] > MOSTLY_INSIDE * area
        if label and (inside or shared[label] >= MOSTLY_COVERED * areas[label]):
            on_top = mask & (smallest >= area)
            result[on_top], smallest[on_top] = label, area
            given.add(label)
    kept = ~covered | (np.isin(argmax, [label for label in areas if label not in given]) & (result == 0))
    return np.where(kept, argmax, result).astype(np.uint8)
