"""The dense CRF over a network's probabilities: two engines, one result, and a store that says which."""

import json

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import densecrf
from data.densecrf import dense_crf, has_pydensecrf
from data.errors import ConfigError
from data.store.store import MaskStore
from train import crf_tiles
from train.cli import main
from train.crf_tiles import blocks_of_large, tile_side
from train.inference import CrfConfig, InferenceConfig, probabilities, sharpen, with_engine

from .conftest import draw, make_world

FILL = torch.full((1, 3, 1, 1), 110.0)
ENGINES = [
    pytest.param("pydensecrf", marks=pytest.mark.skipif(not has_pydensecrf(), reason="needs pip install '.[crf]'")),
    "torch",
]
NARROW = CrfConfig(enabled=True, sxy_bilateral=3.0, srgb_bilateral=9.0, iterations=5)


@pytest.mark.skipif(not has_pydensecrf(), reason="needs pydensecrf: pip install '.[crf]'")
def test_both_engines_sharpen_alike():
    rgb, mask = draw(0)
    probability = np.stack([0.2 + 0.4 * (mask == label) for label in range(3)]).astype(np.float32)
    probability /= probability.sum(axis=0)
    one, other = (sharpen(rgb, probability, CrfConfig(enabled=True, engine=name)) for name in ("pydensecrf", "torch"))
    np.testing.assert_allclose(one, other, atol=1e-3)
    assert np.abs(one - probability).max() > 0.1


def test_auto_is_settled_only_where_the_crf_runs(monkeypatch):
    monkeypatch.setattr(densecrf, "has_pydensecrf", lambda: False)
    assert with_engine(InferenceConfig(crf=CrfConfig(enabled=True)), "cpu").crf.engine == "torch"
    assert with_engine(InferenceConfig(), "cpu").crf.engine == "auto"


def test_predictions_name_the_engine_and_older_ones_are_resumed(checkpoint, world, tmp_path, monkeypatch):
    monkeypatch.setattr(densecrf, "has_pydensecrf", lambda: False)
    command = ["predict", "--ckpt_path", str(checkpoint), "--device", "cpu", "--inference.crf.enabled", "true"]
    command += ["--images", str(world.root / "JPEGImages"), "--output", str(tmp_path / "P")]
    assert main(command) == 0
    header = MaskStore.open(tmp_path / "P").header
    assert header["config"]["inference"]["crf"]["engine"] == "torch"
    del header["config"]["inference"]["crf"]["engine"]  # as versions without the setting wrote it
    (tmp_path / "P" / "store.json").write_text(json.dumps(header))
    assert main(command) == 0


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth patches of colour with edges and a little noise."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (-(-height // 12), -(-width // 12), 3)).astype(np.uint8)
    rgb = cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.clip(cv2.blur(rgb, (5, 5)) + rng.normal(0, 3, rgb.shape), 0, 255).astype(np.uint8)


def coloured(images: torch.Tensor) -> torch.Tensor:
    """Three scores of each pixel that depend on the colours around it."""
    return torch.nn.functional.avg_pool2d(images, 9, stride=1, padding=4) / 60


@pytest.mark.parametrize("engine", ENGINES)
def test_a_part_that_knows_where_it_lies_comes_out_as_in_the_whole(engine):
    rgb = photograph(90, 110)
    scores = probabilities(coloured, torch.from_numpy(rgb).permute(2, 0, 1)[None].float(), InferenceConfig(), FILL)
    scores = scores[0].numpy()
    module = torch if engine == "torch" else None
    crf = {"iterations": 5, "sxy_gaussian": 1.0, "compat_gaussian": 3.0, "compat_bilateral": 4.0}
    crf |= {"sxy_bilateral": 3.0, "srgb_bilateral": 9.0, "torch": module}
    whole, part = dense_crf(rgb, scores, **crf), (slice(13, 90), slice(22, 110))
    inner = (..., slice(24, None), slice(24, None))
    placed = dense_crf(rgb[part], scores[:, *part], origin_yx=(13, 22), **crf)[inner]
    anywhere = dense_crf(rgb[part], scores[:, *part], **crf)[inner]
    np.testing.assert_allclose(placed, whole[:, *part][inner], atol=1e-3)
    assert np.abs(anywhere - whole[:, *part][inner]).max() > 0.01


