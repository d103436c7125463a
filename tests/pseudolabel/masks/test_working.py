"""Large images are worked on at a bounded size; any other one as it is."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.classes import VOC
from data.images import MAX_PIXELS
from data.store.softmaps import SoftMaps
from pseudolabel.config import GenerateConfig, mask_config, mask_settings, stored_settings
from pseudolabel.masks.config import CrfConfig, MaskConfig
from pseudolabel.masks.fuse import before_crf
from pseudolabel.masks.labelmap import label_map
from pseudolabel.masks.working import enlarged_to, shrunk_to, working_size
from pseudolabel.pipeline import Pipeline

SMALL = CrfConfig(max_megapixels=0.003, iterations=2)


@given(st.integers(1, MAX_PIXELS), st.integers(1, MAX_PIXELS), st.floats(0.01, 100))
def test_the_working_size_holds_the_bound_and_the_aspect(height, width, megapixels):
    found = working_size((height, width), CrfConfig(max_megapixels=megapixels))
    if height * width <= megapixels * 1e6:
        assert found == (height, width)
        return
    assert min(found) >= 1
    assert found[0] * found[1] <= megapixels * 1e6
    assert (found[0] - found[1]) * (height - width) >= 0
    if min(found) > 20:
        assert max(found) / min(found) == pytest.approx(max(height, width) / min(height, width), rel=0.06)


def test_the_largest_images_of_the_documentation():
    assert working_size((1080, 1920), CrfConfig()) == (1080, 1920)
    assert working_size((7456, 12_000), CrfConfig()) == (1142, 1838)
    assert working_size((1, MAX_PIXELS), CrfConfig()) == (1, 2_100_000)


def soft_of(image_hw: tuple[int, int]) -> SoftMaps:
    maps = np.zeros((2, 6, 8), np.float16)
    maps[0, 1:4, 1:4], maps[1, 2:5, 5:7] = 1, 0.9
    return SoftMaps(maps, (3, 9), False, (48, 64), (48, 64), image_hw)


@pytest.mark.parametrize("kind", ["densecrf", "pamr", "none"])
def test_a_large_image_gets_the_enlarged_mask_of_the_small_one(kind):
    image_hw = (240, 320)
    rgb = np.random.default_rng(0).integers(0, 255, (*image_hw, 3), np.uint8)
    config = MaskConfig(crf=replace(SMALL, kind=kind))
    work_hw = working_size(image_hw, config.crf)
    assert work_hw == (47, 63)
    small = shrunk_to(rgb, work_hw)
    masks = label_map(rgb, soft_of(image_hw), config)
    for whole, same, expected in zip(
        masks,
        label_map(small, soft_of(image_hw), config),
        label_map(small, soft_of(work_hw), MaskConfig(crf=replace(config.crf, max_megapixels=9, **ranges(63 / 320)))),
        strict=True,
    ):
        assert whole.shape == image_hw
        np.testing.assert_array_equal(whole, same)
        assert np.mean(whole == enlarged_to(expected, image_hw)) > 0.999
    if kind == "none":
        full = label_map(rgb, soft_of(image_hw), replace(config, crf=replace(config.crf, max_megapixels=9)))[1]
        assert np.mean(masks[1] == full) > 0.97
    assert before_crf(soft_of(image_hw), config.fuse, config.crf).shape == image_hw


def ranges(shrunk: float) -> dict[str, float]:
    crf = CrfConfig()
    return {"sxy_gaussian": crf.sxy_gaussian * shrunk, "sxy_bilateral": crf.sxy_bilateral * shrunk}


def test_scale_is_relative_to_the_file():
    """A CRF at half the file's size, where the working size is smaller still, runs at the working size."""
    rgb = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    for first, second in zip(
        label_map(rgb, soft_of((240, 320)), MaskConfig(crf=replace(SMALL, scale=0.5))),
        label_map(rgb, soft_of((240, 320)), MaskConfig(crf=SMALL)),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)


def test_explain_gives_the_masks_of_generate(tiny_config):
    config = replace(tiny_config, crf=SMALL)
    pipeline = Pipeline.load(config, VOC)
    rgb = np.random.default_rng(0).integers(0, 255, (180, 240, 3), np.uint8)
    small = shrunk_to(rgb, working_size((180, 240), config.crf))
    [soft] = pipeline.soft_maps([small], [(3, 9)], ["a"])
    mask, argmax = label_map(small, replace(soft, image_hw=(180, 240)), mask_config(config))
    found = pipeline.explain(rgb, (3, 9), image_id="a")
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_array_equal(found.argmax, argmax)
    before = before_crf(found.soft, config.fuse, config.crf)
    np.testing.assert_array_equal(found.argmax_before_crf, before)
    assert not np.array_equal(before, before_crf(found.soft, config.fuse))  # at another working size
    assert found.soft.image_hw == mask.shape == (180, 240)


def test_stores_of_before_the_setting_are_resumed(tiny_config):
    """At its default it is not in a store's header; another value is, and comes back."""
    assert "max_megapixels" not in stored_settings(tiny_config)["crf"]
    assert mask_settings(stored_settings(tiny_config)).crf == tiny_config.crf
    changed: GenerateConfig = replace(tiny_config, crf=SMALL)
    assert mask_settings(stored_settings(changed)).crf == SMALL
