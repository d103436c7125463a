"""Learning a thing from photographs with tiny real models: files, resuming, bad input; every method."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from data.errors import StoreError
from pseudolabel.cli import main
from pseudolabel.personalize import training
from pseudolabel.personalize.config import LookConfig, PersonalizeConfig
from pseudolabel.personalize.custom_diffusion import start_custom, write_custom
from pseudolabel.personalize.inversion import start_token
from pseudolabel.personalize.looking import looking_loss
from pseudolabel.personalize.lora import start_lora, write_lora
from pseudolabel.personalize.photographs import cut_views, encode_views, read_photographs
from pseudolabel.personalize.training import (
    checkpoint_path,
    learn,
    prepare_looking,
    start,
    step_loss,
    token_path,
    train,
)
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.families import native_px
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.parts import Parts

TOKEN = "<my-dog>"
LOOK = LookConfig(weight=1.0, cross_layers=("mid", "1/2"), drawn=2)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Three pictures of a red square on grounds of other colours, none of them square or of the model's size."""
    folder = tmp_path_factory.mktemp("photographs")
    for index, colour in enumerate(((30, 90, 40), (70, 70, 200), (200, 190, 150))):
        rgb = np.full((60 + 8 * index, 80, 3), colour, np.uint8)
        rgb[20:45, 25 + 5 * index : 50 + 5 * index] = (210, 30, 40)
        Image.fromarray(rgb).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def config(sd_folder, photographs, tmp_path) -> PersonalizeConfig:
    return PersonalizeConfig(
        images=photographs, init_word="dog", token=TOKEN, output=tmp_path / "my_dog.safetensors", steps=4,
        batch_size=2, vectors=2, token_rate=0.05, model=ModelConfig(id=str(sd_folder)), device="cpu", save_every=2,
    )  # fmt: skip


def load(folder, **kwargs) -> Parts:
    return load_parts(ModelConfig(id=str(folder), **kwargs), torch.device("cpu"), torch.float32)


