"""What people have decided outlives `generate --overwrite` and goes with `refine`."""

import shutil

import numpy as np

from data.store.folder import CORRECTED, REVIEW
from data.store.review import Change, corrected_path, mask_hash, read_reviews, write_corrected, write_decision
from data.store.reviewed import apply_reviews
from data.store.store import MaskStore
from pseudolabel.cli import main

FIRST, SECOND = "train_000000", "train_000001"


def reviewed(made_store, tmp_path) -> tuple[MaskStore, str]:
    """A copy of a store in which one image is rejected and one corrected."""
    store = MaskStore.open(shutil.copytree(made_store, tmp_path / "s"))
    machine = {sample_id: mask_hash(store.read_mask(sample_id)) for sample_id in (FIRST, SECOND)}
    reject = Change("reject")
    write_decision(store, FIRST, reject, mask=machine[FIRST], machine=machine[FIRST], who="ada")
    drawn = write_corrected(store, SECOND, np.full_like(store.read_mask(SECOND), 255))
    accept = Change("accept", correction=drawn)
    write_decision(store, SECOND, accept, mask=drawn, machine=machine[SECOND], who="ada")
    return store, drawn


def counted(store: MaskStore) -> dict:
    found = apply_reviews(store, list(store.records()), "use")
    return {one.record["id"]: one.corrected for one in found.counted}


def test_overwriting_keeps_the_work(made_store, world, tiny_options, tmp_path):
    store, drawn = reviewed(made_store, tmp_path)
    before = (store.path / REVIEW).read_bytes()
    command = ["generate", "--root", str(world), "--store", str(store.path), *tiny_options, "--overwrite"]
    assert main(command) == 0  # the same settings: every mask again, the decisions still fit
    machine = mask_hash(store.read_mask(FIRST))
    assert not read_reviews(store)[FIRST].is_stale(machine)
    assert main([*command, "--ignore_below=0.2", "--threshold=0.9"]) == 0  # others: the store is emptied
    again = MaskStore.open(store.path)
    assert (again.path / REVIEW).read_bytes() == before
    assert read_reviews(again)[FIRST].is_stale(mask_hash(again.read_mask(FIRST)))
    assert not read_reviews(again)[SECOND].is_stale(mask_hash(again.read_mask(SECOND)))
    assert FIRST not in counted(again)
    assert counted(again)[SECOND] == corrected_path(again, SECOND, drawn)


def test_refine_takes_the_work_along(made_store, tmp_path, capsys):
    store, drawn = reviewed(made_store, tmp_path)
    command = ["refine", "--store", str(store.path), "--output", str(tmp_path / "s2"), "--workers=0"]
    assert main([*command, "--ignore_below=0.2", "--threshold=0.9"]) == 0
    assert "Decisions and corrected masks of 2 images were taken over" in capsys.readouterr().out
    refined = MaskStore.open(tmp_path / "s2")
    assert read_reviews(refined)[FIRST].is_stale(mask_hash(refined.read_mask(FIRST)))
    assert FIRST not in counted(refined)
    assert counted(refined)[SECOND] == corrected_path(refined, SECOND, drawn)
    third = "train_000002"
    machine = mask_hash(store.read_mask(third))
    write_decision(store, third, Change("reject"), mask=machine, machine=machine, who="bob")
    assert main([*command, "--ignore_below=0.2", "--threshold=0.9"]) == 0  # nothing to make, one to take over
    assert "0 masks in" in (said := capsys.readouterr().out)
    assert "of 1 image were taken over" in said
    assert set(counted(refined)) == refined.finished() - {FIRST, third}


def test_a_store_that_nobody_has_reviewed_has_no_file_of_decisions(made_store):
    assert not (made_store / REVIEW).exists()
    assert not (made_store / CORRECTED).exists()
