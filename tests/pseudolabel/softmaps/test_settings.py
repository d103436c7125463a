"""Settings of the spreading: what is called idle changes nothing, and all others something."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.classes import VOC
from data.store.softmaps import Frame
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.affinity import SelfAttention
from pseudolabel.softmaps.config import AffinityConfig
from pseudolabel.softmaps.reading import refine_maps

AFFINITY = {
    "boxes": False, "theta": 0.7, "clamp_box_edge": True, "balance": True, "iterations": 3, "sharpening": 0.1,
    "saturate": 0.1, "temperature": 0.05,
}  # fmt: skip


@pytest.mark.parametrize("naming", [False, True])
@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("kind", ["none", "caa", "iterated", "iseg", "clipes", "cda"])
def test_settings_called_idle_change_nothing_and_all_others_something(kind, boxes, naming):
    generator = torch.Generator().manual_seed(0)
    cross, other = torch.rand(2, 2, 3, 5, 6, generator=generator) ** 4
    frames = [Frame((40, 48), (40, 48), (40, 48))] * 2
    layers = () if kind == "none" else (SelfAttention(*torch.randn(2, 2, 3, 30, 4, generator=generator), (5, 6)),)

    def maps(config: AffinityConfig) -> torch.Tensor:
        names = [other] if naming else []
        return refine_maps([cross], layers, frames, (5, 6), True, config, None, names, [3, 3])[3]

    base = AffinityConfig(kind=kind, boxes=boxes)
    for name, value in AFFINITY.items():
        config = replace(base, **{name: value})
        if config != base:
            assert (name in config.idle()) == torch.equal(maps(config), maps(base)), name


def test_one_class_without_background_words_has_a_map_under_gocas_sharing(tiny_config, with_settings):
    config = with_settings(tiny_config, "attention", token_rescaling=True, rescaled_tokens="words")
    config = with_settings(config, "prompt", background_words=False)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    [soft] = Pipeline.load(config, VOC).soft_maps([image], [(12,)], ["a"])
    assert soft.maps.max() > 0.5