def test_a_learned_token_is_read_by_diffusers_and_by_us(config, sd_folder):
    learned = learn(config)
    assert learned.options == (f"--model.tokens {config.output}",)
    content = load_file(config.output)
    assert list(content) == [TOKEN]
    assert content[TOKEN].shape == (2, 16)
    ours = load(sd_folder, tokens=(str(config.output),))
    names = [TOKEN, f"{TOKEN}_1"]
    ids = ours.tokenizers[0].convert_tokens_to_ids(names)
    torch.testing.assert_close(ours.text_encoders[0].get_input_embeddings().weight[ids], content[TOKEN])
    pipeline = StableDiffusionPipeline(
        vae=ours.vae, unet=ours.denoiser, text_encoder=load(sd_folder).text_encoders[0],
        tokenizer=load(sd_folder).tokenizers[0], scheduler=None, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.load_textual_inversion(str(config.output.parent), weight_name=config.output.name)
    theirs = pipeline.text_encoder.get_input_embeddings().weight[pipeline.tokenizer.convert_tokens_to_ids(names)]
    assert torch.equal(theirs, content[TOKEN])
    before = load(sd_folder)
    word = before.text_encoders[0].get_input_embeddings().weight[before.tokenizers[0]("dog").input_ids[1]]
    assert 0 < (content[TOKEN][0] - word).abs().max() < 0.5  # started at the word, and moved
    assert {path.name for path in config.output.parent.iterdir()} == {config.output.name}  # no checkpoint is left


@pytest.mark.parametrize("method", ["textual_inversion", "lora", "custom_diffusion", "dreambooth"])
def test_the_loss_of_the_same_steps_falls(method, config):
    """The same views, noise and sentences before and after: what falls is not the luck of the draw."""
    config = replace(config, method=method, steps=20, weight_rate=2e-3)
    parts = load(config.model.id)
    images = read_photographs(config.images, 2)
    views = encode_views(parts, cut_views(images, 8, native_px(parts), 0, 0.8))
    trainee = start(config, parts)

    def losses() -> float:
        with torch.no_grad():
            return float(sum(step_loss(config, parts, views, None, False, step) for step in range(20)))

    before = losses()
    progress = training.Progress("", config.output.with_name("checkpoint"))
    train(config, parts, trainee, views, None, progress)
    assert losses() < before
    assert len(progress.losses) == 20


@pytest.mark.parametrize("look", [LookConfig(), LOOK])
def test_an_interrupted_run_ends_with_the_same_bytes(look, config, tmp_path, monkeypatch):
    config = replace(config, look=look)
    whole = replace(config, output=tmp_path / "whole" / "my_dog.safetensors", save_every=50)
    first = learn(whole)
    taken, stop_at = [], 3
    optimise = training.optimise

    def interrupted(*arguments) -> None:
        taken.append(1)
        if len(taken) == stop_at:
            raise KeyboardInterrupt
        optimise(*arguments)

    monkeypatch.setattr(training, "optimise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn(config)
    assert not config.output.exists()
    assert checkpoint_path(config.output).exists()
    stop_at = 0
    with pytest.raises(StoreError, match="checkpoint of a run with other settings"):
        learn(replace(config, seed=1))
    taken.clear()
    again = learn(config)
    assert len(taken) == 2  # of four steps
    assert config.output.read_bytes() == whole.output.read_bytes()
    assert (again.first, again.last) == (first.first, first.last)
    assert not checkpoint_path(config.output).exists()


def test_a_trained_lora_is_merged_to_what_was_trained(sd_folder, tmp_path):
    trained, plain = load(sd_folder).denoiser, load(sd_folder).denoiser
    learned = start_lora(trained, rank=2, seed=0)
    assert len(learned) == 4 * 2 * 11  # projections, self and cross, blocks
    inputs = (torch.randn(1, 4, 16, 16), torch.tensor([150]), torch.randn(1, 77, 16))
    with torch.no_grad():
        before = trained(*inputs).sample
        assert torch.equal(before, plain(*inputs).sample)  # B is zero at first
        for _, up in learned.values():
            up.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        expected = trained(*inputs).sample
    write_lora(tmp_path / "l.safetensors", learned)
    merged = load(sd_folder, lora=(str(tmp_path / "l.safetensors"),)).denoiser
    with torch.no_grad():
        torch.testing.assert_close(merged(*inputs).sample, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, before, atol=1e-2)


def test_trained_keys_and_values_are_copied_back(sd_folder, tmp_path):
    trained = load(sd_folder).denoiser
    learned = start_custom(trained)
    assert len(learned) == 2 * 11
    with torch.no_grad():
        for weight in learned.values():
            weight.add_(1)
    write_custom(tmp_path / "c.safetensors", learned)
    loaded = load(sd_folder, custom_diffusion=tmp_path / "c.safetensors").denoiser
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize("method", ["lora", "custom_diffusion"])
def test_weights_and_token_go_into_two_files(method, config, sd_folder):
    config = replace(config, method=method, steps=2, weight_rate=1e-2)
    first, second = learn(config).options
    assert second == f"--model.tokens {token_path(config.output)}"
    flag, value = first.split()
    option = flag.removeprefix("--model.")
    given = {option: (value,) if option == "lora" else Path(value), "tokens": (str(token_path(config.output)),)}
    parts, plain = load(sd_folder, **given), load(sd_folder)
    assert TOKEN in parts.tokenizers[0].get_added_vocab()
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert not torch.equal(parts.denoiser.get_parameter(name), plain.denoiser.get_parameter(name))


def test_dreambooth_writes_a_model_that_is_loaded_like_any_other(config, tmp_path, sd_folder):
    config = replace(config, method="dreambooth", output=tmp_path / "model", steps=2, weight_rate=1e-2)
    assert learn(config).options == (f"--model.id {tmp_path / 'model'}",)
    parts = load(tmp_path / "model")
    assert f"{TOKEN}_1" in parts.tokenizers[0].get_added_vocab()
    assert len(parts.tokenizers[0]) == parts.text_encoders[0].get_input_embeddings().weight.shape[0]
    assert not torch.equal(parts.denoiser.conv_in.weight, load(sd_folder).denoiser.conv_in.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has much to say of the tiny scheduler
        pipeline = StableDiffusionPipeline.from_pretrained(
            tmp_path / "model", safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    assert torch.equal(pipeline.unet.conv_in.weight, parts.denoiser.conv_in.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("folder", ["sd2_folder", "sdxl_folder"])
def test_other_families_are_trained_too(folder, config, request):
    model = ModelConfig(id=str(request.getfixturevalue(folder)))
    learned = learn(replace(config, model=model, steps=2))
    option = learned.options[0].removeprefix("--model.tokens ")
    parts = load(model.id, tokens=(option,))
    assert all(TOKEN in tokenizer.get_added_vocab() for tokenizer in parts.tokenizers)
    if folder == "sdxl_folder":
        assert sorted(load_file(config.output)) == ["clip_g", "clip_l"]


def test_what_is_predicted_decides_the_target(config, sd2_folder):
    """A model of v-prediction is not asked for the noise."""
    parts = load(sd2_folder)
    views = torch.randn(3, 4, 16, 16)
    start_token(parts, TOKEN, "dog", 1, 0)
    with torch.no_grad():
        noise, velocity = (step_loss(config, parts, views, None, kind, 0) for kind in (False, True))
    assert noise != velocity


def test_the_token_learns_to_look(config):
    """Inside the class word's map in the pictures of it, and not inside that map in pictures of others."""
    config = replace(config, look=LOOK, steps=25, vectors=1)
    parts = load(config.model.id)
    images = read_photographs(config.images, 2)
    views = encode_views(parts, cut_views(images, 4, native_px(parts), 0, 0.8))
    looking = prepare_looking(config, parts, views, images)
    assert looking.own_maps.shape == (4, 8, 8)
    assert float(looking.own_maps.max()) == 1
    trainee = start(config, parts)

    def loss() -> float:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            return sum(
                float(looking_loss(parts, looking, TOKEN, "dog", LOOK, 4, generator)) for _ in range(5)
            )  # fmt: skip

    before = loss()
    train(config, parts, trainee, views, looking, training.Progress("", config.output.with_name("checkpoint")))
    assert loss() < before
    assert all(parameter.grad is None for parameter in parts.denoiser.parameters())


def test_views_are_squares_of_one_size_and_depend_on_the_seed():
    image = np.arange(60 * 90 * 3, dtype=np.uint32).reshape(60, 90, 3).astype(np.uint8)
    views = cut_views([image, image[:, ::-1]], 6, 32, 0, 0.8)
    assert {view.shape for view in views} == {(32, 32, 3)}
    assert np.array_equal(views, cut_views([image, image[:, ::-1]], 6, 32, 0, 0.8))
    assert not np.array_equal(views[0], cut_views([image], 1, 32, 1, 0.8)[0])


def command(config: PersonalizeConfig, **changed: object) -> list[str]:
    given = {"images": config.images, "init_word": "dog", "token": TOKEN, "output": config.output, "steps": 1}
    given |= {"model.id": config.model.id, "device": "cpu", "batch_size": 1} | changed
    return ["personalize", *(f"--{name}={value}" for name, value in given.items())]


def test_the_command_says_what_to_do_next(config, capsys):
    assert main(command(config)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Learned {TOKEN} from 3 photographs in ")
    assert lines[-2] == f"Next: give any command that loads the model --model.tokens {config.output}"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"init_word": "zebra"}, "--init_word is 'zebra', which this model's tokenizer has not (spelt in 5 pieces)"),
        ({"init_word": ""}, "which this model's tokenizer has not (empty)"),
        ({"token": "cat"}, "'cat' is in the tokenizer's vocabulary already"),
        ({"token": "two words"}, "one word without spaces"),
        ({"vectors": 80}, "a sentence would have"),
        ({"steps": 0}, "--steps is 0"),
        ({"method": "lora", "output": "x.bin"}, "it must be a file that ends in .safetensors"),
        ({"method": "dreambooth"}, "it must be a folder, not a file"),
        ({"images": "nowhere"}, "There is no file or folder nowhere"),
        ({"timesteps": "[900, 100]"}, "0 <= first < second <= 1000"),
        ({"look.weight": 1, "look.cross_layers": "[nowhere]"}, "--look.cross_layers names 'nowhere'"),
        ({"look.weight": 1, "others": "nowhere"}, "There is no file or folder nowhere"),
        ({"token_rate": "1e38"}, "--token_rate is 1e+38"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(changed, message, config, capsys):
    assert main(command(config, **changed)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert list(config.output.parent.iterdir()) == []


def test_one_photograph_and_a_damaged_one_are_refused(config, tmp_path, photographs, capsys):
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "0.png").write_bytes((photographs / "0.png").read_bytes())
    assert main(command(config, images=folder)) == 2
    assert "holds 1 image: from a single one the thing cannot be told" in capsys.readouterr().err
    (folder / "1.png").write_bytes((photographs / "1.png").read_bytes()[:100])
    assert main(command(config, images=folder)) == 2
    assert "1.png" in capsys.readouterr().err
    (folder / "1.png").write_bytes((photographs / "1.png").read_bytes())
    assert main(command(config, images=folder)) == 0
    assert "Few photographs (2)" in capsys.readouterr().out
    assert main(command(config, images=folder)) == 2  # what is there is kept
    assert "exists already" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_one_line(config, capsys, monkeypatch):
    monkeypatch.setattr(training, "step_loss", lambda *_: torch.tensor(torch.nan, requires_grad=True))
    assert main(command(config)) == 2
    assert "The loss is nan at step 0: use a smaller --token_rate" in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_model_tells_a_taught_bottle_from_other_bottles(tmp_path):
    """The token looks at its own drawing more than at others of the kind; the class word knows no difference."""
    from data.demo.personal import CONCEPTS, reference_scenes, subset_scenes
    from data.demo.scene import drawing_mask
    from pseudolabel.personalize.looking import TOGETHER, read_maps
    from pseudolabel.softmaps.diffusion.unet import list_layers
    from pseudolabel.softmaps.layers import resolve_layers

    concept = next(one for one in CONCEPTS if one.drawing == "bottle/pump-violet")
    (tmp_path / "photographs").mkdir()
    for index, scene in enumerate(reference_scenes(concept)):
        Image.fromarray(scene.rgb).save(tmp_path / "photographs" / f"{index}.png")
    settings = ["--config", "configs/pseudolabel/demo_personal.yaml", "--images", str(tmp_path / "photographs")]
    named = ["--init_word", concept.class_word, "--token", concept.token, "--output", str(tmp_path / "t.safetensors")]
    assert main(["personalize", *settings, *named, "--steps=60", "--look.drawn=8", "--device=cpu"]) == 0
    parts = load("data/demo/model", tokens=(str(tmp_path / "t.safetensors"),))
    layers = resolve_layers(list_layers(parts.denoiser), ("up_blocks.1.attentions.1",), "layers")
    scenes = list(subset_scenes(concept, "semantic_distractor", 12))
    latents = encode_views(parts, [scene.rgb for scene in scenes])
    ratios = []
    for phrase in (concept.token, concept.class_word):
        generator = torch.Generator().manual_seed(0)
        sentence = TOGETHER[0].format(concept.token, concept.class_word)
        with torch.no_grad():
            maps = read_maps(parts, layers, latents, sentence, phrase, 30, generator)
        maps = torch.nn.functional.interpolate(maps[:, None], (128, 128), mode="bilinear")[:, 0].numpy()
        mine = np.stack([drawing_mask(scene, concept.drawing) for scene in scenes]).astype(bool)
        bottles = np.stack([scene.mask == 5 for scene in scenes]) & ~mine
        ratios.append(maps[mine].mean() / maps[bottles].mean())
    assert ratios[0] > 2 * ratios[1]
