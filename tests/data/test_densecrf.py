"""The dense CRF by both engines: laws for each, one against the other, and the lattice against pairwise sums."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import densecrf
from data.densecrf import chosen_engine, dense_crf, has_pydensecrf
from data.errors import ConfigError
from data.lattice import gaussian_lattice

SETTINGS = {
    "sxy_gaussian": 1.0,
    "compat_gaussian": 3.0,
    "sxy_bilateral": 20.0,
    "srgb_bilateral": 5.0,
    "compat_bilateral": 4.0,
}
PUBLISHED = SETTINGS | {"sxy_bilateral": 67.0, "srgb_bilateral": 3.0}
needs_pydensecrf = pytest.mark.skipif(not has_pydensecrf(), reason="needs pydensecrf: pip install '.[crf]'")
PICTURE = Path(__file__).parents[2] / "data" / "demo" / "figure.png"  # five scenes side by side, with their maps


@pytest.fixture(params=[pytest.param("pydensecrf", marks=needs_pydensecrf), "torch"])
def engine(request) -> dict:
    """How `dense_crf` is told which engine to use."""
    return {"torch": torch if request.param == "torch" else None}


def two_halves() -> tuple[np.ndarray, np.ndarray]:
    rgb = np.zeros((20, 30, 3), np.uint8)
    rgb[:, 15:] = 220
    scores = np.full((2, 20, 30), 0.5, np.float32)
    scores[1, 8:12, 20:24] = 0.9
    scores[0, 8:12, 5:9] = 0.9
    return rgb, scores


def drawn(size_hw: tuple[int, int], n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A picture with smooth grounds, discs and noise, and smooth scores that know nothing of it."""
    rng = np.random.default_rng(seed)

    def smooth(side: int, spread: float) -> np.ndarray:
        return cv2.resize(rng.normal(0, spread, (side, side)).astype(np.float32), size_hw[::-1], interpolation=2)

    rgb = np.stack([smooth(4, 60) + smooth(16, 40) for _ in range(3)], axis=-1) + 128
    for _ in range(6):
        centre, colour = rng.integers(0, size_hw[::-1]), rng.integers(0, 256, 3)
        cv2.circle(rgb, (int(centre[0]), int(centre[1])), int(rng.integers(3, 30)), [float(c) for c in colour], -1)
    rgb += rng.normal(0, 3, rgb.shape)
    scores = np.exp(np.stack([2 * smooth(6, 1) for _ in range(n_classes)]))
    return rgb.clip(0, 255).astype(np.uint8), (scores / scores.sum(axis=0)).astype(np.float32)


def both(rgb: np.ndarray, scores: np.ndarray, iterations: int = 10, **values) -> tuple[np.ndarray, np.ndarray]:
    given_values = PUBLISHED | values
    return tuple(dense_crf(rgb, scores, iterations=iterations, torch=t, **given_values) for t in (None, torch))


def test_labels_spread_to_edges_of_the_image(engine):
    rgb, scores = two_halves()
    labels = dense_crf(rgb, scores, iterations=10, **SETTINGS, **engine).argmax(axis=0)
    np.testing.assert_array_equal(labels, np.broadcast_to(np.arange(30) >= 15, (20, 30)))


def test_marginals_add_up_to_one_and_inputs_are_untouched(engine):
    rgb, scores = two_halves()
    before = scores.copy(), rgb.copy()
    marginals = dense_crf(rgb, scores, iterations=3, **SETTINGS, **engine)
    assert marginals.dtype == np.float32
    np.testing.assert_allclose(marginals.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(rgb, before[1])


def test_no_iterations_return_the_normalised_scores(engine):
    rgb, scores = two_halves()
    marginals = dense_crf(rgb, scores, iterations=0, **SETTINGS, **engine)
    np.testing.assert_allclose(marginals, scores / scores.sum(axis=0), rtol=1e-6)


@pytest.mark.parametrize("size_hw", [(1, 40), (40, 1), (1, 1)])
def test_thin_images(size_hw, engine):
    marginals = dense_crf(np.zeros((*size_hw, 3), np.uint8), np.ones((3, *size_hw)), iterations=2, **SETTINGS, **engine)
    np.testing.assert_allclose(marginals, 1 / 3, atol=1e-6)


def test_an_image_that_may_not_be_written_to(engine):
    rgb, scores = two_halves()
    expected = dense_crf(rgb, scores, iterations=2, **SETTINGS, **engine)
    rgb.setflags(write=False)
    np.testing.assert_array_equal(dense_crf(rgb, scores, iterations=2, **SETTINGS, **engine), expected)


def test_zero_scores_are_clipped(engine):
    rgb, scores = two_halves()
    scores[0] = 0
    assert np.isfinite(dense_crf(rgb, scores, iterations=2, **SETTINGS, **engine)).all()


def test_one_class_alone(engine):
    marginals = dense_crf(np.zeros((2, 3, 3), np.uint8), np.ones((1, 2, 3)), iterations=2, **SETTINGS, **engine)
    assert (marginals == 1).all()


def test_sizes_must_agree(engine):
    with pytest.raises(ConfigError, match="resize the scores"):
        dense_crf(np.zeros((2, 3, 3), np.uint8), np.ones((2, 3, 2)), iterations=1, **SETTINGS, **engine)


@needs_pydensecrf
@pytest.mark.parametrize(("size_hw", "n_classes"), [((120, 161), 2), ((97, 131), 4), ((83, 90), 21)])
def test_the_engines_agree_on_drawn_images(size_hw, n_classes):
    one, other = both(*drawn(size_hw, n_classes))
    assert (one.argmax(axis=0) == other.argmax(axis=0)).mean() >= 0.9999
    np.testing.assert_allclose(one, other, atol=1e-3)


@needs_pydensecrf
@pytest.mark.parametrize("n_classes", [3, 21])
def test_the_engines_agree_on_a_picture_out_of_a_file(n_classes):
    rgb = cv2.imread(str(PICTURE))[:180, :211, ::-1].copy()
    one, other = both(rgb, drawn(rgb.shape[:2], n_classes)[1])
    assert (one.argmax(axis=0) == other.argmax(axis=0)).mean() >= 0.9999
    np.testing.assert_allclose(one, other, atol=1e-3)


@needs_pydensecrf
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 37),
    width=st.integers(1, 37),
    n_classes=st.integers(1, 21),
    flat=st.booleans(),
    ranges=st.tuples(st.floats(0.4, 9), st.floats(0.4, 80), st.floats(0.8, 30)),
    seed=st.integers(0, 9),
)
def test_the_engines_agree_on_odd_sizes_flat_images_and_other_ranges(height, width, n_classes, flat, ranges, seed):
    rgb, scores = drawn((height, width), n_classes, seed)
    rgb = np.full_like(rgb, 28 * seed) if flat else rgb
    names = ("sxy_gaussian", "sxy_bilateral", "srgb_bilateral")
    one, other = both(rgb, scores, 5, **dict(zip(names, ranges, strict=True)))
    np.testing.assert_allclose(one, other, atol=1e-2)
    unsure = np.sort(one, axis=0)[-2:]
    decided = unsure[-1] - unsure[0] > 1e-2 if len(one) > 1 else np.ones(rgb.shape[:2], bool)
    np.testing.assert_array_equal(one.argmax(axis=0)[decided], other.argmax(axis=0)[decided])


