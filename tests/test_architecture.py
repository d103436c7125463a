"""The rules of the house, read off the sources: who may import whom, and what is touched in one file alone."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "pseudolabel", "train")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py")

# Floors of the house, the lowest first: a module imports its own floor and those below, never one above. A name stands
# for a module or for all modules of a package; the longest that fits counts.
FLOORS = {
    "data": (
        ("data.errors",),
        ("data.files",),
        ("data.texts", "data.wording"),
        ("data.about",),
        ("data.machine",),
        ("data.console",),
        ("data.config", "data.config_files", "data.classes", "data.class_file"),
        ("data.images", "data.samples", "data.scoring", "data.lattice"),
        ("data.masks", "data.phrase_scores", "data.densecrf", "data.gpu"),
        ("data.readers", "data.store.softmaps", "data.store.records"),
        ("data.store",),
        ("data.store.source",),
        ("data.exporters", "data.demo"),
    ),
    "pseudolabel": (
        ("pseudolabel.softmaps.config", "pseudolabel.masks.config"),
        ("pseudolabel.config",),
        ("pseudolabel.softmaps", "pseudolabel.masks"),
        ("pseudolabel.review", "pseudolabel.explain"),
        ("pseudolabel.pipeline",),
        ("pseudolabel.ground",),
        ("pseudolabel.calibrate", "pseudolabel.generate", "pseudolabel.demo", "pseudolabel.personalize"),
        ("pseudolabel.commands",),
        ("pseudolabel.cli",),
        ("pseudolabel.__main__",),
    ),
}
# What only some modules touch: third parties whose insides change, each in one place.
TOUCHED_BY = {
    "pydensecrf": (
        "data.densecrf",
        "data.gpu",
    ),
    "diffusers": ("pseudolabel.softmaps.diffusion", "pseudolabel.demo.training"),
    "transformers": ("pseudolabel.softmaps.diffusion", "pseudolabel.demo.training", "pseudolabel.masks.sam"),
    "segmentation_models_pytorch": ("train.network",),
    "albumentations": ("train.transforms",),
}
FORBIDDEN = {
    "data": ("torch", "torchvision", "pseudolabel", "train", "diffusers", "transformers"),
    "pseudolabel": ("train", "segmentation_models_pytorch", "pytorch_lightning"),
    "train": ("pseudolabel", "diffusers", "transformers"),
}


def module_name(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")


MODULES = {module_name(path): path for path in SOURCES}


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in the file; of `from a import b` both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


IMPORTED = {module: imported(path) for module, path in MODULES.items()}
ARROWS = {module: {name for name in names if name in MODULES and name != module} for module, names in IMPORTED.items()}


def is_in(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def touches(module: str, package: str) -> bool:
    return any(is_in(name, package) for name in IMPORTED[module])


def floor_of(module: str) -> int | None:
    floors = FLOORS.get(module.split(".")[0], ())
    fits = [(len(place), number) for number, floor in enumerate(floors) for place in floor if is_in(module, place)]
    return max(fits)[1] if fits else None


def circle_through(arrows: dict[str, set[str]]) -> list[str]:
    """Return the names along one circle of arrows, or nothing."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        done.add(module)
        return next((found for target in sorted(arrows[module]) if (found := visit(target, [*path, module]))), [])

    return next((found for module in sorted(arrows) if (found := visit(module, []))), [])


def test_the_sources_are_found():
    assert len(SOURCES) > 100
    assert sum(map(len, ARROWS.values())) > 300


def test_every_module_of_data_and_stage_one_has_its_floor():
    assert [module for module in MODULES if not module.startswith("train.") and floor_of(module) is None] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module: str):
    above = [target for target in ARROWS[module] if (floor_of(target) or 0) > (floor_of(module) or 0)]
    other = [target for target in above if target.split(".")[0] == module.split(".")[0]]
    assert other == []


@pytest.mark.parametrize("module", MODULES)
def test_the_stages_meet_on_disk_alone(module: str):
    assert [package for package in FORBIDDEN[module.split(".")[0]] if touches(module, package)] == []


def test_no_imports_run_in_a_circle():
    assert circle_through(ARROWS) == []


def test_a_circle_would_be_found():
    assert circle_through({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("package", TOUCHED_BY)
def test_third_party_internals_are_touched_in_one_place(package: str):
    places = TOUCHED_BY[package]
    users = [module for module in MODULES if touches(module, package)]
    assert [module for module in users if not any(is_in(module, place) for place in places)] == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_private_is_imported(module: str):
    """Members are ruff's affair (SLF001)."""
    own = {name for name in IMPORTED[module] if name.split(".")[0] in PACKAGES}
    assert [name for name in own if name.split(".")[-1].startswith("_")] == []


@pytest.mark.parametrize("program", ["pseudolabel", "train"])
def test_help_imports_neither_numpy_nor_torch(program: str):
    code = (
        f"import sys\nfrom {program}.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(any(name in sys.modules for name in ('numpy', 'torch', 'cv2', 'PIL')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# Nouns that are counted in messages; of pixels, bytes and per cent there is never one.
COUNTED = re.compile(
    r"^ (\w+ )?(images|masks|classes|labels|files|rows|problems|scenes|sizes|passes|maps|names|lines|phrases|tensors)\b"
)
NUMBER = re.compile(r"len\(.*|count.*|[\w.]*(n_|number|count|total)\w*")


def bare_counts(path: Path) -> list[str]:
    """Return the f-strings of a file that put a plural behind a number they do not know."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant) and COUNTED.match(text.value):
                number = ast.unparse(value.value)
                if NUMBER.fullmatch(number):
                    found.append(f"{path.name}:{node.lineno} {number}{text.value[:19]}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_counts_are_said_in_one_way(module: str):
    """`data.wording.count` says "1 image"; a plural written behind a number says "1 images"."""
    assert bare_counts(MODULES[module]) == []


def test_a_bare_count_would_be_found(tmp_path):
    (tmp_path / "a.py").write_text('f"{len(found)} images are missing: {name} images"')
    assert bare_counts(tmp_path / "a.py") == ["a.py:1 len(found) images are missing"]


def test_no_package_below_tests_shadows_a_real_one():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_every_file_a_package_reads_is_packed():
    """An installed copy holds what the sources hold, but for texts and pictures about them."""
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    found = {
        path
        for package, patterns in packed.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    listed = subprocess.run(
        ["git", "ls-files", "-z", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    wanted = [name for name in listed.split("\0") if name and not name.endswith((".py", ".md"))]
    assert [name for name in wanted if ROOT / name not in found and name != "data/demo/figure.png"] == []


def test_every_tracked_file_speaks_of_the_project_alone():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    texts = [name for name in listed.split("\0") if name.endswith((".py", ".md", ".toml", ".yaml", ".yml", "Makefile"))]
    outside = re.compile(r"\.\./" + "shared|/" + r"work/|\bissue #?\d")
    found = [name for name in texts if (ROOT / name).exists() and outside.search((ROOT / name).read_text())]
    assert found == []
