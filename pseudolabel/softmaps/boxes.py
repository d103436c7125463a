"""Boxes around a class's high values: the mask of class-aware affinity (arXiv 2309.04109, section 3.3)."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pseudolabel.softmaps.config import AffinityConfig

Box = tuple[int, int, int, int]


def find_boxes(map_u8: UInt8[np.ndarray, "height width"], theta: float, clamp_edge: bool) -> tuple[Box, ...]:
    """Return the bounding boxes (top, left, bottom, right) of all contours of the cells above a share of the maximum.

    Bottom and right are exclusive. Contours of holes count too (RETR_TREE).

    Args:
        map_u8: a class's map, 0 to 255.
        theta: cells above int(theta * maximum) count.
        clamp_edge: bottom and right end at most at the last row and column, which are then never inside
            (the published code); otherwise boxes are as large as their contours.

    """
    height, width = map_u8.shape
    mask = (map_u8 > int(theta * int(map_u8.max()))).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour in contours:
        left, top, box_width, box_height = cv2.boundingRect(contour)
        bottom, right = top + box_height, left + box_width
        if clamp_edge:
            bottom, right = min(bottom, height - 1), min(right, width - 1)
        boxes.append((top, left, bottom, right))
    return tuple(boxes)


def box_mask(boxes: Sequence[Box], grid_hw: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """Return 1 inside the union of the boxes and 0 elsewhere."""
    mask = np.zeros(grid_hw, np.float32)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def batch_boxes(
    maps: Float[Tensor, "batch classes height width"], valid_hw: Sequence[tuple[int, int]], config: AffinityConfig
) -> list[list[tuple[Box, ...]]]:
    """Return the boxes of every map, found in its valid top-left part alone."""
    maps_u8 = (maps * 255).to(torch.uint8).cpu().numpy()
    return [
        [
            find_boxes(np.ascontiguousarray(class_map[:rows, :columns]), config.theta, config.clamp_box_edge)
            for class_map in element
        ]
        for element, (rows, columns) in zip(maps_u8, valid_hw, strict=True)
    ]
