"""What the READMEs say is run: each command and each Python block of theirs, on drawn data and tiny models.

A command runs to the letter, in a folder where the names it uses (photos, VOCdevkit, ...) are there; what makes it
quick (a tiny model, a few steps) is added behind.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.masks import write_mask
from pseudolabel import cli
from train import cli as train_cli

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / name for name in ("README.md", "data/README.md", "pseudolabel/README.md", "train/README.md")]
MAIN = {"pseudolabel": cli.main, "segtrain": train_cli.main}
COMMAND = re.compile(r"\b(?:pseudolabel|segtrain) +[a-z]+\b[^#\n]*")
NETWORK = [
    *("--model.network.architecture", "deeplabv3plus", "--model.network.encoder", "tu-test_resnet"),
    *("--model.network.weights", "null", "--model.network.decoder_channels", "16"),
    *("--model.network.atrous_rates", "[1,2,3]"),
]
FIT = [
    *NETWORK,
    *("--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--data.batch_size", "2", "--data.augment.crop", "64"),
    *("--data.workers", "0"),
]
QUICK = {
    "fit": FIT,
    "test": ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"],
    "predict": ["--device", "cpu"],
    "relabel": ["--device", "cpu"],
    "calibrate": ["--draws", "1", "--timesteps", "[150]", "--heads", "false"],
    "personalize": ["--steps", "1", "--batch_size", "1", "--device", "cpu"],
    "ground": ["--steps", "1"],
}
# Options of the tiny model that a command does not have.
TINY = {
    "check": (),
    "generate": (),
    "calibrate": ("--attention", "--workers", "--affinity"),
    "ground": ("--workers",),
    "personalize": ("--resize", "--attention", "--affinity", "--crf", "--diffusion", "--device", "--workers"),
}


def fenced(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and content of each fenced block."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


def commands(text: str) -> list[list[str]]:
    """Return the command lines of the fenced and indented blocks, split into words; none that ends in dots."""
    lines = [line for language, block in fenced(text) if language in {"", "bash"} for line in block.splitlines()]
    lines += re.findall(r"^    (?:pseudolabel|segtrain) .*", text, re.MULTILINE)
    found = [shlex.split(match[0]) for line in lines for match in COMMAND.finditer(line)]
    return [words for words in found if words[-1] != "..."]


def draw(path: Path, seed: int) -> np.ndarray:
    """Write a picture of noise with a bright box, and return the box's mask."""
    pixels = np.random.default_rng(seed).integers(0, 90, (48, 64, 3), dtype=np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    pixels[10:34, 16 + seed : 44 + seed] += 150
    mask[10:34, 16 + seed : 44 + seed] = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return mask


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the READMEs name: photographs of one's own, VOC, and the project's configs."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for folder in ("photos", "more_photos"):
        for number in range(4):
            draw(tmp_path / folder / f"{number}.png", number)
    rows = [f"{number}.png,{'cat;dog' if number else 'dog'}" for number in range(4)]
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(["image,labels", *rows, ""]))
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    (voc / "Annotations").mkdir(parents=True)
    (voc / "SegmentationClass").mkdir()
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split in ("train", "train_aug", "val"):
        names = [f"{split}_{number}" for number in range(3)]
        for number, name in enumerate(names):
            write_mask(voc / "SegmentationClass" / f"{name}.png", draw(voc / "JPEGImages" / f"{name}.jpg", number))
            entry = "<annotation><object><name>cat</name><difficult>0</difficult></object></annotation>"
            (voc / "Annotations" / f"{name}.xml").write_text(entry)
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_command(tiny_options):
    """Run a command line to the letter, with what makes it quick behind it."""

    def run(words: list[str]) -> None:
        program, command, *rest = words
        lacking = TINY.get(command, ("--",))
        if command == "calibrate" and any(
            word.startswith("configs/") for word in rest
        ):  # of another model than the tiny
            lacking = ("--workers",)
        quick = [*QUICK.get(command, []), *(option for option in tiny_options if not option.startswith(lacking))]
        if command == "fit" and "--ckpt_path" in rest:  # a run's own config has all of it
            quick = ["--trainer.max_steps", "4"]
        if command == "test" and "--config" in rest:  # the config names another network than the quick run's
            quick = [*quick, *NETWORK]
        if command == "review":
            serve_and_leave(words)
            return
        assert MAIN[program]([command, *rest, *quick]) == 0, shlex.join(words)

    return run


def serve_and_leave(words: list[str]) -> None:
    """Run a command that serves a page until Ctrl-C, which comes as soon as the page answers."""
    command = [sys.executable, "-m", *words, "--port", "0"]
    where = os.environ | {"BROWSER": "true", "PYTHONPATH": str(ROOT)}  # a browser that shows nothing
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=where) as process:
        try:
            found = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in process.stdout)
            address = next((match[0] for match in found if match), None)
            assert address, process.stderr.read()
            with urllib.request.urlopen(address, timeout=60):
                pass
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, errors


def test_there_is_something_to_run():
    assert sum(len(commands(path.read_text())) for path in READMES) > 15


