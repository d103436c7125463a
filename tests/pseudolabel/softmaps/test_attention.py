import copy

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    CustomDiffusionAttnProcessor2_0,
)
from torch import nn

from data.errors import ModelError
from pseudolabel.softmaps.attention import (
    Call,
    Recording,
    cross_columns,
    record_attention,
)
from pseudolabel.softmaps.diffusion.unet import cut as cut_unet
from pseudolabel.softmaps.diffusion.unet import list_layers
from pseudolabel.softmaps.layers import Layer, resolve_layers


def names(layers) -> list[str]:
    return [layer.name for layer in layers]


def columns_for(batch: int) -> torch.Tensor:
    weights = torch.zeros(batch, 2, 77)
    weights[:, 0, 3] = 1
    weights[:, 1, 4:6] = 0.5
    return weights


def run(unet, size: int = 16, batch: int = 2, **kwargs) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(batch, 4, size, size + 8, generator=generator)
    text = torch.randn(batch, 77, unet.config.cross_attention_dim, generator=generator)
    if unet.config.addition_embed_type == "text_time":
        kwargs["added_cond_kwargs"] = {"text_embeds": torch.ones(batch, 8), "time_ids": torch.ones(batch, 6)}
    with torch.no_grad():
        return unet(sample, 150, encoder_hidden_states=text, **kwargs).sample


def record(unet, cross, self_layers, stop: bool = False, **kwargs) -> Recording:
    with record_attention(unet, cross, self_layers, columns_for(2), stop) as recording:
        run(unet, **kwargs)
    return recording


@pytest.fixture
def sdxl_unet(sdxl_folder):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(sdxl_folder / "unet", low_cpu_mem_usage=False).eval()


def test_layers_are_listed_in_the_order_they_run(bare_unet):
    order = []
    for layer in list_layers(bare_unet):
        module = bare_unet.get_submodule(layer.name)
        module.register_forward_hook(lambda *_, name=layer.name: order.append(name))
    run(bare_unet)
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


def test_a_head_that_is_not_there_is_an_error(bare_unet):
    layers = resolve_layers(list_layers(bare_unet), ["mid@7"], "flag")
    with pytest.raises(ModelError, match="Head 7"):
        record(bare_unet, layers, ())


def test_a_model_without_cross_attention_is_an_error():
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(block_out_channels=(8, 8), norm_num_groups=4, **blocks)
    with pytest.raises(ModelError, match="no cross-attention"):
        list_layers(unet)


def test_recording_changes_no_bit_of_the_output(bare_unet):
    before = run(bare_unet)
    layers = list_layers(bare_unet)
    with record_attention(bare_unet, layers, layers, columns_for(2)):
        during = run(bare_unet)
    assert torch.equal(before, during)
    assert torch.equal(before, run(bare_unet))


def test_the_model_is_left_as_it_was_on_exceptions_too(bare_unet):
    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in bare_unet.modules())

    def record_and_raise() -> None:
        with record_attention(bare_unet, list_layers(bare_unet), list_layers(bare_unet), columns_for(2)):
            assert hooks() > 0
            raise RuntimeError("stop")

    before = run(bare_unet)
    with pytest.raises(RuntimeError, match="stop"):
        record_and_raise()
    assert hooks() == 0
    assert torch.equal(before, run(bare_unet))


def test_a_pass_ends_when_everything_was_read(bare_unet):
    layers = resolve_layers(list_layers(bare_unet), ["mid"], "flag")
    ran = []
    for name in ("mid_block.attentions.0.transformer_blocks.0.ff", "up_blocks.0", "conv_out"):
        bare_unet.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    stopped = record(bare_unet, layers, layers, stop=True)
    assert ran == []
    whole = record(bare_unet, layers, layers)
    assert len(ran) == 3
    assert all(torch.equal(value, stopped.cross[name]) for name, value in whole.cross.items())


@pytest.mark.parametrize("stop", [False, True])
def test_a_compiled_model_is_read_too(bare_unet, stop):
    layers = resolve_layers(list_layers(bare_unet), ["mid"], "flag")
    plain = record(bare_unet, layers, layers)
    bare_unet.forward = torch.compile(bare_unet.forward, backend="eager")  # traced as for any backend
    for _ in range(2):
        compiled = record(bare_unet, layers, layers, stop=stop)
        assert all(torch.equal(value, compiled.cross[name]) for name, value in plain.cross.items())
        assert all(torch.equal(value, compiled.queries[name]) for name, value in plain.queries.items())


def test_attention_that_is_computed_elsewhere_is_an_error(bare_unet):
    layers = resolve_layers(list_layers(bare_unet), ["mid"], "flag")
    bare_unet.set_attn_processor(AttnProcessor())  # builds the probabilities by itself
    with pytest.raises(ModelError, match=r"mid_block.*attn2 \(AttnProcessor\) was not seen.*DIFFUSERS_ATTN_BACKEND"):
        record(bare_unet, layers, ())


