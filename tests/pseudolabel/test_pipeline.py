"""The whole of stage one on tiny real models, through `Pipeline`."""

import itertools
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from data.classes import VOC, ClassSet
from data.errors import ConfigError, ModelError, StoreError
from pseudolabel.cli import main
from pseudolabel.config import mask_config
from pseudolabel.masks.fuse import before_crf
from pseudolabel.masks.labelmap import label_map
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.config import DiffusionConfig
from pseudolabel.softmaps.passes import Reader

SIZES = ((48, 64), (64, 48), (48, 64), (64, 64), (40, 64))
LABELS = ((8, 15), (3,), (1, 2, 12), (20,), (12, 15))
IDS = tuple("abcde")


def draw(size_hw, seed) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


IMAGES = tuple(draw(size, seed) for seed, size in enumerate(SIZES))


@pytest.fixture
def pipeline(tiny_config) -> Pipeline:
    return Pipeline.load(tiny_config, VOC)


@pytest.mark.parametrize("folder", ["sd_folder", "sd2_folder", "sdxl_folder"])
def test_an_image_becomes_soft_maps_and_a_mask(folder, request, tiny_config, with_settings):
    config = with_settings(tiny_config, "model", id=str(request.getfixturevalue(folder)))
    pipeline = Pipeline.load(config, VOC)
    [soft] = pipeline.soft_maps(IMAGES[:1], LABELS[:1], IDS[:1])
    assert soft.maps.shape == (2, 6, 8)
    assert soft.maps.min() >= 0
    assert soft.maps.max() <= 1
    mask, argmax = label_map(IMAGES[0], soft, mask_config(config))
    assert mask.shape == argmax.shape == (48, 64)
    assert set(np.unique(argmax)) <= {0, 8, 15}
    assert set(np.unique(mask)) <= {0, 8, 15, 255}
    assert set(np.unique(before_crf(soft, config.fuse))) <= {0, 8, 15}
    assert len(pipeline.parts.identity()["fingerprint"]) == 32


def test_maps_are_the_same_bits_alone_or_together_in_any_order(tiny_config, with_settings):
    alone = {}
    one = Pipeline.load(with_settings(tiny_config, "run", batch_size=1), VOC)
    for image, labels, image_id in zip(IMAGES, LABELS, IDS, strict=True):
        [alone[image_id]] = one.soft_maps([image], [labels], [image_id])
    for order, batch_size in (((0, 1, 2, 3, 4), 8), ((4, 2, 0, 3, 1), "auto"), ((2, 0), 3)):
        several = Pipeline.load(with_settings(tiny_config, "run", batch_size=batch_size), VOC)
        chosen = [[values[index] for index in order] for values in (IMAGES, LABELS, IDS)]
        for image_id, soft in zip(chosen[2], several.soft_maps(*chosen), strict=True):
            np.testing.assert_array_equal(soft.maps, alone[image_id].maps)
            assert soft.padded_hw == alone[image_id].padded_hw


def test_batches_over_images_agree_to_rounding(pipeline, monkeypatch):
    """What a GPU does: images of equal size share batches."""
    alone = pipeline.soft_maps(IMAGES, LABELS, IDS)
    monkeypatch.setattr(Reader, "shares_batches", property(lambda _: True))
    for batch_size in (3, 64):
        pipeline.reader.run = replace(pipeline.config.run, batch_size=batch_size)
        for first, second in zip(alone, pipeline.soft_maps(IMAGES, LABELS, IDS), strict=True):
            np.testing.assert_allclose(second.maps, first.maps, atol=2e-3)


def test_the_seed_and_the_id_change_the_noise(pipeline, tiny_config, with_settings):
    [first] = pipeline.soft_maps(IMAGES[:1], LABELS[:1], ["a"])
    [renamed] = pipeline.soft_maps(IMAGES[:1], LABELS[:1], ["z"])
    reseeded = Pipeline.load(with_settings(tiny_config, "diffusion", seed=1), VOC)
    [other] = reseeded.soft_maps(IMAGES[:1], LABELS[:1], ["a"])
    assert not np.array_equal(first.maps, renamed.maps)
    assert not np.array_equal(first.maps, other.maps)


