import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.errors import LabelError
from data.scoring import boundary_counts, boundary_iou, confusion_matrix, score

MASKS = st.tuples(
    arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3, 255])),
    arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3])),
)


def reference_iou(truth: np.ndarray, prediction: np.ndarray, n_classes: int) -> list[float]:
    """The definition, with sets of pixels."""
    pixels = [(row, column) for row in range(truth.shape[0]) for column in range(truth.shape[1])]
    scored = [pixel for pixel in pixels if truth[pixel] != 255]
    ious = []
    for class_id in range(n_classes):
        true = {pixel for pixel in scored if truth[pixel] == class_id}
        predicted = {pixel for pixel in scored if prediction[pixel] == class_id}
        ious.append(len(true & predicted) / len(true | predicted) if true | predicted else float("nan"))
    return ious


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_iou_is_the_definition(masks):
    truth, prediction = masks
    scores = score(confusion_matrix(truth, prediction, 4))
    expected = reference_iou(truth, prediction, 4)
    np.testing.assert_allclose(scores.iou, expected)
    if not np.isnan(expected).all():
        np.testing.assert_allclose(scores.miou, np.nanmean(expected))


@settings(max_examples=30, deadline=None)
@given(MASKS, MASKS)
def test_one_matrix_for_two_images_is_the_sum(first, second):
    both = confusion_matrix(np.hstack([first[0], second[0]]), np.hstack([first[1], second[1]]), 4)
    np.testing.assert_array_equal(both, confusion_matrix(*first, 4) + confusion_matrix(*second, 4))


def test_precision_recall_and_accuracy():
    truth = np.uint8([[0, 0, 1, 1, 255]])
    prediction = np.uint8([[0, 1, 1, 1, 0]])
    scores = score(confusion_matrix(truth, prediction, 3))
    np.testing.assert_allclose(scores.precision, [1, 2 / 3, np.nan])
    np.testing.assert_allclose(scores.recall, [0.5, 1, np.nan])
    assert scores.pixel_accuracy == 0.75


def test_nothing_to_score_is_nan():
    scores = score(confusion_matrix(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 3))
    assert np.isnan(scores.miou)
    assert np.isnan(scores.pixel_accuracy)


@pytest.mark.parametrize(("truth", "prediction", "who"), [(3, 0, "ground truth"), (0, 255, "prediction")])
def test_ids_beyond_the_classes(truth, prediction, who):
    with pytest.raises(LabelError, match=rf"{who} holds class id .*ids end at 2"):
        confusion_matrix(np.uint8([[truth]]), np.uint8([[prediction]]), 3)


def test_ignored_pixels_may_hold_any_prediction():
    assert confusion_matrix(np.uint8([[255]]), np.uint8([[77]]), 3).sum() == 0


def reference_boundary(labels: np.ndarray, class_id: int, distance_px: int) -> set[tuple[int, int]]:
    """The definition for one mask: its pixels that a square of that reach around them does not stay inside of."""
    height, width = labels.shape
    inside = {(row, column) for row in range(height) for column in range(width) if labels[row, column] == class_id}
    reach = range(-distance_px, distance_px + 1)
    return {
        (row, column)
        for row, column in inside
        if any((row + down, column + right) not in inside for down in reach for right in reach)
    }


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(1, 4))
def test_boundary_iou_is_the_definition(masks, distance_px):
    truth, prediction = masks
    counts = boundary_counts(truth, prediction, 4, distance_px)
    scored = np.where(truth == 255, 255, prediction)
    for class_id in range(4):
        true = reference_boundary(truth, class_id, distance_px)
        predicted = reference_boundary(scored, class_id, distance_px)
        assert counts[:, class_id].tolist() == [len(true & predicted), len(true | predicted)]


def square(row: int, column: int, side: int = 4) -> np.ndarray:
    mask = np.zeros((12, 12), np.uint8)
    mask[row : row + side, column : column + side] = 1
    return mask


def test_boundary_iou_of_a_shifted_square_by_hand():
    # One pixel deep: the rings of two 4 x 4 squares, 12 pixels each; shifted by one column they share, in the top and
    # the bottom row, 3 pixels each; the ring's sides fall on the other's empty inside. 6 of 18.
    counts = boundary_counts(square(4, 4), square(4, 5), 2, 1)
    assert counts[:, 1].tolist() == [6, 18]
    assert boundary_iou(counts)[1] == pytest.approx(1 / 3)
    # The IoU of the masks does not see the inside as a boundary: 12 of 20.
    assert score(confusion_matrix(square(4, 4), square(4, 5), 2)).iou[1] == pytest.approx(12 / 20)
    # Two pixels deep a 4 x 4 square is all boundary, so Boundary IoU is the IoU.
    assert boundary_counts(square(4, 4), square(4, 5), 2, 2)[:, 1].tolist() == [12, 20]


def test_boundary_is_2_percent_of_the_diagonal_deep():
    truth = np.zeros((300, 400), np.uint8)  # diagonal 500, so 10 pixels from the border
    counts = boundary_counts(truth, truth, 2)
    assert counts[:, 0].tolist() == [300 * 400 - 280 * 380] * 2
    assert boundary_counts(truth[:5, :5], truth[:5, :5], 2)[0, 0] == 16  # at least one pixel


@settings(max_examples=40, deadline=None)
@given(MASKS, st.integers(1, 3))
def test_laws_of_boundary_iou(masks, distance_px):
    truth, prediction = masks
    same = boundary_iou(boundary_counts(truth, np.where(truth == 255, 2, truth).astype(np.uint8), 4, distance_px))
    assert np.isin(same[~np.isnan(same)], 1).all()  # equal masks: 1
    assert [np.isnan(value) for value in same] == [not (truth == class_id).any() for class_id in range(4)]
    counts = boundary_counts(truth, prediction, 4, distance_px)
    elsewhere = np.where(truth == 255, 3 - prediction, prediction).astype(np.uint8)
    np.testing.assert_array_equal(boundary_counts(truth, elsewhere, 4, distance_px), counts)  # 255 is not looked at
    np.testing.assert_array_equal(boundary_counts(truth.T, prediction.T, 4, distance_px), counts)
    np.testing.assert_array_equal(boundary_counts(truth[::-1], prediction[::-1], 4, distance_px), counts)
    order = np.append(np.uint8([2, 0, 3, 1]), np.zeros(252, np.uint8))
    order[255] = 255
    renamed = boundary_counts(order[truth], order[prediction], 4, distance_px)
    np.testing.assert_array_equal(renamed[:, order[:4]], counts)
    if not (truth == 255).any():
        np.testing.assert_array_equal(boundary_counts(prediction, truth, 4, distance_px), counts)
    deep = boundary_counts(truth, prediction, 4, 9)  # deeper than the image: all is boundary, which gives the IoU
    np.testing.assert_allclose(boundary_iou(deep), score(confusion_matrix(truth, prediction, 4)).iou)


@pytest.mark.parametrize(("truth", "prediction", "who"), [(3, 0, "ground truth"), (0, 255, "prediction")])
def test_boundary_ids_beyond_the_classes(truth, prediction, who):
    with pytest.raises(LabelError, match=rf"{who} holds class id .*ids end at 2"):
        boundary_counts(np.uint8([[truth]]), np.uint8([[prediction]]), 3)
