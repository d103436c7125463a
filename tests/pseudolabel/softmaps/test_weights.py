"""Layers and heads that are weighed: against formulas written out head by head and cell by cell, and their laws."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from hypothesis import given
from hypothesis import strategies as st

from data.classes import VOC
from data.errors import ModelError
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.affinity import SelfAttention
from pseudolabel.softmaps.attention import record_attention
from pseudolabel.softmaps.calls import Call, cross_columns
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.weights import blurred, head_weights, layer_agreement, weigh_heads

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _reference_head_weights(queries, keys, values, projection, scale) -> np.ndarray:
    """w_n = <A_n V_n W_n, sum over heads of it> at each cell, in loops and float64."""
    heads, cells = queries.shape[:2]
    tokens, width = keys.shape[1], values.shape[2]
    found = np.zeros((heads, cells))
    for cell in range(cells):
        parts = []
        for head in range(heads):
            scores = np.array([queries[head, cell] @ keys[head, t] for t in range(tokens)])
            shares = np.exp(scores * scale) / np.exp(scores * scale).sum()
            mixed = sum(shares[t] * values[head, t] for t in range(tokens))
            parts.append(projection[:, head * width : (head + 1) * width] @ mixed)
        output = sum(parts)
        along = np.array([max(0.0, float(part @ output)) for part in parts])
        found[:, cell] = along / along.sum()
    return found


def test_head_weights_are_the_published_ones():
    queries, keys, values, projection = tensors(0, (1, 3, 7, 4), (1, 3, 5, 4), (1, 3, 5, 6), (11, 18))
    found = head_weights(queries, keys, values, projection, scale=0.5)
    arrays = [each[0].double().numpy() for each in (queries, keys, values)]
    np.testing.assert_allclose(found[0], _reference_head_weights(*arrays, projection.double().numpy(), 0.5), atol=1e-5)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_the_heads_of_a_cell_sum_to_one(seed, heads):
    shapes = ((2, heads, 5, 4), (2, heads, 3, 4), (2, heads, 3, 4), (8, heads * 4))
    found = head_weights(*tensors(seed, *shapes))
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 5))


def test_a_layer_that_adds_nothing_weighs_its_heads_alike():
    queries, keys, values = tensors(0, (1, 4, 6, 2), (1, 4, 3, 2), (1, 4, 3, 2))
    torch.testing.assert_close(head_weights(queries, keys, values, torch.zeros(5, 8)), torch.full((1, 4, 6), 0.25))


def test_equal_heads_give_the_mean():
    queries, keys = tensors(0, (1, 1, 6, 4), (1, 1, 5, 4))
    call = Call(queries.repeat(1, 3, 1, 1), keys.repeat(1, 3, 1, 1), None, 0.5)
    layer, eye = Layer("mid", ("mid",), "mid", 1), torch.eye(5)[None]
    alike = torch.full((1, 3, 6), 1 / 3)
    torch.testing.assert_close(cross_columns(call, layer, eye, by_head=alike), cross_columns(call, layer, eye))


@pytest.mark.parametrize("heads", [None, (0, 2)])
def test_a_real_module_is_read_through_its_projection(heads, monkeypatch):
    torch.manual_seed(0)
    module = Attention(12, cross_attention_dim=10, heads=3, dim_head=4)
    model = torch.nn.Module()
    model.block = torch.nn.Module()
    model.block.attn2 = module
    hidden, text = torch.randn(1, 6, 12), torch.randn(1, 5, 10)
    layer = Layer("block", ("block",), "mid", 1, heads)
    monkeypatch.setattr("pseudolabel.softmaps.calls.SLICE_ELEMENTS", 10)  # two cells at a time
    with torch.no_grad(), record_attention(model, [layer], [], torch.eye(5)[None], weigh=weigh_heads) as recording:
        module(hidden, encoder_hidden_states=text)

    def split(linear: torch.nn.Linear, source: torch.Tensor) -> torch.Tensor:
        return linear(source)[0].unflatten(-1, (3, 4)).transpose(0, 1).detach()

    queries, keys, values = split(module.to_q, hidden), split(module.to_k, text), split(module.to_v, text)
    projection = module.to_out[0].weight.detach().double().numpy()
    arrays = [each.double().numpy() for each in (queries, keys, values)]
    weights = _reference_head_weights(*arrays, projection, 0.5)
    chosen = list(heads or range(3))
    weights = weights[chosen] / weights[chosen].sum(axis=0)
    shares = torch.softmax(queries @ keys.transpose(1, 2) * 0.5, dim=-1).numpy()[chosen]
    expected = (weights[..., None] * shares).sum(axis=0).T
    np.testing.assert_allclose(recording.cross["block"][0], expected, atol=1e-5)


def test_layers_agree_as_written_out():
    features, queries, keys = tensors(1, (1, 5, 2, 3), (1, 2, 6, 4), (1, 2, 6, 4))
    attention = SelfAttention(queries, keys, (2, 3))
    rows = features[0].flatten(1).T.double().numpy()
    scores = rows @ rows.T / np.sqrt(5)
    alike = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = (alike * attention.matrix()[0].numpy()).sum() / 6
    assert float(layer_agreement(features, attention)[0]) == pytest.approx(expected, rel=1e-5)


def test_attention_within_alike_cells_agrees_more_than_attention_anywhere():
    features = torch.zeros(1, 2, 1, 6)
    features[0, 0, 0, :3], features[0, 1, 0, 3:] = 9, 9
    side = features.flatten(2).transpose(1, 2)[:, None]
    within, anywhere = SelfAttention(side, side, (1, 6)), SelfAttention(0 * side, side, (1, 6))
    across = SelfAttention(side, side.flip(2), (1, 6))
    found = [float(layer_agreement(features, each)) for each in (within, anywhere, across)]
    assert found == sorted(found, reverse=True)
    assert all(0 <= each <= 1 for each in found)


def test_the_blur_is_opencvs():
    maps = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    rows = maps.flatten(0, 1).numpy()
    expected = [cv2.GaussianBlur(row, (5, 5), 1.1, borderType=cv2.BORDER_REPLICATE) for row in rows]
    np.testing.assert_allclose(blurred(maps, 5).flatten(0, 1), np.array(expected), atol=1e-5)
    torch.testing.assert_close(blurred(maps, 1), maps)
    torch.testing.assert_close(blurred(torch.ones(1, 1, 3, 2), 7), torch.ones(1, 1, 3, 2))


@pytest.mark.parametrize("weights", ["layers", "heads", "both"])
def test_a_whole_and_a_cut_model_read_the_same(tiny_config, with_settings, weights):
    config = with_settings(tiny_config, "attention", weights=weights)
    cut, whole = (Pipeline.load(config, VOC, cut=cut).soft_maps([IMAGE], [(8, 12)], ["a"])[0] for cut in (True, False))
    np.testing.assert_array_equal(cut.maps, whole.maps)


def test_one_layer_weighs_everything(tiny_config, with_settings):
    """Weights of layers sum to one, so a single layer's are 1."""
    plain = with_settings(tiny_config, "attention", cross_layers=("mid",))
    weighed = with_settings(plain, "attention", weights="layers")
    one, other = (Pipeline.load(config, VOC).soft_maps([IMAGE], [(8, 12)], ["a"])[0] for config in (plain, weighed))
    np.testing.assert_allclose(one.maps, other.maps, atol=2e-3)


