import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pseudolabel.cli import gather_repeated


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_an_image_and_two_phrases(photo, rgb_u8, tmp_path, ground_options, localizer, run):
    output = tmp_path / "out"
    status, out, _ = run("ground", *ground_options, "--image", photo, "--phrase", "a dog", "--phrase", "cat",
                         "--output", output)  # fmt: skip
    assert status == 0
    results = json.loads((output / "results.json").read_text())
    assert (results["format"], results["format_version"]) == ("pseudolabel-ground", 1)
    [image] = results["images"]
    assert (image["id"], image["height"], image["width"]) == ("photo", 48, 64)
    assert image["sentences"] == ["a photo including a dog, and cat."]
    found = localizer.localize(rgb_u8, ["a dog", "cat"], image_id="photo")
    for entry, one in zip(image["phrases"], found.phrases, strict=True):
        assert entry["presence"] == one.presence
        mask = read(output / entry["mask"])
        assert (mask.dtype, set(np.unique(mask)) <= {0, 255}) == (np.uint8, True)
        assert np.array_equal(mask > 0, one.mask)
        assert np.abs(read(output / entry["soft"]) / 255 - one.soft).max() <= 0.5 / 255 + 1e-6
        assert read(output / entry["overlay"]).shape == (48, 64, 3)
    page = (output / "ground.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 + 2 * 2
    assert "http" not in page.replace("http-equiv", "")
    assert f"photo: a dog: presence {found['a dog'].presence:.2f}" in out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_several_images_a_folder_and_names_that_meet(photo, tmp_path, rgb_u8, ground_options, run):
    folder = tmp_path / "more"
    folder.mkdir()
    Image.fromarray(rgb_u8).save(folder / "photo.png")
    Image.fromarray(rgb_u8).save(folder / "b.jpg")
    status, *_ = run("ground", *ground_options, "--image", photo, "--image", folder, "--phrase", "dog",
                     "--output", tmp_path / "out", "--independent")  # fmt: skip
    assert status == 0
    ids = [image["id"] for image in json.loads((tmp_path / "out/results.json").read_text())["images"]]
    assert ids == ["photo", "more__b", "more__photo"]
    assert not (tmp_path / "out" / "photo" / "all.png").exists()


def test_a_table(photo, tmp_path, ground_options, run):
    table = tmp_path / "phrases.csv"
    table.write_text("image,phrase,sentence\nphoto.png,dog,\nphoto.png,cat,\nphoto.png,tree,a tree and a river\n")
    status, *_ = run("ground", *ground_options, "--phrases", table, "--output", tmp_path / "out")
    assert status == 0
    images = json.loads((tmp_path / "out" / "results.json").read_text())["images"]
    assert [(image["id"], [one["phrase"] for one in image["phrases"]]) for image in images] == [
        ("photo", ["dog", "cat"]), ("photo__2", ["tree"]),
    ]  # fmt: skip
    assert images[1]["sentences"] == ["a tree and a river"]


def test_an_image_the_model_draws(tmp_path, ground_options, run):
    command = [
        "ground",
        *ground_options,
        "--prompt",
        "a photo including dog, and tree.",
        "--phrase",
        "dog",
        "--size",
        64,
    ]
    command += ["--steps", 2]
    for name in ("one", "two"):
        assert run(*command, "--output", tmp_path / name)[0] == 0
    assert run(*command, "--output", tmp_path / "three", "--seed", 1)[0] == 0
    pictures = [read(tmp_path / name / "drawn" / "image.png") for name in ("one", "two", "three")]
    assert pictures[0].shape == (64, 64, 3)
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert results["images"][0]["sentences"] == ["a photo including dog, and tree."]
    assert results["settings"]["drawing"]["steps"] == 2


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
def test_a_drawn_image_is_diffusers_own(sd_folder, tmp_path, ground_options, run):
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    prompt = "a photo including dog."
    assert run("ground", *ground_options, "--prompt", prompt, "--phrase", "dog", "--steps", 3, "--guidance", 4,
               "--seed", 7, "--size", "[48, 64]", "--output", tmp_path / "out")[0] == 0  # fmt: skip
    pipeline = StableDiffusionPipeline.from_pretrained(
        sd_folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False, low_cpu_mem_usage=False
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    [expected] = pipeline(prompt, num_inference_steps=3, guidance_scale=4.0, height=48, width=64, output_type="np",
                          generator=torch.Generator().manual_seed(7)).images  # fmt: skip
    drawn = read(tmp_path / "out" / "drawn" / "image.png")
    assert np.array_equal(drawn, (expected * 255).round().astype(np.uint8))


@pytest.mark.parametrize("folder", ["sd2_folder", "sdxl_folder"])
def test_other_models_draw_too(folder, request, tmp_path, ground_options, run):
    options = [option for option in ground_options if not option.startswith("--model.id") and "layers" not in option]
    options += ["--attention.cross_layers=[mid]", "--attention.self_layers=[mid]"]
    status, _, err = run("ground", *options, "--model.id", request.getfixturevalue(folder), "--prompt", "a dog",
                         "--phrase", "dog", "--steps", 1, "--output", tmp_path / "out")  # fmt: skip
    assert status == 0, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "{photo}"], "no phrase to look for"),
        (["--phrase", "dog"], "none of them"),
        (["--image", "{photo}", "--prompt", "a dog", "--phrase", "dog"], "--image and --prompt"),
        (["--phrases", "{photo}", "--phrase", "dog"], "leave --phrase and --sentence out"),
        (["--image", "{photo}", "--phrase", "dog", "--phrase", ""], "Phrase 2 of 2 is empty"),
        (["--image", "{photo}", "--phrase", "dog", "--phrase", "Dog"], "is given twice"),
        (["--image", "{photo}", "--phrase", "dog", "--sentence", "a cat"], "'dog' is not in the sentence 'a cat'"),
        (["--image", "{photo}", "--phrase", "dog", "--sentence", "dog " * 90], "has 90 tokens"),
        (["--image", "{photo}", "--image", "{photo}", "--phrase", "dog"], "is given twice"),
        (["--image", "{none}", "--phrase", "dog"], "There is no file or folder"),
        (["--image", "{text}", "--phrase", "dog"], "Cannot read the image"),
        (["--phrases", "{none}"], "Cannot read the phrases"),
        (["--phrases", "{text}"], "has no column"),
        (["--prompt", "", "--phrase", "dog"], "--prompt is empty"),
        (["--prompt", "dog " * 90, "--phrase", "dog"], "90 tokens"),
        (["--prompt", "a dog", "--phrase", "cat"], "'cat' is not in the sentence 'a dog'"),
        (["--prompt", "a dog", "--phrase", "dog", "--steps", "0"], "--steps is 0"),
        (["--prompt", "a dog", "--phrase", "dog", "--size", "50"], "must be multiples of 16 px"),
        (["--prompt", "a dog", "--phrase", "dog", "--guidance", "-1"], "--guidance is -1"),
        (["--prompt", "a dog", "--phrase", "dog", "--seed", "-1"], "--seed is -1"),
        (["--image", "{photo}", "--phrase", "dog", "--match.presence_min", "2"], "from 0 to 1"),
        (["--image", "{photo}", "--phrase", "dog", "--match.words", "sum"], "match.words"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(photo, tmp_path, ground_options, run, arguments, words):
    (tmp_path / "text.png").write_text("no image")
    places = {"photo": photo, "none": tmp_path / "none", "text": tmp_path / "text.png"}
    before = sorted(tmp_path.rglob("*"))
    given = [argument.format(**places) if argument.startswith("{") else argument for argument in arguments]
    status, _, err = run("ground", *ground_options, *given, "--output", tmp_path / "out")
    lines = [line for line in err.splitlines() if "image/s" not in line]
    assert (status, len(lines)) == (2, 1), err
    assert words in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_is_not_empty_is_left_alone(photo, tmp_path, ground_options, run):
    command = ["ground", *ground_options, "--image", photo, "--phrase", "dog", "--output"]
    assert "is a file" in run(*command, photo)[2]
    status, _, err = run(*command, tmp_path)
    assert status == 2
    assert "is not empty" in err
    (tmp_path / "empty").mkdir()
    assert run(*command, tmp_path / "empty")[0] == 0


def test_a_fault_in_the_second_image_leaves_nothing(photo, tmp_path, ground_options, run):
    (tmp_path / "z.png").write_bytes(photo.read_bytes()[:300])
    status, _, err = run("ground", *ground_options, "--image", photo, "--image", tmp_path / "z.png", "--phrase",
                         "dog", "--output", tmp_path / "deep" / "out")  # fmt: skip
    assert status == 2
    assert "z.png" in err
    assert [path.name for path in (tmp_path / "deep").iterdir()] == []


def test_a_phrase_cannot_change_the_page_or_leave_the_folder(photo, tmp_path, ground_options, run):
    phrases = ["<script>alert(1)</script> dog", "../../x", "dog & cat"]
    given = [part for phrase in phrases for part in ("--phrase", phrase)]
    status, *_ = run("ground", *ground_options, "--image", photo, *given, "--output", tmp_path / "out")
    assert status == 0
    page = (tmp_path / "out" / "ground.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.png")} == {"photo"}


def test_the_demos_settings_fit(photo, tmp_path, ground_options, run):
    """A configuration file of `generate` serves, its data group and ignore band included."""
    config = Path(__file__).parents[3] / "configs" / "pseudolabel" / "demo.yaml"
    status, _, err = run("ground", "--config", config, *ground_options, "--image", photo, "--phrase", "dog",
                         "--attention.naming_layers", "[]", "--output", tmp_path / "out")  # fmt: skip
    assert status == 0, err


def test_values_of_a_repeated_flag_are_kept_as_they_are():
    given = ["ground", "--phrase", "a, b", "--phrase=12", "--phrase", "yes", "--phrase", "a: b", "--x", "1"]
    assert gather_repeated(given) == ["ground", '--phrase=["a, b", "12", "yes", "a: b"]', "--x", "1"]
