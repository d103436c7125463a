"""Columns and class names: parsed or refused, never guessed."""

import time

import pytest

from data.classes import make_classes
from data.config import DataConfig
from data.errors import ConfigError, LabelError, UserError
from data.readers.checks import check_data
from data.readers.labels import read_label_table
from data.readers.layout import open_samples

WANTED = {"a.jpg": ("cat", "dog"), "b.jpg": (), "c.jpg": ("dog",)}


def table(tmp_path, text: str, classes=None) -> dict[str, tuple[str, ...]]:
    (tmp_path / "labels.csv").write_text(text)
    return read_label_table(tmp_path / "labels.csv", classes)


@pytest.mark.parametrize(
    ("present", "absent"),
    [
        ("1", "0"),
        ("1.0", "0.0"),
        ("True", "False"),
        ("TRUE", "FALSE"),
        ("yes", "no"),
        ("x", ""),
        ("X", "0"),
        ("y", "n"),
    ],
)
@pytest.mark.parametrize("index", [False, True])
def test_marks_of_a_column_for_a_class(tmp_path, present, absent, index):
    rows = [["image", "cat", "dog"], ["a.jpg", present, present], ["b.jpg", absent, absent], ["c.jpg", absent, present]]
    if index:  # as pandas writes it
        rows = [["" if number == 0 else str(number - 1), *row] for number, row in enumerate(rows)]
    assert table(tmp_path, "\n".join(map(",".join, rows))) == WANTED


@pytest.mark.parametrize("value", ["2", "-1", "0.9", "1e-3", "nan", "inf", "maybe", "None", "1 0"])
def test_other_values_in_a_column_for_a_class(tmp_path, value):
    with pytest.raises(LabelError, match=rf"the column 'dog' holds '{value}' for 'b\.jpg'"):
        table(tmp_path, f"image,cat,dog\na.jpg,1,0\nb.jpg,0,{value}\n")


@pytest.mark.parametrize(
    "text",
    [
        "image,cat,dog\na.jpg,0.9,0.1\nb.jpg,0.2,0.7\n",
        "image,cat,dog\na.jpg,1,-1\nb.jpg,-1,1\n",
        "image,width,cat\na.jpg,640,1\n",
        "image,cat,dog\na.jpg,2,\nb.jpg,,3\n",
        "image,split,cat\na.jpg,train,1\n",
        "image,cat,cat\na.jpg,0,1\n",
        "image,cat,dog\na.jpg,1,0,1\n",
        "image,label\na.jpg,True\nb.jpg,False\n",
        "image,label\na.jpg,0.9\nb.jpg,0.1\n",
        "image,label\na.jpg,1\nb.jpg,0\n",
        "image,label\na.jpg,-1\n",
        "image,label\na.jpg,nan\n",
        "image,label\na.jpg,1.0\nb.jpg,2.0\n",
        "a.jpg,1,0\nb.jpg,0,1\n",
        'image,labels\na.jpg,"cat\nb.jpg,dog\n',
        "image,labels\na.jpg," + "x" * 1000 + "\n",
    ],
)
def test_what_is_not_clear_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(LabelError) as caught:
        table(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_classes_called_by_numbers(tmp_path):
    digits = make_classes(["0", "1"], {}, {})
    assert table(tmp_path, "image,label\na.jpg,0\nb.jpg,1\n", digits) == {"a.jpg": ("0",), "b.jpg": ("1",)}
    assert table(tmp_path, "image,label\na.jpg,3\nb.jpg,1\n") == {"a.jpg": ("3",), "b.jpg": ("1",)}
    assert table(tmp_path, "image,0,1\na.jpg,0,1\nb.jpg,1,0\n") == {"a.jpg": ("1",), "b.jpg": ("0",)}


def test_quoted_line_breaks_and_odd_separators_stay_in_their_cell(tmp_path):
    assert table(tmp_path, 'image,labels\na.jpg,"cat\ndog"\nb.jpg,ice\u2028cream\n') == {
        "a.jpg": ("cat", "dog"),
        "b.jpg": ("ice cream",),
    }


@pytest.mark.parametrize(
    ("columns", "match"), [(100_000, "100,001 columns"), (500, "columns for 500 classes"), (254, "")]
)
def test_many_columns_take_bounded_time(tmp_path, columns, match):
    names = [f"class{number}" for number in range(columns)]
    text = "image," + ",".join(names) + "\na.jpg" + ",1" * columns + "\n"
    start = time.process_time()
    if match:
        with pytest.raises(LabelError, match=match):
            table(tmp_path, text)
    else:
        assert len(table(tmp_path, text)["a.jpg"]) == 254
    assert time.process_time() - start < 5


@pytest.mark.parametrize("separator", [" ", ";"])
def test_many_labels_in_a_cell_take_bounded_time(tmp_path, save_image, separator):
    save_image(tmp_path / "a.jpg")
    save_image(tmp_path / "b.jpg")
    words = separator.join(f"w{number}" for number in range(12_000))
    start = time.process_time()
    (tmp_path / "labels.csv").write_text(f"image,labels\na.jpg,{words}\nb.jpg,w1\n")
    with pytest.raises(UserError):
        open_samples(DataConfig(tmp_path))
    (tmp_path / "classes.yaml").write_text("[cat, dog]")
    assert len(check_data(DataConfig(tmp_path)).problems) < 30
    assert time.process_time() - start < 10


def folders(tmp_path, save_image, *names: str) -> DataConfig:
    for name in names:
        save_image(tmp_path / name / "1.jpg")
    return DataConfig(tmp_path)


def test_class_folders_of_numbers_stay_apart(tmp_path, save_image):
    found = open_samples(folders(tmp_path, save_image, "1-23", "12-3"))
    assert found.classes.names == ("1-23", "12-3")
    assert [one.labels for one in found.samples] == [(1,), (2,)]
    (tmp_path / "classes.yaml").write_text("['1-23']")
    with pytest.raises(LabelError, match="Unknown class '12-3'"):
        open_samples(DataConfig(tmp_path))


@pytest.mark.parametrize("names", [("A", "a"), ("polar bear", "polar_bear"), ("ab-c", "a-bc")])
def test_class_names_that_differ_in_spelling_alone_are_refused(tmp_path, save_image, names):
    config = folders(tmp_path, save_image, *names)
    with pytest.raises(
        LabelError, match=rf"'{names[0]}' and '{names[1]}' differ in case|'{names[1]}' and '{names[0]}'"
    ):
        open_samples(config)
    assert len(check_data(config).problems) == 1
    (tmp_path / "classes.yaml").write_text(f"[{names[0]}]")  # somebody has said that they are one
    assert [one.labels for one in open_samples(config).samples] == [(1,), (1,)]


@pytest.mark.parametrize("name", ["background", "Background", "back_ground", "ignore"])
def test_reserved_names(tmp_path, save_image, name):
    config = folders(tmp_path, save_image, "cat", name)
    with pytest.raises(ConfigError, match="A class may not be called"):
        open_samples(config)
    (tmp_path / "classes.yaml").write_text(f"[cat, {name}]")
    with pytest.raises(ConfigError, match=r"classes\.yaml: A class may not be called"):
        open_samples(config)