def test_maps_are_the_softmax_that_diffusers_computes(bare_unet):
    """The plain processor of diffusers builds the probabilities: catch them there."""
    layer = resolve_layers(list_layers(bare_unet), ["up_blocks.2.attentions.0"], "flag")
    recording = record(bare_unet, layer, layer)
    attention = bare_unet.get_submodule(f"{layer[0].blocks[0]}.attn2")
    caught = []
    scores = attention.get_attention_scores
    attention.get_attention_scores = lambda *args: caught.append(scores(*args)) or caught[-1]
    attention.set_processor(AttnProcessor())
    run(bare_unet)
    probabilities = caught[0].unflatten(0, (2, attention.heads)).mean(dim=1)
    torch.testing.assert_close(recording.cross[layer[0].blocks[0]][:, 0], probabilities[..., 3])
    torch.testing.assert_close(recording.cross[layer[0].blocks[0]][:, 1], probabilities[..., 4:6].mean(dim=-1))


def test_a_layer_of_several_blocks_is_their_mean(sdxl_unet):
    available = list_layers(sdxl_unet)
    [layer] = resolve_layers(available, ["mid"], "flag")
    assert len(layer.blocks) == 3
    whole = record(sdxl_unet, [layer], [layer])
    singles = [f"{layer.name}.transformer_blocks.{k}" for k in range(3)]
    parts = [whole.cross_map(part, (16, 24)) for part in resolve_layers(available, singles, "flag")]
    torch.testing.assert_close(whole.cross_map(layer, (16, 24)), torch.stack(parts).mean(dim=0))
    queries, keys = whole.queries_and_keys(layer)
    assert queries.shape == keys.shape
    assert queries.shape[1] == 3 * whole.queries[layer.blocks[0]].shape[1]


def test_chosen_heads_alone_are_read(bare_unet):
    [layer] = resolve_layers(list_layers(bare_unet), ["up_blocks.2.attentions.0"], "flag")
    heads = bare_unet.get_submodule(f"{layer.blocks[0]}.attn2").heads
    each = []
    for head in range(heads):
        [one] = resolve_layers(list_layers(bare_unet), [f"up_blocks.2.attentions.0@{head}"], "flag")
        each.append(record(bare_unet, [one], []).cross_map(one, (16, 24)))
    together = record(bare_unet, [layer], []).cross_map(layer, (16, 24))
    torch.testing.assert_close(torch.stack(each).mean(dim=0), together)


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
def test_a_cut_unet_records_the_same_bits_with_fewer_weights(bare_unet, cross, self_layer):
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
def test_cutting_inside_a_layer_of_several_blocks(sdxl_unet, last):
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


def test_custom_diffusion_weights_are_kept_and_read(bare_unet):
    [layer] = resolve_layers(list_layers(bare_unet), ["mid"], "flag")
    attention = bare_unet.get_submodule(f"{layer.blocks[0]}.attn2")
    plain = record(bare_unet, [layer], []).cross_map(layer, (16, 24))
    processor = CustomDiffusionAttnProcessor2_0(
        train_kv=True, train_q_out=False, hidden_size=16, cross_attention_dim=16
    )
    with torch.no_grad():
        processor.to_k_custom_diffusion.weight.copy_(attention.to_k.weight * 2)
        processor.to_v_custom_diffusion.weight.copy_(attention.to_v.weight)
    attention.set_processor(processor)
    before = run(bare_unet)
    trained = record(bare_unet, [layer], []).cross_map(layer, (16, 24))
    assert not torch.allclose(plain, trained)
    assert torch.equal(before, run(bare_unet))
    assert attention.processor is processor
    assert any("to_k_custom_diffusion" in name for name in bare_unet.state_dict())


