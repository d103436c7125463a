import errno
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig
from data.errors import ConfigError, ImageError, LabelError
from data.masks import write_mask
from data.readers.checks import check_data
from data.readers.folder import image_samples, list_data
from data.readers.ids import make_ids
from data.readers.layout import open_samples
from data.samples import check_id


def labels(root: Path, **options: object) -> dict[str, list[str]]:
    found = open_samples(DataConfig(root, **options))
    return {one.id: [found.classes.name(label) for label in one.labels] for one in found.samples}


def test_labels_csv(tmp_path, save_image):
    for name in ("a.jpg", "b.PNG", "sub/c.webp"):
        save_image(tmp_path / name)
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat;dog\nb.PNG,cat\nsub/c.webp,dog\n")
    assert labels(tmp_path) == {"a": ["cat", "dog"], "b": ["cat"], "sub__c": ["dog"]}


def test_class_folders(tmp_path, save_image):
    for name in ("cat/1.jpg", "cat/2.jpg", "garden gnome/1.jpg", "loose.jpg", ".hidden/3.jpg", "cat/.4.jpg"):
        save_image(tmp_path / name)
    found = open_samples(DataConfig(tmp_path))
    assert found.classes.names == ("cat", "garden gnome")
    assert [one.id for one in found.samples] == ["cat__1", "cat__2", "garden gnome__1"]
    assert found.notes == ("1 of 4 images has no labels in the class folders (the first is loose); left out.",)


def test_a_class_called_train_is_no_split(tmp_path, save_image):
    for name in ("train/1.jpg", "boat/1.jpg"):
        save_image(tmp_path / name)
    assert labels(tmp_path) == {"boat__1": ["boat"], "train__1": ["train"]}


@pytest.mark.parametrize("layout", ["folders", "tables", "split tables"])
def test_splits(tmp_path, save_image, layout):
    if layout == "folders":
        for name in ("train/cat/1.jpg", "val/cat/1.jpg", "val/dog/2.jpg"):
            save_image(tmp_path / name)
        wanted = {"cat__1": ["cat"], "dog__2": ["dog"]}
    elif layout == "tables":
        for name in ("train/1.jpg", "val/1.jpg", "val/2.jpg"):
            save_image(tmp_path / name)
        (tmp_path / "train" / "labels.csv").write_text("1.jpg,cat\n")
        (tmp_path / "val" / "labels.csv").write_text("1.jpg,cat\n2.jpg,dog\n")
        wanted = {"1": ["cat"], "2": ["dog"]}
    else:
        for name in ("images/1.jpg", "images/2.jpg", "images/3.jpg"):
            save_image(tmp_path / name)
        (tmp_path / "labels_train.csv").write_text("3.jpg,cat\n")
        (tmp_path / "labels_val.csv").write_text("1.jpg,cat\n2.jpg,dog\n")
        wanted = {"1": ["cat"], "2": ["dog"]}
    assert labels(tmp_path, split="val") == wanted
    assert len(labels(tmp_path)) == 1
    with pytest.raises(ConfigError, match=r"--data\.split=all"):
        open_samples(DataConfig(tmp_path, split="test"))


def test_class_file_in_the_folder_or_named(tmp_path, save_image):
    save_image(tmp_path / "a.jpg")
    (tmp_path / "labels.csv").write_text("a.jpg,polar bear\n")
    (tmp_path / "classes.yaml").write_text("classes: [{name: polar bear, phrase: white bear, background: [ice]}, seal]")
    found = open_samples(DataConfig(tmp_path))
    assert found.classes.phrases == ("white bear", "seal")
    assert found.samples[0].labels == (1,)
    (tmp_path / "other.yaml").write_text("classes: [seal]")
    with pytest.raises(LabelError, match=r"labels\.csv, image a: Unknown class 'polar bear'"):
        open_samples(DataConfig(tmp_path, classes=tmp_path / "other.yaml"))


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_file", ["NFC", "NFD"])
def test_accents_composed_or_not(tmp_path, save_image, on_disk, in_file):
    name, label = "Käse Čevapčići.jpg", "Käse"
    save_image(tmp_path / unicodedata.normalize(on_disk, name))
    row = f"image,labels\n{unicodedata.normalize(in_file, name)},{unicodedata.normalize(in_file, label)}\n"
    (tmp_path / "labels.csv").write_text(row, encoding="utf-8")
    (tmp_path / "classes.yaml").write_text(f"classes: [{unicodedata.normalize('NFC', label)}]", encoding="utf-8")
    assert labels(tmp_path) == {"Käse Čevapčići": ["Käse"]}


@pytest.mark.parametrize(
    "row",
    [
        "images/IMG 1.JPG",
        "IMG 1.JPG",
        "img 1.jpg",
        "IMG 1",
        "./IMG 1.JPG",
        "C:\\Users\\me\\photos\\images\\IMG 1.JPG",
        "/home/me/photos/images/IMG 1.jpeg",
    ],
)
def test_rows_find_their_image(tmp_path, save_image, row):
    save_image(tmp_path / "images" / "IMG 1.JPG")
    (tmp_path / "labels.csv").write_text(f"image,labels\n{row},cat\n")
    assert labels(tmp_path) == {"IMG 1": ["cat"]}


