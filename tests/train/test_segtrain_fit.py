import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from train.checkpoint import load_network
from train.cli import main
from train.module import SegmentationModule

from .conftest import CLASSES, QUICK, TINY


def test_run_learns_and_leaves_everything_in_one_folder(run, world, tmp_path, capsys):
    for part in ("config.yaml", "csv/version_0/metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (run / part).is_file(), part
    assert list((run / "tensorboard").rglob("events*"))
    best = str(run / "checkpoints" / "best.ckpt")
    assert main(["test", "--ckpt_path", best, *world.val, "--report.output", str(tmp_path), "--data.workers", "0"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["miou"] > 0.7
    assert scores["images"] == 6
    names = {"background", "disc", "box"}
    assert all(set(scores[figure]) == names for figure in ("iou", "precision", "recall", "boundary_iou"))
    matrix = np.array(scores["confusion_matrix"])
    assert scores["recall"]["box"] == pytest.approx(matrix[2, 2] / matrix[2].sum(), abs=1e-5)
    assert scores["precision"]["box"] == pytest.approx(matrix[2, 2] / matrix[:, 2].sum(), abs=1e-5)
    assert 0 < scores["boundary_miou"] < 1
    assert (tmp_path / "per_class.png").is_file()
    assert (tmp_path / "confusion.png").is_file()
    printed = capsys.readouterr().out
    assert "mIoU" in printed
    assert "boundary IoU" in printed


def test_checkpoint_holds_plain_values_only(checkpoint):
    content = torch.load(checkpoint, weights_only=True)  # would raise for any class of ours
    card = content["segtrain"]
    assert card["format_version"] == 1
    assert card["classes"]["names"] == ["disc", "box"]
    assert json.loads(json.dumps(card)) == card
    assert set(content["state_dict"]) == set(content["raw_state_dict"])


def test_test_with_all_switches_and_the_voc_folder(checkpoint, world, tmp_path):
    switches = ["--inference.scales", "[0.75,1.25]", "--inference.merge", "max", "--inference.flip", "true"]
    switches += ["--inference.window", "64", "--inference.crf.enabled", "true", "--inference.crf.iterations", "2"]
    report = ["--report.output", str(tmp_path / "T"), "--save_voc_test", str(tmp_path / "results")]
    assert main(["test", "--ckpt_path", str(checkpoint), *world.val, *switches, *report, "--data.workers", "0"]) == 0
    written = sorted((tmp_path / "results/VOC2012/Segmentation/comp5_test_cls").glob("*.png"))
    assert len(written) == 6
    mask = Image.open(written[0])
    assert mask.mode == "P"
    assert np.asarray(mask).shape == (76, 75)
    assert json.loads((tmp_path / "T" / "scores.json").read_text())["inference"]["window"] == 64


def test_voc_folder_needs_no_ground_truth(checkpoint, world, tmp_path, capsys):
    root = tmp_path / "W"
    shutil.copytree(world.root, root, ignore=shutil.ignore_patterns("SegmentationClass"))
    val = ["--data.val.root", str(root), "--data.val.split", "val", "--data.val.classes", str(root / "classes.yaml")]
    common = ["test", "--ckpt_path", str(checkpoint), *val, "--data.workers", "0"]
    assert main([*common, "--save_voc_test", str(tmp_path / "server")]) == 0
    assert len(list((tmp_path / "server/results/VOC2012/Segmentation/comp5_test_cls").glob("*.png"))) == 6
    assert "For the VOC server" in capsys.readouterr().out
    assert main(common) == 2


@pytest.mark.parametrize(("precision", "kept"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)])
def test_half_precision_with_clipped_gradients_learns(precision, kept, world, tmp_path):
    more = ["--trainer.precision", precision, "--trainer.gradient_clip_val", "1", "--trainer.max_steps", "3"]
    assert main(world.fit(tmp_path / "r", *more, "--ema_decay", "0.9")) == 0
    content = torch.load(tmp_path / "r" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    assert {value.dtype for value in content["state_dict"].values()} == {kept, torch.int64}


class Killed(BaseException):
    pass


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["raw_state_dict"]


def test_killed_run_resumes_with_the_same_order_and_the_same_weights(world, tmp_path, monkeypatch):
    more = ["--trainer.max_epochs", "3", "--ema_decay", "0.9", "--checkpoint_every", "1"]
    seen: list[list[str]] = []
    step = SegmentationModule.training_step
    kill_at = [None]

    def spy(self, batch, batch_idx):
        seen.append(batch["id"])
        if self.global_step == kill_at[0]:
            raise Killed
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "training_step", spy)
    assert main(world.fit(tmp_path / "whole", *more)) == 0
    whole, kill_at[0] = [*seen], 6  # in the middle of the second epoch of four batches
    seen.clear()
    with pytest.raises(Killed):
        main(world.fit(tmp_path / "killed", *more))
    seen.pop()
    kill_at[0] = None
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert main(world.fit(tmp_path / "killed", *more, "--ckpt_path", str(last))) == 0
    assert seen == whole
    assert len(whole) == 12
    there = weights(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    for name, value in weights(last).items():
        assert torch.equal(value, there[name]), name


def test_truth_and_confidence_and_argmax_masks_train(world, tmp_path):
    for number, more in enumerate(
        (
            ["--data.masks", "truth", "--model.loss.kind", "generalised"],
            ["--data.masks", "truth", "--data.truth", str(world.root / "SegmentationClass")],
            ["--data.masks", "argmax", "--data.weights", "confidence", "--model.loss.kind", "bootstrapped"],
        )
    ):
        assert main(world.fit(tmp_path / str(number), "--trainer.max_steps", "2", *more)) == 0


def test_paper_recipe_at_tiny_width(world, tmp_path):
    more = [
        "--model.network.architecture",
        "deeplabv2",
        "--model.batch_norm",
        "frozen",
        "--model.loss.kind",
        "balanced",
    ]
    more += ["--model.loss.scales", "[1.0,0.75,0.5]", "--model.loss.max_over_scales", "true"]
    more += ["--model.optimizer.bias_lr_factor", "2", "--trainer.max_steps", "2"]
    assert main(world.fit(tmp_path / "r", *more)) == 0
    network, _, card = load_network(tmp_path / "r" / "checkpoints" / "last.ckpt")
    assert card["settings"]["network"]["architecture"] == "deeplabv2"
    assert [branch.dilation[0] for branch in network.decoder.branches] == [1, 2, 3]


def test_deeplabv2_takes_a_batch_of_one(world, tmp_path):
    more = ["--model.network.architecture", "deeplabv2", "--data.batch_size", "1", "--trainer.max_steps", "2"]
    assert main(world.fit(tmp_path / "r", *more)) == 0


def test_images_with_sides_of_one_pixel(checkpoint, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    store = MaskStore.create(
        tmp_path / "S", classes=CLASSES, config={}, model={}, data={"format": "folder", "root": str(folder)}
    )
    for index, size in enumerate([(1, 1), (1, 40), (40, 1), (2, 3)]):
        Image.fromarray(np.full((*size, 3), 99, np.uint8)).save(folder / f"{index}.png")
        mask = np.full(size, index % 3, np.uint8)
        record = {"image": f"{index}.png", "labels": [1, 2]}
        store.write(str(index), mask, argmax=mask, soft=soft_maps_of(size), record=record)
    fit = ["fit", "--data.store", str(store.path), "--output", str(tmp_path / "r"), *TINY, *QUICK]
    assert main([*fit, "--data.weights", "confidence", "--trainer.max_epochs", "4"]) == 0
    common = ["--ckpt_path", str(checkpoint), "--device", "cpu", "--inference.scales", "[0.5,1]"]
    common += ["--inference.crf.enabled", "true", "--inference.flip", "true"]
    assert main(["predict", *common, "--images", str(folder), "--output", str(tmp_path / "P")]) == 0
    assert main(["relabel", *common, "--data.store", str(store.path), "--output", str(tmp_path / "R")]) == 0
    for made in ("P", "R"):
        assert MaskStore.open(tmp_path / made).read_mask("2").shape == (40, 1)


def soft_maps_of(size: tuple[int, int]) -> SoftMaps:
    return SoftMaps(np.full((2, 1, 1), 0.5, np.float16), (1, 2), False, size, size, size)


def test_help_is_quick_and_light():
    code = (
        "import sys; from train.cli import main; main(['--help']); print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "relabel" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_paths_in_a_config_hold_wherever_one_stands(world, checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name, target in (("S", world.store), ("W", world.root), ("a.ckpt", checkpoint)):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "fit.yaml").write_text("data: {store: S, val: {root: W, classes: W/classes.yaml}}\noutput: R\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "../fit.yaml", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["store"] == str(tmp_path / "S")
    assert printed["data"]["val"]["classes"] == str(tmp_path / "W" / "classes.yaml")
    assert printed["output"] == "R"
    (tmp_path / "relabel.yaml").write_text("data: {store: S}\nckpt_path: a.ckpt\noutput: R\n")
    assert main(["relabel", "--config", "../relabel.yaml", "--device", "cpu"]) == 0
    assert [path.name for path in Path.cwd().iterdir()] == ["R"]


def test_true_masks_are_learnt_from_without_a_store(world, tmp_path, capsys):
    """The same images, masks and order as with --data.masks truth and a store, so the same weights."""
    supervised = ["fit", "--data.root", str(world.root), "--data.masks", "truth", *world.val, *TINY, *QUICK]
    classes = ["--data.classes", str(world.root / "classes.yaml")]
    short = ["--trainer.max_steps", "3"]
    assert main([*supervised, *classes, *short, "--output", str(tmp_path / "a")]) == 0
    assert main(world.fit(tmp_path / "b", "--data.masks", "truth", *short)) == 0
    one, other = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in "ab"
    )
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    capsys.readouterr()
    wrong = {
        "--data.masks truth": ["fit", "--data.root", str(world.root), *TINY, *QUICK],
        "--data.weights confidence needs": [*supervised, *classes, "--data.weights", "confidence"],
        "--data.split goes without --data.store": world.fit(tmp_path / "c", "--data.split", "val"),
        "check --data.split and --data.truth": [*supervised, *classes, "--data.truth", str(tmp_path)],
        "There is no split": [*supervised, *classes, "--data.split", "nosuch"],
    }
    for expected, arguments in wrong.items():
        assert main([*arguments, "--output", str(tmp_path / "d")]) == 2
        assert expected in capsys.readouterr().err
