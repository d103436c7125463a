"""Masks that are made again: because their labels have changed, or because everything is to be overwritten."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest

from data.errors import StoreError
from data.store.store import MaskStore
from pseudolabel.cli import main

FIRST = "train_000000"


def generate(root: Path, store: Path, *options: str) -> int:
    return main(["generate", "--root", str(root), "--store", str(store), *options])


def times(store: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (store / "masks").iterdir()}


def records(store: Path) -> dict[str, dict]:
    return {record["id"]: record for record in MaskStore.open(store).records()}


@pytest.fixture(scope="module")
def labelled(world: Path, tiny_options: list[str], tmp_path_factory) -> tuple[Path, Path]:
    """Three images of the world with a label file, and the store made of them."""
    folder = tmp_path_factory.mktemp("labelled") / "photos"
    folder.mkdir()
    for number in range(3):
        shutil.copy(world / "JPEGImages" / f"train_{number:06d}.png", folder)
    (folder / "classes.yaml").write_text("classes: [dog, cat, bird]")
    label(folder, "dog", "cat", "dog;bird")
    assert generate(folder, folder.parent / "store", *tiny_options) == 0
    return folder, folder.parent / "store"


@pytest.fixture
def photos(labelled: tuple[Path, Path]) -> Path:
    label(labelled[0], "dog", "cat", "dog;bird")
    return labelled[0]


@pytest.fixture
def store(labelled: tuple[Path, Path], tmp_path: Path) -> Path:
    return shutil.copytree(labelled[1], tmp_path / "store")


def label(folder: Path, *labels: str) -> None:
    rows = [f"train_{number:06d}.png,{text}\n" for number, text in enumerate(labels)]
    (folder / "labels.csv").write_text("image,labels\n" + "".join(rows))


def test_corrected_labels_are_made_again_and_only_they(photos, store, tiny_options, tmp_path, store_bytes, capsys):
    before = times(store)
    label(photos, "dog;cat", "cat", "bird;dog")
    capsys.readouterr()
    assert generate(photos, store, *tiny_options) == 0
    said = capsys.readouterr()
    assert "1 made now" in said.out
    assert "1 of them again, because their labels have changed." in said.out
    assert "Images whose labels have changed since their masks were made: 1; made again." in said.err
    after = times(store)
    assert {name for name in before if before[name] != after[name]} == {FIRST}
    assert records(store)[FIRST]["labels"] == [1, 2]
    assert list(MaskStore.open(store).read_soft(FIRST).labels) == [1, 2]
    assert generate(photos, tmp_path / "fresh", *tiny_options) == 0
    assert store_bytes(store) == store_bytes(tmp_path / "fresh")
    capsys.readouterr()
    assert generate(photos, store, *tiny_options) == 0
    assert "0 made now" in capsys.readouterr().out


def test_refine_follows_the_labels_of_the_store(photos, store, tiny_options, tmp_path, store_bytes, capsys):
    output = tmp_path / "refined"
    refine = ["refine", "--store", str(store), "--output", str(output), "--workers=0"]
    assert main(refine) == 0
    label(photos, "dog;cat", "cat", "dog;bird")
    assert generate(photos, store, *tiny_options) == 0
    before = times(output)
    capsys.readouterr()
    assert main(refine) == 0
    assert f"1 of them again, because their labels have changed in {store}" in capsys.readouterr().out
    assert {name for name in before if before[name] != times(output)[name]} == {FIRST}
    assert store_bytes(output) == store_bytes(store)


def test_masks_of_images_that_lost_their_labels_are_named(photos, store, tiny_options, capsys):
    label(photos, "", "cat", "dog;bird")
    capsys.readouterr()
    assert generate(photos, store, *tiny_options) == 0
    assert f"that the data no longer lists with labels: {FIRST}." in capsys.readouterr().out


def test_lines_without_labels_are_left_and_counted(photos, store, tiny_options, capsys):
    """As a store of another program, or of long ago, may have them."""
    lines = [json.loads(line) for line in (store / "index.jsonl").read_text().splitlines()]
    del lines[0]["labels"]
    (store / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = times(store)
    capsys.readouterr()
    assert generate(photos, store, *tiny_options) == 0
    assert times(store) == before
    assert "the store does not say the labels; whether they have changed is not known" in capsys.readouterr().out


@pytest.mark.slow
def test_a_report_and_other_left_overs_of_ours_are_no_hindrance(made_store, world, tiny_options, tmp_path, store_bytes):
    store = shutil.copytree(made_store, tmp_path / "store")
    assert main(["report", "--store", str(store)]) == 0
    (store / "masks" / ".x.png.1.2.tmp").write_bytes(b"cut")
    (store / ".store.json.1.2.tmp").write_bytes(b"cut")
    (store / "notes.txt").write_text("dear")
    changed = [*tiny_options, "--threshold=0.3", "--limit=2"]
    assert generate(world, store, *changed, "--overwrite") == 0
    assert MaskStore.open(store).header["config"]["fuse"]["threshold"] == 0.3
    assert generate(world, tmp_path / "fresh", *changed) == 0
    assert store_bytes(store) == store_bytes(tmp_path / "fresh")
    assert (store / "notes.txt").read_text() == "dear"


class KilledError(BaseException):
    """Stands for a kill: nothing of ours catches it but to clean up."""


STEPS = ("unlink", "replace", "rmdir", "mkdir")


@contextlib.contextmanager
def killed_at(step: int):
    """Raise at the n-th call that changes a folder, and let nothing be changed after it; yields the calls so far."""
    real, calls = {name: getattr(os, name) for name in STEPS}, []

    def guarded(name: str):
        def call(*args: object, **kwargs: object) -> object:
            calls.append((name, args))
            if len(calls) > step:
                raise KilledError
            return real[name](*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, guarded(name))
    try:
        yield calls
    finally:
        for name in STEPS:
            setattr(os, name, real[name])


def test_overwriting_that_is_killed_anywhere_can_be_called_again(made_store, tmp_path):
    """Every call that changes the folder is the last one once; no state promises a mask that is not there."""
    settings = {"classes": MaskStore.open(made_store).classes, "config": {"new": 1}, "model": {}, "data": {}}
    for step in range(100):
        store = shutil.copytree(made_store, tmp_path / str(step))
        (store / "report.html").write_text("a page")
        with killed_at(step) as calls, contextlib.suppress(KilledError):
            MaskStore.start_over(store, **settings)
        found = MaskStore.open(store)
        for record in found.records():
            found.read_mask(record)
            found.read_argmax(record)
            assert found.read_soft(record) is not None
        assert found.header["config"] != settings["config"] or found.ids() == []
        again = MaskStore.start_over(store, **settings)
        assert again.header["config"] == settings["config"]
        assert again.ids() == []
        assert not [path for folder in ("masks", "argmax", "scores") for path in (store / folder).iterdir()]
        assert MaskStore.open_or_create(store, **settings).ids() == []
        if len(calls) <= step:
            break
    assert step > 18  # six images with three files each


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["index.jsonl", ".index.jsonl.lock"])
def test_what_an_older_version_left_when_it_was_killed(made_store, world, tiny_options, tmp_path, kept, capsys):
    """It deleted store.json first."""
    store = shutil.copytree(made_store, tmp_path / "store")
    (store / "store.json").unlink()
    if kept != "index.jsonl":
        (store / "index.jsonl").unlink()
    assert generate(world, store, *tiny_options) == 2
    assert "holds masks but no store.json; restore it, or give --overwrite" in capsys.readouterr().err
    assert len(list((store / "masks").iterdir())) == 6
    assert generate(world, store, *tiny_options, "--overwrite", "--limit=1") == 0
    assert len(MaskStore.open(store).ids()) == 1


def test_masks_of_ones_own_are_not_taken_for_a_store(world, tiny_options, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_text("dear")
    for more in ([], ["--overwrite"]):
        assert generate(world, tmp_path, *tiny_options, *more) == 2
        assert "is not empty and not a mask store (it holds masks)" in capsys.readouterr().err
    assert (tmp_path / "masks" / "a.png").read_text() == "dear"
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


def test_nothing_is_deleted_for_a_run_that_cannot_begin(made_store, world, tiny_options, tmp_path, store_bytes):
    store = shutil.copytree(made_store, tmp_path / "store")
    before = store_bytes(store)
    assert generate(world, store, *tiny_options, "--overwrite", "--model.id=/gone") == 2
    assert generate(world, store, *tiny_options, "--overwrite", "--threshold=0.3", "--shard=1/2") == 2
    assert store_bytes(store) == before
    assert len(MaskStore.open(store).ids()) == 6


def test_a_folder_of_masks_that_is_a_link_is_not_emptied(made_store, world, tiny_options, tmp_path, capsys):
    store = shutil.copytree(made_store, tmp_path / "store")
    (store / "masks").rename(tmp_path / "elsewhere")
    (store / "masks").symlink_to(tmp_path / "elsewhere")
    assert generate(world, store, *tiny_options, "--overwrite", "--threshold=0.3") == 2
    assert "link" in capsys.readouterr().err
    assert len(list((tmp_path / "elsewhere").iterdir())) == 6
    assert len(MaskStore.open(store).ids()) == 6


def test_soft_maps_of_no_numbers_do_not_pass_through_refine(made_store, tmp_path, capsys):
    import numpy as np

    from data.store.softmaps import SoftMaps, encode_soft

    store = shutil.copytree(made_store, tmp_path / "store")
    soft = MaskStore.open(store).read_soft(FIRST)
    maps = np.full_like(soft.maps, np.nan)
    broken = SoftMaps(maps, soft.labels, False, soft.padded_hw, soft.resized_hw, soft.image_hw)
    (store / "scores" / f"{FIRST}.npz").write_bytes(encode_soft(broken))
    refine = ["refine", "--store", str(store), "--output", str(tmp_path / "out"), "--workers=0"]
    assert main(refine) == 2
    assert f"{FIRST}.npz are damaged (values that are not numbers from 0 to 1)" in capsys.readouterr().err
    assert main([*refine, "--on_error=skip"]) == 0
    assert "SKIPPED" in capsys.readouterr().out
    assert FIRST not in MaskStore.open(tmp_path / "out").ids()


def test_a_newer_store_is_not_overwritten(made_store, tmp_path):
    store = shutil.copytree(made_store, tmp_path / "store")
    header = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps(header | {"format_version": 9}))
    with pytest.raises(StoreError, match="version 9"):
        MaskStore.start_over(store, classes=MaskStore.open(made_store).classes, config={}, model={}, data={})
    assert len(list((store / "masks").iterdir())) == 6
