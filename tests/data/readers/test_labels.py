import codecs
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.classes import VOC, ClassSet, make_classes
from data.errors import LabelError
from data.readers.labels import read_label_table
from data.readers.listing import suggest_classes

WANTED = {"a.jpg": ("cat", "dog"), "b.jpg": ("dining table",)}

SAME = {
    "comma in quotes": 'image,labels\na.jpg,"cat,dog"\nb.jpg,dining table\n',
    "semicolon": "image,labels\na.jpg,cat;dog\nb.jpg,dining table\n",
    "bar and spaces": "image , labels\n a.jpg , cat | dog \n b.jpg , dining  table \n",
    "tab separated": "image\tlabels\na.jpg\tcat,dog\nb.jpg\tdining table\n",
    "semicolon separated": "image;labels\na.jpg;cat,dog\nb.jpg;dining table\n",
    "tab in quotes": 'image,labels\na.jpg,"cat\tdog"\nb.jpg,dining table\n',
    "no header": "a.jpg,cat,dog\nb.jpg,dining table\n",
    "no header, semicolons": "a.jpg;cat,dog\nb.jpg;dining table\n",
    "unquoted commas": "image,labels\na.jpg,cat,dog\nb.jpg,dining table\n",
    "a column a label": "filename,label1,label2\na.jpg,cat,dog\nb.jpg,dining table,\n",
    "a row a label": "file_name,class\na.jpg,cat\nb.jpg,dining table\na.jpg,dog\n",
    "ones and zeros": "image,cat,dog,dining table\na.jpg,1,1,0\nb.jpg,0,0,1\n",
    "labels first": 'labels,image\n"cat,dog",a.jpg\ndining table,b.jpg\n',
    "more columns": "image,labels,width\na.jpg,cat;dog,640\nb.jpg,dining table,480\n",
    "blank lines and crlf": "\r\nimage,labels\r\n\r\na.jpg,cat;dog\r\nb.jpg,dining table\r\n,\r\n",
    "all quoted": '"image","labels"\n"a.jpg","cat;dog"\n"b.jpg","dining table"\n',
    "single quotes and brackets": "image,labels\na.jpg,\"['cat', 'dog']\"\nb.jpg,'dining table'\n",
    "capital header": "Image,Labels\na.jpg,cat;dog\nb.jpg,dining table\n",
    "trailing separators": "image,labels\na.jpg,cat;dog;\nb.jpg,dining table;;\n",
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME.keys())
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_one_meaning_in_many_spellings(tmp_path, text, bom):
    path = tmp_path / "labels.csv"
    path.write_bytes((bom + text).encode())
    assert read_label_table(path) == WANTED


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "labels.csv"
    path.write_bytes("image,labels\nschön.jpg,Kühlschrank\n".encode(encoding))
    assert read_label_table(path) == {"schön.jpg": ("Kühlschrank",)}


def test_windows_paths(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('image,labels\nC:\\Users\\me\\photos\\a.JPG,cat\n"sub\\b.png",dog\n')
    assert list(read_label_table(path)) == ["C:/Users/me/photos/a.JPG", "sub/b.png"]


def test_spaces_split_only_into_known_classes(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image,labels\na.jpg,dining table person\nb.jpg,person dog\nc.jpg,polar bear\n")
    assert read_label_table(path, VOC) == {
        "a.jpg": ("dining table", "person"),
        "b.jpg": ("person", "dog"),
        "c.jpg": ("polar bear",),
    }


def test_spaces_without_a_class_file(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image,labels\na.jpg,bicycle person\nb.jpg,person\nc.jpg,bicycle\nd.jpg,traffic light\n")
    table = read_label_table(path)
    assert table["a.jpg"] == ("bicycle", "person")
    assert table["d.jpg"] == ("traffic light",)


def test_an_unlabelled_row_stays(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image,labels\na.jpg,cat\nb.jpg,\n")
    assert read_label_table(path) == {"a.jpg": ("cat",), "b.jpg": ()}


def test_jsonl(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(
        '\ufeff{"image": "a.jpg", "labels": ["cat", "dog"]}\n\n'
        '{"file_name": "b.jpg", "label": "dining table", "width": 640}\n'
    )
    assert read_label_table(path) == WANTED


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("labels.csv", b"", "names no image"),
        ("labels.csv", b"image,labels\n", "has no rows"),
        ("labels.csv", b"one two three\n", "write `image,labels`"),
        ("labels.csv", codecs.BOM_UTF8 + b"\xff\x81,\x8d", "no text file"),
        ("labels.jsonl", b'{"image": "a.jpg"}\n', "line 1"),
        ("labels.jsonl", b'{"image": "a.jpg", "labels": ["cat"]}\n{"image": ', "line 2 is not JSON"),
        ("labels.jsonl", b'["a.jpg"]\n', "line 1"),
        ("cls_labels.npy", b"\x93NUMPY", r"no cls_labels\.npy"),
        ("labels.pkl", b"\x80", "may run code"),
    ],
)
def test_faults_say_what_to_write(tmp_path, name, content, match):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LabelError, match=match) as caught:
        read_label_table(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(LabelError, match=r"--data\.labels"):
        read_label_table(tmp_path / "none.csv")


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(NAMES.map(lambda text: f"{text}.jpg"), st.lists(NAMES, unique=True, max_size=3), min_size=1))
def test_jsonl_keeps_any_names(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "labels.jsonl"
    path.write_text("".join(json.dumps({"image": image, "labels": names}) + "\n" for image, names in rows.items()))
    table = read_label_table(path)
    assert table == {image.replace("\\", "/"): tuple(names) for image, names in rows.items()}


def test_suggested_phrases():
    classes = suggest_classes(["TV_Monitor", "garden-gnome", "bird", "Traffic Light"])
    assert classes.phrases == ("tv monitor screen", "garden gnome", "bird avian", "traffic light")
    assert classes.background_words[0] == ("keyboard", "wall")
    assert isinstance(classes, ClassSet)


def test_names_with_separators_are_whole_where_nothing_else_can_be_meant(tmp_path):
    names = ("salt; pepper", "a|b", 'the "best", really')
    classes = make_classes([*names, "dog"], {}, {})
    listed, columns, rows, one = (tmp_path / name for name in ("l.jsonl", "c.csv", "r.csv", "t.jsonl"))
    listed.write_text(json.dumps({"image": "a.jpg", "labels": [*names, "dog"]}) + "\n")
    assert read_label_table(listed)["a.jpg"] == (*names, "dog")
    columns.write_text('image,salt; pepper,a|b,"the ""best"", really",dog\na.jpg,1,1,1,1\n')
    assert read_label_table(columns)["a.jpg"] == (*names, "dog")
    rows.write_text('image,label\na.jpg,salt; pepper\na.jpg,a|b\na.jpg,"the ""best"", really"\na.jpg,dog\n')
    assert read_label_table(rows, classes)["a.jpg"] == (*names, "dog")
    one.write_text('{"image": "a.jpg", "labels": "cat; dog"}\n')  # a text may hold several
    assert read_label_table(one)["a.jpg"] == ("cat", "dog")
