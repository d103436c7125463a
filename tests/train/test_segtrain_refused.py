"""What `segtrain` refuses: one line that says what is wrong, and exit status 2."""

import signal

import pytest
import torch

from train.cli import main
from train.module import SegmentationModule

BAD = {
    "no store": (["fit", "--data.store", "nowhere"], "no mask store"),
    "store not named": (["fit"], "--data.store"),
    "unknown encoder": (["--model.network.encoder", "resnet51"], "resnet50"),
    "weights file missing": (["--model.network.weights", "w.safetensors"], "There is no file w.safetensors"),
    "batch too large": (["--data.batch_size", "99"], "--data.batch_size"),
    "crop too small": (["--data.augment.crop", "8"], "--data.augment.crop"),
    "decay": (["--ema_decay", "1.5"], "--ema_decay"),
    "batch of one": (["--data.batch_size", "1"], "--data.batch_size is 1: it must be at least 2"),
    "batch of none": (["--data.batch_size", "0"], "--data.batch_size is 0: it must be at least 1"),
    "negative workers": (["--data.workers", "-1"], "--data.workers is -1"),
    "no image to measure": (["--data.val_limit", "0"], "--data.val_limit is 0"),
    "crop of none": (["--data.augment.crop", "0"], "--data.augment.crop is 0"),
    "scale of none": (["--data.augment.scale", "[0,1]"], "--data.augment.scale"),
    "negative seed": (["--seed_everything", "-1"], "--seed_everything is -1"),
    "negative epochs": (["--trainer.max_epochs", "-3"], "max_epochs"),
    "epochs without end": (["--trainer.max_epochs", "-1"], "--trainer.max_epochs is -1"),
    "no epoch": (["--trainer.max_epochs", "0"], "--trainer.max_epochs is 0"),
    "no step": (["--trainer.max_steps", "0"], "--trainer.max_steps is 0"),
    "no checkpoint": (["--checkpoint_every", "0"], "--checkpoint_every is 0"),
    "unknown accelerator": (["--trainer.accelerator", "abacus"], "abacus"),
    "unknown strategy": (["--trainer.strategy", "none"], "--trainer"),
    "too many devices": (["--trainer.devices", "-5"], "--trainer"),
    "no devices": (["--trainer.devices", "0"], "--trainer"),
    "validation too rare": (["--trainer.val_check_interval", "99"], "--trainer"),
    "share above one": (["--trainer.limit_train_batches", "1.5"], "--trainer"),
    "the same batches always": (["--trainer.overfit_batches", "2"], "--trainer.overfit_batches is 2"),
    "no batches": (["--trainer.limit_train_batches", "0"], "--trainer.limit_train_batches"),
    "negative rate": (["--model.optimizer.lr", "-1"], "--model.optimizer.lr is -1"),
    "momentum": (["--model.optimizer.momentum", "1.5"], "--model.optimizer.momentum"),
    "share of the label": (["--model.loss.bootstrap_beta", "2"], "--model.loss.bootstrap_beta"),
    "no width": (["--model.network.decoder_channels", "0"], "--model.network.decoder_channels"),
    "dilation of none": (["--model.network.atrous_rates", "[0,1,2]"], "--model.network.atrous_rates"),
    "dropout": (["--model.network.dropout", "1"], "--model.network.dropout"),
    "scales": (["--inference.scales", "[0]"], "--inference.scales"),
    "no root": (["--data.val.root", "nowhere"], "nowhere"),
    "unknown option": (["--model.network.encode", "x"], "model.network.encode"),
    "wrong type": (["--data.batch_size", "many"], "batch_size"),
    "wandb missing": (["--wandb", "p"], "wandb"),
}


