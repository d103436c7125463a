import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.class_file import load_classes, save_classes
from data.classes import ClassSet
from data.errors import ConfigError

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(
    lambda text: text.strip(" _-\u00a0") and text.strip()
)


@settings(max_examples=60, deadline=None)
@given(name=WORDS, phrase=WORDS, words=st.lists(WORDS, max_size=3))
def test_class_file_round_trip(tmp_path_factory, name, phrase, words):
    path = tmp_path_factory.getbasetemp() / "classes.yaml"
    classes = ClassSet((name, "other class"), (phrase, "other"), (tuple(words), ()))
    save_classes(classes, path)
    assert load_classes(path) == classes


def test_short_class_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("default_background: [sky]\nclasses:\n- cat\n- {name: garden_gnome, background: [lawn]}\n")
    classes = load_classes(path)
    assert classes.phrases == ("cat", "garden gnome")
    assert classes.background_words == (("sky",), ("lawn",))


def test_missing_class_file(tmp_path):
    with pytest.raises(ConfigError, match="pseudolabel init"):
        load_classes(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no list of classes"),
        ("classes: []", "no list of classes"),
        ("classes: [yes]", "no class"),
        ("classes: [{name: a, colour: red}]", "'colour' in class 'a' is unknown"),
        ("classes: [{name: a, background: sky}]", "list of words"),
        ("classes: [a, A]", "must differ"),
        ("format_version: 2\nclasses: [a]", "format_version 2"),
        ("classes: [", "Cannot read the class file"),
        ("default_background: tree\nclasses: [a]", "default_background is 'tree', but must be a list"),
        ("default_background: {tree: 1}\nclasses: [a]", "default_background is"),
        ("default_background:\nclasses: [a]", "default_background is None"),
        ("classes: cat", "no list of classes"),
        ("classes: {cat: dog}", "no list of classes"),
        ("classes: [{name: a, background: [1]}]", "list of words"),
        ("classes: [{name: a, background: null}]", "list of words"),
        ("classes: [{name: a, phrase: [b, c]}]", "the phrase of class 'a' is"),
        ("classes: [{name: a, phrase: 12}]", "the phrase of class 'a' is 12"),
        ("classes: [{name: [a]}]", "no class"),
        ("classes: [[a]]", "no class"),
        ("classes: [{name: a, 1: b}]", "1 in class 'a' is unknown"),
        ("format_version: one\nclasses: [a]", "format_version 'one'"),
        ("classes: [background]", "may not be called 'background'"),
        ('classes: ["a\\tb"]', "control character"),
        ("classes: ['']", "not be empty"),
        ("classes: [" + "a" * 300 + "]", "longer than 200"),
        ("classes: [{name: a, background: [" + "b," * 5000 + "]}]", "has 5000 words; at most 100"),
        ("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nclasses: [" + "*b," * 900 + "]", "50,000 values"),
        ("classes: " + "[" * 5000, "nested too deeply"),
        ("classes: [a]\nclasses: [b]", "stands twice"),
    ],
)
def test_faulty_class_files_are_refused_in_one_line(tmp_path, text, match):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match) as caught:
        load_classes(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_class_file_may_share_lists(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("classes:\n- {name: a, background: &out [sky]}\n- {name: b, background: *out}\n", encoding="utf-16")
    assert load_classes(path).background_words == (("sky",), ("sky",))
