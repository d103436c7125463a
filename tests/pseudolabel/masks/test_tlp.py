"""Smoothness between alike neighbours: against a dense solution, and the laws that a Laplacian obeys."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudolabel.masks import tlp
from pseudolabel.masks.config import CrfConfig
from pseudolabel.masks.crf import refine_scores
from pseudolabel.masks.tlp import neighbour_links, smoothed, text_guided_smoothing


def problem(height: int, width: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.random((n_classes, height, width)).astype(np.float32) + 0.01
    return rng.integers(0, 256, (height, width, 3), np.uint8), scores / scores.sum(axis=0)


def _reference(rgb: np.ndarray, scores: np.ndarray, tau: float, edge: float) -> np.ndarray:
    """The dense system, pair by pair, solved by elimination."""
    n_classes, height, width = scores.shape
    cells = [(row, column) for row in range(height) for column in range(width)]
    trust = [max(scores[:, row, column]) for row, column in cells]
    system = np.diag(np.array(trust, np.float64))
    for i, (row, column) in enumerate(cells):
        for j, (other_row, other_column) in enumerate(cells):
            if i != j and max(abs(row - other_row), abs(column - other_column)) == 1:
                apart = rgb[row, column].astype(float) - rgb[other_row, other_column].astype(float)
                alike = sum(
                    float(scores[c, row, column] * scores[c, other_row, other_column]) for c in range(n_classes)
                )
                link = tau * np.exp(-(apart @ apart) / (2 * edge**2)) * alike
                system[i, i] += link
                system[i, j] -= link
    flat = scores.reshape(n_classes, -1).astype(np.float64)
    return np.linalg.solve(system, (np.array(trust) * flat).T).T.reshape(scores.shape)


@pytest.mark.parametrize(("size_hw", "n_classes"), [((5, 7), 3), ((1, 6), 2), ((6, 1), 4), ((1, 1), 2), ((2, 2), 1)])
def test_it_is_the_solution_of_the_system(size_hw, n_classes):
    rgb, scores = problem(*size_hw, n_classes)
    found = text_guided_smoothing(rgb, scores, 4.0, 60.0, 80)
    np.testing.assert_allclose(found, _reference(rgb, scores, 4.0, 60.0), atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.floats(0, 50), st.integers(0, 9))
def test_scores_still_sum_to_one_and_stay_in_their_range(height, width, n_classes, tau, seed):
    rgb, scores = problem(height, width, n_classes, seed)
    found = text_guided_smoothing(rgb, scores, tau, 30.0, 80)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-3)
    for before, after in zip(scores, found, strict=True):
        assert after.min() >= before.min() - 1e-3
        assert after.max() <= before.max() + 1e-3


def test_the_residual_is_below_the_tolerance():
    rgb, scores = problem(30, 40, 3)
    links = neighbour_links(rgb, scores, 100.0)
    found = smoothed(scores, links, 20.0)
    trust = scores.max(axis=0)
    rest = trust * scores - tlp._system(found.astype(np.float64), trust, links, 20.0)
    assert np.linalg.norm(rest) < 3 * tlp.TOLERANCE * np.linalg.norm(trust * scores)


def test_no_smoothness_changes_nothing():
    rgb, scores = problem(9, 11, 3)
    np.testing.assert_allclose(text_guided_smoothing(rgb, scores, 0.0, 20.0, 80), scores, atol=1e-6)


def test_it_stops_at_edges():
    """Two flat halves, one sure cell in each: its class fills its half and not the other."""
    rgb = np.zeros((8, 12, 3), np.uint8)
    rgb[:, 6:] = 255
    scores = np.full((2, 8, 12), 0.5, np.float32)
    scores[:, 4, 2], scores[:, 4, 9] = (0.99, 0.01), (0.01, 0.99)
    found = text_guided_smoothing(rgb, scores, 100.0, 20.0, 80).argmax(axis=0)
    np.testing.assert_array_equal(found, np.broadcast_to(np.arange(12) >= 6, (8, 12)))


def test_a_large_image_is_worked_on_at_the_grid_and_comes_back_at_its_size():
    rgb, scores = problem(90, 120, 2)
    found = text_guided_smoothing(rgb, scores, 4.0, 20.0, 40)
    small = text_guided_smoothing(
        cv2.resize(rgb, (40, 30), interpolation=cv2.INTER_AREA),
        np.stack([cv2.resize(each, (40, 30), interpolation=cv2.INTER_AREA) for each in scores]),
        4.0,
        20.0,
        40,
    )
    expected = np.stack([cv2.resize(each, (120, 90), interpolation=cv2.INTER_LINEAR) for each in small])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_is_a_kind_of_refinement_and_its_settings_have_no_effect_under_others():
    rgb, scores = problem(20, 25, 3)
    marginals = refine_scores(rgb, scores * 3, CrfConfig(kind="tlp"))
    np.testing.assert_allclose(marginals, text_guided_smoothing(rgb, scores, 64.0, 10.0, 160), atol=1e-3)
    np.testing.assert_allclose(refine_scores(rgb, scores, CrfConfig(kind="tlp", iterations=0)), scores, atol=1e-6)
    assert CrfConfig(kind="tlp", iterations=3, sxy_bilateral=9.0).idle() == ("sxy_bilateral", "iterations")
    assert CrfConfig(kind="densecrf", smoothness=9.0).idle() == ("smoothness",)
    assert CrfConfig(kind="pamr", grid=9, engine="torch").idle() == ("engine", "grid")
