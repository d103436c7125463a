"""SAM as the last refinement: tiny real models of both kinds through every door."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig

from data.errors import ConfigError, ModelError
from data.masks import read_mask
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.masks import sam
from pseudolabel.masks.config import MaskConfig
from pseudolabel.masks.config import SamConfig as Settings
from pseudolabel.masks.labelmap import labelled
from pseudolabel.masks.sam_prompts import components, prompt_of


def tiny_sam2() -> Sam2Model:
    backbone = Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=1, image_size=[64, 64], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128], num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[4, 2, 4, 2], global_attention_blocks=[3], mlp_ratio=2.0,
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[128, 64, 32, 16], fpn_hidden_size=16,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    return Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))


@pytest.fixture(scope="module", params=["sam", "sam2"])
def folder(request, tmp_path_factory) -> Path:
    """A tiny model on disk, as transformers saves it."""
    if request.param == "sam":
        return request.getfixturevalue("tiny_sam_folder")
    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("sam") / request.param
    tiny_sam2().save_pretrained(target)
    return target


@pytest.fixture
def sure_model(monkeypatch):
    """A tiny model is sure of nothing: its guesses are raised until they count."""
    ask = sam.Sam.ask

    def raised(*args, **kwargs):
        answers, scores = ask(*args, **kwargs)
        return answers, scores + 5

    monkeypatch.setattr(sam.Sam, "ask", raised)
    monkeypatch.setattr(sam, "STABLE", 0.0)


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, labels of two classes in three parts, and marginals that fit them."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (40, 52, 3), np.uint8)
    argmax = np.zeros((40, 52), np.uint8)
    argmax[5:20, 4:20], argmax[25:38, 30:50], argmax[4:12, 36:48] = 8, 12, 8
    marginals = np.stack([(argmax == label) * 0.8 + 0.1 for label in (0, 8, 12)]) + rng.random((3, 40, 52)) * 0.05
    return rgb, argmax, (marginals / marginals.sum(axis=0)).astype(np.float32)


@pytest.mark.parametrize("rule", ["prompts", "overlap"])
@pytest.mark.usefixtures("sure_model")
def test_an_image_is_embedded_once_and_only_its_labels_appear(folder, rule, monkeypatch):
    rgb, argmax, marginals = scene()
    monkeypatch.setattr("pseudolabel.masks.sam_prompts.MOSTLY_COVERED", 0.2)  # answers of a tiny model are noise
    seen = []
    embed = sam.Sam.embed
    monkeypatch.setattr(sam.Sam, "embed", lambda self, image: seen.append(image.shape) or embed(self, image))
    config = Settings(id=str(folder), rule=rule, rounds=2, points=3, least_iou=0.0)
    found = sam.sharpened(rgb, argmax, marginals, (8, 12), config, "cpu")
    assert seen == [rgb.shape]
    assert found.objects == 3
    assert found.changed > 0
    assert set(np.unique(found.argmax)) <= {0, 8, 12}
    np.testing.assert_array_equal(found.argmax[~found.touched], argmax[~found.touched])
    assert (found.argmax != argmax).any()


@pytest.mark.parametrize("rule", ["prompts", "overlap"])
@pytest.mark.usefixtures("sure_model")
def test_answers_far_from_the_mask_leave_it_as_it_was(folder, rule):
    rgb, argmax, marginals = scene()
    config = Settings(id=str(folder), rule=rule, rounds=1, points=3, least_iou=1.0)
    found = sam.sharpened(rgb, argmax, marginals, (8, 12), config, "cpu")
    np.testing.assert_array_equal(found.argmax, argmax)
    assert (found.objects, found.changed, found.touched.sum()) == (3, 0, 0)


def test_a_model_that_lacks_a_tensor_is_an_error(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "sam")
    tensors = load_file(copied / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.startswith("vision_encoder") and name.endswith("weight")))
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"its weights lack vision_encoder.*--sam.id"):
        sam.load_sam(str(copied), "cpu")


def test_answers_that_sam_itself_doubts_are_not_taken(folder):
    rgb, argmax, marginals = scene()
    config = Settings(id=str(folder), rounds=1, least_iou=0.0, least_score=1.0)
    assert sam.sharpened(rgb, argmax, marginals, (8, 12), config, "cpu").changed == 0


def test_objects_are_answered_alike_alone_and_together(folder):
    rgb, argmax, marginals = scene()
    model = sam.load_sam(str(folder), "cpu")
    embeddings = model.embed(rgb)
    prompts = [prompt_of(each.mask, marginals[1 if each.label == 8 else 2]) for each in components(argmax)]
    with torch.inference_mode():
        together = sam._best_answers(model, embeddings, argmax.shape, prompts)
        for prompt, (score, mask) in zip(prompts, together, strict=True):
            [(own, alone)] = sam._best_answers(model, embeddings, argmax.shape, [prompt])
            assert (alone == mask).mean() > 0.99
            assert own == pytest.approx(score, abs=1e-4)
    logits = torch.from_numpy(np.stack([each.logits for each in prompts]))
    small = model._mask_input(logits, model.scaled_hw(argmax.shape))
    alone = [model._mask_input(each[None], model.scaled_hw(argmax.shape)) for each in logits]
    assert torch.equal(small, torch.cat(alone))  # padding too, which is each one's own lowest value


@pytest.mark.usefixtures("sure_model")
def test_an_empty_answer_decides_nothing(folder, monkeypatch):
    """What SAM found nothing of stays as unsure as it was, however sure SAM is that there is nothing."""
    rgb, argmax, marginals = scene()
    ask = sam.Sam.ask

    def nothing(*args, **kwargs):
        answers, scores = ask(*args, **kwargs)
        return torch.full_like(answers, -9), scores

    monkeypatch.setattr(sam.Sam, "ask", nothing)
    config = Settings(id=str(folder), rounds=2, least_iou=0.0, least_score=0.0)
    found = sam.sharpened(rgb, argmax, marginals, (8, 12), config, "cpu")
    np.testing.assert_array_equal(found.argmax, argmax)
    assert (found.changed, found.touched.sum()) == (0, 0)


def test_what_lies_in_the_padding_does_not_make_a_mask_unstable(folder, monkeypatch):
    """Of an image of 32 x 64 in SAM 1's square the lower half is padding; SAM 2 has none."""
    model = sam.load_sam(str(folder), "cpu")

    def ask(self, embeddings, image_hw, points, labels, boxes=None, logits=None):
        answers = torch.full((len(points), 3, 32, 32), -5.0)
        answers[:, :, 4:12, 4:12] = 5
        answers[:, :, 16:] = 0.5  # neither sure to be in nor sure to be out
        return answers, torch.ones(len(points), 3)

    monkeypatch.setattr(sam.Sam, "ask", ask)
    found = list(sam.masks_of_everything(model, [], (32, 64), 2))
    if model.stretches:
        assert found == []
        return
    [mask] = found
    expected = np.zeros((32, 64), bool)
    expected[8:24, 8:24] = True
    assert (mask == expected).mean() > 0.98


