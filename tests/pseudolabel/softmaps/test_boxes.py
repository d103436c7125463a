"""Boxes around a class's high values."""

import numpy as np

from pseudolabel.softmaps.boxes import box_mask, find_boxes


def test_boxes_surround_the_cells_above_the_threshold():
    values = np.zeros((6, 8), np.uint8)
    values[1:3, 2:5] = 255
    values[5, 7] = 60
    assert sorted(find_boxes(values, 0.2, False)) == [(1, 2, 3, 5), (5, 7, 6, 8)]
    assert find_boxes(values, 0.25, False) == ((1, 2, 3, 5),)  # 60 is below int(0.25 * 255)
    values[5, 7] = 63
    assert find_boxes(values, 0.25, False) == ((1, 2, 3, 5),)  # above it, not equal to it
    assert find_boxes(np.zeros((3, 3), np.uint8), 0.2, False) == ()


def test_the_published_box_edge_leaves_the_last_row_and_column_out():
    full = np.full((4, 5), 255, np.uint8)
    assert box_mask(find_boxes(full, 0.2, False), (4, 5)).all()
    clamped = box_mask(find_boxes(full, 0.2, True), (4, 5))
    assert clamped[:3, :4].all()
    assert not clamped[3].any()
    assert not clamped[:, 4].any()


def test_a_hole_in_an_object_has_a_box_too():
    ring = np.full((7, 7), 255, np.uint8)
    ring[2:5, 2:5] = 0
    assert len(find_boxes(ring, 0.5, False)) == 2
