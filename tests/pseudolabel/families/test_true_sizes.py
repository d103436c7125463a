"""Every model at its true size, on torch's meta device: shapes without weights, as the published folders have them."""

from pathlib import Path

import pytest
import torch

from data.classes import VOC
from pseudolabel.softmaps.config import PromptConfig
from pseudolabel.softmaps.diffusion.families import FILES, encode_text, family_in_memory, list_layers, run_denoiser
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.layers import resolve_layers
from pseudolabel.softmaps.prompt import plan_prompts
from pseudolabel.softmaps.windows import in_every_window

META = torch.device("meta")
HEADER_BYTES = 100_000  # a safetensors file's header, at most
# Bytes of the published weights: of Git LFS pointers in copies of the hub's folders on GitHub.
PUBLISHED_BYTES = {
    "clip_l": (4, 492_265_879),  # HDRJ-One/runwayml-stable-diffusion-v1-5, text_encoder/model.safetensors, float32
    "clip_h": (4, 1_361_597_018),  # jack-op11/stable-diffusion-2-1, text_encoder/model.safetensors, float32
    "clip_g": (4, 2_778_702_264),  # PRITHIVSAKTHIUR/AI-Art-Generator-SDXL, text_encoder_2/model.safetensors, float32
    "t5": (2, 4_994_582_224 + 4_530_066_360),  # allenshore989/FLUX.1-schnell, text_encoder_2, two files, bfloat16
}
# What the denoiser is given of a sentence: tokens and their width, the whole sentence's width; what it gives back.
LATENT_HW = (64, 48)
EXPECTED = {
    "sd15": ((77, 768), None, (4, 64, 48)),
    "sd21": ((77, 1024), None, (4, 64, 48)),
    "sdxl": ((77, 768 + 1280), 1280, (4, 64, 48)),
    "pixart_sigma": ((300, 4096), None, (8, 64, 48)),
    "sd3": ((77 + 256, 4096), 768 + 1280, (16, 64, 48)),
    "sd3_t5": ((77 + 256, 4096), 768 + 1280, (16, 64, 48)),
    "sd35_medium": ((77 + 256, 4096), 768 + 1280, (16, 64, 48)),
    "sd35_large": ((77 + 256, 4096), 768 + 1280, (16, 64, 48)),
    "flux": ((256, 4096), 768, (32 * 24, 64)),
    "flux2_klein": ((512, 3 * 2560), None, (32 * 24, 128)),
}
WINDOWS = {"sd3_t5": [(77, 0), (256, 77)], "pixart_sigma": [(300, 0)], "flux": [(256, 0)], "flux2_klein": [(512, 0)]}


@pytest.fixture(autouse=True)
def _import_from_root(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))


def sees_no_values(encoder):
    """Keep transformers from looking at the values of a mask of filler: here are none, and no shape depends on them."""
    if type(encoder).__name__ == "Qwen3ForCausalLM":
        encoder.set_attn_implementation("eager")
    else:
        encoder.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | {"attention_mask": None}),
                                          with_kwargs=True)  # fmt: skip


@pytest.fixture
def true_size(load_family):
    """Return a function that builds a model's denoiser and text encoders; tokenizers of few words cut its sentences."""
    from benchmarks.backbones import BACKBONES, build_denoiser, build_text_encoder

    clip, _, t5 = load_family("sd3_t5").tokenizers
    own = {"t5": t5, "qwen": load_family("flux2").tokenizer}

    def build(name: str) -> Parts:
        backbone = BACKBONES[name]
        with META:
            denoiser, encoders = build_denoiser(backbone), tuple(map(build_text_encoder, backbone.encoders))
        for encoder in encoders:
            sees_no_values(encoder)
        family = family_in_memory(denoiser)
        tokenizers = tuple(own.get(encoder, clip) for encoder in backbone.encoders)
        pipeline = "PixArtSigmaPipeline" if family == "pixart" else ""
        windows = FILES[family].text_windows(tokenizers, encoders, denoiser, pipeline)
        return Parts(denoiser.eval(), None, tokenizers, encoders, device=META, windows=windows, family=family)

    return build


@pytest.mark.parametrize("name", list(PUBLISHED_BYTES))
def test_text_encoders_have_as_many_weights_as_the_published_files(name):
    from benchmarks.backbones import build_text_encoder, parameters

    with META:
        counted = parameters(build_text_encoder(name))
    each, found = PUBLISHED_BYTES[name]
    assert 0 < found - each * counted < HEADER_BYTES


def test_every_shape_that_is_counted_is_tried():
    from benchmarks.backbones import BACKBONES, TEXT_ENCODERS

    assert set(EXPECTED) == set(BACKBONES)
    assert {encoder for backbone in BACKBONES.values() for encoder in backbone.encoders} == set(TEXT_ENCODERS)


@pytest.mark.parametrize("name", list(EXPECTED))
@torch.inference_mode()
def test_sentences_and_passes_have_the_shapes_of_the_true_model(true_size, name):
    """Text encoders of the classes that are loaded, embeddings as wide as the denoiser reads, words inside them."""
    from benchmarks.backbones import BACKBONES, settings_of
    from benchmarks.stage_one_cases import sentence_like

    parts, backbone = true_size(name), BACKBONES[name]
    allowed = FILES[parts.family].encoder_classes(name == "sd3_t5").values()
    for encoder, classes in zip(parts.text_encoders, allowed, strict=False):
        assert type(encoder).__name__ in classes
    assert [(window.size, window.offset) for window in parts.windows] == WINDOWS.get(name, [(77, 0)])

    (tokens, width), pooled, given_back = EXPECTED[name]
    prompts = plan_prompts((1, 8, 12), VOC, PromptConfig(), parts.tokenizer, parts.window)
    text = encode_text(parts, prompts[0].text)
    assert text.tokens.shape == (1, tokens, width)
    assert (None if text.pooled is None else text.pooled.shape) == (None if pooled is None else (1, pooled))
    drawn = sentence_like(parts, 1, torch.Generator())  # what stage_one measures, and costs counts, with
    assert drawn.tokens.shape == text.tokens.shape
    assert (drawn.mask is None) is (text.mask is None)
    for prompt in in_every_window(prompts, parts.windows):
        assert len(prompt.spans) == len(prompt.rows)
        assert all(0 <= position < tokens for span in prompt.spans for position in span)

    latent = torch.empty(1, backbone.channels, *LATENT_HW, device=META)
    found = run_denoiser(parts, latent, [150], text, (8 * LATENT_HW[0], 8 * LATENT_HW[1]))
    assert found.shape == (1, *given_back)
    if name != "sdxl":  # the default layers are Stable Diffusion 1.x's and 2.x's
        attention = settings_of(backbone).attention
        for layers, flag in ((attention.cross_layers, "cross_layers"), (attention.self_layers, "self_layers")):
            assert resolve_layers(list_layers(parts), layers, flag)


def test_flux_dev_reads_more_tokens_and_takes_guidance(true_size, monkeypatch):
    from benchmarks import backbones

    shape = backbones.BACKBONES["flux"].shape
    monkeypatch.setitem(shape, "guidance_embeds", True)
    parts = true_size("flux")
    with torch.inference_mode():
        text = encode_text(parts, "a photo including dog.")
        found = run_denoiser(parts, torch.empty(1, 16, 16, 16, device=META), [313], text, (128, 128))
    assert text.tokens.shape == (1, 512, 4096)
    assert found.shape == (1, 64, 64)
