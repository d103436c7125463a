"""What the commands of stage one hold in memory for the largest images that are read.

    python -m benchmarks.memory --output benchmarks/memory.md

Each case is a data set of a few images of noise, the worst case for the CRF's lattice, with eight labels each. The
command runs in a process of its own with the default number of workers; every 0.2 s the memory of that process and its
children is added up (shared pages divided among those that share them). The same command on images of 64 x 64 pixels
gives what model and libraries take.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import DEMO_CONFIG, DEMO_MODEL, HERE, machine, machine_line, table, write_text
from data.classes import VOC

LABELS = VOC.names[:8]
GIB = 1 << 30
POLL_S = 0.2  # adding up the pages of a large process takes a while itself
ALLOWED_GIB = 4.0
PREDICT_HEADING = "## segtrain predict"  # of the section that `benchmarks.memory_predict` writes
Case = tuple[str, str, tuple[int, int], int]  # what, Pillow's mode, (height, width), number of images
CASES: tuple[Case, ...] = (
    ("500 x 375", "RGB", (375, 500), 4),
    ("1,920 x 1,080 (as it is)", "RGB", (1080, 1920), 2),
    ("4,000 x 3,000", "RGB", (3000, 4000), 2),
    ("12,000 x 7,456", "RGB", (7456, 12_000), 2),
    ("12,000 x 7,456, on its side", "turned", (7456, 12_000), 2),
    ("12,000 x 7,456, transparent", "RGBA", (7456, 12_000), 2),
    ("1,000,000 x 89", "RGB", (89, 1_000_000), 2),  # a row of more than a few million pixels Pillow does not take
)
AFTERWARDS = ("refine", "score", "report", "export coco", "export labelstudio")


def draw_images(root: Path, mode: str, size_hw: tuple[int, int], count: int) -> None:
    """Write images of noise with a label file, and black ground truth."""
    (root / "masks").mkdir(parents=True)
    for index in range(count):
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 256, (*size_hw, 4 if mode == "RGBA" else 3), np.uint8)
        image = Image.fromarray(pixels)
        exif = image.getexif()
        exif[0x0112] = 6 if mode == "turned" else 1
        image.save(root / f"{index}.png", compress_level=0, exif=exif)
        truth = np.zeros(size_hw[::-1] if mode == "turned" else size_hw, np.uint8)
        Image.fromarray(truth).save(root / "masks" / f"{index}.png", compress_level=1)
    rows = [f"{index}.png,{';'.join(LABELS)}" for index in range(count)]
    (root / "labels.csv").write_text("\n".join(["image,labels", *rows, ""]), encoding="utf-8")


def peak_bytes(command: list[str]) -> tuple[int, float]:
    """Run a command and return the highest memory of its processes together, and the seconds it took."""
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=HERE.parent)
        while process.poll() is None:
            peak = max(peak, sum(_proportional_bytes(pid) for pid in _family(process.pid)))
            time.sleep(POLL_S)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {said.read()[-2000:].decode()}")
    return peak, time.perf_counter() - started


def _family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]
    except OSError:
        return []
    return [pid, *(each for child in children for each in _family(child))]


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def commands(root: Path, folder: Path) -> dict[str, list[str]]:
    """Return the command lines: generate first, then what works on its store."""
    program = [sys.executable, "-W", "ignore", "-m", "pseudolabel.cli"]
    store = ["--store", str(folder / "masks")]
    config = ["--config", str(DEMO_CONFIG), "--model.id", str(DEMO_MODEL)]
    found = {"generate": [*program, "generate", *config, "--root", str(root), *store, "--crf.iterations", "2"]}
    found["refine"] = [*program, "refine", *store, "--output", str(folder / "refined"), "--fuse.threshold", "0.3"]
    found |= {name: [*program, name, *store] for name in ("score", "report")}
    for kind in ("coco", "labelstudio"):
        found[f"export {kind}"] = [*program, "export", *store, "--format", kind, "--output", str(folder / kind)]
    return found


def measure(case: Case, names: tuple[str, ...]) -> dict[str, tuple[int, float]]:
    """Return peak and seconds of each command on the images of a case."""
    _, mode, size_hw, count = case
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "photos"
        draw_images(root, mode, size_hw, count)
        found = commands(root, Path(name))
        return {each: peak_bytes(found[each]) for each in ("generate", *names)}


def report(base: dict[str, tuple[int, float]], results: dict[str, dict[str, tuple[int, float]]], only: str = "") -> str:
    """Return the page."""

    def beyond(each: dict[str, tuple[int, float]], name: str) -> str:
        return f"{max(0, each[name][0] - base[name][0]) / GIB:.2f}" if name in each else ""

    rows = [
        [what, beyond(each, "generate"), f"{each['generate'][1]:.0f}", *(beyond(each, name) for name in AFTERWARDS)]
        for what, each in results.items()
    ]
    worst = max(float(row[1]) for row in rows)
    return "\n\n".join(
        [
            "# Memory for large images",
            f"GiB beyond what the same command takes for images of 64 x 64 pixels ({base['generate'][0] / GIB:.2f} GiB "
            "for `generate`, model and libraries), all processes together; images of noise, eight labels each, default "
            "settings but for the demo model's own and two CRF iterations (more take time, not memory). An image of "
            "more than `crf.max_megapixels` (2.1 million pixels) is worked on at that size, its labels are enlarged. "
            "With more worker processes as many such images are refined at once as half of the free memory holds at "
            "2.7 GiB each, which noise takes; photographs take half of it.",
            table(["image", "generate", "its seconds", *AFTERWARDS], rows),
            f"Allowed: {ALLOWED_GIB:g} GiB for `generate`; the most measured: {worst:.2f} GiB.",
            machine_line(machine()),
            "Made by `python -m benchmarks.memory" + (f" --only {only!r}`." if only else "`."),
        ]
    )


def predict_section(page: Path) -> str:
    """Return the section that `benchmarks.memory_predict` has written."""
    _, heading, text = (page.read_text(encoding="utf-8") if page.exists() else "").partition(PREDICT_HEADING)
    return f"\n\n{heading}{text}" if heading else ""


def main() -> None:
    """Measure all cases and write the page; exit status 1 if `generate` took more than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE / "memory.md")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    options = parser.parse_args()
    base = measure(("64 x 64", "RGB", (64, 64), 2), AFTERWARDS)
    results = {}
    for case in CASES:
        if options.only in case[0]:
            results[case[0]] = measure(case, AFTERWARDS if case[0] in {"12,000 x 7,456", "500 x 375"} else ())
            taken = {name: f"{peak / GIB:.2f} GiB" for name, (peak, _) in results[case[0]].items()}
            print(case[0], taken, flush=True)
    write_text(options.output, report(base, results, options.only) + predict_section(options.output))
    if any(each["generate"][0] - base["generate"][0] > ALLOWED_GIB * GIB for each in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
