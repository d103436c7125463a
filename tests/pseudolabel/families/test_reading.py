"""What is recorded of transformers, against the formula worked out from their own weights in double precision."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, FluxPipeline

from data.classes import VOC
from data.config import DataConfig
from data.errors import ConfigError
from pseudolabel.config import GenerateConfig, RunConfig
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.attention import record_attention
from pseudolabel.softmaps.config import AffinityConfig, AttentionConfig, DiffusionConfig, PromptConfig, ResizeConfig
from pseudolabel.softmaps.diffusion.families import cell_px, cut_denoiser, list_layers, native_px, run_denoiser
from pseudolabel.softmaps.diffusion.flux import pack
from pseudolabel.softmaps.layers import resolve_layers
from pseudolabel.softmaps.passes import Reader, stack_texts
from pseudolabel.softmaps.reading import class_weights, every_token, run_passes

LABELS = (1, 8, 12)  # aeroplane, which has several pieces, cat, dog
SIZES = ((40, 64), (64, 24))  # no squares, in which rows and columns could be mistaken for one another


def image(hw=(40, 64), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def reader_of(parts, **diffusion) -> Reader:
    resize = ResizeConfig(long_side_px=64)
    return Reader(parts, VOC, PromptConfig(), DiffusionConfig(**diffusion), resize, RunConfig(device="cpu"))


def passes_of(parts, hw=(40, 64), **diffusion):
    reader = reader_of(parts, **diffusion)
    return list(reader.passes(0, image(hw), reader.plan(LABELS), "x"))


def run(parts, passes):
    noised, text = torch.stack([item.noised for item in passes]), stack_texts([item.text for item in passes])
    with torch.no_grad():
        return run_denoiser(parts, noised, [item.timestep for item in passes], text, passes[0].frame.padded_hw)


@contextmanager
def inputs_of(model, names) -> Iterator[dict[str, dict]]:
    """Keep what modules are called with."""
    found: dict[str, dict] = {}
    hooks = []
    for name in names:

        def keep(module, args, kwargs, name=name):
            found[name] = dict(zip(("hidden_states",), args, strict=False)) | kwargs

        hooks.append(model.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True))
    yield found
    for hook in hooks:
        hook.remove()


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding: neighbours (a, b) become (a cos - b sin, b cos + a sin)."""
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = cos[:, 0::2].double(), sin[:, 0::2].double()
    return torch.stack([a * c - b * s, b * c + a * s], dim=-1).flatten(-2)


def reference(module, given: dict, text_first: bool) -> torch.Tensor:
    """Return softmax(Q K^T / sqrt(d)) of every token, by head, from the weights in double precision."""
    module = copy.deepcopy(module).double()
    hidden, text = given["hidden_states"].double(), given.get("encoder_hidden_states")
    text = None if text is None else text.double()
    joint = getattr(module, "add_k_proj", None) is not None

    def heads(x, norm):
        x = x.unflatten(-1, (module.heads, -1)).transpose(1, 2)
        return x if norm is None else norm(x)

    if joint:
        q = [heads(module.to_q(hidden), module.norm_q), heads(module.add_q_proj(text), module.norm_added_q)]
        k = [heads(module.to_k(hidden), module.norm_k), heads(module.add_k_proj(text), module.norm_added_k)]
        order = slice(None, None, -1 if text_first else 1)
        queries, keys = torch.cat(q[order], dim=2), torch.cat(k[order], dim=2)
    elif hasattr(module, "to_qkv_mlp_proj"):
        q, k, _ = module.to_qkv_mlp_proj(hidden)[..., : 3 * module.inner_dim].chunk(3, dim=-1)
        queries, keys = heads(q, module.norm_q), heads(k, module.norm_k)
    else:
        queries = heads(module.to_q(hidden), getattr(module, "norm_q", None))
        keys = heads(module.to_k(hidden if text is None else text), getattr(module, "norm_k", None))
    if given.get("image_rotary_emb") is not None:
        queries, keys = (rotated(x, *given["image_rotary_emb"]) for x in (queries, keys))
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    if given.get("attention_mask") is not None:
        scores = scores + given["attention_mask"].double().reshape(len(scores), 1, 1, -1)
    return torch.softmax(scores, dim=-1)