@pytest.mark.parametrize("grown", [1, 2])
def test_parts_that_changed_are_counted_one_by_one(folder, grown, monkeypatch):
    """Two parts are of one class; `grown` of the three parts come back a little wider."""
    rgb, argmax, marginals = scene()
    parts = [each.mask for each in components(argmax)]
    answers = [mask | np.roll(mask, 1, axis=1) if number < grown else mask for number, mask in enumerate(parts)]
    monkeypatch.setattr(sam, "masks_of_everything", lambda *_: iter(answers))
    found = sam.sharpened(rgb, argmax, marginals, (8, 12), Settings(id=str(folder), rule="overlap"), "cpu")
    assert (found.objects, found.changed) == (3, grown)


def test_a_gpu_whose_memory_does_not_hold_it_is_one_line(folder, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sam.Sam, "embed", full)
    rgb, argmax, marginals = scene()
    with pytest.raises(ConfigError, match=r"memory does not hold SAM.*--sam\.id"):
        sam.sharpened(rgb, argmax, marginals, (8, 12), Settings(id=str(folder)), "cpu")


def test_a_mask_prompt_and_an_answer_lie_where_the_image_does(folder):
    """A mask prompt taken for an answer comes back at the image's size, padding cut off."""
    model = sam.load_sam(str(folder), "cpu")
    for size_hw in ((40, 52), (52, 40), (64, 64), (7, 90)):
        logits = torch.full((1, *size_hw), -5.0)
        logits[:, : size_hw[0] // 2] = 5
        small = model._mask_input(logits, model.scaled_hw(size_hw))
        rows, columns = model.model.prompt_encoder.image_embedding_size
        assert small.shape == (1, 1, 4 * rows, 4 * columns)
        back = model.enlarged(small[:, 0], size_hw)[0] > 0
        assert back.shape == size_hw
        assert (back == (logits[0] > 0)).float().mean() > 0.85


def test_pixels_are_prepared_as_transformers_prepares_them(folder):
    from transformers import Sam2ImageProcessor, SamImageProcessor

    rgb, _, _ = scene()
    model = sam.load_sam(str(folder), "cpu")
    kept = []
    original = model.model.get_image_embeddings
    model.model.get_image_embeddings = lambda pixels: kept.append(pixels) or original(pixels)
    try:
        model.embed(rgb)
    finally:
        model.model.get_image_embeddings = original
    square = {"height": 64, "width": 64}
    if model.stretches:
        processor = Sam2ImageProcessor(size=square)
    else:
        processor = SamImageProcessor(size={"longest_edge": 64}, pad_size=square)
    expected = processor(rgb, return_tensors="pt")["pixel_values"]
    assert kept[0].shape == expected.shape
    assert (kept[0] - expected).abs().mean() < 0.02  # bytes are rounded there after the resize


def test_a_model_is_loaded_once(folder):
    assert sam.load_sam(str(folder), "cpu") is sam.load_sam(str(folder), "cpu")


def test_what_is_no_sam_is_one_line(tmp_path, sd_folder):
    with pytest.raises(ModelError, match="is not a hub id"):
        sam.load_sam(str(tmp_path / "none"), "cpu")
    with pytest.raises(ModelError, match=r"--sam\.id"):
        sam.load_sam(str(sd_folder / "text_encoder"), "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"--sam\.id"):
        sam.load_sam(str(tmp_path / "empty"), "cpu")


def test_labels_that_show_nothing_ask_nothing():
    soft = SoftMaps(np.zeros((1, 4, 5), np.float16), (8,), False, (32, 40), (32, 40), (32, 40))
    found = labelled(np.zeros((32, 40, 3), np.uint8), soft, MaskConfig(sam=Settings(id="not/there")))
    assert found.objects == 0
    assert (found.argmax == 0).all()


@pytest.mark.usefixtures("sure_model")
def test_refine_asks_it_and_says_what_it_changed(folder, made_store, tmp_path, capsys, store_bytes):
    options = [f"--sam.id={folder}", "--sam.rounds=1", "--device=cpu", "--sam.least_iou=0"]
    assert main(["refine", f"--store={made_store}", f"--output={tmp_path / 's'}", *options]) == 0
    assert "connected part" in capsys.readouterr().out
    store = MaskStore.open(tmp_path / "s")
    assert store.header["config"]["sam"]["id"] == str(folder)
    assert all(set(record["sam"]) == {"objects", "changed"} for record in store.records())
    assert store_bytes(tmp_path / "s") != store_bytes(made_store)
    back = ["refine", f"--store={tmp_path / 's'}", f"--output={tmp_path / 'off'}", "--sam.id=null", "--workers=0"]
    assert main(back) == 0
    assert store_bytes(tmp_path / "off") == store_bytes(made_store)
    assert "sam" not in MaskStore.open(tmp_path / "off").header["config"]


@pytest.mark.usefixtures("sure_model")
def test_phrases_are_sharpened_too_and_a_config_file_of_generate_serves(folder, sd_folder, tmp_path):
    rgb, _, _ = scene()
    Image.fromarray(rgb).save(tmp_path / "a.png")
    (tmp_path / "generate.yaml").write_text("sam: {rounds: 1, least_iou: 0}\nresize: {long_side_px: 64}\n")
    layers = ["--attention.cross_layers=[mid]", "--attention.self_layers=[mid]", "--diffusion.draws=1"]
    command = ["ground", f"--config={tmp_path / 'generate.yaml'}", f"--model.id={sd_folder}", "--device=cpu", *layers]
    command += [f"--image={tmp_path / 'a.png'}", "--phrase=dog", "--phrase=cat", "--crf.kind=none"]
    found = {}
    for name, options in (("on", [f"--sam.id={folder}"]), ("off", ["--sam.rounds=5", "--sam.least_iou=0.5"])):
        assert main([*command, *options, f"--output={tmp_path / name}"]) == 0
        found[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert found["on"]["settings"]["sam"]["id"] == str(folder)
    assert "sam" not in found["off"]["settings"]
    masks = [
        [read_mask(tmp_path / name / one["mask"]) for one in found[name]["images"][0]["phrases"]] for name in found
    ]
    assert any((on != off).any() for on, off in zip(*masks, strict=True))


def test_settings_without_a_model_have_no_effect_and_ranges_are_checked(made_store, tmp_path, capsys):
    assert Settings(rounds=3).idle() == ("rounds",)
    assert Settings(id="x", points=9).idle() == ("points",)
    assert main(["refine", f"--store={made_store}", f"--output={tmp_path / 's'}", "--sam.least_iou=2"]) == 2
    assert "--sam.least_iou is 2" in capsys.readouterr().err
