"""A row of a label file gives its labels to the image it names, and to no other."""

import pytest

from data.config import DataConfig
from data.errors import LabelError
from data.readers.checks import check_data
from data.readers.layout import open_samples
from data.readers.rows import match_rows


def matched(rows: list[str], images: list[str], base) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    names, orphans = match_rows({row: (row,) for row in rows}, images, base)
    return {image: found for image, found in zip(images, names, strict=True) if found}, orphans


@pytest.mark.parametrize(
    ("row", "image"),
    [
        ("b/1.png", "a/1.png"),
        ("b/1.png", "1.png"),
        ("b/1", "a/1.png"),
        ("B/1.PNG", "a/1.png"),
        ("x/b/1.png", "b2/1.png"),
        ("C:/photos/b/1.png", "a/1.png"),
        ("/nowhere/b/1.png", "a/1.png"),
        ("1.5", "1.png"),
        ("v1.2", "v1.jpg"),
        ("a/2.png", "a/1.png"),
    ],
)
def test_a_row_of_an_image_that_is_not_there(tmp_path, row, image):
    assert matched([row], [image], tmp_path) == ({}, (row,))


def test_a_row_of_another_folder_of_this_machine(tmp_path):
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
    base = tmp_path / "train"
    assert matched([f"{tmp_path}/val/1.png", "val/1.png"], ["1.png"], base)[0] == {}
    for row in (f"{tmp_path}/train/1.png", "train/1.png", f"{tmp_path.name}/train/1.PNG"):
        assert matched([row], ["1.png"], base) == ({"1.png": (row,)}, ())
    (tmp_path / "link").symlink_to(base)
    assert matched([f"{tmp_path}/train/1.png"], ["1.png"], tmp_path / "link")[0] != {}


def test_the_row_that_names_an_image_most_exactly_wins(tmp_path):
    rows = ["1.jpg", "1.png", "C:/x/1.jpg"]
    assert matched(rows, ["1.jpg"], tmp_path) == ({"1.jpg": ("1.jpg",)}, ("1.png", "C:/x/1.jpg"))
    longer = f"C:/{tmp_path.name}/1.jpg"
    assert matched(["D:/other/1.jpg", longer], ["1.jpg"], tmp_path) == ({"1.jpg": (longer,)}, ("D:/other/1.jpg",))
    with pytest.raises(LabelError, match=r"'C:/a/1\.jpg' and 'C:/b/1\.jpg' both fit '1\.jpg'"):
        matched(["C:/a/1.jpg", "C:/b/1.jpg"], ["1.jpg"], tmp_path)


def test_spellings_of_one_row_are_joined(tmp_path):
    rows = ["./1.jpg", "1.jpg", "images/1.jpg"]
    assert matched(rows, ["images/1.jpg"], tmp_path) == ({"images/1.jpg": tuple(rows)}, ())


def test_a_splits_rows_do_not_reach_another_split(tmp_path, save_image):
    for name in ("train/1.png", "val/1.png"):
        save_image(tmp_path / name)
    (tmp_path / "labels.csv").write_text("image,labels\ntrain/1.png,cat\nval/1.png,dog\n")
    for split, label in (("train", "cat"), ("val", "dog")):
        found = open_samples(DataConfig(tmp_path, split=split))
        assert [found.classes.name(*one.labels) for one in found.samples] == [label]
        assert found.notes == ()


def test_where_no_row_matches_the_nearest_image_is_named(tmp_path, save_image):
    for name in ("0001.png", "0002.png"):
        save_image(tmp_path / name)
    (tmp_path / "labels.csv").write_text("image,labels\n1,cat\n2,dog\n")
    message = r"None of the 2 rows of labels\.csv names an image in .*: the first is '1', nearest: '0001\.png'"
    with pytest.raises(LabelError, match=message):
        open_samples(DataConfig(tmp_path))
    (tmp_path / "classes.yaml").write_text("[cat, dog]")
    with pytest.raises(LabelError, match=message):
        open_samples(DataConfig(tmp_path))
    assert "nearest: '0001.png'" in check_data(DataConfig(tmp_path)).problems[0]
