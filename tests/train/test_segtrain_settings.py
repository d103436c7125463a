"""What the command line hands to model and data beyond their own options."""

import doctest
from pathlib import Path

import pytest
import torch
import yaml

from data.errors import ConfigError
from train import run_parser
from train.cli import main
from train.datamodule import SegmentationData
from train.network import NetworkConfig
from train.run_parser import differences


@pytest.fixture
def set_up(monkeypatch):
    """Stop each run when its data are set up, and return the data, the model and the stage of the last one."""
    seen = {}

    def stop(self, stage):
        seen.update(data=self, model=self.trainer.lightning_module, stage=stage)
        raise ConfigError("enough")

    monkeypatch.setattr(SegmentationData, "setup", stop)
    return seen


@pytest.mark.parametrize(("given", "seed"), [([], 0), (["7"], 7), (["true"], 5), (["false"], 0)])
def test_order_and_augmentation_have_the_seed_of_the_run(given, seed, world, tmp_path, set_up, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")  # what Lightning takes for true
    options = [part for value in given for part in ("--seed_everything", value)]
    assert main(world.fit(tmp_path / "r", *options)) == 2
    assert set_up["data"].seed == seed
    assert set_up["data"].need_truth
    assert set_up["model"].pretrained
    assert set_up["model"].classes is None


def test_classes_and_measurement_come_from_checkpoint_and_command(checkpoint, world, tmp_path, set_up):
    common = [*world.val, "--ckpt_path", str(checkpoint), "--inference.flip", "true"]
    assert main(["test", *common, "--save_voc_test", str(tmp_path / "v")]) == 2
    data, model = set_up["data"], set_up["model"]
    assert data.classes.names == model.classes.names == ("disc", "box")
    assert not model.pretrained
    assert not data.need_truth
    assert model.inference.flip
    assert model.boundary
    assert main(["validate", *common]) == 2
    assert set_up["data"].need_truth
    assert set_up["model"].inference.flip
    assert not set_up["model"].boundary
    assert main(world.fit(tmp_path / "r", *common)) == 2
    assert not set_up["model"].inference.flip  # the section is for measuring; one file serves both commands
    assert not set_up["model"].pretrained


def test_fit_measures_on_ground_truth_whatever_the_server_takes(world, tmp_path, monkeypatch):
    asked = []

    def note(config, classes, need_truth):
        asked.append(need_truth)
        raise ConfigError("enough")

    monkeypatch.setattr("train.datamodule.list_truth", note)
    assert main(world.fit(tmp_path / "r", "--save_voc_test", str(tmp_path / "v"))) == 2
    assert asked == [True]


@pytest.mark.parametrize("name", ["seed", "need_truth"])
def test_what_follows_from_another_option_is_refused(name, world, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": {name: 1}}))
    (tmp_path / "d.yaml").write_text(yaml.safe_dump({name: 1}))
    for given in ([f"--data.{name}", "1"], ["--config", "c.yaml"], ["--data", "d.yaml"]):
        given = [str(tmp_path / part) if part.endswith("yaml") else part for part in given]
        try:
            status = main(world.fit(tmp_path / "r", *given))
        except SystemExit as error:
            status = error.code
        assert status == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert f"data.{name}" in lines[0]
    assert not (tmp_path / "r").exists()


def test_saved_configuration_leaves_out_what_follows_and_can_be_used_again(run, tmp_path, set_up):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert not {"seed", "need_truth"} & saved["data"].keys()
    assert main(["fit", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "r")]) == 2
    assert set_up["stage"] == "fit"


def test_help_says_nothing_of_links(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    shown = capsys.readouterr().out
    assert "--seed_everything" in shown
    assert "data.seed" not in shown
    assert "need_truth" not in shown


def test_options_of_another_command_are_named(checkpoint, world, tmp_path, set_up, capsys, caplog):
    def said(arguments: list[str]) -> str:
        caplog.clear()
        assert main(arguments) == 2  # stopped by `set_up`
        return capsys.readouterr().err + caplog.text

    measure = ["--ckpt_path", str(checkpoint), *world.val]
    for command in ("test", "validate"):
        text = said([command, *measure, "--output", "x", "--ema_decay=0.9"])
        expected = f"segtrain {command} does not read --output, --ema_decay: left aside; --report.output names its"
        assert expected in text
    text = said(world.fit(tmp_path / "r", "--inference.flip", "true", "--save_voc_test", "v"))
    assert "segtrain fit does not read --inference.flip, --save_voc_test: left aside." in text
    (tmp_path / "c.yaml").write_text("inference: {flip: true}\nema_decay: 0.5\n")  # one file for all commands
    assert "does not read" not in said(world.fit(tmp_path / "r", "--config", str(tmp_path / "c.yaml")))
    assert "does not read" not in said(["test", *measure, "--config", str(tmp_path / "c.yaml")])
    assert doctest.testmod(run_parser).failed == 0


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        (SegmentationData(), ()),
        (SegmentationData(truth=Path("t"), val_limit=3), ("truth", "val_limit")),
        (SegmentationData(masks="truth", truth=Path("t")), ()),
        (SegmentationData(masks="truth", review="ignore", min_presence=0.5), ("review", "min_presence")),
        (SegmentationData(masks="truth", wrong_labels="leave_out"), ("wrong_labels",)),
        (SegmentationData(review="ignore", min_presence=0.5), ()),
        (NetworkConfig(architecture="deeplabv2", dropout=0.1, decoder_channels=8), ("decoder_channels", "dropout")),
        (NetworkConfig(dropout=0.1, decoder_channels=8), ()),
    ],
)
def test_settings_of_data_and_network_without_effect_are_named(settings, idle):
    assert settings.idle() == idle


def test_fit_warns_of_settings_without_effect(world, tmp_path, set_up, capsys, caplog):
    more = ["--data.truth", "t", "--model.network.architecture", "deeplabv2"]
    assert main(world.fit(tmp_path / "r", *more)) == 2
    expected = "No effect with the other settings, and left aside: --model.network.decoder_channels, --data.truth."
    assert expected in capsys.readouterr().err + caplog.text


def test_the_file_of_first_weights_may_lie_elsewhere():
    there = {"network": {"weights": "data/w.pth", "encoder": "resnet18"}}
    assert differences(there, {"network": {"weights": "/elsewhere/w.pth"}}) == []
    assert differences(there, {"network": {"weights": "v.pth"}}) == [
        "--model.network.weights: data/w.pth there, v.pth here"
    ]
    assert differences(there, {"network": {"weights": None}})
    assert differences(there, {"network": {"encoder": "/elsewhere/resnet18"}})


def test_settings_that_a_checkpoint_is_too_old_for_have_their_defaults(checkpoint, world, tmp_path, set_up, capsys):
    content = torch.load(checkpoint, weights_only=True)
    stored = content["segtrain"]["settings"]
    del stored["compile"], stored["network"]["enlarge"], stored["optimizer"]["fused"]
    torch.save(content, tmp_path / "old.ckpt")
    command = ["validate", "--ckpt_path", str(tmp_path / "old.ckpt"), *world.val, "--model.compile", "false"]
    assert main([*command, "--model.network.enlarge", "1"]) == 2
    assert capsys.readouterr().err.strip().endswith("error: enough")  # of `set_up`: everything was taken
    assert main([*command, "--model.network.enlarge", "2"]) == 2
    assert "--model.network.enlarge: 1 there, 2 here" in capsys.readouterr().err
