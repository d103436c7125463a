"""What is recorded of a U-Net's passes, and that recording changes nothing."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, CustomDiffusionAttnProcessor2_0

from data.errors import ModelError
from pseudolabel.softmaps.attention import record_attention
from pseudolabel.softmaps.diffusion.unet import list_layers
from pseudolabel.softmaps.layers import resolve_layers


def test_a_head_that_is_not_there_is_an_error(bare_unet, record):
    layers = resolve_layers(list_layers(bare_unet), ["mid@7"], "flag")
    with pytest.raises(ModelError, match="Head 7"):
        record(bare_unet, layers, ())


def test_recording_changes_no_bit_of_the_output(bare_unet, run_unet, columns_for):
    before = run_unet(bare_unet)
    layers = list_layers(bare_unet)
    with record_attention(bare_unet, layers, layers, columns_for(2)):
        during = run_unet(bare_unet)
    assert torch.equal(before, during)
    assert torch.equal(before, run_unet(bare_unet))


def test_the_model_is_left_as_it_was_on_exceptions_too(bare_unet, run_unet, columns_for):
    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in bare_unet.modules())

    def record_and_raise() -> None:
        with record_attention(bare_unet, list_layers(bare_unet), list_layers(bare_unet), columns_for(2)):
            assert hooks() > 0
            raise RuntimeError("stop")

    before = run_unet(bare_unet)
    with pytest.raises(RuntimeError, match="stop"):
        record_and_raise()
    assert hooks() == 0
    assert torch.equal(before, run_unet(bare_unet))


def test_a_module_that_is_not_there_leaves_the_model_as_it_was(bare_unet, columns_for):
    [layer] = resolve_layers(list_layers(bare_unet), ["mid"], "flag")
    layers = [layer, replace(layer, cross="x")]
    with pytest.raises(AttributeError), record_attention(bare_unet, layers, [], columns_for(2)):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in bare_unet.modules())


def test_a_pass_ends_when_everything_was_read(bare_unet, record):
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
def test_a_compiled_model_is_read_too(small_unet, stop, record):
    layers = resolve_layers(list_layers(small_unet), ["mid"], "flag")
    plain = record(small_unet, layers, layers)
    small_unet.forward = torch.compile(small_unet.forward, backend="eager")  # traced as for any backend
    for _ in range(2):
        compiled = record(small_unet, layers, layers, stop=stop)
        assert all(torch.equal(value, compiled.cross[name]) for name, value in plain.cross.items())
        assert all(torch.equal(value, compiled.queries[name]) for name, value in plain.queries.items())


def test_attention_that_is_computed_elsewhere_is_an_error(bare_unet, record):
    layers = resolve_layers(list_layers(bare_unet), ["mid"], "flag")
    bare_unet.set_attn_processor(AttnProcessor())  # builds the probabilities by itself
    with pytest.raises(ModelError, match=r"mid_block.*attn2 \(AttnProcessor\) was not seen.*DIFFUSERS_ATTN_BACKEND"):
        record(bare_unet, layers, ())


def test_maps_are_the_softmax_that_diffusers_computes(bare_unet, run_unet, record):
    """The plain processor of diffusers builds the probabilities: catch them there."""
    layer = resolve_layers(list_layers(bare_unet), ["up_blocks.2.attentions.0"], "flag")
    recording = record(bare_unet, layer, layer)
    attention = bare_unet.get_submodule(f"{layer[0].blocks[0]}.attn2")
    caught = []
    scores = attention.get_attention_scores
    attention.get_attention_scores = lambda *args: caught.append(scores(*args)) or caught[-1]
    attention.set_processor(AttnProcessor())
    run_unet(bare_unet)
    probabilities = caught[0].unflatten(0, (2, attention.heads)).mean(dim=1)
    torch.testing.assert_close(recording.cross[layer[0].blocks[0]][:, 0], probabilities[..., 3])
    torch.testing.assert_close(recording.cross[layer[0].blocks[0]][:, 1], probabilities[..., 4:6].mean(dim=-1))


def test_a_layer_of_several_blocks_is_their_mean(sdxl_unet, record):
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


def test_chosen_heads_alone_are_read(bare_unet, record):
    [layer] = resolve_layers(list_layers(bare_unet), ["up_blocks.2.attentions.0"], "flag")
    heads = bare_unet.get_submodule(f"{layer.blocks[0]}.attn2").heads
    each = []
    for head in range(heads):
        [one] = resolve_layers(list_layers(bare_unet), [f"up_blocks.2.attentions.0@{head}"], "flag")
        each.append(record(bare_unet, [one], []).cross_map(one, (16, 24)))
    together = record(bare_unet, [layer], []).cross_map(layer, (16, 24))
    torch.testing.assert_close(torch.stack(each).mean(dim=0), together)


def test_custom_diffusion_weights_are_kept_and_read(bare_unet, run_unet, record):
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
    before = run_unet(bare_unet)
    trained = record(bare_unet, [layer], []).cross_map(layer, (16, 24))
    assert not torch.allclose(plain, trained)
    assert torch.equal(before, run_unet(bare_unet))
    assert attention.processor is processor
    assert any("to_k_custom_diffusion" in name for name in bare_unet.state_dict())


@pytest.mark.parametrize("kind", ["keeps", "adds"])
def test_a_mask_is_applied(bare_unet, kind, run_unet):
    """Tokens behind the mask get no attention, and the others what a shorter sentence would give them."""
    layers = resolve_layers(list_layers(bare_unet), ["mid"], "flag")
    mask = torch.ones(2, 77)
    mask[:, 5:] = 0
    given = mask if kind == "keeps" else (1 - mask) * -10_000.0
    with record_attention(bare_unet, layers, (), torch.eye(77).expand(2, -1, -1)) as recording:
        run_unet(bare_unet, **{"encoder_attention_mask": given.bool() if kind == "keeps" else given[:, None]})
    [columns] = recording.cross.values()
    assert (columns[:, 5:] < 1e-6).all()
    torch.testing.assert_close(columns[:, :5].sum(dim=1), torch.ones(2, columns.shape[-1]))
