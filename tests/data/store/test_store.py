import json
import multiprocessing
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.classes import VOC
from data.errors import LabelError, StoreError
from data.files import append_line
from data.store.records import is_up_to_date
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore

SETTINGS = {"config": {"fuse": {"threshold": 0.5}}, "model": {"id": "m", "fingerprint": "f"}, "data": {"root": "/r"}}


def new_store(path: Path) -> MaskStore:
    return MaskStore.create(path, classes=VOC, **SETTINGS)


def soft_maps(seed: int = 0, background: bool = False) -> SoftMaps:
    maps = np.random.default_rng(seed).random((2 + background, 3, 4)).astype(np.float16)
    return SoftMaps(maps, (3, 15), background, (24, 32), (21, 32), (42, 64))


def write_one(store: MaskStore, sample_id: str, **record: object) -> np.ndarray:
    mask = np.random.default_rng(len(sample_id)).choice(np.uint8([0, 3, 15, 255]), (5, 7))
    store.write(
        sample_id, mask, argmax=np.where(mask == 255, 0, mask).astype(np.uint8), soft=soft_maps(), record=record
    )
    return mask


def test_round_trip(tmp_path):
    store = new_store(tmp_path / "s")
    mask = write_one(store, "a b.ü", image="JPEGImages/x.jpg", labels=[3, 15], seconds=np.float32(0.5))
    again = MaskStore.open(tmp_path / "s")
    assert again.classes == VOC
    assert again.finished() == {"a b.ü"}
    np.testing.assert_array_equal(again.read_mask("a b.ü"), mask)
    assert 255 not in again.read_argmax("a b.ü")
    [record] = again.records()
    assert record["height"] == 5
    assert record["width"] == 7
    assert record["seconds"] == 0.5
    assert again.image_path(record) == Path("/r/JPEGImages/x.jpg")
    assert again.image_path("a b.ü", tmp_path) == tmp_path / "JPEGImages/x.jpg"


@settings(max_examples=25, deadline=None)
@given(
    maps=arrays(np.float16, (2, 3, 5), elements=st.floats(0, 1, width=16)),
    mask=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 20, 255])),
)
def test_any_mask_and_maps_come_back_unchanged(tmp_path_factory, maps, mask):
    store = new_store(tmp_path_factory.mktemp("store") / "s")
    argmax = np.where(mask == 255, 7, mask).astype(np.uint8)
    store.write("x", mask, argmax=argmax, soft=SoftMaps(maps, (1, 2), False, (8, 8), (8, 8), mask.shape), record={})
    soft = store.read_soft("x")
    assert soft is not None
    np.testing.assert_array_equal(soft.maps, maps)
    assert (soft.labels, soft.background, soft.image_hw) == ((1, 2), False, mask.shape)
    np.testing.assert_array_equal(store.read_mask("x"), mask)
    np.testing.assert_array_equal(store.read_argmax("x"), argmax)


