"""Where exported pictures lie: each in a place of its own, by the name that the labels give it, and whole."""

import csv
import io
import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml

from data.classes import VOC, ClassSet, make_classes
from data.errors import ImageError, StoreError, UserError
from data.exporters.export import ExportFormat, export_store
from data.exporters.items import ExportOptions, Item, place_image
from data.masks import read_mask, write_mask
from data.store.store import MaskStore

FORMATS: tuple[ExportFormat, ...] = ("coco", "yolo", "voc", "labelstudio")
NAMES = ("cat/1.png", "dog/1.png", "dog/a b#%é.png")


@pytest.fixture
def twins(tmp_path, save_image) -> MaskStore:
    """Images of one file name in two folders, as `generate` names them."""
    return make_store(tmp_path, save_image, VOC)


def make_store(folder: Path, save_image, classes: ClassSet) -> MaskStore:
    data = {"root": str(folder / "photos"), "split": "train", "format": "folder"}
    store = MaskStore.create(folder / "store", classes=classes, config={}, model={"id": "m"}, data=data)
    for number, name in enumerate(NAMES):
        save_image(folder / "photos" / name, np.full((12, 16, 3), number, np.uint8))
        mask = np.full((12, 16), 1 + number % len(classes), np.uint8)
        record = {"image": name, "labels": [1 + number % len(classes)]}
        store.write(name[:-4].replace("/", "__"), mask, argmax=mask, soft=None, record=record)
    return store


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def named_images(format: ExportFormat, out: Path) -> list[Path]:
    """The files that an export's own labels name."""
    match format:
        case "coco":
            content = json.loads((out / "instances_train.json").read_text())
            return [out / "train" / image["file_name"] for image in content["images"]]
        case "yolo":
            texts = sorted((out / "labels" / "train").iterdir())
            return [out / "images" / "train" / f"{text.stem}.png" for text in texts]
        case "voc":
            lines = (out / "ImageSets" / "Segmentation" / "train.txt").read_text().splitlines()
            rows = list(csv.DictReader(io.StringIO((out / "labels.csv").read_text())))
            assert [row["image"] for row in rows] == [f"{line}.png" for line in lines]
            return [out / "JPEGImages" / f"{line}.png" for line in lines]
        case "labelstudio":
            tasks = json.loads((out / "tasks.json").read_text())
            return [out / unquote(task["data"]["image"].removeprefix("/data/local-files/?d=")) for task in tasks]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("how", ["link", "copy"])
def test_every_picture_has_its_own_place_and_the_users_stay(twins, tmp_path, format, how):
    before = tree(tmp_path / "photos")
    export_store(twins, format, tmp_path / "out", ExportOptions(images=how))
    assert tree(tmp_path / "photos") == before
    found = named_images(format, tmp_path / "out")
    assert sorted(path.read_bytes() for path in found) == sorted(before.values())
    assert all(path.is_symlink() == (how == "link") for path in found)
    assert all((tmp_path / "out").resolve() in path.parent.resolve().parents for path in found)


def test_without_pictures_the_names_are_those_below_the_root(twins, tmp_path):
    export_store(twins, "coco", tmp_path / "out", ExportOptions())
    content = json.loads((tmp_path / "out" / "instances_train.json").read_text())
    assert [image["file_name"] for image in content["images"]] == list(NAMES)
    done = export_store(twins, "labelstudio", tmp_path / "ls", ExportOptions())
    tasks = json.loads((tmp_path / "ls" / "tasks.json").read_text())
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=dog/1.png"
    assert tasks[2]["data"]["image"] == "/data/local-files/?d=dog/a%20b%23%25%C3%A9.png"
    assert str(tmp_path / "photos") in done.notes[1]


@pytest.mark.parametrize("there", ["file", "link", "dangling"])
@pytest.mark.parametrize("how", ["link", "copy"])
def test_a_place_that_is_taken_is_not_written_to(twins, tmp_path, there, how):
    mine, target = tmp_path / "mine.png", tmp_path / "target.png"
    mine.write_text("dear")
    match there:
        case "file":
            target.write_text("dear")
        case "link":
            target.symlink_to(mine)
        case "dangling":
            target.symlink_to(tmp_path / "gone")
    record = next(twins.records())
    item = Item(record, twins.read_mask(record), twins.image_path(record), "cat/1.png")
    with pytest.raises(StoreError, match=r"Two images .*target\.png"):
        place_image(item, target, how)
    assert mine.read_text() == "dear"
    assert not (tmp_path / "gone").exists()


