"""Large images in blocks: the same labels as in one piece, and memory that does not grow with the image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from data.errors import ModelError
from data.store.store import MaskStore
from train import tiles
from train.cli import main
from train.inference import InferenceConfig, probabilities
from train.tiles import needs_blocks, probability_blocks

from .conftest import draw, make_world

FILL = torch.full((1, 3, 1, 1), 110.0)


def placed(images: torch.Tensor) -> torch.Tensor:
    """Three scores of each pixel that depend on its colour, its surroundings and its place in the window."""
    rows = torch.linspace(0, 2, images.shape[-2]).view(-1, 1)
    columns = torch.linspace(0, 1, images.shape[-1])
    blurred = torch.nn.functional.avg_pool2d(images, 5, stride=1, padding=2)
    return torch.stack([images[:, 0], blurred[:, 1] + 9 * rows, images[:, 2] + 30 * columns], dim=1) / 30


def assembled(network, rgb: torch.Tensor, config: InferenceConfig) -> np.ndarray:
    found = np.full((3, *rgb.shape[-2:]), np.nan, np.float32)
    for block in probability_blocks(network, rgb, 3, config, FILL):
        assert np.isnan(found[:, block.rows, block.columns]).all()  # no pixel twice
        found[:, block.rows, block.columns] = block.values
    return found


@settings(deadline=None, max_examples=25)
@given(
    size_hw=st.tuples(st.integers(20, 150), st.integers(20, 150)),
    scales=st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.3, 2.0]), min_size=1, max_size=3, unique=True),
    flip=st.booleans(),
    merge=st.sampled_from(["mean", "max"]),
    window=st.sampled_from([32, 50, 64, 100]),
    overlap=st.sampled_from([0.0, 0.33, 0.8]),
    strip=st.sampled_from([1, 80, 1000]),
    band=st.sampled_from([8, 24, 256]),
)
def test_blocks_are_the_whole_image(size_hw, scales, flip, merge, window, overlap, strip, band):
    config = InferenceConfig(scales=tuple(scales), flip=flip, merge=merge, window=window, overlap=overlap)
    rgb = torch.from_numpy(np.random.default_rng(size_hw).integers(0, 256, (3, *size_hw), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "HELD_BYTES", 12 * window * strip)
        patch.setattr(tiles, "BAND_ROWS", band)
        found = assembled(placed, rgb, config)
    expected = probabilities(placed, rgb[None].float(), config, FILL)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("width", "more"),
    [
        (50, {"scales": (3.0,)}),  # whose samples are each third one, without any share of a neighbour
        (90, {"scales": (1.0, 5.0)}),
        (66, {"scales": (0.25,), "flip": True}),  # of a last strip of two columns both are the first sample
    ],
)
def test_samples_that_need_no_mixing_are_the_right_ones(width, more, monkeypatch):
    monkeypatch.setattr(tiles, "HELD_BYTES", 1)
    config = InferenceConfig(window=32, **more)
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, width), np.uint8))
    expected = probabilities(placed, rgb[None].float(), config, FILL)[0].numpy()
    np.testing.assert_allclose(assembled(placed, rgb, config), expected, atol=2e-5)


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that torch makes; a part of another is not made."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
            self.bytes = max(self.bytes, made.numel() * made.element_size())
        return made


@pytest.mark.parametrize("more", [{}, {"flip": True}, {"scales": (0.5, 1.0, 1.5)}])
def test_memory_grows_with_neither_side_of_the_image(more, monkeypatch):
    monkeypatch.setattr(tiles, "HELD_BYTES", 12 * 64 * 128)
    monkeypatch.setattr(tiles, "BAND_ROWS", 32)
    config = InferenceConfig(window=64, **more)

    def largest(height: int, width: int) -> int:
        rgb = torch.zeros(3, height, width, dtype=torch.uint8)
        with Largest() as seen:
            for block in probability_blocks(placed, rgb, 3, config, FILL):
                assert block.values.shape[1:] <= (32, 128)
        return seen.bytes

    large = largest(600, 600)
    assert large <= 1.1 * largest(300, 300)
    assert large < 12 * 600 * 600 / 4  # the scores of all pixels take four times that


def test_small_images_whole_ones_and_the_crf_are_left_alone():
    assert needs_blocks((10_000, 9_000), 21, InferenceConfig(window=513))
    assert not needs_blocks((1_000, 900), 21, InferenceConfig(window=513))
    assert not needs_blocks((10_000, 9_000), 21, InferenceConfig())
    crf = InferenceConfig(window=513)
    crf = InferenceConfig(window=513, crf=type(crf.crf)(enabled=True))
    assert not needs_blocks((10_000, 9_000), 21, crf)


def test_scores_that_are_no_numbers_are_refused():
    def spoilt(images):
        return placed(images).masked_fill(images[:, :1] == 255, torch.inf)

    rgb = torch.zeros(3, 90, 90, dtype=torch.uint8)
    rgb[0, 80, 3] = 255
    with pytest.raises(ModelError, match="NaN or infinite, in float32"):
        list(probability_blocks(spoilt, rgb, 3, InferenceConfig(window=48), FILL))


VIEWS = ["--inference.window", "48", "--inference.flip", "true"]


@pytest.fixture
def blocks(monkeypatch):
    """Every image of more than one window is predicted in blocks; returns how many there were."""
    made = []
    original = tiles.probability_blocks

    def counted(*arguments):
        for block in original(*arguments):
            made.append(block)
            yield block

    def switch() -> list:
        monkeypatch.setattr(tiles, "HELD_BYTES", 12 * 48 * 50)
        monkeypatch.setattr(tiles, "BAND_ROWS", 16)
        monkeypatch.setattr("train.crf_tiles.probability_blocks", counted)
        return made

    return switch


def test_predict_writes_the_same_store_in_blocks(checkpoint, tmp_path, blocks):
    (tmp_path / "images").mkdir()
    for index, size in enumerate([(64, 64), (100, 75), (61, 203), (150, 60)]):
        Image.fromarray(draw(index, *size)[0]).save(tmp_path / "images" / f"{index}.png")
    common = [
        "predict",
        "--ckpt_path",
        str(checkpoint),
        "--images",
        str(tmp_path / "images"),
        "--device",
        "cpu",
        *VIEWS,
    ]
    common += [*VIEWS, "--ignore_below", "0.6", "--probabilities", "true"]
    assert main([*common, "--output", str(tmp_path / "whole")]) == 0
    made = blocks()
    assert main([*common, "--output", str(tmp_path / "blocks")]) == 0
    assert len(made) > 20
    whole, parts = (MaskStore.open(tmp_path / name) for name in ("whole", "blocks"))
    for name in whole.ids():
        np.testing.assert_array_equal(whole.read_mask(name), parts.read_mask(name))
        np.testing.assert_array_equal(whole.read_argmax(name), parts.read_argmax(name))
        one, other = whole.read_soft(name), parts.read_soft(name)
        assert (one.labels, one.padded_hw, one.image_hw) == (other.labels, other.padded_hw, other.image_hw)
        np.testing.assert_allclose(one.maps.astype(float), other.maps.astype(float), atol=1e-3)
        files = [np.load(tmp_path / store / "probabilities" / f"{name}.npz") for store in ("whole", "blocks")]
        np.testing.assert_allclose(*(file["probabilities"].astype(float) for file in files), atol=1e-3)
        pictures = [(tmp_path / store / "overlays" / f"{name}.jpg").read_bytes() for store in ("whole", "blocks")]
        assert pictures[0] == pictures[1]


def test_test_and_relabel_come_to_the_same_in_blocks(checkpoint, tmp_path, blocks):
    world = make_world(tmp_path / "world", train=3, val=2)

    def both(name: str) -> tuple[bytes, list[np.ndarray]]:
        report = ["--report.output", str(tmp_path / name), "--report.plots", "false", "--trainer.accelerator", "cpu"]
        assert main(["test", "--ckpt_path", str(checkpoint), *world.val, *VIEWS, *report]) == 0
        store = ["--data.store", str(world.store), "--output", str(tmp_path / f"{name}_store"), "--device", "cpu"]
        assert main(["relabel", "--ckpt_path", str(checkpoint), *store, *VIEWS]) == 0
        written = MaskStore.open(tmp_path / f"{name}_store")
        return (tmp_path / name / "scores.json").read_bytes(), [written.read_mask(each) for each in written.ids()]

    whole = both("whole")
    made = blocks()
    parts = both("parts")
    assert len(made) > 20
    assert whole[0] == parts[0]
    for one, other in zip(whole[1], parts[1], strict=True):
        np.testing.assert_array_equal(one, other)
