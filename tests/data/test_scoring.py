import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.errors import LabelError
from data.scoring import boundary_confusion, confusion_matrix, score

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


@settings(max_examples=40, deadline=None)
@given(MASKS, st.integers(1, 4))
def test_boundary_band_is_the_definition(masks, distance_px):
    truth, prediction = masks
    height, width = truth.shape
    near = np.zeros(truth.shape, bool)
    for row in range(height):
        for column in range(width):
            for d_row, d_column in ((0, 1), (1, 0)):
                other = (row + d_row, column + d_column)
                if other[0] < height and other[1] < width and truth[row, column] != truth[other]:
                    for at in ((row, column), other):
                        top, left = max(0, at[0] - distance_px + 1), max(0, at[1] - distance_px + 1)
                        near[top : at[0] + distance_px, left : at[1] + distance_px] = True
    expected = confusion_matrix(truth[near], prediction[near], 4)
    np.testing.assert_array_equal(boundary_confusion(truth, prediction, 4, distance_px), expected)


def test_boundary_of_a_uniform_mask_is_empty():
    assert boundary_confusion(np.ones((5, 5), np.uint8), np.ones((5, 5), np.uint8), 2).sum() == 0


def test_one_pixel_high():
    truth = np.uint8([[0, 0, 0, 1, 1, 1]])
    assert boundary_confusion(truth, truth, 2, 1).sum() == 2
