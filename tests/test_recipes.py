"""The recipes of CONTRIBUTING.md are followed to the letter: their files, lines and tests, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(python|diff) (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FAMILY = "pseudolabel/softmaps/diffusion"


def apply(diff: str, text: str) -> str:
    """Return a text with the one place that a diff shows changed as it says.

    >>> apply("-a = 1\\n+a = 2\\n", "a = 1\\nb = 1\\n")
    'a = 2\\nb = 1\\n'
    """
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(before.rstrip("\n")) == 1, diff
    return text.replace(before.rstrip("\n"), after.rstrip("\n"))


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The project with all three recipes followed; the backbone is PixArt's file under another name."""
    root = tmp_path_factory.mktemp("recipes")
    for folder in ("data", "pseudolabel", "train", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copy(root / FAMILY / "pixart.py", root / FAMILY / "mine.py")
    for language, name, content in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        path = root / name
        if language == "python":
            assert not path.exists()
            path.write_text(content, encoding="utf-8")
        else:
            path.write_text(apply(content, path.read_text(encoding="utf-8")), encoding="utf-8")
    (root / FAMILY / "pixart.py").unlink()
    replaced(root / FAMILY / "families.py", '    "pixart": pixart,\n', "")
    replaced(root / FAMILY / "families.py", "mine, pixart, sd3", "mine, sd3")
    replaced(root / "tests/pseudolabel/families/test_reading.py", 'family == "pixart"', 'family == "mine"')
    return root


def run(copy: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_recipes_tests_pass(copy):
    """A refinement and a data set with the tests that the recipes give; a backbone with the tests of every family."""
    own = ["tests/pseudolabel/masks/test_median.py", "tests/data/readers/test_pets.py"]
    family = ["tests/pseudolabel/families/test_reading.py", "-k", "median or species or speck or pixart"]
    said = run(copy, "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *own, *family)
    assert int(re.search(r"(\d+) passed", said)[1]) > 6


def test_the_command_line_knows_them(copy):
    said = run(copy, "pseudolabel.cli", "generate", "--help")
    assert "pets" in said
    assert "median" in said
