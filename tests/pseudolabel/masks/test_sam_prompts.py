"""What SAM is asked and what its answers mean: geometry, against loops."""

import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pseudolabel.masks.sam_prompts import components, depth, is_unchanged, labels_by_overlap, overlap, prompt_of


def three_parts() -> np.ndarray:
    """Labels of two classes in three parts."""
    argmax = np.zeros((40, 52), np.uint8)
    argmax[5:20, 4:20], argmax[25:38, 30:50], argmax[4:12, 36:48] = 8, 12, 8
    return argmax


MASKS = hnp.arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 8, 12]))
BINARY = hnp.arrays(bool, (7, 9))


def test_parts_are_connected_and_none_is_lost():
    argmax = three_parts()
    found = components(argmax)
    assert [each.label for each in found] == [8, 8, 12]
    together = np.zeros_like(argmax)
    for each in found:
        together[each.mask] = each.label
    np.testing.assert_array_equal(together, argmax)


@settings(max_examples=60, deadline=None)
@given(BINARY)
def test_depth_is_the_distance_to_the_nearest_pixel_outside(mask):
    outside = [(r, c) for r in range(-1, 8) for c in range(-1, 10) if not (0 <= r < 7 and 0 <= c < 9 and mask[r, c])]
    expected = np.zeros((7, 9))
    for r, c in zip(*np.nonzero(mask), strict=True):
        expected[r, c] = min(np.hypot(r - a, c - b) for a, b in outside)
    np.testing.assert_allclose(depth(mask), expected, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(BINARY, hnp.arrays(np.float32, (7, 9), elements=st.floats(0, 1, width=32)))
def test_prompts_are_inside_outside_and_around(mask, support):
    if not mask.any():
        return
    prompt = prompt_of(mask, support)
    rows, columns = np.nonzero(mask)
    np.testing.assert_array_equal(prompt.box, [columns.min(), rows.min(), columns.max(), rows.max()])
    (x, y), (u, v) = prompt.points.astype(int)
    inside = depth(mask)
    assert inside[y, x] == inside.max()
    assert prompt.logits[y, x] == 30
    box = np.zeros_like(mask)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    if (box & ~mask).any():
        assert prompt.labels == (1, 0)
        assert support[v, u] == support[box & ~mask].min()
        assert (box & ~mask)[v, u]
    else:
        assert prompt.labels == (1, 1)
    for row in range(7):
        for column in range(9):
            size = 30 * np.exp(-((inside[row, column] - inside.max()) ** 2) / (mask.sum() / 4))
            signed = size if mask[row, column] else -size
            assert prompt.logits[row, column] == pytest.approx(signed, rel=1e-4, abs=1e-6)


def _reference_overlap(argmax: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Pixel by pixel and mask by mask."""
    labels = sorted(set(argmax.ravel().tolist()) - {0})
    cells = [(r, c) for r in range(argmax.shape[0]) for c in range(argmax.shape[1])]
    owner = {}
    for number, mask in enumerate(masks):
        size = sum(bool(mask[cell]) for cell in cells)
        shares = [sum(bool(mask[cell]) and argmax[cell] == label for cell in cells) for label in labels]
        if labels and size:
            best = max(range(len(labels)), key=lambda i: shares[i])
            whole = sum(argmax[cell] == labels[best] for cell in cells)
            if 2 * shares[best] > size or shares[best] / whole >= 0.85:
                owner[number] = labels[best]
    result = argmax.copy()
    for cell in cells:
        over = [number for number, mask in enumerate(masks) if mask[cell]]
        mine = [number for number in over if number in owner]
        if mine:
            result[cell] = owner[min(mine, key=lambda number: (masks[number].sum(), -number))]
        elif over and argmax[cell] in owner.values():
            result[cell] = 0
    return result


@settings(max_examples=80, deadline=None)
@given(MASKS, st.lists(BINARY, max_size=4))
def test_the_overlap_rule_is_the_published_one(argmax, masks):
    found = labels_by_overlap(argmax, iter(masks))
    np.testing.assert_array_equal(found, _reference_overlap(argmax, masks))
    assert set(np.unique(found)) <= set(np.unique(argmax)) | {0}


def test_masks_that_are_the_labels_change_nothing():
    argmax = three_parts()
    np.testing.assert_array_equal(labels_by_overlap(argmax, [each.mask for each in components(argmax)]), argmax)
    np.testing.assert_array_equal(labels_by_overlap(argmax, []), argmax)


@settings(max_examples=60, deadline=None)
@given(MASKS, MASKS)
def test_a_part_is_unchanged_if_it_is_a_part_of_the_other_labels_too(before, after):
    others = {(each.label, each.mask.tobytes()) for each in components_of_any_size(after)}
    for each in components_of_any_size(before):
        assert is_unchanged(each, after) == ((each.label, each.mask.tobytes()) in others)


def components_of_any_size(argmax: np.ndarray) -> list:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pseudolabel.masks.sam_prompts.SMALLEST_PX", 1)
        return components(argmax)


def test_of_masks_of_everything_one_is_held_at_a_time():
    argmax = three_parts()
    held: list[weakref.ref] = []

    def masks():
        for each in components(argmax):
            mask = each.mask.copy()
            assert sum(ref() is not None for ref in held) <= 1
            held.append(weakref.ref(mask))
            yield mask
            del mask

    np.testing.assert_array_equal(labels_by_overlap(argmax, masks()), argmax)
    assert len(held) == 3


def test_the_iou_of_masks():
    one, other = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert overlap(one, other) == 0
    one[:2], other[1:3] = True, True
    assert overlap(one, other) == pytest.approx(1 / 3)
