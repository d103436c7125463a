"""What a network learns from scenes that the diffusion model drew and labelled itself, with and without real ones.

    python -m benchmarks.synthesize --work runs/synthesize       # half an hour on two cores; resumes

Three trainings of equal length on the demo world: synthesised scenes alone; real scenes with pseudo-masks made from
their image-level labels; both. They are compared on `val`, on which nothing is chosen: each network is the last of its
run. Writes synthesize.md and .json.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from benchmarks.common import (
    DEMO_CONFIG,
    DEMO_MODEL,
    HERE,
    machine,
    machine_line,
    table,
    write_json,
    write_text,
)
from data.demo.world import TRAIN_TRUTH_FOLDER, write_world
from data.store.store import MaskStore
from pseudolabel.review.score import score_store

CLASSES = HERE.parent / "data/demo/classes.yaml"
TRAIN_CONFIG = HERE.parent / "configs/train/demo.yaml"
MARGIN = 1.05  # images drawn for one that is kept


def run(program: str, *arguments: object) -> float:
    """Run a command in a process of its own; returns its seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"{program}.cli", *map(str, arguments)], check=True)
    return time.perf_counter() - start


def prepare(given: argparse.Namespace) -> dict[str, Path]:
    """Draw the world, label its real scenes, synthesise others; returns the stores to learn from."""
    world, real, drawn = given.work / "world", given.work / "real", given.synthetic or given.work / "drawn"
    write_world(world, train=given.real, val=given.val, personal=0)
    stage_one = ["--config", DEMO_CONFIG, "--model.id", given.model, "--device", given.device]
    run("pseudolabel", "generate", *stage_one, "--root", world, "--classes", CLASSES, "--store", real)
    if given.synthetic is None:
        options = ["--steps", given.steps, "--per_image", "[1,2]", "--count", round(given.drawn * MARGIN)]
        run("pseudolabel", "synthesize", *stage_one, "--classes", CLASSES, "--output", drawn, *options)
    synthetic = join(given.work / "synthetic_store", [(drawn / "store", given.drawn)])
    both = join(given.work / "both_store", [(drawn / "store", given.drawn), (real, given.real)])
    return {"synthesised": synthetic, "real": real, "both": both}


def join(target: Path, parts: Sequence[tuple[Path, int]]) -> Path:
    """Write the first images of some stores into one; an earlier one is made again."""
    shutil.rmtree(target, ignore_errors=True)
    sources = [MaskStore.open(path) for path, _ in parts]
    header = sources[0].header
    store = MaskStore.create(
        target, classes=sources[0].classes, config=header["config"], model=header["model"], data=header["data"]
    )
    for source, (_, count) in zip(sources, parts, strict=True):
        for record in islice(sorted(source.records(), key=lambda line: line["id"]), count):
            name, image = record["id"], source.image_path(record).absolute()
            mask, argmax = source.read_mask(name), source.read_argmax(name)
            store.write(name, mask, argmax=argmax, soft=source.read_soft(name), record={**record, "image": str(image)})
    return target


def train(given: argparse.Namespace, name: str, store: Path) -> dict[str, float]:
    """Return mIoU on val and seconds of one training; one that was measured already is read."""
    folder = given.work / f"network_{name}"
    measured, kept = folder / "test" / "scores.json", folder / "figures.json"
    if not kept.exists():
        images = sum(1 for _ in MaskStore.open(store).records())
        epochs = max(1, round(given.training_steps / max(1, images // given.batch)))
        val = ["--data.val.root", given.work / "world", "--data.val.split", "val"]
        fit = ["--config", TRAIN_CONFIG, "--data.store", store, "--output", folder, "--overwrite", "true", *val]
        fit += ["--trainer.max_epochs", epochs, "--trainer.check_val_every_n_epoch", epochs]
        fit += ["--data.batch_size", given.batch, "--trainer.enable_progress_bar", "false", *given.more]
        seconds = run("train", "fit", *fit)
        checkpoint = folder / "checkpoints" / "best.ckpt"
        run("train", "test", "--ckpt_path", checkpoint, *val, "--report.output", folder / "test",
            "--trainer.enable_progress_bar", "false")  # fmt: skip
        miou = json.loads(measured.read_text())["miou"]
        figures = {"images": images, "epochs": epochs, "miou": miou, "seconds": round(seconds)}
        write_json(kept, figures)
    return json.loads(kept.read_text())


def masks_of(store: Path, given: argparse.Namespace) -> float:
    """Return the mIoU of the real scenes' pseudo-masks, in percent."""
    scores = score_store(MaskStore.open(store), given.work / "world", TRAIN_TRUTH_FOLDER)
    return 100 * scores.after_crf.miou


def report(rows: dict[str, dict[str, float]], given: argparse.Namespace, found: dict[str, str], masks: float) -> str:
    """Return the page."""
    names = {
        "synthesised": f"{given.drawn} synthesised scenes, masks read off the drawing model",
        "real": f"{given.real} real scenes, pseudo-masks from image-level labels",
        "both": f"both, {given.drawn} + {given.real}",
    }
    cells = [
        (names[name], row["images"], row["epochs"], f"{100 * row['miou']:.1f}", row["seconds"])
        for name, row in rows.items()
    ]
    lines = [
        "# Learning from images nobody photographed",
        "",
        machine_line(found),
        "",
        f"mIoU in percent on {given.val} scenes of `val`, 21 classes; written by `python -m benchmarks.synthesize`.",
        f"All networks are those of configs/train/demo.yaml and train for about {given.training_steps} steps; the last",
        f"one of a run is tested, nothing is chosen on `val`. Scenes were drawn in {given.steps} DDIM steps with one",
        f"or two classes each; the masks of the {given.real} real scenes have {masks:.1f} mIoU.",
        "",
        table(("learned from", "images", "epochs", "mIoU", "s training"), cells),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthesize", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/synthesize"), help="folder for everything")
    parser.add_argument("--drawn", type=int, default=600, help="synthesised scenes to learn from")
    parser.add_argument("--real", type=int, default=100, help="real scenes to learn from")
    parser.add_argument("--val", type=int, default=200, help="scenes to test on")
    parser.add_argument("--synthetic", type=Path, help="a synthesised data set that is there already")
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a drawn scene")
    parser.add_argument("--training_steps", type=int, default=962, help="of each network: 26 epochs of 600 scenes")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--more", nargs="*", default=[], help="further options of segtrain fit")
    parser.add_argument("--output", type=Path, default=HERE / "synthesize.md", help="the .json goes beside it")
    given = parser.parse_args(arguments)
    stores = prepare(given)
    rows = {}
    for name, store in stores.items():
        rows[name] = train(given, name, store)
        print(f"{name}: {rows[name]}", flush=True)
    found, masks = machine(), masks_of(stores["real"], given)
    write_json(given.output.with_suffix(".json"), {"machine": found, "rows": rows, "real_masks_miou": masks})
    write_text(given.output, report(rows, given, found, masks))
    print(f"Wrote {given.output}.")


if __name__ == "__main__":
    main()