@pytest.mark.parametrize("heading", ["## Your own images", "## Pascal VOC 2012 and COCO 2014"])
def test_sections_of_the_readme(place, run_command, heading):
    section = (ROOT / "README.md").read_text().split(f"{heading}\n")[1].split("\n## ")[0]
    for words in commands(section):
        run_command(words)
    assert any((place / "run" / "checkpoints").iterdir())


def test_commands_of_data(place, run_command):
    found = commands((ROOT / "data" / "README.md").read_text())
    order = sorted(found, key=lambda words: words[1] == "export")  # of the store that the others make
    for number, words in enumerate(order):
        if words[1] == "export" and "--output" not in words:
            words += ["--output", f"exported_{number}"]
        run_command(words)
    assert (place / "out" / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt").is_file()


def test_commands_and_code_of_train(place, run_command, made_store):
    (place / "S").symlink_to(made_store)
    text = (ROOT / "train" / "README.md").read_text()
    for words in commands(text):
        run_command(words)
    rgb_u8 = np.zeros((50, 70, 3), np.uint8)
    for language, block in fenced(text):
        if language == "python":
            known = {"rgb_u8": rgb_u8}
            exec(block, known)
            assert known["mask"].shape == (50, 70)


def test_commands_of_pseudolabel(place, run_command, tiny_options):
    draw(place / "photo.jpg", 0)
    (place / "my_mug").symlink_to(place / "photos")
    model, *attention = (option for option in tiny_options if option.startswith(("--model", "--attention")))
    (place / "start.yaml").write_text(
        f"model: {{id: {model.partition('=')[2]}}}\nattention:\n"
        + "".join(f"  {each.removeprefix('--attention.').replace('=', ': ')}\n" for each in attention)
    )
    for words in commands((ROOT / "pseudolabel" / "README.md").read_text()):
        run_command(["dog" if word == "mug" else word for word in words])  # the tiny model knows no mug
    assert (place / "mine.yaml").is_file()


def test_code_of_pseudolabel(place, sd_folder, monkeypatch):
    """The hub's model is a tiny one here, and the GPU a CPU; every other word is the README's."""
    [block] = [
        block for language, block in fenced((ROOT / "pseudolabel" / "README.md").read_text()) if language == "python"
    ]
    block = block.replace("stable-diffusion-v1-5/stable-diffusion-v1-5", str(sd_folder))
    block = block.replace('device="cuda"', 'device="cpu", config=tiny')
    image = Image.open(place / "photos" / "1.png")
    known = {"image": image, "images": [image], "phrases_of_each": [["dog"]], "tiny": tiny_localizer()}
    exec(block, known)
    assert known["found"].labels.shape == (48, 64)


def tiny_localizer():
    from dataclasses import replace

    from pseudolabel.ground.config import GroundConfig
    from pseudolabel.softmaps.config import AttentionConfig

    config = GroundConfig()
    attention = AttentionConfig(cross_layers=("1/2", "mid"), self_layers=("up_blocks.1.attentions.1",))
    return replace(config, attention=attention)


def flags_of(program: str, command: str) -> set[str]:
    """Return the options a command knows, from its help."""
    out = StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit):
        MAIN[program]([command, "--help"])
    return set(re.findall(r"--[a-z][\w.]*", out.getvalue()))


@pytest.fixture(scope="session")
def known_flags() -> dict[str, set[str]]:
    stage_two = ("fit", "validate", "test", "predict", "relabel", "export")
    names = [("pseudolabel", name) for name in cli.COMMANDS] + [("segtrain", name) for name in stage_two]
    return {f"{program} {command}": flags_of(program, command) for program, command in names}


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_options_that_are_named_exist(path, known_flags):
    """An option in the text belongs to the command it is named with, or at least to one."""
    every = set().union(*known_flags.values())
    wrong = []
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)):
        command = " ".join(span.split()[:2])
        flags = [flag.rstrip(".") for flag in re.findall(r"(?<![\w-])--[a-z][\w.]*", span)]
        known = known_flags.get(command, every)
        wrong += [f"{flag} in `{span}`" for flag in flags if not is_known(flag, known)]
    assert not wrong


def is_known(flag: str, known: set[str]) -> bool:
    """Return whether a flag, or a group of flags (`--crf`), exists; `--group.name` stands for any."""
    return flag in known or flag == "--group.name" or any(other.startswith(f"{flag}.") for other in known)


def test_make_and_pip_lines_name_what_there_is():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = "\n".join(path.read_text() for path in READMES)
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) <= targets
    for group in re.findall(r"pip install [^\n`]*\[([\w,]+)\]", text):
        assert set(group.split(",")) <= set(extras)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_read_by_its_command(path, capsys):
    program, command = ("segtrain", "fit") if path.parent.name == "train" else ("pseudolabel", "generate")
    command = "personalize" if "personal" in path.stem else command
    with pytest.raises(SystemExit) as left:
        MAIN[program]([command, "--config", str(path), "--print_config"])
    assert left.value.code == 0, json.dumps(capsys.readouterr().err)
