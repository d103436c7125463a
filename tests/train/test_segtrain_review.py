"""What `segtrain` makes of people's decisions: which images it learns from, and with which masks."""

import logging
import shutil

import numpy as np
import pytest
import yaml

from data.store.review import Change, mask_hash, read_reviews, write_corrected, write_decision
from data.store.store import MaskStore
from train.cli import main
from train.dataset import TrainingSet
from train.samples import list_training
from train.transforms import Augmentation, AugmentConfig


@pytest.fixture
def store(world, tmp_path) -> MaskStore:
    return MaskStore.open(shutil.copytree(world.store, tmp_path / "S"))


def decide(store: MaskStore, sample_id: str, looked_at: str = "", **change) -> None:
    machine = mask_hash(store.read_mask(sample_id))
    write_decision(store, sample_id, Change(**change), mask=looked_at or machine, machine=machine, who="ada")


def listed(store: MaskStore, *options) -> dict:
    return {sample.id: sample for sample in list_training(store, "store", None, None, *options)}


def test_without_decisions_everything_is_learnt_from(store):
    assert set(listed(store)) == store.finished()
    assert set(listed(store, "ignore")) == store.finished()


def test_decisions_choose_the_samples_and_their_masks(store, caplog):
    drawn = np.full((64, 64), 2, np.uint8)
    found = write_corrected(store, "train_001", drawn)
    decide(store, "train_000", decision="reject")
    decide(store, "train_001", looked_at=found, decision="accept", correction=found)
    decide(store, "train_002", wrong=("box",))
    with caplog.at_level(logging.WARNING):
        samples = listed(store)
    assert set(samples) == store.finished() - {"train_000"}
    assert (samples["train_001"].mask() == 2).all()
    before = store.read_mask("train_002")
    assert (before == 2).any()
    assert (samples["train_002"].mask() == np.where(before == 2, 255, before)).all()
    assert "1 image rejected, left out: train_000" in caplog.text
    assert "corrected masks of 1 image: train_001" in caplog.text
    assert set(listed(store, "accepted_only")) == {"train_001"}
    assert set(listed(store, "use", "leave_out")) == store.finished() - {"train_000", "train_002"}
    true = list_training(store, "truth", None, None)
    assert {sample.id for sample in true} == store.finished()


def test_a_person_is_surer_than_the_soft_maps(store):
    found = write_corrected(store, "train_001", np.full((64, 64), 2, np.uint8))
    decide(store, "train_001", correction=found)
    samples = [listed(store)[name] for name in ("train_001", "train_004")]
    whole = AugmentConfig(crop=64, scale=(1.0, 1.0))
    items = TrainingSet(samples, 3, Augmentation(whole), 0, soft_from=store)
    assert float(items[0, 0]["weight"].min()) == 1
    assert float(items[0, 1]["weight"].min()) < 1


def test_fit_says_what_it_left_out_and_stops_where_nothing_is_left(store, world, tmp_path, capsys, caplog):
    command = world.fit(tmp_path / "run", "--trainer.max_epochs", "1")
    command[command.index("--data.store") + 1] = str(store.path)
    for sample_id in store.ids()[:3]:
        decide(store, sample_id, decision="reject")
    assert main(command) == 0
    assert "3 images rejected, left out" in capsys.readouterr().err + caplog.text
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["data"]["review"], config["data"]["wrong_labels"]) == ("use", "undecided")
    command[command.index("--output") + 1] = str(tmp_path / "other")
    assert main([*command, "--data.review", "accepted_only"]) == 2
    assert "--data.review accepted_only" in capsys.readouterr().err


def test_relabel_hands_decisions_on(store, checkpoint, tmp_path, capsys):
    decide(store, "train_000", decision="reject")
    command = ["relabel", "--ckpt_path", str(checkpoint), "--data.store", str(store.path), "--output"]
    assert main([*command, str(tmp_path / "S2")]) == 0
    assert "Decisions and corrected masks of 1 image were taken over" in capsys.readouterr().out
    again = MaskStore.open(tmp_path / "S2")
    assert read_reviews(again)["train_000"].decision == "reject"
    assert "train_000" not in listed(again)
