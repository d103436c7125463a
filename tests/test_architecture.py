"""The rules of the house, read off the sources: who may import whom, and what is touched in one file alone."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "pseudolabel", "train")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names of every module a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def touches(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imported(path))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_sources_are_found():
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_packages_import_only_downwards(path: Path):
    forbidden = {
        "data": ("torch", "torchvision", "pseudolabel", "train", "diffusers", "transformers"),
        "pseudolabel": ("train", "segmentation_models_pytorch", "pytorch_lightning"),
        "train": ("pseudolabel", "diffusers", "transformers"),
    }[relative(path).split("/")[0]]
    found = [package for package in forbidden if touches(path, package)]
    assert not found, f"{relative(path)} imports {found}"


@pytest.mark.parametrize(
    ("package", "files"),
    [
        ("pydensecrf", {"data/densecrf.py"}),
        ("diffusers", {"pseudolabel/diffusion.py", "pseudolabel/attention.py"}),
        ("segmentation_models_pytorch", {"train/network.py"}),
        ("albumentations", {"train/transforms.py"}),
    ],
)
def test_third_party_internals_are_touched_in_one_place(package: str, files: set[str]):
    trainers = "pseudolabel/demo/training/"
    found = {relative(path) for path in SOURCES if touches(path, package)}
    assert {name for name in found if not name.startswith(trainers)} <= files


def test_no_package_below_tests_shadows_a_real_one():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_every_tracked_file_speaks_of_the_project_alone():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    texts = [name for name in listed.split("\0") if name.endswith((".py", ".md", ".toml", ".yaml", ".yml", "Makefile"))]
    outside = re.compile(r"\.\./" + "shared|/" + r"work/|\bissue #?\d")
    found = [name for name in texts if (ROOT / name).exists() and outside.search((ROOT / name).read_text())]
    assert found == []