@settings(deadline=None, max_examples=15)
@given(
    size_hw=st.tuples(st.integers(40, 150), st.integers(40, 150)),
    window=st.sampled_from([None, 48, 200]),
    flip=st.booleans(),
    side=st.sampled_from([16, 40, 64]),
    seed=st.integers(0, 5),
)
def test_tiles_cover_the_image_once_with_what_the_whole_gives(size_hw, window, flip, side, seed):
    config = InferenceConfig(window=window, flip=flip, crf=NARROW)
    rgb = photograph(*size_hw, seed)
    image = torch.from_numpy(rgb).permute(2, 0, 1)
    before, after = (np.full((3, *size_hw), np.nan, np.float32) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crf_tiles, "WHOLE_PX", 40 * 40 - 1)
        patch.setattr(crf_tiles, "LEAST_SIDE_PX", side)
        patch.setattr(crf_tiles, "REACH", 8)
        for one, other in blocks_of_large(coloured, image, 3, config, FILL, "it"):
            at = (slice(None), one.rows, one.columns)
            assert (one.rows, one.columns) == (other.rows, other.columns)
            assert np.isnan(before[at]).all()
            before[at], after[at] = one.values, other.values
    expected = probabilities(coloured, image[None].float(), config, FILL)[0].numpy()
    np.testing.assert_allclose(before, expected, atol=2e-5)
    np.testing.assert_allclose(after, sharpen(rgb, expected, NARROW), atol=5e-3)


def test_the_margin_that_is_shipped_moves_few_labels():
    rgb = photograph(300, 300)
    image = torch.from_numpy(rgb).permute(2, 0, 1)
    config = InferenceConfig(crf=NARROW)
    whole = probabilities(coloured, image[None].float(), config, FILL)[0].numpy()
    whole, found = sharpen(rgb, whole, NARROW).argmax(0), np.empty((300, 300), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crf_tiles, "WHOLE_PX", 1)
        patch.setattr(crf_tiles, "LEAST_SIDE_PX", 56)
        for _, block in blocks_of_large(coloured, image, 3, config, FILL, "it"):
            found[block.rows, block.columns] = block.values.argmax(0)
    assert (found != whole).mean() < 1e-3


def test_no_tile_grows_with_the_image(monkeypatch):
    side, margin = tile_side(CrfConfig())
    assert (side + 2 * margin) ** 2 <= crf_tiles.WHOLE_PX
    seen = []
    monkeypatch.setattr(crf_tiles, "WHOLE_PX", 64 * 64)
    monkeypatch.setattr(crf_tiles, "LEAST_SIDE_PX", 8)
    monkeypatch.setattr(crf_tiles, "sharpen", lambda rgb, values, *more: seen.append(values.shape[1:]) or values)
    image = torch.zeros(3, 400, 300, dtype=torch.uint8)
    assert len(list(blocks_of_large(coloured, image, 3, InferenceConfig(window=48, crf=NARROW), FILL, "it"))) > 20
    assert max(height * width for height, width in seen) <= 64 * 64


def test_small_images_are_seen_whole():
    image = torch.zeros(3, 1024, 2048, dtype=torch.uint8)  # of Cityscapes
    for crf in (CrfConfig(), NARROW):
        assert blocks_of_large(coloured, image, 3, InferenceConfig(window=512, crf=crf), FILL, "it") is None


def test_commands_write_in_tiles_what_they_write_whole(checkpoint, tmp_path, monkeypatch):
    world = make_world(tmp_path / "world", train=3, val=2)
    (tmp_path / "images").mkdir()
    for index, size in enumerate([(64, 64), (100, 75), (61, 203)]):
        Image.fromarray(draw(index, *size)[0]).save(tmp_path / "images" / f"{index}.png")
    crf = ["--inference.crf.enabled", "true", "--inference.crf.sxy_bilateral", "5", "--inference.window", "48"]
    shared = ["--ckpt_path", str(checkpoint), *crf]

    def written(name: str) -> tuple[list[np.ndarray], float]:
        images, folder = ["--images", str(tmp_path / "images"), "--device", "cpu"], tmp_path / name
        assert main(["predict", *shared, *images, "--output", str(folder / "P")]) == 0
        store = ["--data.store", str(world.store), "--device", "cpu", "--output", str(folder / "R")]
        assert main(["relabel", *shared, *store]) == 0
        report = ["--report.output", str(folder / "test"), "--report.plots", "false", "--trainer.accelerator", "cpu"]
        assert main(["test", *shared, *world.val, *report]) == 0
        stores = [MaskStore.open(folder / part) for part in ("P", "R")]
        masks = [store.read_mask(each) for store in stores for each in store.ids()]
        return masks, json.loads((folder / "test" / "scores.json").read_text())["miou"]

    whole, miou = written("whole")
    monkeypatch.setattr(crf_tiles, "WHOLE_PX", 60 * 60)
    monkeypatch.setattr(crf_tiles, "LEAST_SIDE_PX", 24)
    made, original = [], crf_tiles.sharpened_blocks
    monkeypatch.setattr(crf_tiles, "sharpened_blocks", lambda *given: made.append(given) or original(*given))
    parts, tiled_miou = written("parts")
    assert len(made) == len(whole) + 2  # every image that is predicted, corrected or tested on
    for one, other in zip(whole, parts, strict=True):
        assert (one != other).mean() < 0.01
    assert abs(miou - tiled_miou) < 0.01
    assert any((mask > 0).any() for mask in whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["compat_gaussian", "sxy_bilateral"])
def test_settings_that_are_no_numbers_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"--inference\.crf\.{name}"):
        CrfConfig(**{name: value})
