import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from data.phrase_scores import (
    Overlap,
    auroc,
    average_recall,
    false_alarm_rate,
    mean_iou,
    mean_over_concepts,
    overall_accuracy,
    overall_boundary_iou,
    overall_iou,
    overlap_of,
    total,
)

MASKS = arrays.arrays(bool, (6, 7))


def _reference_counts(predicted, true) -> tuple[int, int]:
    """Pixel by pixel, from sets of coordinates."""
    one = {(r, c) for r in range(6) for c in range(7) if predicted[r, c]}
    other = {(r, c) for r in range(6) for c in range(7) if true[r, c]}
    return len(one & other), len(one | other)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(MASKS, MASKS), min_size=1, max_size=4))
def test_overall_and_mean_iou_are_those_of_the_pixels(pairs):
    found = [overlap_of(predicted, true, edges=False) for predicted, true in pairs]
    counts = [_reference_counts(*pair) for pair in pairs]
    both, either = sum(count[0] for count in counts), sum(count[1] for count in counts)
    assert overall_iou(found) == pytest.approx(both / either, nan_ok=True) if either else np.isnan(overall_iou(found))
    singles = [count[0] / count[1] if count[1] else 1.0 for count in counts]
    assert mean_iou(found) == pytest.approx(sum(singles) / len(singles))


def _reference_recall(ious, steps: int = 20_000) -> float:
    """The area under the curve of recall against the IoU threshold, by the trapezoid rule of the authors' script."""
    thresholds = np.linspace(0, 1, steps, endpoint=False)
    curve = [sum(iou >= threshold for iou in ious) / len(ious) for threshold in thresholds[:: steps // 2000]]
    return float(np.mean(curve))


def test_average_recall_is_the_area_under_recall_against_threshold():
    found = [Overlap(both, 10, both, both) for both in (0, 3, 7, 10)]
    assert average_recall(found) == pytest.approx(_reference_recall([0, 0.3, 0.7, 1.0]), abs=2e-3)
    assert average_recall(found) == pytest.approx(mean_iou(found), abs=2e-3)  # the law: an area under a survival curve


def test_overall_iou_weighs_large_things_and_mean_iou_does_not():
    found = [Overlap(90, 100, 90, 100), Overlap(0, 10, 5, 5)]
    assert overall_iou(found) == pytest.approx(90 / 110)
    assert mean_iou(found) == pytest.approx(0.45)
    assert overall_accuracy(found) == pytest.approx(90 / 105)


def _reference_auroc(scores, positive) -> float:
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=12))
def test_auroc_counts_pairs(items):
    scores, positive = np.array([item[0] / 5 for item in items]), np.array([item[1] for item in items])
    found = auroc(scores, positive)
    if positive.all() or not positive.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(_reference_auroc(scores, positive))


def test_an_answer_that_marks_everything_has_false_alarms_alone():
    there, absent = Overlap(50, 100, 100, 50, size=100), Overlap(0, 100, 100, 0, size=100)
    speck = Overlap(0, 1, 1, 0, size=10_000)
    assert false_alarm_rate([there, absent]) == 1.0
    assert false_alarm_rate([there, speck]) == 0.0
    assert np.isnan(false_alarm_rate([there]))


def test_nothing_to_find_and_nothing_found_is_right():
    empty = overlap_of(np.zeros((4, 4), bool), np.zeros((4, 4), bool))
    assert empty.iou == 1.0
    assert np.isnan(overall_iou([empty]))


def test_boundary_regions_add_up():
    true = np.zeros((40, 40), bool)
    true[10:30, 10:30] = True
    assert overall_boundary_iou([overlap_of(true, true)]) == 1.0
    shrunk = np.zeros_like(true)
    shrunk[13:27, 13:27] = True
    assert overall_boundary_iou([overlap_of(shrunk, true)]) < overall_iou([overlap_of(shrunk, true)])
    summed = total([overlap_of(true, true), overlap_of(shrunk, true)])
    assert summed.size == 3200


def test_a_concept_without_a_figure_is_left_out_of_the_mean():
    assert mean_over_concepts([0.5, float("nan"), 1.0]) == 0.75
    assert np.isnan(mean_over_concepts([float("nan")]))
