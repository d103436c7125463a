"""Memory that runs out is one line that says what to do."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.store.store import MaskStore
from train.cli import main
from train.network import Segmenter

KINDS = {
    "gpu": lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")),
    "numpy": lambda: (_ for _ in ()).throw(MemoryError("Unable to allocate 3.00 GiB for an array")),
    "cpu": lambda: torch.empty(1 << 46, dtype=torch.uint8),  # more than any machine has
}


@pytest.fixture(params=KINDS)
def full(request, monkeypatch):
    """Networks find no memory for images of more than 100 pixels a side."""
    forward = Segmenter.forward

    def short_of_memory(self, rgb):
        if max(rgb.shape[-2:]) > 100:
            KINDS[request.param]()
        return forward(self, rgb)

    monkeypatch.setattr(Segmenter, "forward", short_of_memory)


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_an_image_too_large_for_the_memory(checkpoint, tmp_path, full, capsys):
    (tmp_path / "images").mkdir()
    for name, size in {"large": (140, 90), "small": (64, 64)}.items():
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    command = ["predict", "--ckpt_path", str(checkpoint), "--images", str(tmp_path / "images"), "--device", "cpu"]
    command += ["--output", str(tmp_path / "P")]
    assert main(command) == 2
    expected = "Memory ran out over an image of 90 x 140 pixels: give --inference.window 513."
    assert last_line(capsys) == f"error: {expected}"
    assert main([*command, "--on_error", "skip"]) == 0
    assert f"large: {expected}" in capsys.readouterr().err
    assert MaskStore.open(tmp_path / "P").ids() == ["small"]


def test_a_step_and_a_measurement_too_large_for_the_memory(checkpoint, world, tmp_path, full, capsys):
    assert main(world.fit(tmp_path / "r", "--data.augment.crop", "128", "--trainer.max_steps", "1")) == 2
    assert "Memory ran out over a training step: lower --data.batch_size" in last_line(capsys)
    measure = ["test", "--ckpt_path", str(checkpoint), *world.val, "--inference.scales", "[3.0]"]
    assert main([*measure, "--trainer.accelerator", "cpu"]) == 2
    assert "Memory ran out over an image of 75 x 76 pixels: give --inference.window 513" in last_line(capsys)


def test_a_validation_image_too_large_for_the_memory(world, tmp_path, monkeypatch, capsys):
    forward = Segmenter.forward

    def short_of_memory(self, rgb):
        if max(rgb.shape[-2:]) > 64:  # the batches have 64
            KINDS["gpu"]()
        return forward(self, rgb)

    monkeypatch.setattr(Segmenter, "forward", short_of_memory)
    assert main(world.fit(tmp_path / "r", "--trainer.max_epochs", "1")) == 2
    expected = (
        "Memory ran out over an image of 75 x 76 pixels: train without --data.val.root, and measure with `segtrain test"
    )
    assert expected in last_line(capsys)
