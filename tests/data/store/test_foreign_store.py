"""A store from somebody else: nothing that it says or links to reaches a file outside of it or of the data."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from data.classes import VOC
from data.errors import ImageError, StoreError, UserError
from data.exporters.export import ExportFormat, export_store
from data.exporters.items import ExportOptions
from data.store.source import data_config, stored_path
from data.store.store import MaskStore

MASK = np.full((24, 32), 8, np.uint8)
FORMATS: tuple[ExportFormat, ...] = ("coco", "yolo", "voc", "labelstudio")


@pytest.fixture
def foreign(tmp_path, save_image):
    """A store of one image; header and record can be made whatever one likes."""

    def make(record: dict | None = None, header: dict | None = None, data: dict | None = None) -> Path:
        save_image(tmp_path / "photos" / "a.png")
        path = tmp_path / "store"
        own = {"root": str(tmp_path / "photos"), "split": "train", "format": "folder"}
        store = MaskStore.create(path, classes=VOC, config={}, model={"id": "m"}, data=own)
        store.write("a", MASK, argmax=MASK, soft=None, record={"image": "a.png", "labels": [8]})
        content = json.loads((path / "store.json").read_text())
        content |= header or {}
        content["data"] |= data or {}
        (path / "store.json").write_text(json.dumps(content))
        line = json.loads((path / "index.jsonl").read_text())
        (path / "index.jsonl").write_text(json.dumps(line | (record or {})) + "\n")
        return path

    return make


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("split", ["../../x", "/tmp/x", "a/../../x", "..", "a\\..\\..\\x", "a\0b"])
def test_a_split_that_leads_elsewhere(foreign, split):
    with pytest.raises(StoreError, match=r"data\.split is .*(--data\.split|must be str)"):
        MaskStore.open(foreign(data={"split": split}))


def test_a_split_in_a_folder_is_one_name_in_an_export(foreign, tmp_path):
    store = MaskStore.open(foreign(data={"split": "images/train"}))
    done = export_store(store, "coco", tmp_path / "out", ExportOptions(images="copy"))
    assert done.opens == tmp_path / "out" / "instances_images_train.json"
    assert (tmp_path / "out" / "images_train" / "a.png").is_file()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("images", ["link", "copy", "none"])
@pytest.mark.parametrize("image", ["/etc/passwd", "../../../etc/passwd", "x/../../store/store.json", "..", ".", "", 5])
def test_an_image_outside_of_the_data_is_never_exported(foreign, tmp_path, format, images, image):
    path = foreign({"image": image})
    before = tree(tmp_path)
    with pytest.raises(StoreError, match="image"):
        export_store(MaskStore.open(path), format, tmp_path / "out", ExportOptions(images=images))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("images", ["link", "copy", "auto"])
def test_what_is_no_image_is_not_exported_either(foreign, tmp_path, images):
    """The root is the store's word as well, and a name may be a link."""
    path = foreign({"image": "passwd"}, data={"root": "/etc"})
    with pytest.raises(ImageError, match="passwd"):
        export_store(MaskStore.open(path), "yolo", tmp_path / "out", ExportOptions(images=images))
    assert not (tmp_path / "out").exists()


def test_an_absolute_image_inside_the_data_is_as_good_as_a_relative_one(foreign, tmp_path):
    store = MaskStore.open(foreign({"image": str(tmp_path / "photos" / "sub" / ".." / "a.png")}))
    assert store.image_path("a") == tmp_path / "photos" / "a.png"
    export_store(store, "coco", tmp_path / "out", ExportOptions(images="copy"))
    content = json.loads((tmp_path / "out" / "instances_train.json").read_text())
    assert content["images"][0]["file_name"] == "a.png"
    with pytest.raises(StoreError, match="--root"):
        store.image_path("a", tmp_path / "store")


@pytest.mark.parametrize("sample_id", ["../../x", "a/b", "..", ".hidden", "a\\b", ""])
def test_an_id_that_leads_elsewhere(foreign, tmp_path, sample_id):
    store = MaskStore.open(foreign({"id": sample_id}))
    with pytest.raises(StoreError, match=r"Line 1 of .*index\.jsonl: Image id"):
        store.ids()
    with pytest.raises(UserError):
        export_store(store, "voc", tmp_path / "out", ExportOptions())


def test_a_cache_folder_is_never_taken_from_a_store(foreign, tmp_path):
    store = MaskStore.open(foreign(data={"cache": str(tmp_path / "photos"), "crowd": "class"}))
    assert data_config(store).cache is None
    assert data_config(store).crowd == "class"


def test_masks_are_not_written_or_deleted_through_a_link(foreign, tmp_path):
    path = foreign()
    (tmp_path / "dear").mkdir()
    (tmp_path / "dear" / "a.png").write_text("dear")
    for name in ("masks", "argmax"):
        for file in (path / name).iterdir():
            file.unlink()
        (path / name).rmdir()
        (path / name).symlink_to(tmp_path / "dear")
    store = MaskStore.open(path)
    with pytest.raises(OSError, match="link"):
        store.write("a", MASK, argmax=MASK, soft=None, record={})
    with pytest.raises(OSError, match="link"):
        MaskStore.start_over(path, classes=VOC, config={"a": 1}, model={}, data={})
    assert (tmp_path / "dear" / "a.png").read_text() == "dear"
    assert MaskStore.open(path).ids() == ["a"]


def test_a_mask_that_is_a_link_is_replaced_and_not_followed(foreign, tmp_path):
    path = foreign()
    (tmp_path / "dear.png").write_text("dear")
    (path / "masks" / "a.png").unlink()
    (path / "masks" / "a.png").symlink_to(tmp_path / "dear.png")
    MaskStore.open(path).write("a", MASK, argmax=MASK, soft=None, record={})
    assert (tmp_path / "dear.png").read_text() == "dear"
    assert not (path / "masks" / "a.png").is_symlink()


def test_a_pipe_in_the_place_of_a_file_is_an_error_and_no_wait(foreign):
    path = foreign()
    for name, use in (
        ("index.jsonl", lambda: MaskStore.open(path).ids()),
        ("scores/a.npz", lambda: MaskStore.open(path).read_soft("a")),
        ("store.json", lambda: MaskStore.open(path)),
    ):
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)
        with pytest.raises(StoreError, match=name):
            use()
        (path / name).unlink()
        if name == "index.jsonl":
            (path / name).write_text("")


def test_what_is_recorded_of_an_image_holds_no_way_up(tmp_path):
    assert stored_path(tmp_path / "a" / ".." / "b.png", tmp_path) == "b.png"
    assert stored_path(Path("/elsewhere/b.png"), tmp_path) == "/elsewhere/b.png"
