"""The folder of a run: never written over, nothing in it before a run starts, and what holds when it is moved."""

import doctest
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from train import run_folder
from train.cli import main
from train.run_folder import is_first_process

from .conftest import QUICK, TINY


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def former(run, tmp_path) -> Path:
    """A copy of a finished run."""
    reports = shutil.ignore_patterns("*_test")  # which other tests write beside the checkpoints
    return shutil.copytree(run, tmp_path / "former", ignore=reports)


def without_val(world, output: Path, *more: str) -> list[str]:
    return ["fit", "--data.store", str(world.store), "--output", str(output), *TINY, *QUICK, *more]


def test_another_run_is_never_written_over(former, checkpoint, world, capsys):
    before = contents(former)
    assert main(world.fit(former, "--ckpt_path", str(checkpoint))) == 2  # of the run that `former` is a copy of
    expected = f"{former} holds a run already; go on with --ckpt_path {former / 'checkpoints' / 'last.ckpt'}"
    assert expected in capsys.readouterr().err
    assert contents(former) == before
    (former / "checkpoints" / "last.ckpt").unlink()  # as of a run that was killed early
    assert main(world.fit(former)) == 2
    assert f"go on with --ckpt_path {former / 'checkpoints' / 'best.ckpt'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--data.store", "nowhere"],
        ["--data.batch_size", "99"],
        ["--trainer.val_check_interval", "99"],
        ["--model.network.encoder", "resnet51"],
    ],
)
def test_a_run_that_does_not_start_leaves_the_former_one(former, world, wrong):
    before = contents(former)
    assert main([*world.fit(former, "--overwrite", "true"), *wrong]) == 2
    after = contents(former)
    assert {name: after[name] for name in before} == before


def test_a_run_that_begins_anew_takes_nothing_of_the_former_one_for_its_own(former, world, capsys):
    assert main(without_val(world, former, "--overwrite", "true", "--trainer.max_steps", "1")) == 0
    assert [path.name for path in (former / "checkpoints").iterdir()] == ["last.ckpt"]
    assert f"--ckpt_path {former / 'checkpoints' / 'last.ckpt'}" in capsys.readouterr().out
    kept = yaml.safe_load((former / "config.yaml").read_text())
    assert kept["overwrite"] is False
    assert main(["fit", "--config", str(former / "config.yaml")]) == 2  # the folder is protected again
    assert "--overwrite true" in capsys.readouterr().err


def test_the_best_score_counts_where_the_folder_was_moved(former, world):
    """A score that no network reaches: nothing may take its place in best.ckpt."""
    last, best = (former / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    content = torch.load(last, weights_only=True)
    [state] = [state for name, state in content["callbacks"].items() if "val/miou" in name]
    assert Path(state["dirpath"]) != best.parent
    state["best_model_score"] = state["kth_value"] = torch.tensor(2.0)
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(2.0))
    torch.save(content, last)
    before = best.read_bytes()
    more = ["--trainer.max_epochs", "16", "--ema_decay", "0.9", "--ckpt_path", str(last)]
    assert main(world.fit(former, *more)) == 0
    assert torch.load(last, weights_only=True)["epoch"] > content["epoch"]
    assert best.read_bytes() == before
    kept = yaml.safe_load((former / "config.yaml").read_text())
    assert kept.get("ckpt_path") is None  # or the file, used again, would go on in silence
    assert doctest.testmod(run_folder).failed == 0


def test_a_trial_of_one_batch_leaves_nothing(former, world, tmp_path, capsys):
    before = contents(former)
    for output in (former, tmp_path / "r"):
        assert main(world.fit(output, "--trainer.fast_dev_run", "true")) == 0
        assert "Nothing was kept" in capsys.readouterr().out
    assert contents(former) == before
    assert not (tmp_path / "r").exists()


def test_a_run_without_loggers(world, tmp_path):
    assert main(world.fit(tmp_path / "r", "--trainer.logger", "false", "--trainer.max_steps", "1")) == 0
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["checkpoints", "config.yaml"]


@pytest.mark.parametrize("name", ["LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "RANK", "GROUP_RANK"])
def test_one_process_of_all_nodes_writes(name, monkeypatch):
    for other in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "RANK", "GROUP_RANK"):
        monkeypatch.setenv(other, "0")
    assert is_first_process()
    monkeypatch.setenv(name, "1")
    assert not is_first_process()