def test_explaining_gives_what_is_generated(pipeline, tiny_config):
    [soft] = pipeline.soft_maps(IMAGES[:1], LABELS[:1], ["a"])
    result = pipeline.explain(IMAGES[0], LABELS[0], image_id="a")
    np.testing.assert_array_equal(result.soft.maps, soft.maps)
    mask, argmax = label_map(IMAGES[0], soft, mask_config(tiny_config))
    np.testing.assert_array_equal(result.mask, mask)
    np.testing.assert_array_equal(result.argmax, argmax)
    np.testing.assert_array_equal(result.argmax_before_crf, before_crf(soft, tiny_config.fuse))
    assert result.marginals.shape == (3, 48, 64)
    assert result.cross.keys() == {layer.name for layer in pipeline.cross_layers}
    assert result.prompts[0].text.startswith("a photo including cat, person with clothes, tree, ")
    assert len(result.boxes) == len(result.noise) == len(result.timesteps) == 2
    assert [len(row) for row in result.boxes] == [2, 2]
    assert result.class_maps.shape == result.refined.shape == (2, 2, 6, 8)


def test_what_explain_returned_can_be_given_back(pipeline):
    first = pipeline.explain(IMAGES[0], LABELS[0], image_id="a")
    text = pipeline.reader.text(first.prompts[0].text)
    again = pipeline.explain(
        IMAGES[0], LABELS[0], latents=first.latents, noise=first.noise, timestep=150, prompt_embeds=text.tokens,
        spans=first.spans,
    )  # fmt: skip
    torch.testing.assert_close(again.refined, first.refined, atol=0, rtol=0)
    np.testing.assert_array_equal(again.mask, first.mask)


def test_explain_needs_something_to_look_at(pipeline):
    with pytest.raises(ConfigError, match="an image, or latents"):
        pipeline.explain(None, (1,))


def test_a_bare_unet_says_what_it_lacks(bare_unet, tiny_config):
    pipeline = Pipeline.from_unet(bare_unet, tiny_config)
    with pytest.raises(ConfigError, match="spans="):
        pipeline.explain(IMAGES[0], (1,), latents=torch.zeros(4, 8, 8))
    with pytest.raises(ModelError, match="latents="):
        pipeline.explain(IMAGES[0], (1,), spans=[(4,)], prompt_embeds=torch.zeros(77, 16))
    assert len(bare_unet.up_blocks) == 3  # left whole
    assert len(pipeline.parts.identity()["fingerprint"]) == 32


def test_latents_of_another_size_show_the_whole_image(bare_unet, tiny_config):
    pipeline = Pipeline.from_unet(bare_unet, tiny_config)
    result = pipeline.explain(
        draw((33, 50), 0), (1,), latents=torch.randn(1, 4, 8, 12), spans=[(4,)], prompt_embeds=torch.randn(1, 77, 16)
    )
    assert result.mask.shape == (33, 50)
    assert result.frame.resized_hw == (64, 96)