def outcome(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_one_line_and_status_2(case, world, tmp_path, capsys):
    arguments, expected = BAD[case]
    if case == "wandb missing" and _has_wandb():
        pytest.skip("wandb is installed")
    if arguments[0] != "fit":
        arguments = world.fit(tmp_path / "r", *arguments)
    assert outcome(arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert len(message) == 1, message
    assert message[0].startswith("error: ")
    assert expected in message[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(world, checkpoint, tmp_path, capsys):
    measured = ["--ckpt_path", str(checkpoint), *world.val]
    for arguments in (world.fit(tmp_path / "r"), ["test", *measured], ["validate", *measured]):
        assert outcome([*arguments, "--trainer.accelerator", "gpu"]) == 2
        assert "--trainer" in capsys.readouterr().err
    predict = ["predict", "--ckpt_path", str(checkpoint), "--images", str(world.root), "--output", str(tmp_path / "P")]
    assert outcome([*predict, "--device", "cuda"]) == 2
    assert "--device cuda is not available" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["predict", "relabel", "export"])
def test_shares_out_of_range_are_refused_before_anything_is_read(command, tmp_path, capsys):
    flag = {"predict": "--ignore_below", "relabel": "--sure", "export": "--tolerance"}[command]
    arguments = [command, "--ckpt_path", "nowhere", "--output", str(tmp_path / "o"), flag, "-0.5"]
    arguments += {"predict": ["--images", "nowhere"], "relabel": ["--data.store", "nowhere"], "export": []}[command]
    assert outcome(arguments) == 2
    assert f"{flag} is -0.5: it must be" in capsys.readouterr().err


def test_an_interrupted_training_says_how_to_go_on(world, tmp_path, monkeypatch, capsys):
    def interrupted(self, batch, batch_idx):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(SegmentationModule, "training_step", interrupted)
    try:
        assert outcome(world.fit(tmp_path / "r")) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "go on with --ckpt_path" in capsys.readouterr().err


def _has_wandb() -> bool:
    import importlib.util

    return importlib.util.find_spec("wandb") is not None


def test_changed_settings_with_a_checkpoint_are_refused(checkpoint, world, tmp_path, capsys):
    assert outcome(world.fit(tmp_path / "r", "--ckpt_path", str(checkpoint), "--model.optimizer.lr", "0.5")) == 2
    message = capsys.readouterr().err
    assert "--model.optimizer.lr: 0.01 there, 0.5 here" in message
    assert outcome(["test", *world.val, "--ckpt_path", str(checkpoint), "--model.loss.kind", "balanced"]) == 2
    assert outcome(["test", *world.val, "--ckpt_path", str(tmp_path / "none.ckpt")]) == 2
    assert outcome(["test", *world.val]) == 2


def test_second_run_in_the_same_folder_is_refused(run, world, capsys):
    assert outcome(world.fit(run)) == 2
    assert "--overwrite true" in capsys.readouterr().err


def test_loss_that_is_not_finite_stops_with_advice(world, tmp_path, capsys):
    more = ["--model.optimizer.lr", "1e30", "--trainer.max_epochs", "3"]
    assert outcome(world.fit(tmp_path / "r", *more)) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "The loss became" in message
    assert "--model.optimizer.lr" in message


def test_foreign_and_newer_checkpoints_are_refused(checkpoint, tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    content["segtrain"]["format_version"] = 2
    torch.save(content, tmp_path / "newer.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04")
    for name, expected in (("foreign", "not written by segtrain"), ("newer", "version 2"), ("broken", "Cannot read")):
        arguments = ["predict", "--ckpt_path", str(tmp_path / f"{name}.ckpt"), "--images", ".", "--output", "x"]
        assert outcome(arguments) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "relabel"])
def test_an_interrupted_command_says_that_it_goes_on_by_itself(
    command, world, checkpoint, tmp_path, monkeypatch, capsys
):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"train.{command}.read_image", interrupted)
    images = {"predict": ["--images", str(world.root / "JPEGImages")], "relabel": ["--data.store", str(world.store)]}
    common = ["--ckpt_path", str(checkpoint), "--device", "cpu", "--output", str(tmp_path / "o")]
    assert outcome([command, *common, *images[command]]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "interrupted; the same command goes on where it stopped"
