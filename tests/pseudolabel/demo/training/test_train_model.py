"""The training of the shipped model at toy length: it runs, resumes to the same weights, and leaves a real pipeline."""

import json
import os
import re
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.machine import REPOSITORY
from pseudolabel.demo.training.captions import TEMPLATES, caption, class_word
from pseudolabel.demo.training.latents import random_crops, training_scene
from pseudolabel.demo.training.measure_model import class_accuracy, phrase_positions, recorded_cross_attention
from pseudolabel.demo.training.model_parts import build_tokenizer, build_unet
from pseudolabel.demo.training.recipe import Recipe
from pseudolabel.demo.training.train_diffusion import phase_of
from pseudolabel.demo.training.train_model import main
from pseudolabel.demo.training.trained import Trained
from pseudolabel.demo.training.word_presence import Query, Words, class_words, record_queries, word_presence_loss
from pseudolabel.personalize.steps import save_state, schedule
from pseudolabel.softmaps.diffusion.load import weight_hashes

TOY = Recipe(
    scenes=50, vae_scenes=50, vae_steps=2, vae_batch=2, word_steps=2, word_batch=4, steps=3, portrait_steps=1, batch=4
)


def train(work_dir: Path, recipe: Recipe = TOY) -> Path:
    main(
        output=work_dir / "out",
        work_dir=work_dir,
        device="cpu",
        workers=0,
        save_every=2,
        measured_scenes=8,
        recipe=recipe,
    )
    return work_dir / "out"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("toy"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_the_result_is_a_stable_diffusion_directory(toy: Path):
    index = json.loads((toy / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert all(tensor.dtype == torch.float16 for tensor in weights(toy).values())
    assert sum(file.stat().st_size for file in toy.rglob("*")) < 25e6
    record = json.loads((toy / "training.json").read_text())
    assert record["samples"] == 16
    assert record["recipe"]["vae_steps"] == 2
    assert record["sha256"] == weight_hashes(toy)
    assert len(record["sha256"]) == 3
    from diffusers import StableDiffusionPipeline

    parts = StableDiffusionPipeline.from_pretrained(toy).components
    assert {parts[name].dtype for name in ("unet", "vae", "text_encoder")} == {torch.float32}


def test_a_killed_training_resumes_to_the_same_weights(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def save_then_die(path: Path, step: int, **parts: object) -> None:
        save_state(path, step, **parts)
        if "diffusion" in path.name and step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("pseudolabel.demo.training.trained.save_state", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    monkeypatch.undo()
    resumed = weights(train(tmp_path))
    for name, tensor in weights(toy).items():
        torch.testing.assert_close(resumed[name], tensor, msg=name)


def test_the_tokenizer_knows_the_words_and_spells_out_others(tmp_path: Path):
    from transformers import CLIPTokenizer

    build_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    for label in range(1, 21):
        assert len(tokenizer(class_word(label)).input_ids) - 2 == len(class_word(label).split())
    spelled = tokenizer("zebra").input_ids[1:-1]
    assert len(spelled) > 1
    assert tokenizer.eos_token_id not in spelled
    assert tokenizer.decode(spelled) == "zebra"


def test_captions_name_every_class_and_nothing_else():
    random = np.random.default_rng(0)
    grounds = 0
    for _ in range(50):
        text = caption((3, 20), ("brick wall",), random)
        [template] = [one for one in TEMPLATES if one and text.startswith(one)] or [""]
        named = re.split(r", and |, ", text.removeprefix(template).strip().removesuffix("."))
        assert sorted(set(named) - {"brick wall"}) == ["bird", "tv monitor"]
        assert len(named) == len(set(named))
        grounds += "brick wall" in named
    assert 15 < grounds < 35  # half of the captions


def test_the_schedule_warms_up_stays_and_ends_near_zero():
    factors = [schedule(step, 1000, decay_from=0.6) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[300] == 1
    assert factors[-1] < 0.01
    assert all(later <= earlier for earlier, later in pairwise(factors[100:]))


def test_the_second_phase_of_the_training_has_portraits_and_a_schedule_of_its_own():
    recipe = Recipe(steps=300, portrait_steps=700, portraits=0.5, portraits_from=400, timestep_low=100, batch=3)
    assert phase_of(recipe, 0, 1000) == phase_of(recipe, 299, 1000) == (0, 300, [0.0])
    # A batch's places are noised to 100-400, 400-700, 700-1000.
    assert phase_of(recipe, 300, 1000) == phase_of(recipe, 999, 1000) == (300, 1000, [0, 0.5, 0.5])
    assert phase_of(recipe, 60, 200) == (60, 200, [0, 0.5, 0.5])  # a time limit shortens both parts alike
    without = Recipe(steps=10, portrait_steps=0)
    assert phase_of(without, 9, 10) == (0, 10, [0.0])


def test_portraits_are_among_the_training_scenes_as_often_as_asked_for():
    plain = [training_scene(0, i).labels for i in range(60)]
    mixed = [training_scene(0, i, portraits=[0.5]).labels for i in range(60)]
    portraits = [training_scene(0, i, portraits=[1]).labels for i in range(60)]
    by_place = [training_scene(0, i, portraits=[0, 1]).labels for i in range(60)]
    assert by_place == [(portraits if i % 2 else plain)[i] for i in range(60)]
    assert {len(labels) for labels in portraits} == {1}
    same = sum(one == other for one, other in zip(plain, mixed, strict=True))
    assert 20 < same < 40
    assert all(labels in pair for labels, *pair in zip(mixed, plain, portraits, strict=True))


def test_random_crops_are_pieces_of_the_scenes():
    scenes = np.stack([np.full((3, 8, 8), value, np.uint8) for value in (0, 255)])
    scenes[:, 0, :, 0] = 51  # a mark on the left border
    pieces = random_crops(scenes, 40, torch.Generator().manual_seed(0), size=6)
    assert pieces.shape == (40, 3, 6, 6)
    assert set(pieces[:, 1].unique().tolist()) == {-1.0, 1.0}
    marked = (pieces[:, 0] == 51 / 127.5 - 1).any(1)  # by column; at the right where the piece is mirrored
    assert {tuple(row.nonzero().flatten().tolist()) for row in marked} == {(), (0,), (5,)}


def test_the_text_encoder_starts_as_the_identity_on_words(tmp_path: Path):
    tokenizer = build_tokenizer(tmp_path)
    encoder = Trained(TOY, tokenizer, torch.device("cpu")).text_encoder
    ids = tokenizer("cow, and dog", return_tensors="pt").input_ids
    words = encoder.get_input_embeddings()(ids) + encoder.get_submodule(
        next(name for name, _ in encoder.named_modules() if name.endswith("position_embedding"))
    )(torch.arange(ids.shape[1]))
    expected = torch.nn.functional.layer_norm(words, words.shape[-1:])
    torch.testing.assert_close(encoder(ids).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def test_class_accuracy_counts_object_pixels_alone():
    mask = np.array([[3, 3, 0], [7, 7, 0]], np.uint8)
    good = np.stack([(mask == 3) * 1.0, (mask == 7) * 5.0])
    assert class_accuracy(good, (3, 7), mask) == (4, 4)
    assert class_accuracy(good[::-1], (3, 7), mask) == (0, 4)


def test_recorded_cross_attention_restores_the_network_on_errors():
    unet = build_unet()
    before = dict(unet.attn_processors)

    def fails() -> None:
        with recorded_cross_attention(unet) as found:
            unet(torch.zeros(1, 4, 32, 32), 10, torch.zeros(1, 5, 128))
            assert all(torch.allclose(map_.sum(-1), torch.ones(())) for map_ in found.values())
            assert len(found) == 7
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert unet.attn_processors == before


def test_a_phrase_is_found_by_its_tokens():
    assert phrase_positions([1, 5, 6, 7], [6, 7]) == [2, 3]
    with pytest.raises(ValueError, match="not in the prompt"):
        phrase_positions([1, 5], [6])


def test_the_code_in_the_models_card_draws_what_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    [code] = re.findall(r"```python\n(.*?)```", Path("data/demo/model/README.md").read_text(), re.DOTALL)
    torch.manual_seed(int(os.environ.get("SEED", "0")))
    lines: dict[str, object] = {}
    *before, last = code.strip().splitlines()
    exec("\n".join(before), lines)
    image = eval(last, lines)
    rgb = cv2.GaussianBlur(np.asarray(image), (5, 5), 0).astype(int)
    grass = rgb[..., 1] > rgb[..., [0, 2]].max(axis=2) + 30
    assert 0.5 < grass.mean() < 0.9
    # What is not grass is one animal, not patches here and there.
    sizes = cv2.connectedComponentsWithStats((~grass).astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    assert sizes.max() > 0.85 * sizes.sum()


def test_class_words_are_found_and_matched_with_every_scene(tmp_path: Path):
    tokenizer = build_tokenizer(tmp_path)
    captions = ["a photo of tv monitor, and dog.", "bird", "dog"]
    labels = [(12, 20), (3,), (12,)]
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    words = class_words(tokenizer, tokens, labels)
    named = [tokenizer.decode(tokens[row, place]) for row, place in zip(words.captions, words.positions, strict=True)]
    assert sorted(named) == ["bird", "dog", "dog", "monitor", "tv"]
    assert words.present.shape == (3, 5)
    for column, word in enumerate(named):
        expected = [word != "bird", word == "bird", word == "dog"]
        assert words.present[:, column].bool().tolist() == expected


def recorded_words() -> tuple[list[Query], torch.Tensor, Words]:
    """The queries of an untrained network for two scenes, and one word of each."""
    torch.manual_seed(0)
    unet = build_unet()
    queries = record_queries(unet)
    text = torch.randn(2, 5, 128)
    with torch.no_grad():
        unet(torch.zeros(2, 4, 32, 32), 10, text)
    return queries, text, Words(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.eye(2))


def answer(query: Query, text: torch.Tensor) -> None:
    """Turn a layer's queries towards the scene's own word."""
    keys = query.layer.to_k(text[[0, 1], [1, 1]]).detach()
    shape = query.last["query"].shape
    query.last["query"] = (10 * keys / keys.square().mean(-1, keepdim=True))[:, None].expand(shape)


def test_the_word_presence_loss_falls_when_the_right_words_score():
    queries, text, words = recorded_words()
    nobody = torch.zeros(2, dtype=torch.bool)
    before = word_presence_loss(queries, text, words, torch.ones(2), nobody)
    for query in queries:
        answer(query, text)
    assert word_presence_loss(queries, text, words, torch.ones(2), nobody) < before


def test_layers_that_have_read_a_caption_are_not_asked_about_it():
    queries, text, words = recorded_words()
    everybody = torch.ones(2, dtype=torch.bool)
    before = word_presence_loss(queries, text, words, torch.ones(2), everybody)
    for query in queries[1:]:
        answer(query, text)
    assert word_presence_loss(queries, text, words, torch.ones(2), everybody) == before
    answer(queries[0], text)
    assert word_presence_loss(queries, text, words, torch.ones(2), everybody) < before


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pseudolabel.demo.training.train_tiny_encoder import TinyRecipe
    from pseudolabel.demo.training.train_tiny_encoder import main as distil

    folder = tmp_path_factory.mktemp("tiny")
    recipe = TinyRecipe(train_scenes=40, held_out_scenes=10, width=8, blocks=(0, 0, 1), steps=30, batch=4, lr=2e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pseudolabel.demo.training.train_tiny_encoder.save_state", save_tiny_then_die)
        with pytest.raises(KeyboardInterrupt):
            distil(folder / "out", work_dir=folder, workers=0, save_every=10, recipe=recipe)
    distil(folder / "out", work_dir=folder, workers=0, save_every=10, recipe=recipe)
    return folder / "out"


def save_tiny_then_die(path: Path, step: int, **parts: object) -> None:
    save_state(path, step, **parts)
    if step == 20:
        raise KeyboardInterrupt


def test_a_tiny_encoder_learns_the_models_latents_and_resumes(tiny: Path):
    record = json.loads((tiny / "training.json").read_text())
    assert record["figures"]["scenes"] == 10
    assert 0 < record["figures"]["latent_error"] < 0.9  # 1 is what zeros everywhere give
    assert record["parameters"]["encoder"] < record["parameters"]["own_encoder"] / 10
    assert record["processor_seconds"] > 0
    assert record["sha256"] == weight_hashes(tiny)
    rows = (tiny.parent / "training_log.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["step", "0"]  # the second run goes on at step 20


def test_generate_takes_the_tiny_encoder(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from benchmarks import tiny_encoder

    output = tmp_path / "tiny_encoder.md"
    tiny_encoder.main(["--scenes", "2", "--tiny", str(tiny), "--output", str(output), "--only", "own"])
    tiny_encoder.main(["--scenes", "2", "--tiny", str(tiny), "--output", str(output), "--only", "tiny"])
    text = output.read_text()
    assert "The tiny one costs" in text
    rows = {row["kind"]: row for row in json.loads(output.with_suffix(".json").read_text())["rows"]}
    assert 0 < rows["tiny"]["encoder_ms"] < rows["tiny"]["image_ms"]
    assert rows["tiny"]["miou_before"] != rows["own"]["miou_before"]
