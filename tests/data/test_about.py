import json
import os
import re
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir

from data.about import EXTRAS, required, versions
from data.console import EXIT_FAULT, run_program
from pseudolabel.cli import main

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]


def test_every_extra_is_described_and_its_packages_are_known():
    assert set(EXTRAS) == set(PROJECT["optional-dependencies"])
    names = {re.match(r"[\w.-]+", line)[0] for line in PROJECT["dependencies"]}
    assert set(required()) == names
    for extra, lines in PROJECT["optional-dependencies"].items():
        found = {re.match(r"[\w.-]+", line)[0] for line in lines} - {PROJECT["name"]}
        assert set(required(extra)) == found
    assert all(versions().values())  # the suite runs where they are installed


def test_about_names_what_a_report_needs(capsys, monkeypatch):
    monkeypatch.setattr("data.about.version", lambda name: (_ for _ in ()).throw(__missing(name)))
    assert main(["about"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("torch MISSING" in line for line in lines)
    assert any(line.startswith("Extra     [train] not installed (segmentation-models-pytorch") for line in lines)
    monkeypatch.undo()
    assert main(["about", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"]
    assert found["cores"] >= 1
    assert any(model.endswith("demo/model") for model in found["models"])


LOOPS = pytest.mark.skipif(sys.version_info >= (3, 13), reason="a loop is no folder, and no error, from Python 3.13 on")


@pytest.mark.parametrize("place", ["a file", pytest.param("a loop", marks=LOOPS)])
def test_about_says_what_there_is_where_the_hubs_cache_cannot_be_read(capsys, monkeypatch, tmp_path, place):
    if place == "a file":
        (tmp_path / "cache").write_text("dear")
    else:
        (tmp_path / "cache").symlink_to(tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", partial(scan_cache_dir, tmp_path / "cache"))
    assert main(["about"]) == 0
    said = capsys.readouterr().out
    assert "Cache     the hub's cannot be read: " in said
    assert "demo/model" in said


def __missing(name: str) -> Exception:
    from importlib.metadata import PackageNotFoundError

    return PackageNotFoundError(name)


def fail(_: object) -> None:
    raise KeyError("a\nb")


def test_an_error_nobody_expected_is_one_line_and_keeps_its_traceback(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_program(fail, ["score", "--store", "s"], "") == EXIT_FAULT == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: unexpected KeyError: 'a\\nb'; its traceback is in ")
    assert "pseudolabel about" in error
    [kept] = tmp_path.iterdir()
    assert str(kept) in error
    text = kept.read_text()
    assert "in fail" in text
    assert "'score' '--store' 's'" in text
    assert "torch " in text


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a folder that takes no file")
def test_a_traceback_that_no_file_takes_is_shown(capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc")  # takes no file
    assert run_program(fail, [], "") == EXIT_FAULT
    error = capsys.readouterr().err
    assert "in fail" in error
    assert "its traceback is above" in error
