"""A U-Net without what runs after the last layer that is read."""

import copy

import pytest
import torch

from data.errors import ModelError
from pseudolabel.softmaps.diffusion.unet import cut as cut_unet
from pseudolabel.softmaps.diffusion.unet import list_layers
from pseudolabel.softmaps.layers import resolve_layers

LAST = [
    ("down_blocks.0.attentions.0", None),
    ("down_blocks.1.attentions.0", "down_blocks.0.attentions.1"),
    ("mid_block.attentions.0", "mid_block.attentions.0"),
    ("mid", "1/4"),
    ("up_blocks.1.attentions.0", "down:1/2"),
    ("mid", "up_blocks.1.attentions.1"),
    ("up_blocks.2.attentions.2", "up:1/1"),
]


@pytest.mark.parametrize(("cross", "self_layer"), LAST)
def test_a_cut_unet_records_the_same_bits_with_fewer_weights(bare_unet, cross, self_layer, record):
    available = list_layers(bare_unet)
    cross_layers = resolve_layers(available, [cross], "flag")
    self_layers = resolve_layers(available, [self_layer], "flag") if self_layer else ()
    cut = copy.deepcopy(bare_unet)
    cut_unet(cut, (*cross_layers, *self_layers))
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in bare_unet.parameters())
    for size in (16, 13):
        whole = record(bare_unet, cross_layers, self_layers, size=size)
        part = record(cut, cross_layers, self_layers, stop=True, size=size)
        for kind in ("cross", "queries", "keys"):
            assert getattr(whole, kind).keys() == getattr(part, kind).keys()
            for name, value in getattr(whole, kind).items():
                assert torch.equal(value, getattr(part, kind)[name]), (kind, name)


@pytest.mark.parametrize(
    "last",
    ["mid.transformer_blocks.1", "mid_block.attentions.0.transformer_blocks.1", "mid", "up_blocks.0.attentions.1"],
)
def test_cutting_inside_a_layer_of_several_blocks(sdxl_unet, last, record):
    available = list_layers(sdxl_unet)
    if last.startswith("mid."):
        with pytest.raises(ModelError, match="does not have"):
            resolve_layers(available, [last], "flag")
        return
    layers = resolve_layers(available, [last], "flag")
    cut = copy.deepcopy(sdxl_unet)
    cut_unet(cut, layers)
    whole, part = record(sdxl_unet, (), layers), record(cut, (), layers, stop=True)
    assert all(torch.equal(value, part.queries[name]) for name, value in whole.queries.items())


def test_what_a_cut_leaves_is_what_runs(bare_unet):
    layers = resolve_layers(list_layers(bare_unet), ["up_blocks.1.attentions.1"], "flag")
    cut_unet(bare_unet, layers)
    assert len(bare_unet.up_blocks) == 2
    assert len(bare_unet.up_blocks[1].attentions) == len(bare_unet.up_blocks[1].resnets) == 2
    assert bare_unet.up_blocks[1].upsamplers is None
    assert bare_unet.conv_out is None
