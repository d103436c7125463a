"""data/ is quick to import and needs no torch: a labeller's or an annotation server's machine has none."""

import subprocess
import sys
from pathlib import Path

import data

ROOT = Path(data.__file__).parent
MODULES = sorted(
    "data." + path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in ROOT.rglob("*.py")
    if path.stem != "__init__"
)
HEAVY = ("torch", "cv2", "pycocotools", "pydensecrf", "diffusers", "yaml", "scipy", "pandas")


def test_all_of_data_is_found():
    assert {"data.readers.layout", "data.store.store", "data.demo.world"} <= set(MODULES)


def test_data_imports_nothing_heavy():
    lines = [f"import {name}" for name in MODULES]
    code = "\n".join(["import sys", *lines, f"print([name for name in {HEAVY} if name in sys.modules])"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_data_works_without_torch_installed():
    code = "import sys; sys.modules['torch'] = None; " + "; ".join(f"import {name}" for name in MODULES)
    subprocess.run([sys.executable, "-c", code], check=True)