def test_maps_are_the_softmax_of_the_models_own_weights(load_family, family):
    """In every block, at every shape; the model's output is the same bits with and without being recorded."""
    parts = load_family(family)
    layers = list_layers(parts)
    names = {f"{layer.name}.{which}" for layer in layers for which in (layer.cross, layer.cells)}
    for hw in SIZES:
        passes = passes_of(parts, hw, draws=2)
        latent_hw, n_text = tuple(passes[0].noised.shape[-2:]), passes[0].text.tokens.shape[1]
        columns = every_token(torch.zeros(2, 1, n_text))
        with inputs_of(parts.denoiser, names) as given:
            plain = run(parts, passes)
        with record_attention(parts.denoiser, layers, layers, columns) as recording:
            recorded = run(parts, passes)
        assert torch.equal(plain, recorded)
        for layer in layers:
            rows = layer.grid_hw(latent_hw)[0] * layer.grid_hw(latent_hw)[1]
            text_first = layer.text == "first"
            cross, cells = f"{layer.name}.{layer.cross}", f"{layer.name}.{layer.cells}"
            whole = reference(parts.denoiser.get_submodule(cross), given[cross], text_first)
            if layer.text != "all":
                image_rows = slice(n_text, None) if text_first else slice(None, -n_text)
                text_columns = slice(None, n_text) if text_first else slice(-n_text, None)
                assert whole.shape[-1] == rows + n_text
                among = whole[:, :, image_rows, image_rows]
                among = among / among.sum(dim=-1, keepdim=True)
                whole = whole[:, :, image_rows, text_columns]
            else:
                among = reference(parts.denoiser.get_submodule(cells), given[cells], text_first)
            expected = whole.mean(dim=1).transpose(1, 2)
            assert expected.std() > 1e-5
            found = recording.cross_map(layer, latent_hw).flatten(2)
            torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-4)
            queries, keys = recording.queries_and_keys(layer)
            affinity = torch.softmax(queries.double() @ keys.double().transpose(-1, -2) / queries.shape[-1] ** 0.5, -1)
            torch.testing.assert_close(affinity, among, atol=2e-6, rtol=1e-4)


def test_a_cut_model_records_the_same_bits_with_fewer_weights(load_family, family):
    whole, cut = load_family(family), load_family(family, anew=True)
    passes = passes_of(whole, draws=1)
    columns = class_weights([passes[0].prompt], passes[0].text.tokens.shape[1])
    layers = resolve_layers(list_layers(whole), ["block:1"], "flag")
    before = run_passes(whole, layers, layers, passes, columns)
    cut_denoiser(cut, layers, layers)
    after = run_passes(cut, layers, layers, passes, columns)
    for kind in ("cross", "queries", "keys"):
        for name, value in getattr(before, kind).items():
            assert torch.equal(value, getattr(after, kind)[name])
    assert len(list_layers(cut)) == 2 < len(list_layers(whole))


def test_a_batch_of_four_is_four_of_one(load_family, family):
    parts = load_family(family)
    passes = passes_of(parts, draws=4)
    layers = list_layers(parts)
    columns = class_weights([item.prompt for item in passes], passes[0].text.tokens.shape[1])
    together = run_passes(parts, layers, layers, passes, columns)
    for place, item in enumerate(passes):
        alone = run_passes(parts, layers, layers, [item], columns[:1])
        for name, maps in together.cross.items():
            torch.testing.assert_close(maps[place : place + 1], alone.cross[name], atol=1e-6, rtol=1e-4)


