"""The whole of stage one on tiny real models, through `Pipeline`."""

import numpy as np
import pytest

from data.classes import VOC
from pseudolabel.pipeline import Pipeline, before_crf, label_map


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("folder", ["sd_folder", "sd2_folder", "sdxl_folder"])
def test_an_image_becomes_soft_maps_and_a_mask(folder, request, tiny_config, with_settings, image):
    config = with_settings(tiny_config, "model", id=str(request.getfixturevalue(folder)))
    pipeline = Pipeline.load(config, VOC)
    [soft] = pipeline.soft_maps([image], [(8, 15)], ["one"])
    assert soft.maps.shape == (2, 6, 8)
    assert soft.maps.min() >= 0
    assert soft.maps.max() <= 1
    mask, argmax = label_map(image, soft, config)
    assert mask.shape == argmax.shape == (48, 64)
    assert set(np.unique(argmax)) <= {0, 8, 15}
    assert set(np.unique(mask)) <= {0, 8, 15, 255}
    assert set(np.unique(before_crf(soft, config))) <= {0, 8, 15}
    assert len(pipeline.fingerprint()["fingerprint"]) == 32
