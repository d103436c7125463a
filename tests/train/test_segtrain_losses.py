import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.classes import IGNORE
from train.inference import CrfConfig, InferenceConfig
from train.losses import (
    LossConfig,
    balanced_cross_entropy,
    bootstrapped_cross_entropy,
    cross_entropy,
    generalised_cross_entropy,
    segmentation_loss,
)


def _draw(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(2, 4, 5, 6, generator=generator)
    labels = torch.randint(0, 4, (2, 5, 6), generator=generator)
    labels[torch.rand(2, 5, 6, generator=generator) < 0.2] = IGNORE
    return scores, labels, torch.rand(2, 5, 6, generator=generator)


def _reference(scores, labels, weights, each, wanted) -> float:
    """The weighted mean over pixels, one at a time in plain Python."""
    total = share = 0.0
    for n in range(2):
        for row in range(5):
            for column in range(6):
                label = int(labels[n, row, column])
                if not wanted(label):
                    continue
                exp = [math.exp(float(value)) for value in scores[n, :, row, column]]
                probabilities = [value / sum(exp) for value in exp]
                weight = 1.0 if weights is None else float(weights[n, row, column])
                total += weight * each(probabilities, label)
                share += weight
    return total / share


def counted(label: int) -> bool:
    return label != IGNORE


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_losses_agree_with_plain_python(seed, weighted):
    scores, labels, weights = _draw(seed)
    w = weights if weighted else None
    plain = _reference(scores, labels, w, lambda p, c: -math.log(p[c]), counted)
    assert float(cross_entropy(scores, labels, w)) == pytest.approx(plain, rel=1e-4)
    parts = [
        _reference(scores, labels, w, lambda p, c: -math.log(p[c]), wanted)
        for wanted in (lambda c: 0 < c < 9, lambda c: c == 0)
    ]
    assert float(balanced_cross_entropy(scores, labels, w)) == pytest.approx(sum(parts), rel=1e-4)
    boot = _reference(scores, labels, w, lambda p, c: -0.8 * math.log(p[c]) - 0.2 * math.log(max(p)), counted)
    assert float(bootstrapped_cross_entropy(scores, labels, w, 0.8)) == pytest.approx(boot, rel=1e-4)
    general = _reference(scores, labels, w, lambda p, c: (1 - p[c] ** 0.7) / 0.7, counted)
    assert float(generalised_cross_entropy(scores, labels, w, 0.7)) == pytest.approx(general, rel=1e-4)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from(["cross_entropy", "balanced", "bootstrapped", "generalised"]))
def test_ignored_pixels_change_nothing(seed, kind):
    scores, labels, weights = _draw(seed)
    config = LossConfig(kind=kind)
    before = segmentation_loss(config, scores, labels, weights)
    changed = torch.where((labels == IGNORE)[:, None], scores + 7 * torch.randn_like(scores), scores)
    assert float(segmentation_loss(config, changed, labels, weights)) == pytest.approx(float(before), rel=1e-5)
    assert float(before) >= 0


@pytest.mark.parametrize("kind", ["cross_entropy", "balanced", "bootstrapped", "generalised"])
def test_nothing_to_learn_from_is_zero_not_nan(kind):
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(LossConfig(kind=kind), scores, torch.full((1, 4, 4), IGNORE))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.isfinite(scores.grad).all()


def test_limits_of_the_noise_losses_are_cross_entropy():
    scores, labels, _ = _draw(5)
    plain = float(cross_entropy(scores, labels))
    assert float(bootstrapped_cross_entropy(scores, labels, beta=1.0)) == pytest.approx(plain, rel=1e-5)
    assert float(generalised_cross_entropy(scores, labels, q=0.0)) == pytest.approx(plain, rel=1e-5)
    assert float(generalised_cross_entropy(scores, labels, q=1e-4)) == pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize(
    ("config", "idle"),
    [
        (LossConfig(), ()),
        (LossConfig(bootstrap_beta=0.5), ("bootstrap_beta",)),
        (LossConfig(kind="bootstrapped", bootstrap_beta=0.5, label_smoothing=0.1), ("label_smoothing",)),
        (LossConfig(max_over_scales=True), ("max_over_scales",)),
        (LossConfig(max_over_scales=True, scales=(1.0, 0.5)), ()),
        (InferenceConfig(overlap=0.5, merge="max"), ("overlap", "merge")),
        (InferenceConfig(overlap=0.5, window=64, merge="max", flip=True), ()),
        (InferenceConfig(crf=CrfConfig(iterations=3)), ("crf.iterations",)),
        (InferenceConfig(crf=CrfConfig(enabled=True, iterations=3)), ()),
    ],
)
def test_settings_without_effect_are_named(config, idle):
    assert config.idle() == idle
