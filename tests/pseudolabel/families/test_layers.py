"""Which blocks of a transformer a config names, and what can be read of them."""

import numpy as np
import pytest
import torch

from data.classes import VOC
from data.config import DataConfig
from data.errors import ModelError
from pseudolabel.config import GenerateConfig, RunConfig
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.chosen import choose_layers
from pseudolabel.softmaps.config import AffinityConfig, AttentionConfig, DiffusionConfig, ModelConfig, ResizeConfig
from pseudolabel.softmaps.diffusion.families import list_layers
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.layers import resolve_layers

ALL_OF_FLUX = ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0",
               "single_transformer_blocks.1"]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("block:1", ALL_OF_FLUX[1:2]),
        ("blocks:0-1", ALL_OF_FLUX[:2]),
        ("single:0", ALL_OF_FLUX[2:3]),
        ("singles:0-1", ALL_OF_FLUX[2:]),
        ("block", ALL_OF_FLUX[:2]),
        ("single", ALL_OF_FLUX[2:]),
        ("all", ALL_OF_FLUX),
        ("1/2", ALL_OF_FLUX),
        ("single_transformer_blocks.1@1", ALL_OF_FLUX[3:]),
    ],
)
def test_layers_are_found_by_name_or_role(load_family, spec, expected):
    found = resolve_layers(list_layers(load_family("flux")), [spec], "attention.cross_layers")
    assert [layer.name for layer in found] == expected
    assert [layer.heads for layer in found] == [(1,) if "@" in spec else None] * len(found)


@pytest.mark.parametrize(
    "spec", ["block:2", "blocks:1-2", "blocks:1-0", "single:x", "mid", "down_blocks.2.attentions.0"]
)
def test_a_layer_that_is_not_there_is_an_error_that_names_what_is(load_family, spec):
    with pytest.raises(
        ModelError, match=r"attention.cross_layers names .* it has block:0 to block:1 \(1/2\), single:0"
    ):
        resolve_layers(list_layers(load_family("flux")), [spec], "attention.cross_layers")


def test_attention_among_cells_alone_is_refused_where_there_is_none_or_words_are_to_be_read(load_family):
    layers = list_layers(load_family("sd35"))
    with pytest.raises(
        ModelError, match=r"block:2.attn2.* it has block:0 to block:3 \(1/2\), block:0.attn2 to block:1.attn2"
    ):
        resolve_layers(layers, ["block:2.attn2"], "attention.self_layers")
    with pytest.raises(ModelError, match=r"cross_layers names 'block:0.attn2', which sees no text"):
        resolve_layers(layers, ["block:0.attn2"], "attention.cross_layers")
    with pytest.raises(ModelError, match=r"names 'blocks:1-2.attn2'"):
        resolve_layers(layers, ["blocks:1-2.attn2"], "attention.self_layers")
    with pytest.raises(ModelError, match=r"names 'block:0.attn2', which this model does not have"):
        resolve_layers(list_layers(load_family("sd3")), ["block:0.attn2"], "attention.self_layers")
    [one] = resolve_layers(layers, ["transformer_blocks.1.attn2@0+2"], "attention.self_layers")
    assert one.heads == (0, 2)


def test_layers_that_see_no_text_can_neither_name_nor_be_weighed_by(load_family):
    layers = list_layers(load_family("sd35"))
    beside, joint = ("block:0.attn2",), ("block:1",)
    with pytest.raises(ModelError, match=r"naming_layers names 'block:0.attn2', which sees no text"):
        choose_layers(layers, AttentionConfig(joint, joint, naming_layers=beside), AffinityConfig())
    with pytest.raises(ModelError, match=r"--attention.weights: .* transformer_blocks.0.attn2, .* sees no text"):
        choose_layers(layers, AttentionConfig(joint, beside, weights="layers"), AffinityConfig())
    with pytest.raises(ModelError, match=r"--attention.weights: the heads of transformer_blocks.1 cannot be weighed"):
        choose_layers(layers, AttentionConfig(joint, joint, weights="both"), AffinityConfig())


@pytest.mark.parametrize(("name", "weights"), [("pixart", ("layers", "heads", "both")), ("sd3", ("layers",))])
def test_what_can_be_weighed_is_weighed_in_half_precision_too(name, weights, request):
    """PixArt masks filler tokens, with numbers of its own format."""
    folder = request.getfixturevalue(f"{name}_folder")
    parts = load_parts(ModelConfig(id=str(folder)), torch.device("cpu"), torch.bfloat16)
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    found = []
    for each in ("mean", *weights):
        config = GenerateConfig(
            data=DataConfig(root="."), resize=ResizeConfig(long_side_px=64), diffusion=DiffusionConfig(draws=1),
            attention=AttentionConfig(("block",), ("block:1",), weights=each), run=RunConfig(device="cpu"),
        )  # fmt: skip
        [soft] = Pipeline(parts, config, VOC, cut=False).soft_maps([image], [(8, 12)], ["x"])
        assert np.isfinite(soft.maps).all()
        assert not any(np.array_equal(soft.maps, other) for other in found)
        found.append(soft.maps)
