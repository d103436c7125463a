"""Files and folders that appear whole or not at all, and that never reach through a link."""

import errno
import os
from pathlib import Path

import pytest
from filelock import FileLock

from data.errors import UserError
from data.files import (
    append_line,
    check_place,
    check_writable,
    is_free,
    json_bytes,
    new_folder,
    parse_json,
    write_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").write_text("dear")
    (tmp_path / "out").symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "out", b"new")
    assert (tmp_path / "mine").read_text() == "dear"
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    import threading

    (tmp_path / "mine").write_text("dear")
    (tmp_path / f".out.{os.getpid()}.{threading.get_ident()}.tmp").symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "out", b"new")
    assert (tmp_path / "mine").read_text() == "dear"
    assert names(tmp_path) == ["mine", "out"]


@pytest.mark.parametrize("linked", ["index.jsonl", ".index.jsonl.lock"])
def test_lines_are_not_appended_through_a_link(tmp_path, linked):
    (tmp_path / "mine").write_text("dear")
    (tmp_path / linked).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="link"):
        append_line(tmp_path / "index.jsonl", {"id": "x"})
    assert (tmp_path / "mine").read_text() == "dear"


def test_the_error_names_the_file_and_not_the_temporary_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'.*/gone/out'"):
        write_atomically(tmp_path / "gone" / "out", b"")
    with pytest.raises(IsADirectoryError, match="A folder"):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'.*/gone/out'"):
        check_writable(tmp_path / "gone" / "out")
    check_writable(tmp_path / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("taken", ["file", "file below", "link to nowhere", "loop"])
def test_a_place_where_no_folder_can_be_is_found_before_it_is_filled(tmp_path, taken):
    (tmp_path / "file").write_text("dear")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    place = {"file": "file", "file below": "file/a/b", "link to nowhere": "nowhere/a", "loop": "loop"}[taken]
    before = names(tmp_path)
    with pytest.raises(NotADirectoryError, match="Not a folder"):
        check_place(tmp_path / place)
    assert names(tmp_path) == before


def test_a_place_that_takes_no_folder_is_named_as_it_was_given(tmp_path, monkeypatch):
    check_place(tmp_path / "a" / "b")
    check_place(tmp_path)
    assert names(tmp_path) == []

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", "probe")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(OSError, match=r"Read-only file system: '.*/a/b'"):
        check_place(tmp_path / "a" / "b")


def test_a_new_folder_stands_there_when_the_block_ends(tmp_path):
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["a"]


def test_an_empty_folder_is_filled_where_it_is(tmp_path):
    """It may be the root of another disk, which nothing can be renamed to."""
    (tmp_path / "out").mkdir()
    inode = (tmp_path / "out").stat().st_ino
    with new_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("x")
        assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["sub"]
    assert (tmp_path / "out").stat().st_ino == inode


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_nothing_is_left_of_one_that_failed(tmp_path, existing, fault):
    if existing:
        (tmp_path / "out").mkdir()

    def fill() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("x")
            raise fault

    with pytest.raises(type(fault)):
        fill()
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if existing else [])
    assert is_free(tmp_path / "out")


@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_names_the_folder_and_not_what_was_written_beside_it(tmp_path, existing):
    if existing:
        (tmp_path / "out").mkdir()
    for name in (None, "a.png"):
        with pytest.raises(OSError, match=r"full: '.*/out'$"), new_folder(tmp_path / "out") as folder:
            raise OSError(errno.ENOSPC, "full", *([] if name is None else [str(folder / name)]))
    with pytest.raises(OSError, match=r"damaged: 'photo\.jpg'"), new_folder(tmp_path / "out"):
        raise OSError(errno.EIO, "damaged", "photo.jpg")


@pytest.mark.parametrize("existing", [False, True])
def test_what_a_killed_process_left_is_cleared_away(tmp_path, existing):
    (tmp_path / "photo").write_text("dear")
    if existing:
        (tmp_path / "out").mkdir()
    left = tmp_path / "out" / ".partial" if existing else tmp_path / ".out.partial"
    (left / "images").mkdir(parents=True)
    (left / "images" / "a").symlink_to(tmp_path / "photo")
    assert is_free(tmp_path / "out")
    with new_folder(tmp_path / "out") as folder:
        assert names(folder) == []
        (folder / "b").write_text("x")
    assert names(tmp_path / "out") == ["b"]
    assert names(tmp_path) == ["out", "photo"]
    assert (tmp_path / "photo").read_text() == "dear"


def test_what_is_taken_stays(tmp_path):
    (tmp_path / "file").write_text("dear")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("dear")
    for name in ("file", "nowhere", "full"):
        assert not is_free(tmp_path / name)
        with pytest.raises(UserError, match="not empty"), new_folder(tmp_path / name):
            pass
    assert (tmp_path / "full" / "a").read_text() == "dear"


def test_two_processes_do_not_fill_one_folder(tmp_path):
    with (
        FileLock(tmp_path / ".out.partial.lock"),
        pytest.raises(UserError, match="Another process"),
        new_folder(tmp_path / "out"),
    ):
        pass


def test_json_is_read_with_care():
    assert parse_json(b'\xef\xbb\xbf{"a": "[[["}') == {"a": "[[["}
    deep = b"[" * 90 + b"]" * 90
    assert parse_json(deep)
    for content in (b"[" * 5000 + b"]" * 5000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"\xff", b"", b"[1" + b"0" * 5000):
        with pytest.raises(ValueError, match=r"."):
            parse_json(content)
    assert parse_json(b"[" + b'"[",' * 200 + b"1]")[0] == "["


def test_a_name_of_no_encoding_is_written_and_comes_back():
    path = os.fsdecode(b"photo\xe9.jpg")
    assert parse_json(json_bytes({"image": path}))["image"] == path
    assert json_bytes({"image": "né"}) == '{"image": "né"}'.encode()
