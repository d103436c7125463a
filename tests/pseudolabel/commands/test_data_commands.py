"""The commands init, check and export through the command line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.class_file import load_classes
from data.classes import VOC
from data.store.store import MaskStore
from pseudolabel.cli import main


def save_photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(sum(path.name.encode())).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(rgb).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat/1.jpg", "cat/2.JPG", "garden_gnome/1.png"):
        save_photo(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_init_then_check(photos, capsys):
    assert main(["init", "--root", str(photos)]) == 0
    out = capsys.readouterr().out
    assert 'garden_gnome  ("garden gnome")' in out
    assert f"pseudolabel check --root {photos}" in out
    classes = load_classes(photos / "classes.yaml")
    assert classes.names == ("cat", "garden_gnome")
    assert classes.phrases == ("cat", "garden gnome")
    assert main(["check", "--root", str(photos)]) == 0
    assert "Ready" in capsys.readouterr().out


def test_init_keeps_an_edited_file(photos, capsys):
    (photos / "classes.yaml").write_text("classes: [cat, garden_gnome, dog]")
    assert main(["init", "--root", str(photos)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["init", "--root", str(photos), "--output", str(photos.parent / "c.yaml")]) == 0
    assert len(load_classes(photos.parent / "c.yaml")) == 2
    assert main(["init", "--root", str(photos), "--overwrite"]) == 0
    assert len(load_classes(photos / "classes.yaml")) == 2


def test_init_of_an_empty_folder(tmp_path, capsys):
    assert main(["init", "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_check_fails_where_a_run_would(photos, capsys):
    (photos / "cat" / "1.jpg").write_bytes(b"not a picture")
    assert main(["check", "--root", str(photos)]) == 2
    captured = capsys.readouterr()
    assert "Not ready." in captured.out
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert main(["check", "--root", str(photos), "--on_error", "skip"]) == 0


def test_check_as_json(photos, capsys):
    assert main(["check", "--root", str(photos), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] is True
    assert report["data"]["classes"] == {"cat": 2, "garden_gnome": 1}
    assert main(["check", "--root", str(photos / "none"), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] is False
    assert len(report["data"]["problems"]) == 1


@pytest.mark.parametrize("examine", ["0", "-3"])
def test_check_opens_at_least_one_image(photos, capsys, examine):
    assert main(["check", "--root", str(photos), "--examine", examine]) == 2
    assert f"--examine is {examine}: it must be at least 1" in capsys.readouterr().err


def test_check_writes_nothing(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["check", "--root", str(photos)]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_check_names_a_missing_model(photos, tmp_path, capsys):
    assert main(["check", "--root", str(photos), "--model.id", str(tmp_path / "none")]) == 2
    assert "--model.id" in capsys.readouterr().err
    assert main(["check", "--root", str(photos), "--model.id", str(photos)]) == 2
    assert "model_index.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("format", "opens"),
    [
        ("coco", "instances_train.json"),
        ("yolo", "data.yaml"),
        ("voc", "SegmentationClass"),
        ("labelstudio", "tasks.json"),
    ],
)
def test_export(photos, tmp_path, capsys, format, opens):
    data = {"root": str(photos), "split": "train"}
    store = MaskStore.create(tmp_path / "store", classes=VOC, config={}, model={}, data=data)
    mask = np.zeros((24, 32), np.uint8)
    mask[3:9, 4:12] = 8
    store.write("cat__1", mask, argmax=mask, soft=None, record={"image": "cat/1.jpg", "labels": [8]})
    arguments = ["export", "--store", str(tmp_path / "store"), "--format", format]
    assert main(arguments) == 0
    assert (tmp_path / f"store_{format}" / opens).exists()
    assert "masks of 1 image to" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "--output" in capsys.readouterr().err


def test_export_of_no_store(tmp_path, capsys):
    assert main(["export", "--store", str(tmp_path), "--format", "coco"]) == 2
    assert "no mask store" in capsys.readouterr().err


def test_check_loads_and_times_a_model_in_a_folder(world, tiny_options, capsys):
    assert main(["check", "--root", str(world), *tiny_options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["model"]["seconds_per_image"] > 0
    assert found["model"]["memory_gb"] > 0
    assert (found["model"]["workers"], found["model"]["workers_memory_gb"]) == (0, 0)
    assert found["minutes"] is not None


def test_check_counts_the_memory_of_worker_processes(world, tiny_options, capsys):
    given = [each for each in tiny_options if not each.startswith("--workers")]
    seen = []
    for workers in (1, 3):
        assert main(["check", "--root", str(world), *given, f"--workers={workers}"]) == 0
        [line] = [each for each in capsys.readouterr().out.splitlines() if each.startswith("Memory")]
        seen.append(re.fullmatch(r"Memory    about [\d.]+ GB, and up to ([\d.]+) GB in (\d worker process(es)?)", line))
    assert [found[2] for found in seen] == ["1 worker process", "3 worker processes"]
    one, three = (float(found[1]) for found in seen)
    assert 0.07 < one < 0.3
    assert three == pytest.approx(3 * one, abs=0.02)


def test_check_fails_on_layers_the_model_does_not_have(world, tiny_options, capsys):
    assert main(["check", "--root", str(world), *tiny_options, "--attention.cross_layers", '["nowhere"]']) == 2
    assert "nowhere" in capsys.readouterr().err


def test_check_times_a_readable_image_where_a_run_skips_the_others(world, tiny_options, tmp_path, capsys):
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    images = sorted((copy / "JPEGImages").iterdir())
    for image in images[1:]:
        image.write_bytes(b"")
    options = ["check", "--root", str(copy), *tiny_options]
    assert main(options) == 2
    assert main([*options, "--on_error", "skip"]) == 0
    assert "Ready" in capsys.readouterr().out


def test_check_finds_a_model_in_the_home_folder(photos, sd_folder, tiny_options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sd").symlink_to(sd_folder)
    options = [option for option in tiny_options if not option.startswith("--model")]
    assert main(["check", "--root", str(photos), "--model.id=~/models/sd", *options]) == 0
    out = capsys.readouterr().out
    assert "Time      about" in out
    assert "not tried" not in out
    assert main(["check", "--root", str(photos), "--model.id=~/models/none", *options]) == 2
    assert "There is no model folder '~/models/none'" in capsys.readouterr().out


def test_check_counts_on_the_workers_that_a_run_starts(photos, tiny_options, monkeypatch):
    from pseudolabel.generate import workers

    asked = []
    monkeypatch.setattr(workers, "default_workers", lambda chosen: asked.append(chosen) or 1)
    assert main(["check", "--root", str(photos), *tiny_options]) == 0
    assert asked == [0]  # --workers=0 among the options
