"""Disks that are full or read-only and paths that cannot be written: one line, status 2, and a second try works."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.demo.world import TRAIN_TRUTH_FOLDER
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.pipeline import Pipeline

RUN = [sys.executable, "-m", "pseudolabel.cli"]
FORMATS = ("coco", "yolo", "voc", "labelstudio")


def left(folder: Path) -> list[str]:
    """What lies in a folder, without our lock files."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    assert len(errors) == 1
    return errors[0]


@pytest.fixture
def commands(made_store: Path, world: Path, tiny_options: list[str]):
    """Each command that writes, by name, with its output where one likes."""

    def make(output: Path) -> dict[str, list[str]]:
        data = ["--root", str(world)]
        small = ["--images=1", "--timesteps=[100]", "--draws=1", "--heads=false"]
        made = {
            "report": ["report", "--store", str(made_store), "--output", str(output)],
            "init": ["init", *data, "--output", str(output), "--overwrite"],
            "generate": ["generate", *data, "--store", str(output), *tiny_options, "--limit=1"],
            "refine": ["refine", "--store", str(made_store), "--output", str(output), "--workers=0"],
            "calibrate": ["calibrate", *data, "--output", str(output), *small, *tiny_options, "--replace_output"],
            "demo": ["demo", "--draw_only", "--output", str(output)],
        }
        for format in FORMATS:
            made[f"export {format}"] = [
                *("export", "--store", str(made_store), "--format", format, "--output", str(output)),
                "--images=copy",
            ]
        return made

    return make


NAMES = ["report", "init", "generate", "refine", "calibrate", "demo", *(f"export {format}" for format in FORMATS)]


@pytest.mark.parametrize("name", NAMES)
def test_an_output_below_a_file_is_one_line(commands, tmp_path, capsys, name):
    (tmp_path / "file").write_text("dear")
    assert main(commands(tmp_path / "file" / "out")[name]) == 2
    assert str(tmp_path / "file") in one_line(capsys)
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize("store", ["file/below/it", "loop", "nowhere/below"])
def test_a_store_that_cannot_be_is_found_before_the_model_is_loaded(
    world, tiny_options, tmp_path, capsys, monkeypatch, store
):
    (tmp_path / "file").write_text("dear")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    monkeypatch.setattr(Pipeline, "load", lambda *_: pytest.fail("the model was loaded"))
    assert main(["generate", "--root", str(world), "--store", str(tmp_path / store), *tiny_options]) == 2
    assert "is no folder: " in (line := one_line(capsys))
    assert str(tmp_path) in line
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("refine --output out", "workers"),
        ("report", "limit"),
        ("doubt", "limit"),
        ("export --format coco --output out", "min_area_px"),
    ],
)
def test_a_number_out_of_range_is_one_line_and_writes_nothing(made_store, tmp_path, capsys, monkeypatch, command, flag):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--store", str(made_store), f"--{flag}=-2"]) == 2
    assert f"--{flag} is -2: it must be at least 0" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_files_are_written_to_folders_that_are_not_there_yet(made_store, world, tmp_path):
    assert main(["init", "--root", str(world), "--output", str(tmp_path / "a" / "b" / "c.yaml")]) == 0
    assert main(["report", "--store", str(made_store), "--output", str(tmp_path / "d" / "e.html"), "--limit=1"]) == 0
    assert main(["doubt", "--store", str(made_store), "--output", str(tmp_path / "f" / "g.csv")]) == 0
    assert left(tmp_path) == ["a/b/c.yaml", "d/e.html", "f/g.csv"]


@pytest.mark.parametrize("name", ["report", "init", "calibrate"])
def test_a_file_in_the_place_of_a_folder_is_one_line(commands, tmp_path, capsys, name):
    (tmp_path / "out").mkdir()
    assert main(commands(tmp_path / "out")[name]) == 2
    assert str(tmp_path / "out") in one_line(capsys)
    assert left(tmp_path) == []


