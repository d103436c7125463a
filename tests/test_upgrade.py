"""What version 0.1.0 wrote is read by today's programs, gone on with, and reaches the same bytes (fixtures/v0_1)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import data
from data.masks import read_mask
from data.store.softmaps import decode_soft
from data.store.store import MaskStore
from pseudolabel.cli import main as pseudolabel
from train.cli import main as segtrain

WRITTEN = Path(__file__).parent / "fixtures" / "v0_1"
MADE_IN = "/tmp/v01"
RUN_IN = Path(data.__file__).parent.parent  # as then: what the stores name lies relative to it


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of what 0.1.0 wrote, with the folder it was made in renamed to where it lies now."""
    folder = tmp_path / "v01"
    shutil.copytree(WRITTEN, folder)
    for path in (
        folder / "store" / "store.json",
        folder / "predictions" / "store.json",
        folder / "run" / "config.yaml",
    ):
        path.write_text(path.read_text(encoding="utf-8").replace(MADE_IN, folder.as_posix()), encoding="utf-8")
    monkeypatch.chdir(RUN_IN)
    return folder


def content(folder: Path, *kinds: str) -> dict[str, bytes]:
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes() for kind in kinds for path in (folder / kind).iterdir()
    }


def generate(old: Path) -> int:
    data = ["--data.root", str(old / "world"), "--data.split", "train", "--store", str(old / "store")]
    return pseudolabel(["generate", "--config", str(old / "demo.yaml"), *data, "--run.workers", "0"])


def test_a_run_that_was_killed_under_the_old_version_goes_on_to_the_same_bytes(old, capsys):
    """The demo model's attention, the fusing and the CRF give what they gave; what is there is not made again."""
    store = old / "store"
    lines = (store / "index.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[2])["id"] == "train_000002"
    (store / "index.jsonl").write_text("\n".join(lines[:2]) + "\n", encoding="utf-8")
    for kind, suffix in (("masks", "png"), ("argmax", "png"), ("scores", "npz")):
        (store / kind / f"train_000002.{suffix}").unlink()
    assert generate(old) == 0
    assert "3 masks" in (said := capsys.readouterr().out)
    assert "1 made now" in said
    assert content(store, "masks", "argmax") == content(WRITTEN / "store", "masks", "argmax")
    was, now = (
        decode_soft((folder / "scores" / "train_000002.npz").read_bytes()) for folder in (WRITTEN / "store", store)
    )
    assert was.labels == now.labels
    assert np.allclose(was.maps.astype(np.float32), now.maps.astype(np.float32), atol=2e-3)
    assert generate(old) == 0
    assert "0 made now" in capsys.readouterr().out


def test_its_score_is_the_score_of_then(old, capsys):
    assert pseudolabel(["score", "--store", str(old / "store"), "--truth", "SegmentationClassTruth", "--json"]) == 0
    now, then = json.loads(capsys.readouterr().out), json.loads((old / "score.json").read_bytes())
    assert {key: now[key] for key in then} == then


def test_every_command_that_reads_a_store_reads_it(old, capsys):
    store = ["--store", str(old / "store")]
    assert pseudolabel(["refine", *store, "--output", str(old / "refined"), "--workers", "0"]) == 0
    assert content(old / "refined", "masks") == content(WRITTEN / "store", "masks")
    assert pseudolabel(["report", *store]) == 0
    assert (old / "store" / "report.html").stat().st_size > 10_000
    assert pseudolabel(["export", *store, "--format", "voc", "--output", str(old / "voc")]) == 0
    assert len(list((old / "voc").rglob("SegmentationClass/*.png"))) == 3
    assert pseudolabel(["doubt", *store]) == 2
    assert "presence" in capsys.readouterr().err
    assert len(list(MaskStore.open(old / "predictions").records())) == 3


def test_its_checkpoint_predicts_what_it_predicted(old):
    arguments = ["--ckpt_path", str(old / "run" / "checkpoints" / "last.ckpt"), "--data.root", str(old / "world")]
    arguments += ["--data.split", "train", "--data.classes", "data/demo/classes.yaml", "--output", str(old / "now")]
    assert segtrain(["predict", *arguments]) == 0
    for path in (WRITTEN / "predictions" / "masks").iterdir():
        was, now = read_mask(path), read_mask(old / "now" / "masks" / path.name)
        assert (was != now).mean() < 1e-3  # another processor may round the other way at a tie
        assert len(np.unique(was)) > 2


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # of a run that is resumed into another folder
def test_a_training_goes_on_from_its_checkpoint_and_config(old, capsys):
    checkpoint = old / "run" / "checkpoints" / "last.ckpt"
    arguments = ["--config", str(old / "run" / "config.yaml"), "--output", str(old / "more")]
    assert segtrain(["fit", *arguments, "--trainer.max_epochs", "81", "--ckpt_path", str(checkpoint)]) == 0
    assert (old / "more" / "checkpoints" / "last.ckpt").is_file(), capsys.readouterr()