def test_noise_is_the_models_own(load_family, family):
    """Flow matching mixes on a straight line, PixArt as DDPM does."""
    parts = load_family(family)
    reader = reader_of(parts, timesteps=(300,), draws=1)
    frame = reader.frame((40, 64))
    latent = reader.latent(image(), frame, "x")
    [noise] = reader.noise(latent, "x")
    [item] = reader.passes(0, image(), reader.plan(LABELS), "x")
    kept, added = 0.7, 0.3
    if parts.family == "pixart":
        abar = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000), 0)[300]
        kept, added = abar.sqrt(), (1 - abar).sqrt()
    torch.testing.assert_close(item.noised, kept * latent + added * noise)
    pixels = torch.from_numpy(np.array(image_in(frame)) / 127.5 - 1).permute(2, 0, 1)[None].float()
    mode, vae = parts.vae.encode(pixels).latent_dist.mode()[0], parts.vae.config
    if family == "flux2":
        packed = Flux2KleinPipeline._patchify_latents(latent[None])  # as the pipeline gets it back
        bn = parts.vae.bn
        own = packed * torch.sqrt(bn.running_var + vae.batch_norm_eps)[:, None, None] + bn.running_mean[:, None, None]
        torch.testing.assert_close(Flux2KleinPipeline._unpatchify_latents(own)[0], mode, atol=1e-5, rtol=1e-4)
        return
    torch.testing.assert_close(latent, (mode - (vae.shift_factor or 0)) * vae.scaling_factor)


def image_in(frame):
    from pseudolabel.softmaps.frame import resize_and_pad

    return resize_and_pad(image(), frame)


def test_the_models_are_called_as_their_pipelines_call_them(load_family, family):
    """Times as each wants them, places of Flux's tokens, sizes for PixArt-alpha, guidance where it is an input."""
    parts = load_family(family)
    [item] = passes_of(parts, (40, 64), timesteps=(300,), draws=1)
    with inputs_of(parts.denoiser, [""]) as given:
        run(parts, [item])
    [found] = given.values()
    assert float(found["timestep"]) == pytest.approx(0.3 if parts.family in ("flux", "flux2") else 300)
    if parts.family == "flux":
        height, width = item.noised.shape[-2:]
        expected = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
        assert torch.equal(found["img_ids"], expected)
        assert not found["txt_ids"].any()
        assert found["txt_ids"].shape == (found["encoder_hidden_states"].shape[1], 3)
        assert (found["guidance"] is None) is (family == "flux")
    if family == "flux2":
        height, width = item.noised.shape[-2:]
        places = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 1, height // 2, width // 2))[0]
        assert torch.equal(found["img_ids"], places.float())
        assert torch.equal(found["txt_ids"], Flux2KleinPipeline._prepare_text_ids(item.text.tokens)[0].float())
        assert found["guidance"] is None
    if parts.family == "pixart":
        assert torch.equal(found["encoder_attention_mask"], item.text.mask)
        sizes = found["added_cond_kwargs"]
        if family == "alpha":
            assert sizes["resolution"].tolist() == [[40, 64]]
            assert sizes["aspect_ratio"].tolist() == [[0.625]]
        else:
            assert sizes == {"resolution": None, "aspect_ratio": None}


def test_explain_names_every_quantity_of_a_transformer(load_family):
    config = GenerateConfig(
        data=DataConfig(root="."), resize=ResizeConfig(long_side_px=64), diffusion=DiffusionConfig(draws=2),
        attention=AttentionConfig(cross_layers=("block",), self_layers=("single:0",), token_rescaling=True),
        affinity=AffinityConfig(boxes=False), run=RunConfig(device="cpu"),
    )  # fmt: skip
    pipeline = Pipeline(load_family("flux"), config, VOC, cut=False)
    found = pipeline.explain(image(), (8, 12), image_id="x")
    [soft] = pipeline.soft_maps([image()], [(8, 12)], ["x"])
    assert np.array_equal(found.soft.maps, soft.maps)
    assert list(found.cross) == ["transformer_blocks.0", "transformer_blocks.1"]
    assert found.maps.shape == (2, 5, 8)
    assert found.mask is not None
    assert found.mask.shape == (40, 64)


