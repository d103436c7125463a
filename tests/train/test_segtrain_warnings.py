"""A run that goes wrong says so in its first minutes, and one that goes well keeps quiet."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train.lightning_cli
from data.store.store import MaskStore
from train.callbacks import EarlyWarnings, mask_warnings
from train.cli import main

from .conftest import CLASSES, QUICK, TINY


def make_store(root: Path, shares: dict[int, float], count: int = 8) -> Path:
    """Write grey images whose masks hold these shares of values, strewn by chance: nothing can be learnt from them."""
    (root / "images").mkdir(parents=True)
    store = MaskStore.create(root / "S", classes=CLASSES, config={}, model={}, data={"root": str(root / "images")})
    for index in range(count):
        rng = np.random.default_rng(index)
        Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(root / "images" / f"{index}.png")
        mask = rng.choice(np.uint8(list(shares)), size=(64, 64), p=list(shares.values()))
        record = {"image": f"{index}.png", "labels": [1, 2], "ignore_share": 0.0}
        store.write(str(index), mask, argmax=np.where(mask == 255, 0, mask).astype(np.uint8), soft=None, record=record)
    return store.path


def warnings_of(store: Path, output: Path, capsys, *more: str) -> list[str]:
    """Train and return the warnings on stderr."""
    capsys.readouterr()
    assert main(["fit", "--data.store", str(store), "--output", str(output), *TINY, *QUICK, *more]) == 0
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING")]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({0: 0.6, 1: 0.4}, "1 of 2 classes is in none of the 8 masks looked at, of 8"),
        ({0: 0.2, 1: 0.1, 2: 0.1, 255: 0.6}, "60 % of the mask pixels are ignored"),
        ({0: 0.98, 1: 0.01, 2: 0.01}, " % of the mask pixels are background: the network may learn nothing else"),
        ({0: 0.6, 1: 0.2, 2: 0.2}, None),
    ],
    ids=["class never seen", "ignored", "background", "nothing wrong"],
)
def test_masks_are_looked_at_before_training(shares, expected, tmp_path, capsys):
    said = warnings_of(make_store(tmp_path, shares), tmp_path / "r", capsys, "--trainer.max_steps", "1")
    assert len(said) == (expected is not None)
    assert all(expected in line for line in said)


def test_network_that_learns_only_background_is_named_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train.lightning_cli, "EarlyWarnings", partial(EarlyWarnings, every=5))
    store = make_store(tmp_path, {0: 0.95, 1: 0.03, 2: 0.02})
    long = ["--trainer.max_steps", "30", "--trainer.max_epochs", "-1"]
    said = warnings_of(store, tmp_path / "r", capsys, *long)
    assert len(said) == 1
    assert "background (the masks: 9" in said[0]
    assert "--model.loss.kind balanced" in said[0]
    assert warnings_of(make_store(tmp_path / "b", {0: 0.3, 1: 0.6, 2: 0.1}), tmp_path / "q", capsys, *long) == []
    logged = (tmp_path / "r" / "csv" / "version_0" / "metrics.csv").read_text()
    assert "train/background_decided" in logged.splitlines()[0]


def test_warnings_name_what_is_wrong_with_the_masks():
    histogram = np.zeros(256, np.int64)
    histogram[[0, 1, 255]] = 980, 10, 10
    texts = mask_warnings(histogram, ("cat", "dog"), 5, 9)
    assert any("1 of 2 classes" in text and "5 masks" in text and "of 9" in text and "dog" in text for text in texts)
    assert any("background" in text for text in texts)
    histogram[[0, 1, 2, 255]] = 100, 100, 100, 700
    assert [text for text in mask_warnings(histogram, ("cat", "dog"), 5, 9) if "70 %" in text]
    histogram[255] = 10
    assert mask_warnings(histogram, ("cat", "dog"), 5, 9) == []
