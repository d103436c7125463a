"""Two processes on the CPU (gloo) count and train as one does."""

import json
import os
import subprocess
import sys

import pytest
import torch

from train.cli import main

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]


def segtrain(*arguments: str) -> None:
    """Run in processes of its own: Lightning starts the second one by repeating the command line."""
    command = [sys.executable, "-m", "train.cli", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_measure_what_one_does(checkpoint, world, tmp_path):
    common = ["test", "--ckpt_path", str(checkpoint), *world.val, "--data.workers", "0", "--report.plots", "false"]
    assert main([*common, "--report.output", str(tmp_path / "one")]) == 0
    segtrain(*common, "--report.output", str(tmp_path / "two"), *TWO)
    one, two = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "two"))
    assert one["images"] == two["images"] == 6
    assert one["confusion_matrix"] == two["confusion_matrix"]
    assert one["boundary_miou"] == two["boundary_miou"]


@pytest.mark.slow
def test_two_processes_train_and_resume(world, tmp_path):
    more = [
        "--data.batch_size",
        "2",
        "--trainer.max_epochs",
        "2",
        "--checkpoint_every",
        "2",
        "--ema_decay",
        "0.9",
        *TWO,
    ]
    segtrain(*world.fit(tmp_path / "two", *more))
    last = tmp_path / "two" / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert content["global_step"] == 8  # 16 images, two processes, batches of two, two epochs
    more[more.index("2", 2)] = "3"
    segtrain(*world.fit(tmp_path / "two", *more, "--ckpt_path", str(last)))
    content = torch.load(last, weights_only=True)
    assert content["global_step"] == content["averaging_state"]["n_averaged"] == 12
    assert content["state_dict"].keys() == content["raw_state_dict"].keys()