def test_the_filter_is_close_to_the_sum_over_all_pairs():
    """Exact Gaussian sums, normalised alike; the lattice is an approximation of some per cent."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 0.5, (40, 3)), rng.normal(2, 0.5, (40, 3))]).astype(np.float32)
    points -= points.min(axis=0)
    values = rng.random((80, 2)).astype(np.float32)
    kernel = np.exp(-0.5 * ((points[:, None] - points[None]) ** 2).sum(axis=-1))
    lattice = gaussian_lattice(torch, [torch.from_numpy(row.copy()) for row in points.T])
    ones = lattice.filtered(torch, torch.ones(80, 1)).numpy()
    found = lattice.filtered(torch, torch.from_numpy(values)).numpy() / ones
    expected = kernel @ values / kernel.sum(axis=1, keepdims=True)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    assert np.abs(found - expected).mean() < 0.2 * np.abs(values - expected).mean()


def test_columns_are_filtered_one_by_one():
    """Splitting the columns, which keeps memory in bounds, changes nothing."""
    points = [torch.rand(500, generator=torch.manual_seed(0)) * 9 for _ in range(5)]
    lattice, values = gaussian_lattice(torch, points), torch.rand(500, 11)
    together = lattice.filtered(torch, values)
    alone = torch.cat([lattice.filtered(torch, values[:, i : i + 1]) for i in range(11)], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-7)


def test_a_normalised_filter_is_symmetric_and_keeps_its_eigenvector():
    points = [torch.rand(60, generator=torch.manual_seed(0)) * 3 for _ in range(2)]
    plain = gaussian_lattice(torch, points)
    lattice = plain.normalised(torch, 2.0)
    root = plain.filtered(torch, torch.ones(60, 1)).sqrt()  # D^-1 1: D K D maps it to D K 1 = itself
    torch.testing.assert_close(lattice.filtered(torch, root), 2 * root, rtol=1e-4, atol=1e-4)


def test_ranges_too_small_for_the_lattice_are_refused():
    rgb, scores = two_halves()
    values = SETTINGS | {"sxy_bilateral": 1e-4, "srgb_bilateral": 1e-4}
    with pytest.raises(ConfigError, match=r"raise crf\.sxy_bilateral and crf\.srgb_bilateral"):
        dense_crf(rgb, scores, iterations=1, torch=torch, **values)


def test_the_same_bytes_whatever_the_number_of_threads():
    rgb, scores = drawn((90, 101), 3)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(dense_crf(rgb, scores, iterations=5, torch=torch, **PUBLISHED))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(*found)


def test_auto_is_torch_on_a_gpu_or_without_pydensecrf(monkeypatch):
    monkeypatch.setattr(densecrf, "has_pydensecrf", lambda: True)
    assert [chosen_engine("auto", device) for device in ("cpu", "mps", "cuda:1")] == ["pydensecrf"] * 2 + ["torch"]
    assert chosen_engine("torch", "cpu") == "torch"
    assert chosen_engine("pydensecrf", "cuda") == "pydensecrf"
    monkeypatch.setattr(densecrf, "has_pydensecrf", lambda: False)
    assert chosen_engine("auto", "cpu") == "torch"
    with pytest.raises(ConfigError, match=r"pip install .*--crf.engine torch"):
        chosen_engine("pydensecrf", "cpu")


@pytest.mark.gpu
def test_a_gpu_gives_the_same_labels():
    rgb, scores = drawn((120, 161), 4)
    one = dense_crf(rgb, scores, iterations=10, torch=torch, **PUBLISHED)
    other = dense_crf(rgb, scores, iterations=10, torch=torch, device="cuda", **PUBLISHED)
    assert (one.argmax(axis=0) == other.argmax(axis=0)).mean() >= 0.9999
    np.testing.assert_allclose(one, other, atol=1e-2)
