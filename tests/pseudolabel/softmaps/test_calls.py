"""What one call of an attention module says: maps and self-attention against the formulas, masks, unusual modules."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn

from data.errors import ModelError
from pseudolabel.softmaps.attention import Recording, record_attention
from pseudolabel.softmaps.calls import Call, cross_columns
from pseudolabel.softmaps.layers import Layer


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
    monkeypatch.setattr("pseudolabel.softmaps.calls.SLICE_ELEMENTS", 40)  # two cells at a time
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


@pytest.mark.parametrize("kind", ["keeps", "adds"])
def test_chosen_heads_are_read_under_their_own_masks(kind):
    torch.manual_seed(0)
    keeps = torch.rand(2, 3, 6, 5) < 0.7
    keeps[..., 0] = True
    mask = keeps if kind == "keeps" else torch.where(keeps, 0.0, -torch.inf)
    call = Call(torch.randn(2, 3, 6, 4), torch.randn(2, 3, 5, 4), mask, 0.5)
    found = cross_columns(call, Layer("mid", ("mid",), "mid", 1, (2,)), torch.eye(5).expand(2, -1, -1))
    scores = (call.queries[:, 2] @ call.keys[:, 2].transpose(1, 2) * 0.5).masked_fill(~keeps[:, 2], -torch.inf)
    torch.testing.assert_close(found, torch.softmax(scores, dim=-1).transpose(1, 2))


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
