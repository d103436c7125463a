"""What `segtrain test` says of images without ground truth, with odd ground truth, and how many it counted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.masks import read_mask, write_mask
from train.cli import main


@pytest.fixture
def root(world, tmp_path) -> Path:
    return shutil.copytree(world.root, tmp_path / "W")


def truths(root: Path) -> list[Path]:
    return sorted((root / "SegmentationClass").glob("val_*.png"))


def measure(checkpoint: Path, root: Path, *more: str) -> list[str]:
    val = ["--data.val.root", str(root), "--data.val.split", "val", "--data.val.classes", str(root / "classes.yaml")]
    return ["test", "--ckpt_path", str(checkpoint), *val, "--data.workers", "0", "--report.plots", "false", *more]


def test_the_figures_count_the_images_they_are_of(checkpoint, root, tmp_path, capsys, caplog):
    for path in truths(root)[:2]:
        path.unlink()
    more = ["--save_voc_test", str(tmp_path / "v"), "--report.output", str(tmp_path / "T")]
    assert main(measure(checkpoint, root, *more)) == 0
    printed = capsys.readouterr()
    assert "(6 images)" in printed.out
    assert "images 4" in printed.out
    assert "another run" not in printed.err + caplog.text
    assert len(list((tmp_path / "v").rglob("*.png"))) == 6
    scores = json.loads((tmp_path / "T" / "scores.json").read_text())
    assert scores["images"] == 4
    folder = next((tmp_path / "v").rglob("*.png")).parent
    write_mask(folder / "of_before.png", np.zeros((3, 3), np.uint8))
    assert main(measure(checkpoint, root, *more)) == 0
    assert "1 mask of another run lies there, too" in capsys.readouterr().err + caplog.text
    assert np.sum(scores["confusion_matrix"]) == sum(read_mask(path).size for path in truths(root))


def test_ground_truth_of_255_alone_is_no_measurement(checkpoint, root, tmp_path, capsys):
    for path in truths(root):
        write_mask(path, np.full_like(read_mask(path), 255))
    assert main(measure(checkpoint, root, "--report.output", str(tmp_path / "T"))) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: Nothing was measured: the ground truth of 6 images holds nothing but 255")
    assert not (tmp_path / "T").exists()


def test_a_class_that_does_not_exist_is_told_with_its_image(checkpoint, world, root, tmp_path, capsys):
    odd = truths(root)[3]
    write_mask(odd, np.where(read_mask(odd) == 2, np.uint8(7), read_mask(odd)))
    assert main(measure(checkpoint, root, "--report.output", str(tmp_path / "T"))) == 2
    assert f"{odd.stem}: The ground truth holds class id 7" in capsys.readouterr().err


def test_the_limit_of_validation_is_the_validations(checkpoint, world, capsys):
    common = ["validate", "--ckpt_path", str(checkpoint), *world.val, "--data.workers", "0"]
    assert main([*common, "--trainer.limit_val_batches", "2"]) == 0
    assert "images 2" in capsys.readouterr().out
