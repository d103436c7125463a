"""Refining scores: the kinds, the image that wraps, memory, and PAMR against its formula."""

import numpy as np
import pytest
import torch

from data.errors import ConfigError
from data.store.softmaps import resize_scores
from pseudolabel.masks.config import CrfConfig
from pseudolabel.masks.crf import MEAN_BGR, refine_scores, wrapped_bgr
from pseudolabel.masks.pamr import PAMR_DILATIONS, pamr
from pseudolabel.masks.working import shrunk_to


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray]:
    """A bright square on a dark ground, and scores that know it with noise."""
    rng = np.random.default_rng(0)
    rgb = np.full((40, 48, 3), 40, np.uint8)
    rgb[10:30, 12:36] = (220, 200, 60)
    truth = np.zeros((40, 48), np.float32)
    truth[10:30, 12:36] = 1
    noisy = np.clip(truth * 0.4 + 0.3 + rng.normal(0, 0.15, truth.shape), 0.02, 0.98)
    return rgb, np.stack([1 - noisy, noisy]).astype(np.float32)


def errors(marginals: np.ndarray) -> int:
    truth = np.zeros((40, 48), bool)
    truth[10:30, 12:36] = True
    return int((marginals.argmax(axis=0) != truth).sum())


@pytest.mark.parametrize("kind", ["densecrf", "pamr"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_refinement_follows_the_edges(scene, kind, scale):
    rgb, scores = scene
    marginals = refine_scores(rgb, scores, CrfConfig(kind=kind, scale=scale))
    np.testing.assert_allclose(marginals.sum(axis=0), 1, atol=1e-5)
    assert errors(marginals) < 0.5 * errors(scores)


@pytest.mark.parametrize("config", [CrfConfig(kind="none"), CrfConfig(iterations=0), CrfConfig("pamr", iterations=0)])
def test_without_iterations_scores_are_only_normalised(scene, config):
    rgb, scores = scene
    np.testing.assert_allclose(refine_scores(rgb, scores * 3, config), scores, atol=1e-6)


def test_scores_need_not_be_normalised(scene):
    rgb, scores = scene
    np.testing.assert_allclose(
        refine_scores(rgb, scores * 0.2, CrfConfig()), refine_scores(rgb, scores, CrfConfig()), atol=1e-3
    )


def test_the_published_image_wraps():
    rgb = np.array([[[0, 10, 200], [255, 255, 255]]], np.uint8)
    wrapped = wrapped_bgr(rgb)
    blue, green, red = MEAN_BGR
    expected = [[[int(200 - blue), (int(10 - green)) % 256, (int(0 - red)) % 256],
                 [int(255 - blue), int(255 - green), int(255 - red)]]]  # fmt: skip
    np.testing.assert_array_equal(wrapped, expected)


def test_the_wrapped_image_is_used_only_when_asked_for(scene):
    rgb, scores = scene
    rgb = np.random.default_rng(1).integers(80, 160, rgb.shape, dtype=np.uint8)
    plain = refine_scores(rgb, scores, CrfConfig())
    assert not np.allclose(plain, refine_scores(rgb, scores, CrfConfig(wrapped_image=True)), atol=1e-3)


def test_bytes_wrap_after_the_image_has_been_shrunk():
    """The mean of a wrapped byte and of one that is not is neither's colour."""
    rng = np.random.default_rng(2)
    rgb = rng.integers(95, 130, (24, 32, 3), dtype=np.uint8)  # around the mean that is subtracted
    scores = rng.random((2, 24, 32)).astype(np.float32)
    found = refine_scores(rgb, scores, CrfConfig(kind="pamr", wrapped_image=True, scale=0.5))
    small = refine_scores(
        shrunk_to(rgb, (12, 16)), resize_scores(scores, (12, 16)), CrfConfig(kind="pamr", wrapped_image=True)
    )
    np.testing.assert_allclose(found, resize_scores(small, (24, 32)), atol=1e-6)


def test_a_gpu_whose_memory_runs_out_is_one_line(scene, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pseudolabel.masks.crf.pamr", full)
    with pytest.raises(ConfigError, match=r"not hold the refinement of an image of 48 x 40 px; use .*--crf\.scale"):
        refine_scores(*scene, CrfConfig(kind="pamr"))

    def broken(*_):
        raise RuntimeError("another fault")

    monkeypatch.setattr("pseudolabel.masks.crf.pamr", broken)
    with pytest.raises(RuntimeError, match="another fault"):
        refine_scores(*scene, CrfConfig(kind="pamr"))


def _reference_pamr(rgb: np.ndarray, scores: np.ndarray, rounds: int) -> np.ndarray:
    """PAMR cell by cell."""
    image, height, width = rgb / 255, *rgb.shape[:2]
    offsets = [(d * r, d * c) for d in PAMR_DILATIONS for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]

    def at(array, row, column):
        return array[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]

    weights = np.zeros((height, width, len(offsets)))
    for row in range(height):
        for column in range(width):
            around = np.stack([at(image, row + r, column + c) for r, c in offsets] + [image[row, column]] * 6)
            deviation = around.std(axis=0, ddof=1)
            score = -(np.abs(image[row, column] - around[:-6]) / (1e-8 + 0.1 * deviation)).mean(axis=1)
            weights[row, column] = np.exp(score - score.max()) / np.exp(score - score.max()).sum()
    values = scores.transpose(1, 2, 0).astype(float)
    for _ in range(rounds):
        fresh = np.zeros_like(values)
        for row in range(height):
            for column in range(width):
                fresh[row, column] = sum(
                    w * at(values, row + r, column + c) for w, (r, c) in zip(weights[row, column], offsets, strict=True)
                )
        values = fresh
    return values.transpose(2, 0, 1)


def test_pamr_is_the_published_average():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    scores = rng.random((2, 9, 7)).astype(np.float32)
    np.testing.assert_allclose(pamr(rgb, scores, 2), _reference_pamr(rgb, scores, 2), atol=1e-4)


def test_pamr_on_a_flat_image_stays_finite():
    scores = np.random.default_rng(0).random((2, 12, 12)).astype(np.float32)
    assert np.isfinite(pamr(np.zeros((12, 12, 3), np.uint8), scores, 3)).all()


@pytest.mark.gpu
def test_pamr_on_a_gpu_agrees(scene):
    rgb, scores = scene
    assert torch.cuda.is_available()
    np.testing.assert_allclose(pamr(rgb, scores, 5, "cuda"), pamr(rgb, scores, 5), atol=1e-4)
