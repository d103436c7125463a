"""The dense CRF's two engines: whether they agree, how quick they are, what they hold in memory.

    python -m benchmarks.crf --images VOCdevkit/VOC2012/JPEGImages --output benchmarks/crf.md

Each picture is refined by pydensecrf and by torch in turn, on one thread, with the published ranges and ten steps; the
shorter of two times counts. The scores are smooth random maps that know nothing of the picture, which leaves more
pixels undecided than a model's would. `--images` adds photographs of one's own to the drawn pictures.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.common import HERE, machine, machine_line, table, write_text
from data.demo.world import draw_scene
from data.densecrf import dense_crf, has_pydensecrf
from data.images import read_image
from data.machine import peak_memory_bytes

RANGES = {
    "sxy_gaussian": 1.0,
    "compat_gaussian": 3.0,
    "sxy_bilateral": 67.0,
    "srgb_bilateral": 3.0,
    "compat_bilateral": 4.0,
}
CLASSES = (2, 3, 4, 21)
REPEATS = 2
ENGINES = ("pydensecrf", "torch")
MEMORY_SIZES = ((668, 1000), (1142, 1838))  # 0.67 and 2.1 million pixels
Picture = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Compared:
    """What the engines made of one picture.

    Attributes:
        kind: drawn, demo scene or photograph.
        size_hw: of the picture.
        classes: number of score maps, the background's among them.
        seconds: of pydensecrf and of torch.
        agree: share of pixels with the same label.
        farthest: the largest difference of marginals.

    """

    kind: str
    size_hw: tuple[int, int]
    classes: int
    seconds: tuple[float, float]
    agree: float
    farthest: float


def smooth_scores(n_classes: int, size_hw: tuple[int, int], seed: int) -> np.ndarray:
    """Return smooth random scores (classes, height, width) that sum to 1 over classes."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 2, (n_classes, 8, 8)).astype(np.float32)
    raised = np.exp([cv2.resize(each, size_hw[::-1], interpolation=cv2.INTER_CUBIC) for each in coarse])
    return (raised / raised.sum(axis=0)).astype(np.float32)


def drawn_picture(size_hw: tuple[int, int], seed: int) -> np.ndarray:
    """Return smooth colours with discs and a little noise."""
    rng = np.random.default_rng(seed)
    picture = np.full((*size_hw, 3), 128, np.float32)
    for side, spread in ((4, 60), (16, 50), (64, 25)):
        coarse = rng.normal(0, spread, (side, side, 3)).astype(np.float32)
        picture += cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        centre = [int(value) for value in rng.integers(0, size_hw[::-1])]
        cv2.circle(picture, centre, int(rng.integers(10, 80)), [float(c) for c in rng.integers(0, 256, 3)], -1)
    return (picture + rng.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8)


def pictures(images: Path | None, count: int) -> Iterator[Picture]:
    """Yield what is refined: drawn pictures, demo scenes and up to `count` photographs of a folder."""
    for seed, size_hw in enumerate(((334, 500), (375, 500), (333, 251), (97, 131))):
        yield "drawn", drawn_picture(size_hw, seed)
    for seed in range(4):
        yield "demo scene", draw_scene(seed).rgb
    if images is not None:
        for path in sorted(images.glob("*.jpg"))[:count]:
            yield "photograph", read_image(path)


def compare(kind: str, rgb: np.ndarray, n_classes: int, seed: int) -> Compared:
    """Refine one picture by both engines."""
    scores = smooth_scores(n_classes, rgb.shape[:2], seed)
    found: list[Any] = [None, None]
    seconds = [np.inf, np.inf]
    for _ in range(REPEATS):
        for index, library in enumerate((None, torch)):
            start = time.perf_counter()
            found[index] = dense_crf(rgb, scores, iterations=10, torch=library, **RANGES)
            seconds[index] = min(seconds[index], time.perf_counter() - start)
    agree = float((found[0].argmax(axis=0) == found[1].argmax(axis=0)).mean())
    size_hw = (rgb.shape[0], rgb.shape[1])
    return Compared(kind, size_hw, n_classes, (seconds[0], seconds[1]), agree, float(np.abs(found[0] - found[1]).max()))


