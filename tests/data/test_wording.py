import errno
from pathlib import Path

import pytest

from data.errors import UserError
from data.wording import count, one_line, plural, printable, short, some, system_fault


def test_counts_agree_with_their_nouns():
    assert [count(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [plural(2, noun) for noun in ("class", "box", "batch", "category", "array")] == [
        "classes", "boxes", "batches", "categories", "arrays",
    ]  # fmt: skip
    assert count(1, "image has", "images have") == "1 image has"
    assert count(3, "image has", "images have") == "3 images have"


@pytest.mark.parametrize("name", ["cat", "naïve été", "猫 と 犬", "قطة", "a & b's <c>", "C:\\x", "e\u0301", "👍🏽", ""])
def test_names_that_can_be_read_stay(name):
    assert printable(name) == name


@pytest.mark.parametrize(
    "sign", ["\u202e", "\u2066", "\u200b", "\u200f", "\ufeff", "\x1b", "\r", "\n", "\x85", "\u2028"]
)
def test_signs_that_cannot_be_seen_are_written_out(sign):
    shown = printable(f"a{sign}b")
    assert shown.isprintable()
    assert shown.startswith("a\\")
    assert shown.endswith("b")


def test_a_name_of_another_encoding_can_be_printed():
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert printable(name) == "caf\\udce9.png"
    printable(name).encode()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a"), "No space left on device: 'a'; check the path"),
        (FileExistsError(errno.EEXIST, "File exists", "a"), "It exists, and is no folder: 'a'; check"),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", Path("a")),
            "It is a folder, and a file is to be there: 'a'",
        ),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; check the path"),
        (OSError(errno.EACCES, "Permission denied", b"caf\xe9"), r"Permission denied: 'caf\udce9'; check"),
        (OSError("Only 3 of 9 bytes were written"), "Only 3 of 9 bytes were written"),
    ],
)
def test_errors_of_the_system_are_said_in_words(error, said):
    line = system_fault(error)
    assert line.startswith(said)
    assert "Errno" not in line


def test_names_are_listed_as_far_as_they_are_few():
    assert some([]) == ""
    assert some(list("abcde")) == "a, b, c, d, e"
    assert some(list("abcdef")) == "a, b, c, d, e and 1 more"


@pytest.mark.parametrize("value", ["x" * 10_000, ["x" * 500] * 9, {"a": {"b": [1] * 999}}, 10**4000, object()])
def test_values_in_messages_are_short(value):
    assert 0 < len(short(value)) <= 100


def test_errors_are_printable():
    assert one_line(UserError("no image x\u202egnp.\x1b[2J\n here")) == "no image x\\u202egnp.\\x1b[2J here"