@contextlib.contextmanager
def full_after(monkeypatch: pytest.MonkeyPatch, n_files: int) -> Iterator[None]:
    """Let the disk be full once some files were moved into their place."""
    real, moved = os.replace, []

    def replace(source: str, target: str) -> None:
        moved.append(target)
        if len(moved) > n_files:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        yield


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("calibrate", "demo")])
def test_a_full_disk_loses_nothing_and_a_second_try_works(commands, tmp_path, monkeypatch, capsys, name):
    out = tmp_path / "out"
    command = commands(out)[name]
    for n_files in (0, 2) if name in ("generate", "refine") else (0,):
        with full_after(monkeypatch, n_files):
            assert main(command) == 2
        assert "No space left on device" in one_line(capsys)
        assert not [path for path in left(tmp_path) if path.endswith(".tmp")]
        if name.startswith("export"):
            assert list(tmp_path.iterdir()) == []
    assert main(command) == 0
    if name in ("generate", "refine"):
        store = MaskStore.open(out)
        assert len(store.ids()) == (1 if name == "generate" else 6)
        assert len(list((out / "masks").iterdir())) == len(store.ids())


def test_what_calibrate_found_is_not_lost(monkeypatch, tmp_path, capsys):
    """Hours may have gone into it, so it is printed."""
    from types import SimpleNamespace

    from PIL import Image

    from data import files
    from data.config import DataConfig
    from pseudolabel.calibrate import search
    from pseudolabel.commands.calibrate import calibrate

    (tmp_path / "photos" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "cat" / "1.png")

    def prepared(config: object, *_: object) -> object:
        return SimpleNamespace(config=config, content={})

    def found(task: object, _: object) -> object:
        return SimpleNamespace(search=SimpleNamespace(steps=["looked"], config=task.config), untried=())

    monkeypatch.setattr(search, "prepare", prepared)
    monkeypatch.setattr(search, "run_search", found)
    monkeypatch.setattr(search, "report_of", lambda *_: "# found\n")
    monkeypatch.setattr(files, "check_writable", lambda _: None)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.yaml")

    monkeypatch.setattr(files, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        calibrate(tmp_path / "x.yaml", data=DataConfig(root=tmp_path / "photos"))
    assert "could not be written; it would hold:\n# found" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("json", ["--json=true", "--json=false"])
def test_output_that_does_not_fit_where_it_is_sent(made_store, world, json):
    command = [*RUN, "score", "--store", str(made_store), "--truth", str(world / TRAIN_TRUTH_FOLDER), json]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "No space left" in done.stderr
    assert done.stderr.count("\n") == 1


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of a few kilobytes, where one may."""
    folder.mkdir()
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("mounts a small tmpfs")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 12_000])
@pytest.mark.parametrize("name", NAMES)
def test_on_a_disk_that_is_really_full(commands, tmp_path, capsys, name, room):
    """One line, nothing cut, and success once there is room."""
    if room and name in ("init", "generate", "calibrate"):
        pytest.skip("writes less than that")
    with small_disk(tmp_path / "disk", "240k") as disk:
        (disk / "ballast").write_bytes(b"x" * (240 * 1024 - room))
        command = commands(disk / "out")[name]
        assert main(command) == 2
        assert "No space left on device" in one_line(capsys)
        assert all(path == "ballast" or "out/" in path for path in left(disk))
        if name.startswith("export"):
            assert [path.name for path in disk.iterdir()] == ["ballast"]
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert main(command) == 0
        assert not [path for path in left(disk) if path.endswith((".tmp", ".partial"))]


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_the_root_of_a_disk_can_be_exported_to(commands, tmp_path, capsys, format):
    with small_disk(tmp_path / "disk", "40k") as disk:
        command = commands(disk)[f"export {format}"]
        assert main(command) == 2
        assert "No space left on device" in one_line(capsys)
        assert list(disk.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert main(command) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_on_a_disk_that_takes_nothing(commands, tmp_path, capsys, name):
    with small_disk(tmp_path / "disk", "64m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert main(commands(disk / "out")[name]) == 2
        assert "Read-only file system" in one_line(capsys)


def test_a_store_on_a_disk_that_takes_nothing_can_still_be_read(made_store, tmp_path, monkeypatch):
    store = shutil.copytree(made_store, tmp_path / "store")
    shutil.rmtree(store / "scores")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    opened = MaskStore.open(store)
    assert opened.read_soft(opened.ids()[0]) is None
