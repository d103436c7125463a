"""What `segtrain predict` holds in memory for the largest images that are read, with windows.

    python -m benchmarks.memory_predict [--only 12,000]

As `benchmarks.memory`: images of noise, the command in a process of its own, the memory of that process and its
children added up every 0.2 s. The network is that of configs/train/voc12_small.yaml after one step of training, of 21
classes. Writes the section on predict in memory.md.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import HERE, machine, machine_line, table, write_text
from benchmarks.memory import GIB, PREDICT_HEADING, peak_bytes
from data.class_file import save_classes
from data.classes import VOC
from data.masks import write_mask

CONFIG = HERE.parent / "configs/train/voc12_small.yaml"
ALLOWED_GIB = 3.0
WINDOW = ("--inference.window", "513")
VIEWS = ("--inference.scales", "[0.75,1.0]", "--inference.flip", "true")
CRF = ("--inference.crf.enabled", "true", "--inference.crf.iterations", "2")  # more take time, not memory
CASES = {  # (height, width) and how it is predicted
    "4,000 x 3,000": ((3000, 4000), WINDOW),
    "4,000 x 3,000, two scales, mirrored": ((3000, 4000), (*WINDOW, *VIEWS)),
    "4,000 x 3,000, CRF": ((3000, 4000), (*WINDOW, *CRF)),
    "6,000 x 4,000, CRF": ((4000, 6000), (*WINDOW, *CRF)),
    "12,000 x 7,456": ((7456, 12_000), WINDOW),
    "12,000 x 7,456, all probabilities": ((7456, 12_000), (*WINDOW, "--probabilities", "true")),
}


def main() -> None:
    """Measure all cases and write the section; exit status 1 if one took more than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=HERE / "memory.md")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        checkpoint = make_checkpoint(Path(name))
        base, _ = predict(checkpoint, (64, 64), ())
        found = {case: predict(checkpoint, *CASES[case]) for case in CASES if options.only in case}
    text = options.output.read_text(encoding="utf-8") if options.output.exists() else ""
    write_text(options.output, text.partition(PREDICT_HEADING)[0] + section(base, found))
    print(section(base, found))
    if any(peak - base > ALLOWED_GIB * GIB for peak, _ in found.values()):
        raise SystemExit(1)


def make_checkpoint(folder: Path) -> Path:
    """Train a network for one step on noise."""
    root = folder / "photos"
    (root / "masks").mkdir(parents=True)
    save_classes(VOC, root / "classes.yaml")
    for index in range(4):
        rgb = np.random.default_rng(index).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(rgb).save(root / f"{index}.png")
        write_mask(root / "masks" / f"{index}.png", np.full((64, 64), index, np.uint8))
    rows = [f"{index}.png,{VOC.names[max(index, 1) - 1]}" for index in range(4)]
    (root / "labels.csv").write_text("\n".join(["image,labels", *rows, ""]), encoding="utf-8")
    data = ["--data.root", root, "--data.classes", root / "classes.yaml", "--data.masks", "truth"]
    short = ["--data.batch_size", 4, "--data.workers", 0, "--trainer.max_steps", 1, "--trainer.max_epochs", 1]
    short += ["--trainer.check_val_every_n_epoch", 1, "--trainer.enable_progress_bar", "false"]
    run(["fit", "--config", CONFIG, *data, *short, "--output", folder / "run"])
    return folder / "run" / "checkpoints" / "last.ckpt"


def predict(checkpoint: Path, size_hw: tuple[int, int], views: tuple[str, ...]) -> tuple[int, float]:
    """Return the peak and the seconds of predicting one image of noise."""
    with tempfile.TemporaryDirectory() as name:
        image = Path(name) / "image.png"
        pixels = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
        Image.fromarray(pixels).save(image, compress_level=0)
        return run(["predict", "--ckpt_path", checkpoint, "--images", image, "--output", Path(name) / "P", *views])


def run(arguments: list[object]) -> tuple[int, float]:
    """Run `segtrain` and return its peak and its seconds."""
    return peak_bytes([sys.executable, "-W", "ignore", "-m", "train.cli", *map(str, arguments)])


def section(base: int, found: dict[str, tuple[int, float]]) -> str:
    """Return the section."""
    rows = [[case, " ".join(CASES[case][1]), f"{max(0, peak - base) / GIB:.2f}"] for case, (peak, _) in found.items()]
    return "\n\n".join(
        [
            PREDICT_HEADING,
            f"GiB beyond what the same command takes for an image of 64 x 64 pixels ({base / GIB:.2f} GiB), one image "
            "of noise each, the network of `configs/train/voc12_small.yaml` with 21 classes, overlays and soft maps "
            "written. Without a window the network sees the whole image at once, and memory grows with it.",
            table(["image", "how", "GiB"], rows),
            f"Allowed: {ALLOWED_GIB:g} GiB. {machine_line(machine())} Made by `python -m benchmarks.memory_predict`.",
        ]
    )


if __name__ == "__main__":
    main()