def test_layers_can_be_weighed_without_an_affinity(tiny_config, with_settings):
    config = with_settings(with_settings(tiny_config, "affinity", kind="none"), "attention", weights="layers")
    assert "attention.self_layers" not in config.idle()
    [soft] = Pipeline.load(config, VOC).soft_maps([IMAGE], [(8, 12)], ["a"])
    assert np.isfinite(soft.maps).all()


def test_a_head_that_is_not_there_is_refused():
    call = Call(*tensors(0, (1, 2, 6, 4), (1, 2, 5, 4)), None, 0.5)
    module = torch.nn.Module()
    module.to_out = torch.nn.ModuleList([torch.nn.Linear(8, 8)])
    with pytest.raises(ModelError, match=r"Head 7 is asked for, but this layer has heads 0 to 1"):
        weigh_heads(replace(call, values=call.keys), Layer("mid", ("mid",), "mid", 1, (0, 7)), module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_mask_of_any_number_format_is_added(dtype):
    queries, keys, values, projection = tensors(0, (1, 3, 7, 4), (1, 3, 5, 4), (1, 3, 5, 6), (11, 18))
    mask = torch.tensor([0.0, -1, 0.5, 0, -8])[None, None, None]
    expected = head_weights(queries, keys, values, projection, mask)
    given = (each.to(dtype) for each in (queries, keys, values, projection, mask))
    found = head_weights(*given)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    assert not torch.allclose(expected, head_weights(queries, keys, values, projection), atol=0.02)


def test_what_is_no_u_net_s_cross_attention_is_refused():
    call = Call(*tensors(0, (1, 2, 6, 4), (1, 2, 9, 4)), None, 0.5)
    joint = Layer("block", ("block",), "mid", 1, text="first")
    with pytest.raises(ModelError, match=r"the heads of block cannot be weighed.*use mean"):
        weigh_heads(replace(call, values=call.keys), joint, torch.nn.Module())