@pytest.mark.parametrize(("name", "cross", "sizes"), [("sd35", "block:1", SIZES), ("flux2", "block:0", SIZES[:1])])
def test_a_compiled_transformer_is_read_too(load_family, name, cross, sizes, monkeypatch):
    """Through several blocks and at several sizes, the pass ending after the last block that is read."""
    if name == "flux2" and torch.__version__.startswith("2.7."):
        pytest.skip("torch 2.7 cannot trace this model of diffusers; --run.compile says so in one line")
    traced = torch.compile
    calls = []
    monkeypatch.setattr(torch, "compile", lambda run: calls.append(run) or traced(run, backend="eager"))
    found = []
    for compiled in (False, True):
        config = GenerateConfig(
            data=DataConfig(root="."), resize=ResizeConfig(long_side_px=64), diffusion=DiffusionConfig(draws=1),
            attention=AttentionConfig(cross_layers=(cross,), self_layers=("block:0",)),
            run=RunConfig(device="cpu", compile=compiled),
        )  # fmt: skip
        pipeline = Pipeline(load_family(name, anew=True), config, VOC)
        images = [image(hw) for hw in sizes]
        found.append(pipeline.soft_maps(images, [(8, 12)] * len(images), [*"ab"][: len(images)]))
    assert len(calls) == 1
    assert all(np.array_equal(one.maps, other.maps) for one, other in zip(*found, strict=True))


def test_latents_are_packed_as_in_diffusers():
    latents = torch.randn(2, 4, 6, 8)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 4, 6, 8))


def test_sizes_follow_the_patches(load_family, family):
    parts = load_family(family)
    assert cell_px(parts) == 8  # a latent pixel is 4 px here, a token two of them
    assert native_px(parts) == (512 if parts.family in ("flux", "flux2") else 64)
    frame = reader_of(parts).frame((30, 50))
    assert frame.padded_hw == (40, 64)


def test_an_image_larger_than_the_model_has_places_for_is_an_error(load_family):
    reader = reader_of(load_family("sd3"), scales=(1.0, 5.0))
    with pytest.raises(ConfigError, match=r"320 px long, but this model has places for 256 px .*long_side_px"):
        list(reader.passes(0, image(), reader.plan(LABELS), "x"))


def test_sd35s_attention_among_cells_alone_is_a_layer_of_its_own(load_family):
    parts = load_family("sd35")
    layers = list_layers(parts)
    beside = resolve_layers(layers, ["blocks:0-1.attn2"], "attention.self_layers")
    assert [layer.name for layer in beside] == ["transformer_blocks.0.attn2", "transformer_blocks.1.attn2"]
    joint = resolve_layers(layers, ["block:1"], "attention.self_layers")
    passes = passes_of(parts, draws=1)
    columns = class_weights([passes[0].prompt], passes[0].text.tokens.shape[1])
    with inputs_of(parts.denoiser, ["transformer_blocks.1.attn2"]) as given:
        run(parts, passes)
    recording = run_passes(parts, joint, (*joint, *beside), passes, columns)
    queries, keys = recording.queries_and_keys(beside[1])
    found = torch.softmax(queries.double() @ keys.double().transpose(-1, -2) / queries.shape[-1] ** 0.5, -1)
    expected = reference(parts.denoiser.get_submodule("transformer_blocks.1.attn2"), *given.values(), False)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)
    assert not torch.equal(queries, recording.queries_and_keys(joint[0])[0])
    cut = load_family("sd35", anew=True)
    cut_denoiser(cut, joint, beside)
    assert torch.equal(run_passes(cut, joint, beside, passes, columns).queries_and_keys(beside[1])[0], queries)
    assert len(list_layers(cut)) == 2