class OneAttention(nn.Module):
    """A model of a single attention module."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.attn2 = Attention(**settings)

    def forward(self, *args, **kwargs) -> torch.Tensor:
        return self.block.attn2(*args, **kwargs)


@pytest.mark.parametrize(
    "settings",
    [
        {"norm_num_groups": 4, "spatial_norm_dim": 4, "residual_connection": True, "rescale_output_factor": 2.0},
        {"cross_attention_dim": 12, "cross_attention_norm": "layer_norm"},
        {"kv_heads": 1},
    ],
)
def test_queries_and_keys_of_unusual_attention_modules(settings):
    """Group norm, spatial norm, 4-D input, a norm on text, shared keys: as the plain processor has them."""
    torch.manual_seed(0)
    shared = settings.pop("kv_heads", None)
    model = OneAttention(query_dim=32, heads=2, dim_head=4, **settings).eval()
    module = model.block.attn2
    text = torch.randn(1, 5, 12) if "cross_attention_dim" in settings else None
    hidden = torch.randn(1, 32, 4, 4) if "norm_num_groups" in settings else torch.randn(1, 16, 32)
    temb = torch.randn(1, 4, 4, 4) if "spatial_norm_dim" in settings else None
    if shared:
        queries, keys = torch.randn(1, 2, 16, 4), torch.randn(1, 1, 16, 4)

        def grouped(*_, **__) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(queries, keys, keys, enable_gqa=True)

        module.forward = grouped
        expected = torch.softmax(queries @ keys.repeat(1, 2, 1, 1).transpose(-1, -2) * 4**-0.5, dim=-1)[0]
    else:
        caught = []
        scores = module.get_attention_scores
        module.get_attention_scores = lambda *args: caught.append(scores(*args)) or caught[-1]
        processor = module.processor
        module.set_processor(AttnProcessor())
        with torch.no_grad():
            model(hidden, encoder_hidden_states=text, temb=temb)
        module.set_processor(processor)
        expected = caught[0]
    layer = Layer("block", ("block",), "mid", 1)
    n_text = 5 if text is not None else 16
    with torch.no_grad(), record_attention(model, [layer], [], torch.eye(n_text)[None]) as recording:
        model(hidden, encoder_hidden_states=text, temb=temb)
    torch.testing.assert_close(recording.cross["block"][0].T, expected.mean(dim=0))


@pytest.mark.parametrize("kind", ["keeps", "adds"])
def test_a_mask_is_applied(bare_unet, kind):
    """Tokens behind the mask get no attention, and the others what a shorter sentence would give them."""
    layers = resolve_layers(list_layers(bare_unet), ["mid"], "flag")
    mask = torch.ones(2, 77)
    mask[:, 5:] = 0
    given = mask if kind == "keeps" else (1 - mask) * -10_000.0
    with record_attention(bare_unet, layers, (), torch.eye(77).expand(2, -1, -1)) as recording:
        run(bare_unet, **{"encoder_attention_mask": given.bool() if kind == "keeps" else given[:, None]})
    [columns] = recording.cross.values()
    assert (columns[:, 5:] < 1e-6).all()
    torch.testing.assert_close(columns[:, :5].sum(dim=1), torch.ones(2, columns.shape[-1]))


def reference_columns(call: Call, first: int, n_text: int) -> torch.Tensor:
    scores = call.queries.double() @ call.keys.double().transpose(-1, -2) * call.scale
    if call.mask is not None:
        scores = scores + torch.where(call.mask, 0.0, -torch.inf)
    whole = torch.softmax(scores, dim=-1).mean(dim=1)
    rows = slice(n_text, None) if first else slice(None, -n_text)
    columns = slice(None, n_text) if first else slice(-n_text, None)
    return whole[:, rows, columns].transpose(1, 2).float()


@pytest.mark.parametrize("text", ["first", "last"])
@pytest.mark.parametrize("masked", [False, True])
def test_joint_attention_is_the_softmax_over_all_tokens(text, masked, monkeypatch):
    torch.manual_seed(0)
    mask = None
    if masked:
        mask = torch.ones(2, 1, 1, 17, dtype=torch.bool)
        mask[:, ..., 1 if text == "first" else -2] = False
    call = Call(torch.randn(2, 3, 17, 4), torch.randn(2, 3, 17, 4), mask, 0.7)
    layer = Layer("block", ("block",), "mid", 1, text=text)
    expected = reference_columns(call, text == "first", 5)
    weights = torch.eye(5).expand(2, -1, -1)
    torch.testing.assert_close(cross_columns(call, layer, weights), expected)
    monkeypatch.setattr("pseudolabel.softmaps.attention.SLICE_ELEMENTS", 40)  # two cells at a time
    torch.testing.assert_close(cross_columns(call, layer, weights), expected)


@pytest.mark.parametrize("text", ["first", "last"])
def test_self_attention_of_joint_attention_sums_to_one_over_cells(text):
    torch.manual_seed(0)
    call = Call(torch.randn(1, 2, 17, 4), torch.randn(1, 2, 17, 4), None, 0.7)
    queries, keys = call.among_cells(Layer("block", ("block",), "mid", 1, text=text), 5)
    whole = torch.softmax(call.queries @ call.keys.transpose(-1, -2) * call.scale, dim=-1)
    cells = slice(5, None) if text == "first" else slice(None, -5)
    expected = whole[:, :, cells, cells]
    expected = expected / expected.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(torch.softmax(queries @ keys.transpose(-1, -2) * 0.5, dim=-1), expected)


def test_a_mask_between_cells_is_an_error():
    mask = torch.eye(6, dtype=torch.bool)[None, None]
    call = Call(torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4), mask, 0.5)
    with pytest.raises(ModelError, match="block has a mask between cells"):
        call.among_cells(Layer("block", ("block",), "mid", 1), 5)


def test_content_tokens_share_out_the_attention():
    content = torch.zeros(1, 5, dtype=torch.bool)
    content[0, 1:3] = True
    layer = Layer("mid", ("a", "b"), "mid", 1)
    tokens = cross_columns(Call(torch.randn(1, 2, 6, 4), torch.randn(1, 2, 5, 4), None, 0.5), layer, torch.eye(5)[None])
    recording = Recording(cross={"a": tokens, "b": tokens.flip(-1)})
    maps = recording.cross_map(layer, (2, 3), content).flatten(2)
    torch.testing.assert_close(maps[0, 1:3].sum(dim=0), torch.ones(6))
    assert (maps[0, [0, 3, 4]] == 0).all()
