import subprocess
import sys

MODULES = [
    *(
        "brush",
        "checks",
        "classes",
        "cls_labels",
        "coco",
        "densecrf",
        "errors",
        "export",
        "folder",
        "labels",
        "listing",
    ),
    *("masks", "polygons", "samples", "scoring", "store", "voc"),
]
HEAVY = ("torch", "cv2", "pycocotools", "pydensecrf", "diffusers", "yaml", "scipy", "pandas")


def test_data_imports_nothing_heavy():
    lines = [f"import data.{name}" for name in MODULES]
    code = "\n".join(["import sys", *lines, f"print([name for name in {HEAVY} if name in sys.modules])"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readers_without_torch_installed():
    code = (
        "import sys; sys.modules['torch'] = None; from data.samples import open_samples; import data.coco, data.store"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