SWITCHES = {
    "posterior": ("diffusion", {"posterior": "sample"}),
    "timesteps": ("diffusion", {"timesteps": (100, 400)}),
    "flip": ("diffusion", {"flip": True}),
    "scales": ("diffusion", {"scales": (1.0, 1.5)}),
    "token_rescaling": ("attention", {"token_rescaling": True}),
    "rescaled_words": ("attention", {"token_rescaling": True, "rescaled_tokens": "words"}),
    "blur": ("attention", {"token_rescaling": True, "blur": 3}),
    "naming_layers": ("attention", {"naming_layers": ("down:1/2",)}),
    "weighed_layers": ("attention", {"weights": "layers"}),
    "weighed_heads": ("attention", {"weights": "heads"}),
    "several_self_layers": ("attention", {"self_layers": ("up:1/2", "up:1/1")}),
    "heads": ("attention", {"cross_layers": ("1/2@0", "mid")}),
    "clamp_box_edge": ("affinity", {"clamp_box_edge": True}),
    "no_boxes": ("affinity", {"boxes": False}),
    "balance": ("affinity", {"balance": True}),
    "saturate": ("affinity", {"saturate": 0.1}),
    "iterated": ("affinity", {"kind": "iterated"}),
    "iseg": ("affinity", {"kind": "iseg"}),
    "clipes": ("affinity", {"kind": "clipes"}),
    "cda": ("affinity", {"kind": "cda"}),
    "none": ("affinity", {"kind": "none"}),
    "no_background_words": ("prompt", {"background_words": False}),
    "padding_takes_part": ("resize", {"valid_only": False}),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_does_something_of_its_own(pipeline, tiny_config, with_settings, switch):
    group, values = SWITCHES[switch]
    image = draw((40, 64), 7)  # 8 rows of padding
    changed = Pipeline.load(with_settings(tiny_config, group, **values), VOC)
    [before] = pipeline.soft_maps([image], [(8, 12)], ["a"])
    [after] = changed.soft_maps([image], [(8, 12)], ["a"])
    assert after.maps.shape[0] == 2
    assert before.maps.shape != after.maps.shape or not np.array_equal(before.maps, after.maps)
    assert after.maps.max() <= 1
    assert np.isfinite(after.maps).all()


def test_a_layer_is_read_through_one_set_of_heads(tiny_config, with_settings):
    config = with_settings(tiny_config, "attention", cross_layers=("mid@0",), naming_layers=("mid",))
    with pytest.raises(ConfigError, match=r"--attention.naming_layers: mid_block.attentions.0 is among .* other heads"):
        Pipeline.load(config, VOC)
    Pipeline.load(with_settings(config, "attention", naming_layers=("mid@0",)), VOC)


def test_one_class_needs_no_naming(pipeline, tiny_config, with_settings):
    named = Pipeline.load(with_settings(tiny_config, "attention", naming_layers=("down:1/2",)), VOC)
    [before], [after] = (each.soft_maps(IMAGES[:1], [(8,)], ["a"]) for each in (pipeline, named))
    np.testing.assert_allclose(before.maps, after.maps, atol=1e-3)


def test_an_ensemble_is_the_mean_of_its_members(tiny_config, with_settings):
    members = {}
    for name, values in {"early": (50,), "late": (400,), "both": (50, 400)}.items():
        config = with_settings(tiny_config, "diffusion", timesteps=values)
        [soft] = Pipeline.load(config, VOC).soft_maps(IMAGES[:1], LABELS[:1], ["a"])
        members[name] = soft.maps.astype(float)
    np.testing.assert_allclose(members["both"], (members["early"] + members["late"]) / 2, atol=2e-3)


def test_padding_has_no_say(tiny_config):
    """The rows below the image do not decide where min-max is taken nor where a box is."""
    pipeline = Pipeline.load(tiny_config, VOC)
    result = pipeline.explain(draw((40, 64), 7), (8, 12), image_id="a")
    rows, _ = result.frame.valid_cells((6, 8))
    assert rows == 5
    torch.testing.assert_close(result.refined[..., :rows, :].amax(dim=(2, 3)), torch.ones(2, 2))
    torch.testing.assert_close(result.refined[..., :rows, :].amin(dim=(2, 3)), torch.zeros(2, 2))
    assert all(box[2] <= rows for draw_boxes in result.boxes for boxes in draw_boxes for box in boxes)


def test_classes_split_over_sentences_are_all_read(tiny_config):
    phrases = tuple("".join(letters) * 6 for letters in itertools.islice(itertools.product("xyz", repeat=3), 8))
    classes = ClassSet(phrases, phrases, ((),) * 8)  # 18 tokens each, spelt letter by letter
    pipeline = Pipeline.load(tiny_config, classes)
    labels = tuple(range(1, 9))
    assert len(pipeline.reader.plan(labels)) > 1
    [soft] = pipeline.soft_maps(IMAGES[:1], [labels], ["a"])
    assert (soft.maps.astype(float).std(axis=(1, 2)) > 0).all()
    result = pipeline.explain(IMAGES[0], labels, image_id="a")
    np.testing.assert_array_equal(result.soft.maps, soft.maps)
    assert len(result.spans) == 8
    assert all(len(row) == 8 for row in result.boxes)


def test_an_affinity_without_layers_is_an_error(tiny_config, with_settings):
    with pytest.raises(ConfigError, match=r"--attention\.self_layers is empty"):
        Pipeline.load(with_settings(tiny_config, "attention", self_layers=()), VOC)


def test_the_models_own_size_sets_the_rule(tiny_config, with_settings):
    pipeline = Pipeline.load(with_settings(tiny_config, "resize", long_side_px=None), VOC)
    assert pipeline.reader.frame((375, 500)).padded_hw == (80, 96)  # 768 * 64 / 512 = 96 and 72, in cells of 16
    assert pipeline.reader.frame((375, 500), scale=1.5).padded_hw == (112, 144)


def test_one_draw_is_one_evaluation_of_the_unet(tiny_config):
    count = 0

    def hook(module, args, kwargs):
        nonlocal count
        count += len(args[0])

    pipeline = Pipeline.load(replace(tiny_config, diffusion=DiffusionConfig(draws=3)), VOC)
    pipeline.parts.denoiser.register_forward_pre_hook(hook, with_kwargs=True)
    pipeline.soft_maps(IMAGES, LABELS, IDS)
    assert count == 3 * len(IMAGES)


def test_running_out_of_gpu_memory_halves_the_batch(pipeline, monkeypatch):
    monkeypatch.setattr(Reader, "shares_batches", property(lambda _: True))
    read, tried = pipeline._read, []

    def short_of_memory(passes, **how):
        tried.append(len(passes))
        if len(passes) > 2:
            raise torch.cuda.OutOfMemoryError("full")
        return read(passes, **how)

    monkeypatch.setattr(pipeline, "_read", short_of_memory)
    pipeline.reader._batch_pixels = 8 * 12 * 16
    several = pipeline.soft_maps(IMAGES[:3:2], LABELS[:3:2], IDS[:3:2])
    assert len(several) == 2
    assert tried == [4, 2, 2]  # half as many at once, though there was room for eight
    monkeypatch.setattr(pipeline, "_read", lambda *_, **__: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("full")))
    with pytest.raises(ConfigError, match="does not hold 1 pass at once"):
        pipeline.soft_maps(IMAGES[:1], LABELS[:1], IDS[:1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_gpu_agrees_with_the_cpu(tiny_config, with_settings, dtype):
    on_cpu = Pipeline.load(with_settings(tiny_config, "affinity", boxes=False), VOC).soft_maps(IMAGES, LABELS, IDS)
    config = with_settings(with_settings(tiny_config, "affinity", boxes=False), "run", device="cuda", dtype=dtype)
    on_gpu = Pipeline.load(config, VOC).soft_maps(IMAGES, LABELS, IDS)
    for first, second in zip(on_cpu, on_gpu, strict=True):
        np.testing.assert_allclose(second.maps, first.maps, atol=0.002 if dtype == "float32" else 0.15)


@pytest.mark.slow
def test_a_compiled_unet_gives_the_same_maps(tiny_config, with_settings):
    config = with_settings(
        tiny_config, "attention", cross_layers=("down:1/1",), self_layers=("down_blocks.0.attentions.1",)
    )
    [plain] = Pipeline.load(config, VOC).soft_maps(IMAGES[:1], LABELS[:1], IDS[:1])
    compiled = Pipeline.load(with_settings(config, "run", compile=True), VOC)
    [soft] = compiled.soft_maps(IMAGES[:1], LABELS[:1], IDS[:1])
    np.testing.assert_allclose(soft.maps, plain.maps, atol=5e-3)


def test_what_torch_cannot_compile_is_one_line(tiny_config, with_settings, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    pipeline = Pipeline.load(with_settings(tiny_config, "run", compile=True), VOC)
    with pytest.raises(ModelError, match=r"cannot compile here .*no C\+\+ compiler.*leave out --run.compile"):
        pipeline.soft_maps(IMAGES[:1], LABELS[:1], IDS[:1])


@pytest.fixture(scope="session")
def overflowing_folder(sd_folder, tmp_path_factory) -> Path:
    """A model whose numbers are too large for half precision, as some of the hub's image encoders are."""
    folder = tmp_path_factory.mktemp("models") / "overflowing"
    shutil.copytree(sd_folder, folder)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    with torch.no_grad():
        unet.conv_in.weight.fill_(6e4)
    unet.save_pretrained(folder / "unet")
    return folder


def test_numbers_that_overflow_are_an_error_and_no_background(overflowing_folder, tiny_config, with_settings):
    config = with_settings(tiny_config, "model", id=str(overflowing_folder))
    pipeline = Pipeline.load(with_settings(config, "run", dtype="float16"), VOC)
    for run in (
        lambda: pipeline.soft_maps(IMAGES[:1], LABELS[:1], IDS[:1]),
        lambda: pipeline.explain(IMAGES[0], LABELS[0], image_id="a"),
    ):
        with pytest.raises(ModelError, match=r"overflowing in float16 .* image 'a'.*--run\.dtype float32"):
            run()
    [soft] = Pipeline.load(config, VOC).soft_maps(IMAGES[:1], LABELS[:1], IDS[:1])
    assert np.isfinite(soft.maps).all()


def test_one_image_of_bad_numbers_does_not_spoil_its_batch(tiny_config, monkeypatch):
    """The latent of one image of three is damaged; the others are what they are without it."""
    pipeline = Pipeline.load(tiny_config, VOC)
    latent = pipeline.reader.latent

    def damaged(image, frame, image_id, mirrored=False):
        return latent(image, frame, image_id, mirrored) * (torch.nan if image_id == "c" else 1)

    expected = pipeline.soft_maps(IMAGES[:2], LABELS[:2], IDS[:2])
    monkeypatch.setattr(pipeline.reader, "latent", damaged)
    *found, fault = pipeline.maps_and_shares_or_faults(IMAGES[:3], LABELS[:3], IDS[:3])
    assert "damaged" in str(fault)
    for maps, same in zip(found, expected, strict=True):
        np.testing.assert_array_equal(maps.soft.maps, same.maps)


def test_soft_maps_of_bad_numbers_make_no_mask(pipeline):
    [soft] = pipeline.soft_maps(IMAGES[:1], LABELS[:1], IDS[:1])
    maps = soft.maps.copy()
    maps[0, 0, 0] = np.nan
    with pytest.raises(StoreError, match="NaN"):
        label_map(IMAGES[0], replace(soft, maps=maps), mask_config(pipeline.config))


def test_check_generate_and_skip_of_a_model_that_overflows(overflowing_folder, world, tiny_options, tmp_path, capsys):
    options = ["--root", str(world), *tiny_options, f"--model.id={overflowing_folder}", "--run.dtype=float16"]
    assert main(["check", *options]) == 2
    assert "use --run.dtype float32" in capsys.readouterr().err
    assert main(["generate", *options, "--store", str(tmp_path / "a")]) == 2
    assert "use --run.dtype float32" in capsys.readouterr().err
    assert main(["generate", *options, "--store", str(tmp_path / "b"), "--on_error=skip"]) == 2
    captured = capsys.readouterr()
    assert "6 IMAGES WERE SKIPPED" in captured.out
    assert "none of 6 images could be processed" in captured.err
    assert not (tmp_path / "b").exists()
