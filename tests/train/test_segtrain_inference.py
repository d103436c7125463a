"""From scores to probabilities: windows, flips, scales, padding, and a CRF that is off."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError
from train.inference import CrfConfig, InferenceConfig, padded_scores, probabilities, sharpen, window_starts

FILL = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)


@settings(max_examples=60)
@given(st.integers(1, 400), st.integers(32, 128), st.floats(0, 0.9))
def test_windows_cover_everything_and_overlap_enough(length, window, overlap):
    starts = window_starts(length, window, overlap)
    covered = np.zeros(max(length, window), bool)
    for start in starts:
        covered[start : start + window] = True
    assert covered[:length].all()
    assert starts[-1] + window <= max(length, window)
    assert all(b - a <= max(1, window * (1 - overlap)) + 1 for a, b in pairwise(starts))


def _pointwise(images: torch.Tensor) -> torch.Tensor:
    return torch.stack([images[:, 0], 255 - images[:, 0], images[:, 1]], dim=1) / 50


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(window=64),
        InferenceConfig(flip=True),
        InferenceConfig(window=40, overlap=0.6, flip=True, merge="max"),
    ],
)
def test_windows_and_flips_change_nothing_for_a_pointwise_network(config):
    images = 255 * torch.rand(1, 3, 70, 101)
    plain = probabilities(_pointwise, images, InferenceConfig(), FILL)
    assert torch.allclose(plain.sum(1), torch.ones(1, 70, 101), atol=1e-5)
    assert torch.allclose(probabilities(_pointwise, images, config, FILL), plain, atol=1e-5)


def test_scales_merge_to_probabilities():
    images = 255 * torch.rand(1, 3, 33, 41)
    merged = probabilities(_pointwise, images, InferenceConfig(scales=(0.5, 1.5), merge="max"), FILL)
    assert merged.shape == (1, 3, 33, 41)
    assert torch.allclose(merged.sum(1), torch.ones(1, 33, 41), atol=1e-5)
    with pytest.raises(ConfigError, match=r"--inference\.scales"):
        probabilities(_pointwise, images, InferenceConfig(scales=(0.0,)), FILL)


def test_padding_reaches_the_network_as_its_mean_colour():
    seen = []

    def network(images):
        seen.append(images)
        return images

    padded_scores(network, torch.rand(1, 3, 33, 64), FILL)
    assert seen[0].shape == (1, 3, 64, 64)
    assert seen[0][0, :, 40, 0].tolist() == pytest.approx([255 * 0.485, 255 * 0.456, 255 * 0.406], rel=1e-5)


def test_crf_switched_off_returns_its_input():
    probability = np.random.default_rng(0).random((3, 20, 30), np.float32)
    assert sharpen(np.zeros((20, 30, 3), np.uint8), probability, InferenceConfig().crf) is probability


def test_the_crf_takes_images_of_which_no_class_reaches_one_per_cent():
    probability = np.full((200, 6, 7), 1 / 200, np.float32)
    found = sharpen(np.zeros((6, 7, 3), np.uint8), probability, CrfConfig(enabled=True, engine="torch", iterations=1))
    np.testing.assert_allclose(found, probability, atol=1e-6)
