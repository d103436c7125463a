import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.exporters.labels import write_labels
from data.readers.labels import read_label_table

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("names", "file"),
    [
        (("cat", "dining table"), "labels.csv"),
        (("dining", "table", "dining table"), "labels.jsonl"),  # the words of the third are classes themselves
        (("salt; pepper",), "labels.jsonl"),
        (("a,b", "a|b"), "labels.jsonl"),
        (("'quoted'",), "labels.jsonl"),
        (("0.9",), "labels.jsonl"),
        ((), "labels.csv"),
    ],
)
def test_labels_come_back_as_they_were(tmp_path, names, file):
    rows = [("1.png", names), ("2.png", names[:1]), ("3.png", ())]
    path = write_labels(tmp_path, rows)
    assert [each.name for each in tmp_path.iterdir()] == [path.name] == [file]
    assert {image: set(found) for image, found in read_label_table(path).items()} == {
        image: set(given) for image, given in rows
    }


@given(st.lists(st.lists(NAMES, unique=True, max_size=3), min_size=1, max_size=4))
def test_any_names_come_back(tmp_path_factory, groups):
    rows = [(f"{index}.png", names) for index, names in enumerate(groups)]
    found = read_label_table(write_labels(tmp_path_factory.mktemp("labels"), rows))
    assert {image: set(names) for image, names in found.items()} == {image: set(names) for image, names in rows}
