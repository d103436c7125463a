"""Settings of the spreading: what is called idle changes nothing, and all others something."""

from dataclasses import replace

import pytest
import torch

from data.store.softmaps import Frame
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
