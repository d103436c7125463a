"""Predictions are a store that every other command reads, and the same command goes on with what is missing."""

import json

import numpy as np
import pytest
from PIL import Image

from data.images import encode_picture, read_image
from data.scoring import confusion_matrix, score
from data.store.store import MaskStore
from train.cli import main

from .conftest import draw


def test_predictions_are_a_store_that_scores_as_test_does(checkpoint, world, tmp_path, capsys):
    arguments = ["--ckpt_path", str(checkpoint), "--output", str(tmp_path / "P"), "--device", "cpu"]
    data = ["--data.root", str(world.root), "--data.split", "val", "--data.classes", str(world.root / "classes.yaml")]
    assert main(["predict", *arguments, *data, "--probabilities", "true"]) == 0
    store = MaskStore.open(tmp_path / "P")
    assert len(store.ids()) == 6
    total = np.zeros((3, 3), np.int64)
    for name in store.ids():
        truth = np.asarray(Image.open(world.root / "SegmentationClass" / f"{name}.png"))
        total += confusion_matrix(truth, store.read_argmax(name), 3)
        soft = store.read_soft(name)
        assert soft.background
        assert soft.image_hw == truth.shape
        full = np.load(tmp_path / "P" / "probabilities" / f"{name}.npz")["probabilities"]
        assert full.shape == (3, *truth.shape)
        assert (tmp_path / "P" / "overlays" / f"{name}.jpg").is_file()
    report = ["--report.output", str(tmp_path / "T"), "--report.plots", "false", "--data.workers", "0"]
    assert main(["test", "--ckpt_path", str(checkpoint), *world.val, *report]) == 0
    measured = json.loads((tmp_path / "T" / "scores.json").read_text())
    assert measured["confusion_matrix"] == total.tolist()
    assert measured["miou"] == pytest.approx(score(total).miou, abs=1e-6)
    index = (tmp_path / "P" / "index.jsonl").read_bytes()
    assert main(["predict", *arguments, *data]) == 0  # a second time: nothing is left to do
    assert (tmp_path / "P" / "index.jsonl").read_bytes() == index


def test_predict_takes_one_image_or_a_folder_of_any_sizes(checkpoint, tmp_path, capsys):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name, size in (("a.png", (33, 47)), ("deep/b.jpg", (200, 31))):
        Image.fromarray(np.full((*size, 3), 120, np.uint8)).save(folder / name)
    common = ["predict", "--ckpt_path", str(checkpoint), "--device", "cpu"]
    assert main([*common, "--images", str(folder), "--output", str(tmp_path / "P")]) == 0
    store = MaskStore.open(tmp_path / "P")
    assert store.ids() == ["a", "deep__b"]
    assert store.read_mask("deep__b").shape == (200, 31)
    assert store.image_path("deep__b") == folder / "deep" / "b.jpg"
    assert main([*common, "--images", str(folder / "a.png"), "--output", str(tmp_path / "Q"), "--soft", "false"]) == 0
    assert np.array_equal(MaskStore.open(tmp_path / "Q").read_mask("a"), store.read_mask("a"))


def test_files_that_are_asked_for_later_are_made(checkpoint, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.fromarray(draw(index, 40, 50)[0]).save(tmp_path / "images" / f"{index}.png")
    output = tmp_path / "P"
    command = ["predict", "--ckpt_path", str(checkpoint), "--images", str(tmp_path / "images"), "--device", "cpu"]
    command += ["--output", str(output)]
    assert main([*command, "--soft", "false", "--overlays", "false"]) == 0
    assert {path.parent.name for path in output.glob("*/*")} == {"argmax", "masks"}
    masks = {path: path.read_bytes() for path in output.glob("masks/*.png")}
    assert main([*command, "--probabilities", "true"]) == 0
    assert "3 made again, for files that were not there" in capsys.readouterr().out
    made = {"overlays": ".jpg", "probabilities": ".npz", "scores": ".npz"}
    for folder, suffix in made.items():
        assert sorted(path.name for path in (output / folder).iterdir()) == [f"{index}{suffix}" for index in range(3)]
    assert {path: path.read_bytes() for path in masks} == masks
    (output / "probabilities" / "1.npz").unlink()
    assert main([*command, "--probabilities", "true"]) == 0
    assert "(2 there already, 1 made again, for files that were not there)" in capsys.readouterr().out
    assert main([*command, "--probabilities", "true"]) == 0
    assert "(3 there already)" in capsys.readouterr().out
    assert len(MaskStore.open(output).ids()) == 3


def test_a_folder_of_which_no_image_can_be_read_is_an_error(checkpoint, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for index in range(2):
        (tmp_path / "images" / f"{index}.png").write_bytes(b"no picture")
    command = ["predict", "--ckpt_path", str(checkpoint), "--images", str(tmp_path / "images"), "--device", "cpu"]
    command += ["--output", str(tmp_path / "P"), "--on_error", "skip"]
    assert main(command) == 2
    assert "None of 2 images could be predicted; the reasons are above." in capsys.readouterr().err
    Image.fromarray(draw(0)[0]).save(tmp_path / "images" / "2.png")
    assert main(command) == 0
    assert main(command) == 0  # the damaged ones are met again
    assert "masks of 1 image in" in capsys.readouterr().out


def test_overlays_of_images_too_long_for_jpeg_are_smaller(checkpoint, tmp_path, monkeypatch):
    rgb = draw(0, 40, 90)[0]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    command = ["predict", "--ckpt_path", str(checkpoint), "--images", str(tmp_path / "a.png"), "--device", "cpu"]
    sizes = {}
    for longest in (65_500, 40):
        monkeypatch.setattr("train.predict.JPEG_SIDE_PX", longest)
        assert main([*command, "--output", str(tmp_path / str(longest))]) == 0
        sizes[longest] = read_image(tmp_path / str(longest) / "overlays" / "a.jpg").shape[:2]
    assert sizes == {65_500: (40, 90), 40: (14, 30)}
    with pytest.raises(OSError, match="when writing"):
        encode_picture(np.zeros((1, 65_501, 3), np.uint8), "JPEG")
    assert encode_picture(np.zeros((1, 65_500, 3), np.uint8), "JPEG")
