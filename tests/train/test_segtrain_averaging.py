"""Averaged weights: the rule, what lies in the checkpoint, and what an interrupted run goes on with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from train.cli import main
from train.module import SegmentationModule

DECAY = 0.8
MORE = ["--trainer.max_epochs", "2", "--ema_decay", str(DECAY), "--checkpoint_every", "1"]


class Killed(BaseException):
    pass


def read(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def copy(module: SegmentationModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@dataclass(frozen=True)
class Watched:
    """A run with the weights after each step, and the weights at each image measured."""

    path: Path
    weights: list[dict[str, torch.Tensor]]
    measured: list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Watched:
    run = Watched(tmp_path_factory.mktemp("whole") / "r", [], [])
    step = SegmentationModule.validation_step

    def measure(self, batch, batch_idx):
        run.measured.append(copy(self))
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        after = lambda self, *_: run.weights.append(copy(self))  # noqa: E731
        patch.setattr(SegmentationModule, "on_train_batch_end", after, raising=False)
        patch.setattr(SegmentationModule, "validation_step", measure)
        assert main(world.fit(run.path, *MORE)) == 0
    return run


@pytest.fixture
def killed(world, tmp_path) -> tuple[Path, SegmentationModule]:
    """The folder of a run that broke off at the second image it measured, and the module as it was left."""
    seen: list[SegmentationModule] = []
    step = SegmentationModule.validation_step

    def broken(self, batch, batch_idx):
        seen.append(self)
        if len(seen) == 2:
            raise Killed
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationModule, "validation_step", broken)
        with pytest.raises(Killed):
            main(world.fit(tmp_path / "killed", *MORE))
    return tmp_path / "killed", seen[-1]


def assert_resumes_as(whole: Path, killed: Path, world) -> None:
    last = killed / "checkpoints" / "last.ckpt"
    assert main(world.fit(killed, *MORE, "--ckpt_path", str(last))) == 0
    for key in ("raw_state_dict", "state_dict"):
        assert equal(read(killed)[key], read(whole)[key]), key


def test_average_follows_the_rule_and_is_what_is_measured(whole):
    """An average over the weights after each step, written down here once more."""
    weights, content = whole.weights, read(whole.path)
    assert len(weights) == 8
    assert equal(content["raw_state_dict"], weights[-1])  # a longer run goes on from these
    for name, value in content["state_dict"].items():
        average = weights[0][name]
        for n, now in enumerate(weights[1:], start=2):
            decay = min(DECAY, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * now[name] if value.is_floating_point() else now[name]
        assert torch.allclose(value, average, rtol=1e-4, atol=1e-6), name
    assert equal(whole.measured[-1], content["state_dict"])
    assert not equal(content["state_dict"], content["raw_state_dict"])


def test_run_broken_off_while_measuring_keeps_its_weights_and_resumes(whole, killed, world):
    folder, module = killed
    assert equal(copy(module), read(folder)["raw_state_dict"])
    assert_resumes_as(whole.path, folder, world)


def test_checkpoints_of_earlier_versions_resume_with_the_same_weights(whole, killed, world):
    """They hold both weights, and nothing of Lightning's callback."""
    folder, _ = killed
    content = read(folder)
    del content["averaging_state"]
    assert content["callbacks"].pop("AveragedWeights")
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    assert_resumes_as(whole.path, folder, world)


def test_average_can_begin_at_a_checkpoint_without_one(world, tmp_path):
    assert main(world.fit(tmp_path / "r", "--trainer.max_epochs", "1")) == 0
    assert "raw_state_dict" not in read(tmp_path / "r")
    last = tmp_path / "r" / "checkpoints" / "last.ckpt"
    more = ["--trainer.max_epochs", "2", "--ema_decay", "0.9", "--trainer.accumulate_grad_batches", "2"]
    assert main(world.fit(tmp_path / "r", *more, "--ckpt_path", str(last))) == 0
    content = read(tmp_path / "r")
    assert not equal(content["state_dict"], content["raw_state_dict"])
    assert content["averaging_state"]["n_averaged"] == content["global_step"] == 6  # no update between two steps


def test_average_has_the_numbers_of_the_run(world, tmp_path):
    more = ["--trainer.precision", "64-true", "--trainer.max_steps", "2", "--ema_decay", "0.9"]
    assert main(world.fit(tmp_path / "r", *more)) == 0
    assert {value.dtype for value in read(tmp_path / "r")["state_dict"].values()} == {torch.float64, torch.int64}


def test_a_run_that_averages_no_more_goes_on_with_its_weights(whole, world, tmp_path, capsys, caplog):
    seen = []

    def stop(self):
        seen.append(copy(self))
        raise Killed

    last = tmp_path / "r" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes((whole.path / "checkpoints" / "last.ckpt").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationModule, "on_train_start", stop, raising=False)
        with pytest.raises(Killed):
            main(world.fit(last.parents[1], "--trainer.max_epochs", "3", "--ckpt_path", str(last)))
    assert equal(seen[0], read(whole.path)["raw_state_dict"])
    assert "--ema_decay is not given" in capsys.readouterr().err + caplog.text
