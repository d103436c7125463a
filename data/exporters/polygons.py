"""Masks as closed outlines, for formats that know no masks."""

import numpy as np
from jaxtyping import Bool, Int32

Outline = Int32[np.ndarray, "_ 2"]  # as many points as it takes


def outlines(mask: Bool[np.ndarray, "height width"], min_area_px: int = 1) -> list[Outline]:
    """Return one outline a connected region, as (column, row) of its border pixels.

    Filling an outline together with its border pixels (`cv2.fillPoly`) gives the region back. A hole is joined to the
    outer border by a line there and back, which the formats we write can express and even-odd filling understands.

    Args:
        mask: the pixels of one class.
        min_area_px: regions of fewer pixels are left out.

    """
    import cv2

    n_regions, regions, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = []
    for region in range(1, n_regions):
        if figures[region, cv2.CC_STAT_AREA] < min_area_px:
            continue
        left, top, width, height = (int(value) for value in figures[region, :4])
        window = (regions[top : top + height, left : left + width] == region).astype(np.uint8)
        borders, _ = cv2.findContours(window, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        found.append(_joined([border.reshape(-1, 2) for border in borders]) + np.array([left, top], dtype=np.int32))
    return found


def _joined(borders: list[Outline]) -> Outline:
    """Join the holes of a region to its outer border, which is the one with the largest box."""
    sizes = [np.prod(np.ptp(border, axis=0) + 1) for border in borders]
    outer = borders[int(np.argmax(sizes))]
    for position, hole in enumerate(borders):
        if position == int(np.argmax(sizes)):
            continue
        distances = np.abs(outer[:, None] - hole[None]).sum(axis=-1)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        around = np.concatenate([hole[there:], hole[: there + 1]])
        outer = np.concatenate([outer[: here + 1], around, outer[here:]])
    return outer.astype(np.int32)


def yolo_line(outline: Outline, class_index: int, size_hw: tuple[int, int]) -> str:
    """Return an outline as a line of a YOLO segmentation label: class index and points divided by width and height.

    Points are pixel centres, so a reader that multiplies and cuts off the fraction gets the border pixels themselves.
    A region of one or two pixels repeats a point, because readers ask for three.
    """
    height, width = size_hw
    points = outline if len(outline) >= 3 else outline[np.array([0, len(outline) - 1, 0])]
    scaled = (points + 0.5) / np.array([width, height])
    return f"{class_index} " + " ".join(f"{value:.7g}" for value in scaled.ravel())
