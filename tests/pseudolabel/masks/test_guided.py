"""The guided filter: against the regressions written out, and the laws that it obeys."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError
from pseudolabel.masks.config import CrfConfig
from pseudolabel.masks.crf import refine_scores
from pseudolabel.masks.guided import guided


def problem(height: int, width: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8), rng.random((rows, height, width)).astype(np.float32)


def _reference(rgb: np.ndarray, row: np.ndarray, radius: int, edge: float) -> np.ndarray:
    """A ridge regression in every window, solved as least squares with three more rows, and their means."""
    height, width = row.shape
    values, times = np.zeros(row.shape), np.zeros(row.shape)
    for y in range(height):
        for x in range(width):
            window = np.s_[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            colours = rgb[window].reshape(-1, 3) / 255.0
            weight = np.sqrt(len(colours)) * edge / 255
            system = np.vstack([np.c_[colours, np.ones(len(colours))], weight * np.eye(3, 4)])
            fit = np.linalg.lstsq(system, np.r_[row[window].ravel(), np.zeros(3)], rcond=None)[0]
            values[window] += rgb[window] / 255.0 @ fit[:3] + fit[3]
            times[window] += 1
    return np.clip(values / times, row.min(), row.max())


@pytest.mark.parametrize(("size_hw", "radius", "edge"), [((9, 7), 2, 8.0), ((6, 11), 3, 40.0), ((3, 4), 9, 2.0)])
def test_it_is_a_regression_in_every_window(size_hw, radius, edge):
    rgb, scores = problem(*size_hw, 2)
    found = guided(rgb, scores, radius, edge)
    for before, after in zip(scores, found, strict=True):
        np.testing.assert_allclose(after, _reference(rgb, before, radius, edge), atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(0, 20), st.integers(0, 9))
def test_scores_stay_in_their_range_and_constant_ones_as_they_are(height, width, rows, radius, seed):
    rgb, scores = problem(height, width, rows, seed)
    found = guided(rgb, scores, radius, 8.0)
    assert found.shape == scores.shape
    assert found.dtype == np.float32
    for before, after in zip(scores, found, strict=True):
        assert np.isfinite(after).all()
        assert before.min() <= after.min()
        assert after.max() <= before.max()
    flat = np.full_like(scores, 0.3)
    np.testing.assert_allclose(guided(rgb, flat, radius, 8.0), flat, atol=1e-5)


def test_a_constant_image_leaves_means_alone():
    _, scores = problem(9, 9, 1)
    found = guided(np.full((9, 9, 3), 77, np.uint8), scores, 2, 8.0)
    assert found[0, 4, 4] == pytest.approx(
        np.mean([scores[0, y - 2 : y + 3, x - 2 : x + 3].mean() for y in range(2, 7) for x in range(2, 7)]), abs=1e-5
    )


def test_a_blurred_score_moves_onto_the_edge():
    truth = np.zeros((40, 60), np.float32)
    truth[8:30, 17:45] = 1
    rgb = np.where(truth[..., None] > 0, np.uint8([200, 40, 60]), np.uint8([90, 120, 50]))
    blurred = cv2.GaussianBlur(truth, (0, 0), 4)[None]
    found = guided(rgb, blurred, 6, 8.0)[0]
    assert ((blurred[0] > 0.5) != truth).sum() > 5  # the corners at least
    assert np.array_equal(found > 0.5, truth > 0)
    steps = [each[19, 44] - each[19, 45] for each in (found, blurred[0])]  # across the right edge
    assert steps[0] > 3 * steps[1]


@pytest.mark.parametrize("kind", ["densecrf", "pamr", "tlp"])
def test_every_refinement_takes_the_guided_scores(kind):
    rgb, scores = problem(20, 24, 3)
    config = CrfConfig(kind=kind, guide=4.0, guide_edge=10.0)
    plain = CrfConfig(kind=kind)
    expected = refine_scores(rgb, guided(rgb, scores, 4, 10.0), plain)
    np.testing.assert_array_equal(refine_scores(rgb, scores, config), expected)
    assert not np.allclose(expected, refine_scores(rgb, scores, plain))


def test_the_range_shrinks_with_the_picture():
    rgb, scores = problem(40, 48, 2)
    small = cv2.resize(rgb, (24, 20), interpolation=cv2.INTER_AREA)
    config = CrfConfig(kind="pamr", guide=6.0)
    half = refine_scores(small, scores[:, :20, :24], config, shrunk=0.5)
    expected = refine_scores(small, guided(small, scores[:, :20, :24], 3, 8.0), CrfConfig(kind="pamr"), shrunk=0.5)
    np.testing.assert_array_equal(half, expected)


def test_a_window_larger_than_the_image_is_all_of_it():
    rgb, scores = problem(9, 14, 2)
    np.testing.assert_array_equal(guided(rgb, scores, 2_000_000_000, 8.0), guided(rgb, scores, 14, 8.0))


@pytest.mark.parametrize("edge", [0.5, 1.0, 4.9, 5.0])
@pytest.mark.parametrize(
    "colours", [((0, 0, 0), (0, 0, 0)), ((5, 250, 2), (250, 2, 7)), ((200, 90, 30), (20, 91, 250))]
)
def test_windows_of_one_or_two_colours_are_fitted_too(colours, edge):
    """As of drawn images: most of their covariance is eps, and what rounding makes of it."""
    _, scores = problem(16, 18, 1)
    rgb = np.where((np.arange(18) % 7 < 3)[None, :, None], *np.array(colours)).repeat(16, axis=0).astype(np.uint8)
    [found] = guided(rgb, scores, 3, edge)
    np.testing.assert_allclose(found, _reference(rgb, scores[0], 3, edge), atol=2e-5)


def test_settings_of_the_guide():
    assert CrfConfig(guide_edge=3.0).idle() == ("guide_edge",)
    assert CrfConfig(guide=2.0, guide_edge=3.0).idle() == ()
    assert CrfConfig(kind="none", guide=2.0, guide_edge=3.0).idle() == ("guide", "guide_edge")
    for value in ({"guide": -1.0}, {"guide_edge": 0.0}):
        with pytest.raises(ConfigError, match=f"crf.{next(iter(value))}"):
            CrfConfig(**value)
