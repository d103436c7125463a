"""Images that people have and that break readers: `check` and `generate` say the same of each, and skip goes on."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.store.store import MaskStore
from pseudolabel.cli import main

NO_ENCODING = os.fsdecode(b"caf\xe9") if sys.platform == "linux" else "cafe"
SIDES = {"one_pixel": (1, 1), "a_row": (1, 90), "a_column": (90, 1), "long": (3, 700)}


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A class folder with readable images of odd names and sides, and with files that cannot be read."""
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    noise(24, 32).save(folder / "plain.png")
    shutil.copyfile(folder / "plain.png", folder / f"{NO_ENCODING}.png")
    for name, (height, width) in SIDES.items():
        noise(height, width).save(folder / f"{name}.png")
    noise(24, 32).save(folder / "eps.jpg", format="EPS")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "plain.png").read_bytes()[:900])
    Image.fromarray(np.zeros((24, 32), np.float32)).save(folder / "float.tif")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
        (folder / "device.png").symlink_to("/dev/zero")
    return folder.parent


def test_check_finds_what_generate_skips(photos, tmp_path, tiny_options, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    options = ["--root", str(photos), *tiny_options]
    assert main(["check", *options, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)["data"]["unreadable"]
    bad = {f"cat__{name}" for name in ("eps", "empty", "cut", "float")}
    assert set(found) == bad | ({"cat__pipe", "cat__device"} if hasattr(os, "mkfifo") else set())
    assert main(["check", *options, "--on_error", "skip"]) == 0
    assert main(["generate", *options, "--store", str(tmp_path / "masks"), "--on_error", "skip"]) == 0
    out = capsys.readouterr().out
    assert f"{len(found)} IMAGES WERE SKIPPED" in out
    assert all(f"  {sample_id}: " in out for sample_id in found)
    store = MaskStore.open(tmp_path / "masks")
    assert len(store.ids()) == 2 + len(SIDES)
    for record in store.records():
        image = store.image_path(record)
        assert image.is_file()
        with Image.open(image) as picture:
            assert store.read_mask(record["id"]).shape == (picture.height, picture.width)
    for command in (["report"], ["export", "--format", "coco", "--output", str(tmp_path / "coco")]):
        assert main([*command, "--store", str(tmp_path / "masks")]) == 0


def test_without_skip_both_stop(photos, tmp_path, tiny_options, capsys):
    options = ["--root", str(photos), *tiny_options]
    assert main(["generate", *options, "--store", str(tmp_path / "masks")]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")


def test_output_of_an_encoding_that_lacks_a_character(photos, capfd):
    import subprocess

    command = [sys.executable, "-m", "pseudolabel.cli", "init", "--root", str(photos)]
    (photos / "cat").rename(photos / "chat à l'été")
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"chat \xe0" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are bytes")
def test_a_class_folder_of_no_encoding_is_one_line(photos, capsys):
    (photos / "cat").rename(photos / NO_ENCODING)
    assert main(["init", "--root", str(photos)]) == 2
    assert "'caf\\udce9'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["init", "check", "generate"])
def test_no_images_is_one_line(tmp_path, capsys, command, tiny_options):
    more = {"init": [], "check": tiny_options, "generate": ["--store", str(tmp_path / "masks"), *tiny_options]}
    (tmp_path / "photos").mkdir()
    assert main([command, "--root", str(tmp_path / "photos"), *more[command]]) == 2
    assert "holds no images" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
