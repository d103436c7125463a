"""A calibration that is interrupted, or has little time, and the same command again: it ends as if nothing had been."""

import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from filelock import FileLock

from data.machine import REPOSITORY
from pseudolabel.calibrate import budget, kept, recordings
from pseudolabel.calibrate.kept import checkpoint_path
from pseudolabel.cli import main

STEPS = (
    "the settings given", "timestep and cross layers", "background words", "affinity",
    "small changes", "comparison with the settings given", "image sizes", "timestep again",
    "weights of layers and heads", "heads", "refinement",
)  # fmt: skip


@pytest.fixture(scope="session")
def arguments(few_layers, shared_world):
    """A calibration of a few seconds, all steps of it; --output is missing."""
    return [
        "calibrate", "--root", str(shared_world), f"--model.id={few_layers}", "--resize.long_side_px=64", "--images=2",
        "--diffusion.draws=1", "--draws=1", "--timesteps=[100]", "--device=cpu", "--workers=0", "--crf.iterations=2",
        "--attention.cross_layers=[mid]", "--attention.self_layers=[mid]",
    ]  # fmt: skip


def count_passes(monkeypatch) -> list[int]:
    """The sizes of the batches that the model runs for recordings, from now on."""
    seen, run = [], recordings.run_passes

    def counted(parts, cross, cells, batch, *rest, **settings):
        seen.append(len(batch))
        return run(parts, cross, cells, batch, *rest, **settings)

    monkeypatch.setattr(recordings, "run_passes", counted)
    return seen


def interrupt_after(monkeypatch, writes: int, error: BaseException) -> Iterator[int]:
    """Let the process end in the middle of what it keeps, after so many files and lines; return what counts them."""
    counter = itertools.count(1)

    def counted(write):
        def again(*args, **options):
            if next(counter) > writes:
                raise error
            return write(*args, **options)

        return again

    for name in ("write_atomically", "append_line"):
        monkeypatch.setattr(kept, name, counted(getattr(kept, name)))
    return counter


class Undisturbed(NamedTuple):
    """What a calibration comes to when nothing happens, in how many batches and files and lines."""

    content: bytes
    passes: int
    writes: int


@pytest.fixture(scope="session")
def undisturbed(arguments, tmp_path_factory) -> Undisturbed:
    output = tmp_path_factory.mktemp("whole") / "found.yaml"
    with pytest.MonkeyPatch.context() as patch:
        passes, writes = count_passes(patch), interrupt_after(patch, 10**6, KeyboardInterrupt())
        assert main([*arguments, "--output", str(output)]) == 0
    assert list(output.parent.iterdir()) == [output]
    return Undisturbed(output.read_bytes(), len(passes), next(writes) - 1)


@pytest.fixture
def whole(undisturbed) -> bytes:
    return undisturbed.content


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "found.yaml"


# While the first pictures are read; in the middle of forward selection; of the affinities; of the refinements.
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_what_was_interrupted_ends_as_if_it_had_not_been(arguments, undisturbed, output, monkeypatch, capsys, share):
    passes = count_passes(monkeypatch)
    command = [*arguments, "--output", str(output)]
    with monkeypatch.context() as patch:
        interrupt_after(patch, round(share * undisturbed.writes), KeyboardInterrupt())
        assert main(command) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert not output.exists()
    assert not list(checkpoint_path(output).rglob("*.tmp"))
    assert main(command) == 0
    assert output.read_bytes() == undisturbed.content
    assert list(output.parent.iterdir()) == [output]
    assert len(passes) <= undisturbed.passes + 2  # none is read twice but what was not kept: a picture, or heads


def stopped(arguments, output, seconds: int, monkeypatch, clock=None) -> int:
    """Run with a budget of so many looks at a clock that goes on by a second at each."""
    with monkeypatch.context() as patch:
        ticking = itertools.count().__next__ if clock is None else clock
        patch.setattr(budget, "Budget", partial(budget.Budget, clock=ticking))
        return main([*arguments, "--output", str(output), f"--budget_minutes={seconds / 60}"])


def test_a_search_without_the_time_to_measure_anything_writes_what_was_given(arguments, output, monkeypatch, capsys):
    assert stopped(arguments, output, 1, monkeypatch) == 0
    text = output.read_text()
    assert "# There was no time to measure anything: these are the settings given." in text
    assert yaml.safe_load(text)["attention"] == {"cross_layers": ["mid"], "self_layers": ["mid"]}
    said = capsys.readouterr().out
    assert "The time was up before: the settings given, timestep and cross layers, background words" in said
    assert "The same command goes on from here." in said


