"""What makes a step faster changes nothing else: fused optimizers, compiled networks."""

from functools import partial

import pytest
import torch

from data.errors import ConfigError
from train.cli import main
from train.optimizer import OptimizerConfig, fuse

STEPS = ("--trainer.max_steps", "2", "--trainer.max_epochs", "1")


def trained(world, output, *more) -> dict:
    assert main(world.fit(output, *STEPS, *more)) == 0
    return torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)


def largest_difference(one: dict, other: dict) -> float:
    assert one["state_dict"].keys() == other["state_dict"].keys()
    pairs = ((value.double(), other["state_dict"][key].double()) for key, value in one["state_dict"].items())
    return max(float((first - second).abs().max()) for first, second in pairs)


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    return trained(world, tmp_path_factory.mktemp("plain") / "r")


def test_a_fused_optimizer_comes_to_the_same_weights_and_is_resumed(world, plain, tmp_path):
    found = trained(world, tmp_path / "r", "--model.optimizer.fused", "true")
    assert found["optimizer_states"][0]["param_groups"][0]["fused"]
    assert not plain["optimizer_states"][0]["param_groups"][0]["fused"]
    assert plain["segtrain"]["settings"]["channels_last"] is None  # the machine's business, at each start anew
    assert largest_difference(plain, found) < 1e-4
    more = ["--ckpt_path", str(tmp_path / "r" / "checkpoints" / "last.ckpt"), "--trainer.max_steps", "3"]
    assert main(world.fit(tmp_path / "r", *more, "--trainer.max_epochs", "1")) == 0


def test_fused_is_for_gpus_and_never_with_scaled_gradients():
    asked = OptimizerConfig(fused=True)
    assert fuse(OptimizerConfig(), "cuda", "32-true", clips=True)
    assert fuse(OptimizerConfig(), "cuda", "16-mixed", clips=False) is None
    assert fuse(OptimizerConfig(fused=False), "cuda", "32-true", clips=False) is None
    assert fuse(asked, "cpu", "16-mixed", clips=False)
    with pytest.raises(ConfigError, match=r"model\.optimizer\.fused is True: .* bf16-mixed"):
        fuse(asked, "cuda", "16-mixed", clips=True)


@pytest.mark.slow
def test_a_compiled_step_trains_the_same_network_and_measuring_is_not_compiled(world, plain, tmp_path, monkeypatch):
    compiled = []

    def counted(graph, inputs):
        compiled.append([tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor) and value.ndim == 4])
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    found = trained(world, tmp_path / "r", "--model.compile", "true")
    assert compiled
    assert all((4, 3, 64, 64) in shapes for shapes in compiled)  # batches, not the images that are measured
    assert largest_difference(plain, found) < 1e-4
    assert main(["test", "--ckpt_path", str(tmp_path / "r/checkpoints/last.ckpt"), *world.val]) == 0


@pytest.mark.slow
def test_where_nothing_can_be_compiled_one_line_says_so(world, tmp_path, monkeypatch, capsys):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    assert main(world.fit(tmp_path / "r", *STEPS, "--model.compile", "true")) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: --model.compile true: torch cannot compile here")
    assert "no C++ compiler" in said
