import numpy as np
import pytest

from data.densecrf import dense_crf
from data.errors import ConfigError

SETTINGS = {
    "sxy_gaussian": 1.0,
    "compat_gaussian": 3.0,
    "sxy_bilateral": 20.0,
    "srgb_bilateral": 5.0,
    "compat_bilateral": 4.0,
}


def two_halves() -> tuple[np.ndarray, np.ndarray]:
    rgb = np.zeros((20, 30, 3), np.uint8)
    rgb[:, 15:] = 220
    scores = np.full((2, 20, 30), 0.5, np.float32)
    scores[1, 8:12, 20:24] = 0.9
    scores[0, 8:12, 5:9] = 0.9
    return rgb, scores


def test_labels_spread_to_edges_of_the_image():
    rgb, scores = two_halves()
    labels = dense_crf(rgb, scores, iterations=10, **SETTINGS).argmax(axis=0)
    np.testing.assert_array_equal(labels, np.broadcast_to(np.arange(30) >= 15, (20, 30)))


def test_marginals_add_up_to_one_and_inputs_are_untouched():
    rgb, scores = two_halves()
    before = scores.copy()
    marginals = dense_crf(rgb, scores, iterations=3, **SETTINGS)
    assert marginals.dtype == np.float32
    np.testing.assert_allclose(marginals.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(scores, before)


def test_no_iterations_return_the_normalised_scores():
    rgb, scores = two_halves()
    np.testing.assert_allclose(dense_crf(rgb, scores, iterations=0, **SETTINGS), scores / scores.sum(axis=0), rtol=1e-6)


@pytest.mark.parametrize("size_hw", [(1, 40), (40, 1), (1, 1)])
def test_thin_images(size_hw):
    marginals = dense_crf(np.zeros((*size_hw, 3), np.uint8), np.ones((3, *size_hw)), iterations=2, **SETTINGS)
    assert np.isfinite(marginals).all()


def test_an_image_that_may_not_be_written_to():
    rgb, scores = two_halves()
    expected = dense_crf(rgb, scores, iterations=2, **SETTINGS)
    rgb.setflags(write=False)
    np.testing.assert_array_equal(dense_crf(rgb, scores, iterations=2, **SETTINGS), expected)


def test_zero_scores_are_clipped():
    rgb, scores = two_halves()
    scores[0] = 0
    assert np.isfinite(dense_crf(rgb, scores, iterations=2, **SETTINGS)).all()


def test_one_class_alone():
    assert (dense_crf(np.zeros((2, 3, 3), np.uint8), np.ones((1, 2, 3)), iterations=2, **SETTINGS) == 1).all()


def test_sizes_must_agree():
    with pytest.raises(ConfigError, match="resize the scores"):
        dense_crf(np.zeros((2, 3, 3), np.uint8), np.ones((2, 3, 2)), iterations=1, **SETTINGS)
