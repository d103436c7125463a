"""Other people's files: read in bounded time and memory, or refused in one line."""

import os
import time

import pytest

from data.errors import ConfigError, LabelError
from data.texts import FileKind, read_bytes, read_json, read_text, read_yaml

KIND = FileKind("the file", 100_000, "mend it", LabelError)
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "make", ["device", "link to a device", "fifo", "folder", "large", "missing", "zero in the name"]
)
def test_only_regular_files_of_a_stated_size_are_read(tmp_path, make):
    path = tmp_path / "file"
    match make:
        case "device":
            path = "/dev/zero"
        case "link to a device":
            path.symlink_to("/dev/zero")
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "large":
            path.write_bytes(bytes(KIND.limit_bytes + 1))
        case "zero in the name":
            path = tmp_path / "a\0b"
    with pytest.raises(LabelError, match=r"^Cannot read the file .*; mend it\.$"):
        read_bytes(path, KIND)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_texts_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "a").write_bytes("schön: 1\n".encode(encoding))
    assert read_text(tmp_path / "a", KIND) == "schön: 1\n"
    assert read_yaml(tmp_path / "a", KIND) == {"schön": 1}


@pytest.mark.parametrize("content", ["a: 1".encode("utf-16-le"), b"\xff\xfea", b"\xff", b"a\0b", "ä".encode("cp1252")])
def test_what_is_no_text_is_said(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    for read in (read_text, read_json, read_yaml):
        with pytest.raises(LabelError, match=r"zero characters|no text file in UTF"):
            read(tmp_path / "a", KIND)


@pytest.mark.parametrize("text", ["[" * 40_000, '{"a":' * 20_000, "[", '{"a": ' + "9" * 5000 + "}"])
def test_json_that_cannot_be_read(tmp_path, text):
    (tmp_path / "a").write_text(text)
    with pytest.raises(LabelError, match=r"nested too deeply|not JSON"):
        read_json(tmp_path / "a", KIND)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (BOMB, "more than 50,000 values"),
        ("&a [*a]", "more than 50,000 values|nested too deeply"),
        ("a: &a " + "x" * 50_000 + "\nb: [" + "*a," * 5000 + "]", "more than 50,000 values"),
        ("[" * 50_000, "nested too deeply"),
        ("a: 1\na: 2", "the key 'a' stands twice"),
        ("a: !!python/object/apply:os.system [ls]", "the tag"),
        ("a: !!int x", "the tag"),
        ("a: !!set {x}", "the tag"),
        ("? [a]\n: 1", "no single value"),
        ("a: 0b_", "a number that cannot be read"),
        ("a: " + "9" * 5000, "a number that cannot be read"),
        ("<<: 1", "merges what is no mapping"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: 1\n---\nb: 1", "but found another document"),
    ],
)
def test_yaml_that_is_refused_quickly(tmp_path, text, match):
    (tmp_path / "a").write_text(text)
    start = time.process_time()
    with pytest.raises(LabelError, match=match) as caught:
        read_yaml(tmp_path / "a", KIND)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 10


def test_yaml_of_plain_values(tmp_path):
    text = "a: &x [sky, 2020-01-02, 1.5, yes, ~]\nb: *x\nc: &m {d: 1}\ne: {<<: *m, f: 2}\n"
    (tmp_path / "a").write_text(text)
    words = ["sky", "2020-01-02", 1.5, True, None]
    assert read_yaml(tmp_path / "a", KIND) == {"a": words, "b": words, "c": {"d": 1}, "e": {"d": 1, "f": 2}}
    (tmp_path / "a").write_text("# nothing")
    assert read_yaml(tmp_path / "a", KIND) is None


@pytest.mark.parametrize("program", ["pseudolabel", "train"])
@pytest.mark.parametrize("make", ["bomb", "device"])
def test_config_files_are_read_the_same_way(tmp_path, capsys, program, make):
    from importlib import import_module

    path = tmp_path / "config.yaml"
    if make == "bomb":
        path.write_text(BOMB)
    else:
        path.symlink_to("/dev/zero")
    command = "check" if program == "pseudolabel" else "fit"
    start = time.process_time()
    for flags in (["--config", str(path)], [f"--config={path}"]):
        assert import_module(f"{program}.cli").main([command, *flags]) == 2
        assert capsys.readouterr().err.startswith("error: Cannot read the config file")
    assert time.process_time() - start < 5


def test_the_error_is_the_kinds():
    with pytest.raises(ConfigError, match="other"):
        read_bytes("/dev/zero", FileKind("the other file", 1, "mend it", ConfigError))
