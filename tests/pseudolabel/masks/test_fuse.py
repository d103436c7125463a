"""The background's score, and the way back to the image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.store.softmaps import SoftMaps, resize_scores
from pseudolabel.masks.config import FuseConfig
from pseudolabel.masks.fuse import background_score, before_crf, image_scores, scores_with_background

MAPS = hnp.arrays(np.float32, (2, 4, 5), elements=st.floats(0, 1, width=32))


def soft(maps, labels=(4, 9), background=False, image_hw=(40, 50)) -> SoftMaps:
    return SoftMaps(np.asarray(maps, np.float16), labels, background, (32, 40), (30, 40), image_hw)


@given(MAPS, st.floats(0.05, 1))
def test_background_is_highest_where_no_class_is_and_zero_above_twice_the_threshold(maps, tau):
    score = background_score(maps, FuseConfig(threshold=tau))
    assert score.min() >= 0
    assert score.max() <= 4 * tau**2 + 1e-5
    assert (score[maps.max(axis=0) >= 2 * tau] == 0).all()


def test_the_published_background_rises_again():
    maps = np.array([[[0.0, 0.35, 0.7, 1.0]]], np.float32)
    published = background_score(maps, FuseConfig(threshold=0.35, clamp=False))
    np.testing.assert_allclose(published, [[0.49, 0.1225, 0.0, 0.09]], atol=1e-6)
    fixed = background_score(maps, FuseConfig(threshold=0.35))
    np.testing.assert_allclose(fixed, [[0.49, 0.1225, 0.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize(("tau", "level"), [(0.5, 0.38), (0.35, 0.23)])
def test_the_background_wins_up_to_the_level_that_the_help_names(tau, level):
    maps = np.linspace(0, 1, 1001, dtype=np.float32).reshape(1, 1, -1)
    wins = background_score(maps, FuseConfig(threshold=tau))[0] > maps[0, 0]
    assert maps[0, 0][wins].max() == pytest.approx(level, abs=0.006)


def test_a_network_s_probabilities_have_their_own_background():
    rows = np.random.default_rng(0).random((3, 4, 5))
    np.testing.assert_array_equal(
        scores_with_background(soft(rows, background=True), FuseConfig()), rows.astype(np.float16).astype(np.float32)
    )


@pytest.mark.parametrize("size_hw", [(16, 20), (9, 31), (3, 4)])
def test_resizing_is_torchs_bilinear(size_hw):
    scores = np.random.default_rng(0).random((2, 6, 8)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], size=size_hw, mode="bilinear")[0]
    np.testing.assert_allclose(resize_scores(scores, size_hw), expected.numpy(), atol=1e-6)


def test_the_way_back_crops_the_padding():
    rows = np.zeros((1, 8, 10))
    rows[0, :, :5] = 1
    scores = image_scores(soft(rows, labels=(4,)), FuseConfig())
    assert scores.shape == (2, 40, 50)
    np.testing.assert_allclose(scores[1][:, :20], 1)
    np.testing.assert_allclose(scores[1][:, 30:], 0)
    assert image_scores(soft(rows, labels=(4,)), FuseConfig(), (20, 25)).shape == (2, 20, 25)
    padding = np.zeros((1, 32, 40))
    padding[0, 30:] = 1  # only where there is no image
    assert image_scores(soft(padding, labels=(4,), image_hw=(30, 40)), FuseConfig())[1].max() == 0


@given(MAPS)
def test_only_the_images_own_labels_appear(maps):
    assert set(np.unique(before_crf(soft(maps), FuseConfig()))) <= {0, 4, 9}