def test_where_no_links_can_be_made_pictures_are_copied(twins, tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refused)
    export_store(twins, "coco", tmp_path / "out", ExportOptions(images="link"))
    assert not (tmp_path / "out" / "train" / "cat" / "1.png").is_symlink()
    assert (tmp_path / "out" / "train" / "cat" / "1.png").is_file()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("existing", [False, True])
def test_a_disk_that_is_full_leaves_nothing_and_a_second_try_works(twins, tmp_path, monkeypatch, format, existing):
    out = tmp_path / "exports" / "out"
    (out if existing else out.parent).mkdir(parents=True)
    before, copy, written = tree(tmp_path), shutil.copyfileobj, []

    def full(source, target, *rest) -> None:
        written.append(target.write(source.read(20)))
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        copy(source, target, *rest)

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space"):
        export_store(twins, format, out, ExportOptions(images="copy"))
    monkeypatch.undo()
    assert tree(tmp_path) == before
    assert [path.name for path in out.parent.iterdir()] == (["out"] if existing else [])
    export_store(twins, format, out, ExportOptions(images="copy"))
    assert all(path.is_file() for path in named_images(format, out))
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("format", FORMATS)
def test_damage_in_the_last_mask_leaves_no_half_of_an_export(twins, tmp_path, format):
    last = sorted((tmp_path / "store" / "masks").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:40])
    with pytest.raises(UserError, match=r"a b#%é\.png"):
        export_store(twins, format, tmp_path / "out", ExportOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "store"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("source", ["masks", "argmax"])
@pytest.mark.parametrize(
    ("mask", "rule"),
    [
        (np.zeros((12, 15), np.uint8), r"has 12 x 15 pixels .*its image 12 x 16: they must be equal"),
        (np.full((12, 16), 200, np.uint8), r"holds class 200, but ids end at 20"),
    ],
)
def test_a_mask_that_cannot_be_is_not_exported(twins, tmp_path, format, source, mask, rule):
    write_mask(tmp_path / "store" / source / "dog__1.png", mask)
    with pytest.raises(ImageError, match=rf"dog__1\.png {rule}"):
        export_store(twins, format, tmp_path / "out", ExportOptions(source=source))
    assert not (tmp_path / "out").exists()


def test_undecided_pixels_are_refused_where_there_can_be_none(twins, tmp_path):
    write_mask(tmp_path / "store" / "argmax" / "dog__1.png", np.full((12, 16), 255, np.uint8))
    with pytest.raises(ImageError, match="holds class 255"):
        export_store(twins, "voc", tmp_path / "out", ExportOptions(source="argmax"))


def test_an_image_that_was_replaced_is_not_put_beside_its_old_mask(twins, tmp_path, save_image):
    save_image(tmp_path / "photos" / "dog" / "1.png", np.zeros((16, 12, 3), np.uint8))
    with pytest.raises(ImageError, match=r"has 16 x 12 pixels .*its mask 12 x 16"):
        export_store(twins, "yolo", tmp_path / "out", ExportOptions())


def test_names_with_quotes_and_signs_come_back(tmp_path, save_image):
    names = ['the "big" cat', "dog's: {x} # y", "été", "line\u2028end", "\U0001f431", "yes"]
    store = make_store(tmp_path, save_image, make_classes(names, {}, {}))
    export_store(store, "voc", tmp_path / "voc", ExportOptions())
    text = (tmp_path / "voc" / "labels.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["labels"] for row in rows] == names[:3]
    done = export_store(store, "yolo", tmp_path / "yolo", ExportOptions())
    assert list(yaml.safe_load(done.opens.read_text(encoding="utf-8"))["names"].values()) == names
    assert text.splitlines()[2] == '"dog__1.png","dog\'s: {x} # y"'


def test_masks_of_an_export_are_the_stores(twins, tmp_path):
    export_store(twins, "voc", tmp_path / "out", ExportOptions())
    mask = read_mask(tmp_path / "out" / "SegmentationClass" / "dog__1.png")
    np.testing.assert_array_equal(mask, twins.read_mask("dog__1"))
