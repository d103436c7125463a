"""Which layers a model has, and which of them a config names."""

import pytest
import torch

from data.errors import ConfigError, ModelError
from pseudolabel.softmaps.chosen import choose_layers
from pseudolabel.softmaps.config import AffinityConfig, AttentionConfig
from pseudolabel.softmaps.diffusion.unet import list_layers
from pseudolabel.softmaps.layers import Layer, resolve_layers


def names(layers) -> list[str]:
    return [layer.name for layer in layers]


def test_layers_are_listed_in_the_order_they_run(bare_unet, run_unet):
    order = []
    for layer in list_layers(bare_unet):
        module = bare_unet.get_submodule(layer.name)
        module.register_forward_hook(lambda *_, name=layer.name: order.append(name))
    run_unet(bare_unet)
    assert order == names(list_layers(bare_unet))
    assert len(order) == 11


def test_a_layer_knows_its_grid(bare_unet):
    sizes = {}
    for layer in list_layers(bare_unet):
        module = bare_unet.get_submodule(layer.name)
        module.register_forward_hook(
            lambda _, inputs, __, name=layer.name: sizes.update({name: tuple(inputs[0].shape[-2:])})
        )
    with torch.no_grad():  # 13 x 18 is no multiple of four: strided convolutions round up
        bare_unet(torch.randn(1, 4, 13, 18), 1, encoder_hidden_states=torch.randn(1, 77, 16))
    assert sizes == {layer.name: layer.grid_hw((13, 18)) for layer in list_layers(bare_unet)}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mid", ["mid_block.attentions.0"]),
        ("1/4", ["mid_block.attentions.0"]),
        ("down:1/2", ["down_blocks.1.attentions.0", "down_blocks.1.attentions.1"]),
        ("up:1/2", [f"up_blocks.1.attentions.{k}" for k in range(3)]),
        ("up_blocks.2.attentions.1", ["up_blocks.2.attentions.1"]),
        ("up_blocks.2.attentions.1@0+1", ["up_blocks.2.attentions.1"]),
    ],
)
def test_layers_are_found_by_name_or_role(bare_unet, spec, expected):
    assert names(resolve_layers(list_layers(bare_unet), [spec], "attention.cross_layers")) == expected


def test_layers_come_once_and_in_order(bare_unet):
    available = list_layers(bare_unet)
    found = resolve_layers(available, ["up", "mid", "1/4", "up_blocks.1.attentions.0", "down"], "flag")
    assert names(found) == names(available)
    assert names(resolve_layers(available, ["all"], "flag")) == names(available)


@pytest.mark.parametrize("spec", ["down_blocks.2.attentions.0", "1/8", "mid@x", "", "mid.transformer_blocks.1"])
def test_an_unknown_layer_is_an_error_that_lists_what_there_is(bare_unet, spec):
    with pytest.raises(
        ModelError, match=r"--attention.cross_layers names .* it has down_blocks.0.attentions.0 \(1/1\)"
    ):
        resolve_layers(list_layers(bare_unet), [spec], "attention.cross_layers")


def test_a_model_without_cross_attention_is_an_error():
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(block_out_channels=(8, 8), norm_num_groups=4, **blocks)
    with pytest.raises(ModelError, match="no cross-attention"):
        list_layers(unet)


@pytest.mark.parametrize("specs", [["mid@0", "mid@1"], ["1/2@0", "down:1/2"], ["mid", "mid_block.attentions.0@1"]])
def test_other_heads_of_a_layer_that_is_named_already_are_refused(bare_unet, specs):
    """The last of them alone would be read, and nobody told."""
    with pytest.raises(ModelError, match=r"--attention\.self_layers names .* twice, .*name@0\+3"):
        resolve_layers(list_layers(bare_unet), specs, "attention.self_layers")


def test_a_layer_may_be_named_again_as_it_was(bare_unet):
    [layer] = resolve_layers(list_layers(bare_unet), ["mid@0+1", "1/4@0+1"], "attention.self_layers")
    assert layer.heads == (0, 1)


def test_a_block_of_a_layer_cannot_be_read_through_other_heads_than_the_layer(bare_unet):
    """What was recorded of the block would be the layer's too."""
    block = "mid_block.attentions.0.transformer_blocks.0"
    with pytest.raises(ConfigError, match=r"--attention\.cross_layers: .*mid_block.* with other heads"):
        choose_layers(list_layers(bare_unet), AttentionConfig(cross_layers=("mid@0", block)), AffinityConfig())
    chosen = choose_layers(list_layers(bare_unet), AttentionConfig(("mid@0", f"{block}@0"), ("mid",)), AffinityConfig())
    assert sorted(names(chosen.cross)) == ["mid_block.attentions.0", block]


@pytest.mark.parametrize(
    ("kind", "remedy"), [("none", r"--attention\.weights=mean"), ("caa", r"--affinity\.kind=none")]
)
def test_layers_cannot_be_weighed_by_none(bare_unet, kind, remedy):
    attention = AttentionConfig(cross_layers=("mid",), self_layers=(), weights="layers")
    with pytest.raises(ConfigError, match=rf"--attention\.self_layers is empty: .*{remedy}"):
        choose_layers(list_layers(bare_unet), attention, AffinityConfig(kind=kind))


def test_more_than_ten_blocks_come_in_the_order_they_run():
    blocks = tuple(f"mid_block.attentions.0.transformer_blocks.{k}" for k in range(12))
    found = resolve_layers([Layer("mid_block.attentions.0", blocks, "mid", 4)], [blocks[10], blocks[2]], "flag")
    assert names(found) == [blocks[2], blocks[10]]