def test_equal_file_names_need_a_path(tmp_path, save_image):
    for name in ("a/1.jpg", "b/1.jpg"):
        save_image(tmp_path / name)
    (tmp_path / "labels.csv").write_text("image,labels\nC:\\data\\a\\1.jpg,cat\nb/1.jpg,dog\n")
    assert labels(tmp_path) == {"a__1": ["cat"], "b__1": ["dog"]}
    (tmp_path / "labels.csv").write_text("image,labels\n1.jpg,cat\n")
    with pytest.raises(LabelError, match="fits several images"):
        open_samples(DataConfig(tmp_path))


def test_rows_without_image_and_unread_files_are_noted(tmp_path, save_image):
    save_image(tmp_path / "photo_01.jpg")
    (tmp_path / "photo_02.HEIC").touch()
    (tmp_path / "labels.csv").write_text("image,labels\nphoto_01.jpg,cat\nphoto_011.jpg,dog\n")
    found = open_samples(DataConfig(tmp_path))
    assert "1 row of labels.csv has no image (the first is 'photo_011.jpg', nearest: 'photo_01.jpg')" in found.notes[0]
    assert "photo_02.HEIC" in found.notes[1]


def test_truth_masks(tmp_path, save_image):
    save_image(tmp_path / "cat" / "1.jpg")
    save_image(tmp_path / "cat" / "2.jpg")
    (tmp_path / "masks" / "cat").mkdir(parents=True)
    write_mask(tmp_path / "masks" / "cat__1.png", np.zeros((24, 32), np.uint8))
    write_mask(tmp_path / "masks" / "cat" / "2.png", np.zeros((24, 32), np.uint8))
    truths = [one.truth_path for one in open_samples(DataConfig(tmp_path)).samples]
    assert truths == [tmp_path / "masks" / "cat__1.png", tmp_path / "masks" / "cat" / "2.png"]


def test_nothing_to_read(tmp_path):
    with pytest.raises(ConfigError, match="holds no images"):
        open_samples(DataConfig(tmp_path))
    (tmp_path / "a.heic").touch()
    with pytest.raises(ConfigError, match=r"1 file of an unread kind, such as a\.heic"):
        open_samples(DataConfig(tmp_path))


def test_no_labels_anywhere(tmp_path, save_image):
    save_image(tmp_path / "a.jpg")
    with pytest.raises(LabelError, match=r"add labels\.csv"):
        open_samples(DataConfig(tmp_path))


def test_links_to_folders_are_followed_once(tmp_path, save_image):
    save_image(tmp_path / "elsewhere" / "1.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "root")
    assert labels(tmp_path / "root") == {"cat__1": ["cat"]}


@pytest.fixture
def locked(tmp_path, save_image, monkeypatch) -> Path:
    """A folder of two classes, one of which nobody may look into; root may, so the system is made to refuse."""
    for name in ("cat/1.jpg", "dog/1.jpg", "dog/2.jpg"):
        save_image(tmp_path / name)
    real = os.scandir

    def scandir(folder):
        if os.path.basename(folder) == "dog":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    return tmp_path


def test_a_folder_that_cannot_be_read_is_named_and_not_passed_over(locked, caplog):
    found = open_samples(DataConfig(locked))
    assert [one.id for one in found.samples] == ["cat__1"]
    assert found.notes == ("1 folder cannot be read, and its images are left out (dog).",)
    assert check_data(DataConfig(locked)).warnings == list(found.notes)
    assert len(image_samples(locked)) == 1
    assert found.notes[0] in caplog.text
    (locked / "cat" / "1.jpg").unlink()
    with pytest.raises(ConfigError, match=r"no images \(the folder dog cannot be read: check its permissions\)"):
        open_samples(DataConfig(locked))


def test_names_differing_in_suffix_or_case_get_different_ids():
    ids = make_ids(["a.jpg", "a.png", "A.JPG", "b.jpg"])
    assert len({one.casefold() for one in ids}) == 4
    assert ids[3] == "b"
    assert make_ids(["a.png", "a.jpg"]) == [ids[1], ids[0]]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="/\x00"), min_size=1, max_size=120), unique=True, max_size=6))
def test_any_file_name_gets_an_id(names):
    images = [f"{name}.jpg" for name in names]
    ids = make_ids(images)
    assert len(set(ids)) == len(images)
    for one in ids:
        check_id(one)


def test_images_without_labels_have_the_ids_that_labelled_ones_have(tmp_path, save_image):
    for name in ("images/cat_1.jpg", "images/a.png", "images/a.jpg", "dog/7.PNG", "masks/m.png", ".hidden/x.png"):
        save_image(tmp_path / name)
    listing = list_data(DataConfig(root=tmp_path))
    found = image_samples(tmp_path)
    assert [sample.id for sample in found] == list(listing.ids)
    assert {"cat_1", "dog__7"} < {sample.id for sample in found}
    assert len({sample.id for sample in found}) == len(found) == 4
    assert all(sample.image_path.is_file() for sample in found)
    [one] = image_samples(tmp_path / "images" / "cat_1.jpg")
    assert (one.id, one.image_path) == ("cat_1", tmp_path / "images" / "cat_1.jpg")


@pytest.mark.parametrize("name", ["none", "empty"])
def test_no_images_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"--images|holds no image"):
        image_samples(tmp_path / name)


def test_the_flag_that_named_the_images_is_the_one_in_the_message(tmp_path):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(ImageError, match=r"--image takes"):
            image_samples(place, "image")
        with pytest.raises(ImageError, match=r"--images takes"):
            image_samples(place)
