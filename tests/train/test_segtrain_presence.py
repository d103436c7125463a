"""--data.min_presence: doubted labels are passed over, counted and named."""

import json
import logging
import shutil

import numpy as np
import pytest

from data.classes import IGNORE
from data.errors import StoreError
from data.masks import read_mask
from data.store.review import Change, mask_hash, write_corrected, write_decision
from data.store.store import MaskStore
from train.cli import main
from train.samples import list_training


@pytest.fixture
def store(world, tmp_path) -> MaskStore:
    """The world's store, whose discs are sure in half of the images and doubtful in the others."""
    shutil.copytree(world.store, tmp_path / "store")
    path = tmp_path / "store" / "index.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for position, line in enumerate(lines):
        names = [MaskStore.open(tmp_path / "store").classes.name(label) for label in line["labels"]]
        line["presence"] = {name: 0.1 if name == "disc" and position % 2 else 0.9 for name in names}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return MaskStore.open(tmp_path / "store")


def test_pixels_of_doubted_labels_are_ignored_and_images_without_any_label_left_out(store, caplog):
    with caplog.at_level(logging.WARNING):
        kept = {sample.id: sample for sample in list_training(store, "store", None, None, min_presence=0.5)}
    dropped = 0
    for record in store.records():
        doubted = {"disc"} if record["presence"].get("disc") == 0.1 else set()
        if doubted and record["labels"] == [1]:
            assert record["id"] not in kept
            dropped += 1
            continue
        before, after = read_mask(store.path / "masks" / f"{record['id']}.png"), kept[record["id"]].mask()
        expected = np.where(before == 1, IGNORE, before) if doubted else before
        np.testing.assert_array_equal(after, expected)
    assert dropped > 0
    assert len(kept) == len(list(store.records())) - dropped
    assert f"leaves {dropped} image" in caplog.text


def test_without_the_setting_everything_is_learnt(store):
    samples = list_training(store, "store", None, None)
    assert len(samples) == len(list(store.records()))
    assert all(not sample.wrong for sample in samples)


def test_a_store_without_presence_and_a_limit_that_leaves_nothing_are_refused(world, store):
    with pytest.raises(StoreError, match="pseudolabel generate --overwrite"):
        list_training(MaskStore.open(world.store), "store", None, None, min_presence=0.5)
    with pytest.raises(StoreError, match="leaves no image"):
        list_training(store, "store", None, None, min_presence=0.95)


def test_the_flag_reaches_the_training_set_and_has_its_range(world, store, tmp_path, capsys):
    assert main([*world.fit(tmp_path / "run"), "--data.min_presence", "2"]) == 2
    assert "--data.min_presence is 2" in capsys.readouterr().err
    arguments = world.fit(tmp_path / "run", "--data.min_presence", "0.95")
    arguments[arguments.index("--data.store") + 1] = str(store.path)
    assert main(arguments) == 2
    assert "leaves no image" in capsys.readouterr().err


def test_a_corrected_mask_is_learnt_from_however_doubted_its_labels_are(store, caplog):
    doubted = [record["id"] for record in store.records() if record["presence"].get("disc") == 0.1]
    alone = next(record["id"] for record in store.records() if record["id"] in doubted and record["labels"] == [1])
    found = write_corrected(store, alone, np.ones((64, 64), np.uint8))
    machine = mask_hash(store.read_mask(alone))
    write_decision(store, alone, Change(correction=found), mask=machine, machine=machine, who="ada")
    with caplog.at_level(logging.WARNING):
        kept = {sample.id: sample for sample in list_training(store, "store", None, None, min_presence=0.5)}
    assert (kept[alone].mask() == 1).all()
    assert "does not hold" not in caplog.text
    left_out = sorted(set(store.ids()) - set(kept))
    assert left_out
    assert f"left out: {left_out[0]}" in caplog.text