def test_equal_content_gives_equal_bytes(tmp_path, monkeypatch):
    first, second = new_store(tmp_path / "1"), new_store(tmp_path / "2")
    write_one(first, "x")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_one(second, "x")
    for name in ("masks/x.png", "argmax/x.png", "scores/x.npz", "index.jsonl", "store.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_no_soft_maps(tmp_path):
    store = new_store(tmp_path / "s")
    store.write("x", np.zeros((2, 2), np.uint8), argmax=np.zeros((2, 2), np.uint8), soft=None, record={})
    assert store.read_soft("x") is None


def test_soft_maps_count_must_match():
    with pytest.raises(StoreError, match="one each"):
        SoftMaps(np.zeros((3, 2, 2), np.float16), (1,), True, (2, 2), (2, 2), (2, 2))


def test_probabilities_with_background_row(tmp_path):
    store = new_store(tmp_path / "s")
    mask = np.zeros((2, 2), np.uint8)
    store.write("x", mask, argmax=mask, soft=soft_maps(background=True), record={})
    assert store.read_soft("x").background is True


def test_last_line_of_an_id_wins(tmp_path):
    store = new_store(tmp_path / "s")
    write_one(store, "x", seconds=1)
    write_one(store, "y", seconds=2)
    write_one(store, "x", seconds=3)
    assert [(record["id"], record["seconds"]) for record in store.records()] == [("y", 2), ("x", 3)]
    assert len((tmp_path / "s" / "index.jsonl").read_text().splitlines()) == 3


def test_a_mask_is_up_to_date_if_it_was_made_with_the_labels_of_now(tmp_path):
    store = new_store(tmp_path / "s")
    write_one(store, "x", labels=[3, 15])
    write_one(store, "old")
    write_one(store, "y", labels=[3])
    write_one(store, "y", labels=[15])
    done = store.finished_labels()
    assert done == {"x": (3, 15), "old": None, "y": (15,)}
    assert is_up_to_date(done, "x", (15, 3))
    assert not is_up_to_date(done, "x", (3,))
    assert is_up_to_date(done, "old", (3,))
    assert not is_up_to_date(done, "y", (3,))
    assert not is_up_to_date(done, "new", (3,))


@pytest.mark.parametrize("torn", [b'{"id": "z", "hei', b"\x00\x00\x00", b"[1, 2]\n", b'{"no": "id"}\n'])
def test_a_torn_line_is_skipped_and_the_next_append_survives(tmp_path, torn):
    store = new_store(tmp_path / "s")
    write_one(store, "x")
    with (tmp_path / "s" / "index.jsonl").open("ab") as file:
        file.write(torn)
    assert store.finished() == {"x"}
    write_one(store, "z")
    assert store.finished() == {"x", "z"}


@pytest.mark.parametrize("stage", ["masks", "argmax", "scores", "index"])
def test_killed_between_files_is_not_finished_and_can_be_done_again(tmp_path, monkeypatch, stage):
    store = new_store(tmp_path / "s")

    def killed(path: Path, *_: object) -> None:
        if stage in (path.parent.name, path.stem):
            raise KeyboardInterrupt
        real(path, *_)

    from data import masks
    from data.store import store as module

    real = masks.write_atomically
    monkeypatch.setattr(masks, "write_atomically", killed)
    monkeypatch.setattr(module, "write_atomically", killed)
    if stage == "index":
        monkeypatch.setattr(module, "append_line", killed)
    with pytest.raises(KeyboardInterrupt):
        write_one(store, "x")
    monkeypatch.undo()
    assert MaskStore.open(tmp_path / "s").finished() == set()
    write_one(store, "x")
    assert MaskStore.open(tmp_path / "s").finished() == {"x"}
    assert not list((tmp_path / "s").rglob("*.tmp"))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    from data.masks import read_mask, write_mask

    write_mask(tmp_path / "m.png", np.uint8([[1]]))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space.*m\.png"):
        write_mask(tmp_path / "m.png", np.uint8([[2]]))
    monkeypatch.undo()
    assert read_mask(tmp_path / "m.png")[0, 0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def append_many(path: str, writer: int, count: int) -> None:
    store = MaskStore.open_or_create(Path(path), classes=VOC, **SETTINGS)
    for number in range(count):
        append_line(store.path / "index.jsonl", {"id": f"{writer}-{number}", "padding": "x" * (number % 5000)})


def test_processes_appending_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=append_many, args=(str(tmp_path / "s"), writer, 300)) for writer in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(MaskStore.open(tmp_path / "s").finished()) == 600
    assert len((tmp_path / "s" / "index.jsonl").read_text().splitlines()) == 600


def test_resume_with_the_same_settings_and_after_the_data_moved(tmp_path):
    data = {"root": str(tmp_path / "gone"), "split": "train"}
    MaskStore.create(tmp_path / "s", classes=VOC, config={"a": (1, 2)}, model={}, data=data)
    moved = {"root": str(tmp_path), "split": "train", "cache": "/elsewhere", "truth": "masks"}
    MaskStore.open_or_create(tmp_path / "s", classes=VOC, config={"a": [1, 2]}, model={}, data=moved)
    with pytest.raises(StoreError, match=r"data\.split: \"train\" there, \"val\" now"):
        MaskStore.open_or_create(
            tmp_path / "s", classes=VOC, config={"a": [1, 2]}, model={}, data={**data, "split": "val"}
        )


def test_other_settings_are_shown_key_by_key(tmp_path):
    new_store(tmp_path / "s")
    changed = {**SETTINGS, "config": {"fuse": {"threshold": 0.4, "clamp": True}}}
    with pytest.raises(StoreError) as caught:
        MaskStore.open_or_create(tmp_path / "s", classes=VOC, **changed)
    message = str(caught.value)
    assert "config.fuse.threshold: 0.5 there, 0.4 now" in message
    assert "config.fuse.clamp: null there, true now" in message
    assert "\n" not in message


def test_create_refuses_a_store_a_full_folder_and_a_file(tmp_path):
    new_store(tmp_path / "s")
    with pytest.raises(StoreError, match="is a mask store already"):
        new_store(tmp_path / "s")
    (tmp_path / "f").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        new_store(tmp_path / "f")
    with pytest.raises(StoreError, match="not empty"):
        new_store(tmp_path)


def test_open_names_the_fault(tmp_path):
    with pytest.raises(StoreError, match="no mask store"):
        MaskStore.open(tmp_path)
    header = tmp_path / "store.json"
    header.write_text('{"format": "pseudolabel-masks", ')
    with pytest.raises(StoreError, match="damaged"):
        MaskStore.open(tmp_path)
    header.write_text('{"format": "other"}')
    with pytest.raises(StoreError, match="not of the format"):
        MaskStore.open(tmp_path)
    header.write_text(json.dumps({"format": "pseudolabel-masks", "format_version": 7, "written_by": "pseudolabel 9.1"}))
    with pytest.raises(StoreError, match=r"version 7.*up to 1.*pseudolabel 9\.1"):
        MaskStore.open(tmp_path)
    header.write_text(json.dumps({"format": "pseudolabel-masks", "format_version": 1}))
    with pytest.raises(StoreError, match="lacks classes"):
        MaskStore.open(tmp_path)


def test_damaged_soft_maps_are_named(tmp_path):
    store = new_store(tmp_path / "s")
    write_one(store, "x")
    path = tmp_path / "s" / "scores" / "x.npz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(StoreError, match=r"x\.npz are damaged"):
        store.read_soft("x")


@pytest.mark.parametrize(
    "sample_id", ["", "a/b", "a\\b", "..", "a..b", ".hidden", "a\x00b", "a\nb", "x" * 201, "\ud800"]
)
def test_ids_that_cannot_be_file_names(tmp_path, sample_id):
    store = new_store(tmp_path / "s")
    with pytest.raises(LabelError, match="Image id"):
        write_one(store, sample_id)
    with pytest.raises(LabelError, match="Image id"):
        store.read_mask(sample_id)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_an_accepted_id_stays_inside_the_store(tmp_path_factory, sample_id):
    from data.samples import check_id

    folder = tmp_path_factory.getbasetemp() / "ids" / "masks"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        path = folder / f"{check_id(sample_id)}.png"
    except LabelError:
        return
    assert path.resolve().parent == folder.resolve()
    path.touch()
    path.unlink()


def write_index(path: Path, count: int) -> None:
    line = '{{"id":"{0:012d}","image":"a/{0}.jpg","labels":[1,2],"class_share":{{"0":0.5}}}}\n'
    path.write_text("".join(line.format(number) for number in range(count)))


def test_a_large_index_is_read_quickly(tmp_path):
    store = new_store(tmp_path / "s")
    write_index(tmp_path / "s" / "index.jsonl", 30_000)
    start = time.process_time()
    assert len(store.finished()) == 30_000
    assert time.process_time() - start < 4


def test_memory_grows_with_the_index_by_a_record_each_and_for_ids_by_an_id_each(tmp_path):
    store = new_store(tmp_path / "s")
    write_index(tmp_path / "s" / "index.jsonl", 4_000)
    for read, most in ((store.records, 1200), (store.finished, 250)):
        tracemalloc.start()
        assert sum(1 for _ in read()) == 4_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4_000 * most  # bytes


def test_the_index_is_parsed_once(tmp_path, monkeypatch):
    from data.store import index

    store = new_store(tmp_path / "s")
    for name in ("a", "b", "a"):
        write_one(store, name)
    parse, lines = index.parse_line, []
    monkeypatch.setattr(index, "parse_line", lambda line: lines.append(line) or parse(line))
    assert [record["id"] for record in store.records()] == ["b", "a"]
    assert len(lines) == 3


def test_the_header_names_the_program_and_its_version(tmp_path):
    from importlib.metadata import version

    settings = {"classes": VOC, "config": {}, "model": {}, "data": {}}
    assert (
        MaskStore.create(tmp_path / "a", **settings).header["written_by"] == f"pseudolabel {version('text2mask-wsss')}"
    )
    other = MaskStore.open_or_create(tmp_path / "b", **settings, program="segtrain")
    assert other.header["written_by"].startswith("segtrain ")