def memory_of(engine: str, size_hw: tuple[int, int], noise: bool) -> float:
    """Return how many bytes a pixel one engine takes beyond what was there before, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.crf", "--memory", engine, *map(str, size_hw), str(int(noise))]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent).stdout
    return float(json.loads(said)) / (size_hw[0] * size_hw[1])


def measure_memory(engine: str, height: int, width: int, noise: int) -> int:
    """Refine one picture and return by how many bytes the peak of this process is above what it held before."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (height, width, 3), np.uint8) if noise else drawn_picture((height, width), 0)
    scores = smooth_scores(3, (height, width), 0)
    before = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    dense_crf(rgb, scores, iterations=1, torch=torch if engine == "torch" else None, **RANGES)
    return (peak_memory_bytes() or 0) - before


def report(rows: list[Compared], memory: dict[tuple[str, tuple[int, int], bool], float]) -> str:
    """Return the page."""
    groups = sorted({(row.kind, row.classes) for row in rows})
    lines = []
    for kind, classes in groups:
        group = [row for row in rows if (row.kind, row.classes) == (kind, classes)]
        own, other = (sum(row.seconds[i] for row in group) for i in (0, 1))
        ratios = [row.seconds[1] / row.seconds[0] for row in group]
        lines.append(
            [
                f"{kind}, {classes} classes",
                len(group),
                f"{own / len(group):.3f}",
                f"{other / len(group):.3f}",
                f"{other / own:.2f}",
                f"{max(ratios):.2f}",
                f"{100 * min(row.agree for row in group):.3f}",
                f"{max(row.farthest for row in group):.1e}",
            ]
        )
    header = ["pictures", "number", "s pydensecrf", "s torch", "ratio", "largest ratio", "% equal labels, least"]
    whole = [sum(row.seconds[i] for row in rows) for i in (0, 1)]
    sizes = [
        [f"{h} x {w}", *(f"{memory[engine, (h, w), noise]:.0f}" for noise in (False, True) for engine in ENGINES)]
        for h, w in MEMORY_SIZES
        if memory
    ]
    return "\n\n".join(
        [
            "# The dense CRF's engines",
            "Ten mean-field steps with the published ranges, one thread each, in one run; the shorter of two times "
            "counts. Labels and marginals of torch against pydensecrf's.",
            table([*header, "marginals apart, most"], lines),
            f"Over all pictures torch takes {whole[1] / whole[0]:.2f} of pydensecrf's time.",
            "Memory, in bytes a pixel beyond the image and three score maps; noise is the worst case.",
            table(["size", "drawn: pydensecrf", "torch", "noise: pydensecrf", "torch"], sizes),
            machine_line(machine()),
            "Made by `python -m benchmarks.crf`"
            + (" with `--images`." if any(r.kind == "photograph" for r in rows) else "."),
        ]
    )


def main() -> None:
    """Compare the engines and write the page; exit status 1 where they differ by more than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of photographs (*.jpg)")
    parser.add_argument("--count", type=int, default=16, help="how many of them")
    parser.add_argument("--output", type=Path, default=HERE / "crf.md")
    parser.add_argument("--no_memory", action="store_true", help="leave the memory out")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        engine, *rest = options.memory
        print(measure_memory(engine, *map(int, rest)))
        return
    if not has_pydensecrf():
        raise SystemExit("pydensecrf is not installed, so there is nothing to compare with: pip install '.[crf]'")
    rows = []
    for index, (kind, rgb) in enumerate(pictures(options.images, options.count)):
        rows.append(compare(kind, rgb, CLASSES[index % len(CLASSES)], index))
        print(json.dumps(asdict(rows[-1])), flush=True)
    cases = [(engine, size, noise) for engine in ENGINES for size in MEMORY_SIZES for noise in (False, True)]
    memory = {} if options.no_memory else {case: memory_of(*case) for case in cases}
    write_text(options.output, report(rows, memory))
    if any(row.agree < 0.9999 or row.farthest > 0.01 for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
