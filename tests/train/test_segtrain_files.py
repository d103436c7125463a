"""What is on the disk after a kill, a full disk or a file system of its own: the former file, or the new one, whole."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ImageError
from data.files import write_atomically
from train.checkpoint import load_network, read_checkpoint
from train.checkpoint_io import WholeCheckpoints
from train.cli import main
from train.probability_file import probability_file
from train.tiles import Block, pieces

resource = pytest.importorskip("resource")  # limits of a process, which Windows does not have

SHM = Path("/dev/shm")
KILLED_WHILE_WRITING = """
import resource, signal, sys
import torch
from train.checkpoint_io import WholeCheckpoints
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel ends the process in the middle of the write
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
WholeCheckpoints().save_checkpoint({"state_dict": {"w": torch.ones(100_000)}}, sys.argv[1])
"""


@contextmanager
def largest_file(size: int):
    """Let no file grow beyond a size: what a write then meets is what it meets on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def one_error(capsys) -> str:
    [line] = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("WARNING")]
    return line


def weights(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"state_dict": {"w": torch.full((100_000,), value)}}


def held(path: Path) -> float:
    return float(WholeCheckpoints().load_checkpoint(path, weights_only=True)["state_dict"]["w"][0])


def test_a_full_disk_leaves_the_former_checkpoint_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "last.ckpt"
    WholeCheckpoints().save_checkpoint(weights(1), path)
    with largest_file(200_000), pytest.raises(OSError, match=r"too large: '.*/last\.ckpt'"):
        WholeCheckpoints().save_checkpoint(weights(2), path)
    assert held(path) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]
    WholeCheckpoints().save_checkpoint(weights(2), path)
    assert held(path) == 2


def test_an_error_that_shows_at_the_disk_alone_leaves_the_former_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(weights(1), path)

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        WholeCheckpoints().save_checkpoint(weights(2), path)
    assert held(path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_kill_in_the_middle_of_the_write_leaves_the_former_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(weights(1), path)
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], check=False)
    assert done.returncode == -signal.SIGXFSZ
    assert [entry.stat().st_size for entry in tmp_path.glob(".last.ckpt.*")] == [200_000]
    assert held(path) == 1


@pytest.fixture
def another_file_system():
    if not SHM.is_dir() or SHM.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("there is one file system alone")
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        yield Path(folder)


def test_a_run_needs_no_temporary_folder_and_clears_up_after_a_killed_one(world, another_file_system, monkeypatch):
    folder = another_file_system / "r" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / ".last.ckpt.17.18.tmp").write_bytes(b"half")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert main(world.fit(folder.parent, "--trainer.max_steps", "4", "--checkpoint_every", "2")) == 0
    assert sorted(entry.name for entry in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    for name in ("best", "last"):
        load_network(folder / f"{name}.ckpt")


def test_a_checkpoint_is_replaced_and_never_removed(world, tmp_path, monkeypatch):
    """At no moment after the first write is there no whole last.ckpt and best.ckpt."""
    folder = tmp_path / "r" / "checkpoints"
    seen: list[set[str]] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        seen.append({path.name for path in folder.glob("*.ckpt") if read_checkpoint(path)})
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    monkeypatch.setattr(WholeCheckpoints, "remove_checkpoint", lambda self, path: pytest.fail(f"{path} is removed"))
    assert main(world.fit(tmp_path / "r", "--trainer.max_epochs", "3", "--checkpoint_every", "1")) == 0
    written = [names for names in seen if names]
    assert len(written) > 10
    assert all(former <= later for former, later in pairwise(written))


@pytest.mark.slow
def test_a_run_on_a_disk_that_fills_up_ends_in_one_line_and_goes_on_later(world, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no file system can be mounted here")
    try:
        more = ["--trainer.max_epochs", "2", "--checkpoint_every", "1"]
        assert main(world.fit(disk / "r", *more)) == 0
        last = disk / "r" / "checkpoints" / "last.ckpt"
        former = last.read_bytes()
        free = shutil.disk_usage(disk).free
        write_atomically(disk / "filler", bytes(max(0, free - len(former) // 2)))
        more = ["--trainer.max_epochs", "4", "--checkpoint_every", "1", "--ckpt_path", str(last)]
        capsys.readouterr()
        assert main(world.fit(disk / "r", *more)) == 2
        assert one_error(capsys).startswith("error: No space left on device: '")
        assert last.read_bytes() == former
        write_atomically(disk / "more", bytes(shutil.disk_usage(disk).free - 4096))
        assert main(world.fit(disk / "another")) == 2  # config.yaml has room, TensorBoard's file has none
        assert one_error(capsys).startswith("error: No space left on device: '")
        (disk / "filler").unlink()
        assert main(world.fit(disk / "r", *more)) == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def write(path: Path, shape: tuple[int, int, int], blocks) -> None:
    with probability_file(path, shape) as add:
        for block in blocks:
            add(block)


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    side=st.sampled_from([1, 8, 16, 64]),
    seed=st.integers(0, 9),
)
def test_probabilities_written_in_blocks_are_the_file_that_numpy_writes(tmp_path_factory, shape, side, seed):
    folder = tmp_path_factory.mktemp("npz")
    values = np.random.default_rng(seed).random(shape, np.float32)
    places = [(rows, columns) for rows in pieces(shape[1], side) for columns in pieces(shape[2], side)]
    np.random.default_rng(seed).shuffle(places)
    write(folder / "blocks.npz", shape, (Block(*place, values[:, *place]) for place in places))
    np.savez_compressed(folder / "whole.npz", probabilities=values.astype(np.float16))
    assert (folder / "blocks.npz").read_bytes() == (folder / "whole.npz").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["blocks.npz", "whole.npz"]


def test_probabilities_that_end_early_leave_what_was_there(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"of before")

    def blocks():
        yield Block(slice(0, 8), slice(0, 20), np.ones((2, 8, 20), np.float32))
        raise ImageError("its second half is damaged")

    with pytest.raises(ImageError):
        write(path, (2, 30, 20), blocks())
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("a.npz", b"of before")]


def test_probabilities_on_a_full_disk_are_an_error_that_names_the_file(tmp_path):
    block = Block(slice(0, 30), slice(0, 20), np.ones((2, 30, 20), np.float32))
    with largest_file(1000), pytest.raises(OSError, match=r"a\.npz"):
        write(tmp_path / "a.npz", (2, 30, 20), [block])
    assert list(tmp_path.iterdir()) == []