def test_little_time_after_little_time_ends_as_a_search_without_limit(arguments, whole, output, monkeypatch, capsys):
    """The best so far is written each time; what was not tried is named, and gets less."""
    left = []
    for seconds in range(30, 200, 8):
        assert stopped(arguments, output, seconds, monkeypatch) == 0
        said = capsys.readouterr().out
        if " as configured, " in said:
            given, best = re.findall(r"[\d.]+ / ([\d.]+) (?:as configured|calibrated)", said)
            assert float(best) >= float(given)
        text = output.read_text()
        if "The time was up" not in text:
            break
        names = text.split("The time was up before: ")[1].split(".\n")[0].split(", ")
        assert [name for name in STEPS if name in names] == names  # what usually gains most first
        left.append(len(names))
    assert output.read_bytes() == whole
    assert left == sorted(left, reverse=True)
    assert left[0] > left[-1]
    assert list(output.parent.iterdir()) == [output]


def test_what_was_changed_by_hand_is_not_replaced(arguments, output, monkeypatch, capsys):
    assert stopped(arguments, output, 1, monkeypatch) == 0
    output.write_text(output.read_text() + "# mine\n")
    assert stopped(arguments, output, 1, monkeypatch) == 2
    assert "--replace_output" in capsys.readouterr().err
    assert output.read_text().endswith("# mine\n")


@pytest.fixture
def begun(arguments, output, monkeypatch):
    """What an interrupted calibration leaves."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, 8, KeyboardInterrupt())
        assert main([*arguments, "--output", str(output)]) == 130
    return checkpoint_path(output)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["--images=3"], "differs in data"),
        (["--heads=false", "--crf.iterations=3"], "differs in settings, options"),
        (["--diffusion.seed=1"], "differs in settings"),
    ],
)
def test_what_is_kept_of_another_calibration_is_refused(arguments, output, begun, changed, expected, capsys):
    capsys.readouterr()
    assert main([*arguments, *changed, "--output", str(output)]) == 2
    [line] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert expected in line
    assert "use the same, delete it, or choose another --output" in line
    assert not output.exists()


def test_another_model_is_refused(arguments, output, begun, few_layers, tmp_path, capsys):
    other = shutil.copytree(few_layers, tmp_path / "model")
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert main([*arguments, f"--model.id={other}", "--output", str(output)]) == 2
    assert "differs in model, settings" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 2}'])
def test_a_damaged_or_newer_header_is_refused(arguments, output, begun, content, capsys):
    (begun / kept.HEADER).write_text(content)
    assert main([*arguments, "--output", str(output)]) == 2
    assert "delete it, or choose another --output" in capsys.readouterr().err


def test_torn_files_are_made_again(arguments, whole, output, begun):
    """A power failure may cut off what the disk had not written yet."""
    pictures = sorted(begun.glob("*/*.safetensors"))
    assert pictures
    for path, length in zip(pictures, itertools.cycle((0, 40))):
        os.truncate(path, length)
    with (begun / kept.JUDGED).open("ab") as file:
        file.write(b'{"judged": {"a": [0.')
    assert main([*arguments, "--output", str(output)]) == 0
    assert output.read_bytes() == whole


def test_a_full_disk_does_not_end_the_search(arguments, whole, output, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 9, OSError(errno.ENOSPC, "No space left on device"))
        assert main([*arguments, "--output", str(output)]) == 0
    assert output.read_bytes() == whole
    assert capsys.readouterr().err.count("the disk is full; the calibration goes on") == 1


def test_two_at_once_are_refused(arguments, output, begun, capsys):
    with FileLock(begun / ".lock"):
        assert main([*arguments, "--output", str(output)]) == 2
    assert "Another process is calibrating" in capsys.readouterr().err


def test_nothing_is_left_of_a_search_that_could_not_begin(arguments, output, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1, KeyboardInterrupt())
        assert main([*arguments, "--output", str(output)]) == 130
    assert list(output.parent.iterdir()) == []


def test_a_budget_of_nothing_is_refused(arguments, output, capsys):
    assert main([*arguments, "--output", str(output), "--budget_minutes=0"]) == 2
    assert "--budget_minutes is 0.0: it must be above 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_process_is_gone_on_from(arguments, whole, output):
    """Killed twice: while it reads, and when hundreds of settings have been judged."""
    command = [sys.executable, "-m", "pseudolabel", *arguments, "--output", str(output)]
    folder = checkpoint_path(output)

    def judged() -> int:
        path = folder / kept.JUDGED
        return len(path.read_bytes().splitlines()) if path.is_file() else 0

    for enough in (lambda: any(folder.glob("*/*.safetensors")), lambda: judged() > 12):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        ) as process:
            while not enough() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    assert main([*arguments, "--output", str(output)]) == 0
    assert output.read_bytes() == whole
