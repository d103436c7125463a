"""What a tiny image encoder costs in mIoU and saves in time, on the demonstration world.

    python -m benchmarks.tiny_encoder                 # 200 scenes of val, each encoder: three minutes on a core
    python -m benchmarks.tiny_encoder --only tiny     # one of them; the other's row is kept

The same model, settings and scenes, once with its own image encoder and once with the one distilled from it
(`pseudolabel.demo.training.train_tiny_encoder`). Nothing was chosen on these scenes. Milliseconds are processor time
of one thread, the mean over scenes: of the image encoder, and from the image to its soft maps with the settings' draws.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import DEMO_CONFIG, DEMO_MODEL, HERE, machine, table, write_json, write_text
from benchmarks.stage_one_cases import TINY_ENCODER
from data.demo.world import write_world
from data.images import read_image
from data.masks import read_truth
from data.readers.layout import open_samples
from data.scoring import confusion_matrix, score
from data.store.softmaps import SoftMaps
from pseudolabel.config import mask_config
from pseudolabel.demo.training.measure_model import read_config
from pseudolabel.masks.fuse import before_crf
from pseudolabel.masks.labelmap import label_map
from pseudolabel.pipeline import Pipeline

KINDS = ("own", "tiny")
COLUMNS = ("miou_before", "miou_after", "encoder_ms", "image_ms")


def measure(kind: str, model: Path, tiny: Path, config_file: Path, scenes: int) -> dict[str, Any]:
    """Make the masks of scenes with one of the encoders; mIoU and time."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "world"
        write_world(root, train=0, val=scenes, personal=0)
        config = read_config(config_file, model, root, vae=tiny if kind == "tiny" else None)
        samples = open_samples(config.data)
        pipeline, masks = Pipeline.load(config, samples.classes), mask_config(config)
        before, after = np.zeros((21, 21), np.int64), np.zeros((21, 21), np.int64)
        seconds = np.zeros(2)
        for sample in samples.samples:
            image = read_image(sample.image_path)
            truth = read_truth(sample.truth_path or root, image.shape[:2])
            soft, spent = read(pipeline, image, sample.labels, sample.id)
            seconds += spent
            before += confusion_matrix(truth, before_crf(soft, masks.fuse), 21)
            after += confusion_matrix(truth, label_map(image, soft, masks)[1], 21)
    encoding, whole = 1000 * seconds / scenes
    return {
        "kind": kind, "scenes": scenes, "sizes": len(config.diffusion.scales),
        "encoder_ms": encoding, "image_ms": whole,
        "miou_before": 100 * float(score(before).miou), "miou_after": 100 * float(score(after).miou),
        **machine(),
    }  # fmt: skip


def read(pipeline: Pipeline, image: np.ndarray, labels: tuple[int, ...], image_id: str) -> tuple[SoftMaps, np.ndarray]:
    """Return an image's soft maps, and the processor time of encoding it at every size and of all its maps need."""
    start = time.process_time()
    [soft] = pipeline.soft_maps([image], [labels], [image_id])
    whole = time.process_time() - start
    image_hw, scales = (image.shape[0], image.shape[1]), pipeline.config.diffusion.scales
    frames = [pipeline.reader.frame(image_hw, scale) for scale in scales]
    start = time.process_time()
    with torch.inference_mode():
        for frame in frames:
            pipeline.reader.latent(image, frame, image_id)
    return soft, np.array([time.process_time() - start, whole])


def report(content: dict[str, Any]) -> str:
    """Return the Markdown page."""
    rows = {row["kind"]: row for row in content["rows"]}
    first = next(iter(rows.values()))
    tiny = content["training"]
    lines = ["# A tiny image encoder on the demonstration world", ""]
    lines += [f"Measured on {first['hardware']}, torch {first['torch']}, commit {first['commit']}; written by"]
    lines += [f"`python -m benchmarks.tiny_encoder`: {first['scenes']} scenes of `val`, {first['sizes']} image sizes,"]
    lines += [
        "settings of `configs/pseudolabel/demo.yaml` at that commit. Milliseconds are processor time of one thread,",
        "per image.",
        "",
    ]
    names = {"own": "the model's own", "tiny": "tiny (`--model.vae data/demo/tiny_encoder`)"}
    cells = [(names[kind], *(f"{rows[kind][column]:.1f}" for column in COLUMNS)) for kind in KINDS if kind in rows]
    lines += [table(("image encoder", "mIoU before the CRF", "after it", "encoder, ms", "to soft maps, ms"), cells), ""]
    if len(rows) == len(KINDS):
        costs = [rows["own"][column] - rows["tiny"][column] for column in COLUMNS[:2]]
        shares = [rows["tiny"][column] / rows["own"][column] for column in COLUMNS[2:]]
        lines += [f"The tiny one costs {costs[0]:.1f} points before the CRF and {costs[1]:.1f} after it, and takes"]
        lines += [f"{shares[0]:.2f} of the encoder's time and {shares[1]:.2f} of an image's.", ""]
    figures = tiny["figures"]
    encoder, own_encoder = (round(tiny["parameters"][name] / 1000) for name in ("encoder", "own_encoder"))
    minutes, error = round(tiny["processor_seconds"] / 60), 100 * figures["latent_error"]
    lines += [
        f"It has {encoder} thousand parameters, the own encoder {own_encoder}; training took {minutes} minutes of a"
    ]
    lines += [
        f"core. On {figures['scenes']} scenes of the training's stream that it had not seen its latents differ by"
    ]
    lines += [f"{error:.1f} % (root mean square, of the own ones')."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tiny_encoder", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--tiny", type=Path, default=TINY_ENCODER)
    parser.add_argument("--config", type=Path, default=DEMO_CONFIG)
    parser.add_argument("--output", type=Path, default=HERE / "tiny_encoder.md", help="the .json goes beside it")
    options = parser.parse_args(arguments)
    results_file = options.output.with_suffix(".json")
    for kind in KINDS if options.only is None else (options.only,):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found = measure(kind, options.model, options.tiny, options.config, options.scenes)
        finally:
            torch.set_num_threads(threads)
        kept = json.loads(results_file.read_text(encoding="utf-8"))["rows"] if results_file.is_file() else []
        training = json.loads((options.tiny / "training.json").read_text(encoding="utf-8"))
        content = {"rows": [*(row for row in kept if row["kind"] != kind), found], "training": training}
        write_json(results_file, content)
        write_text(options.output, report(content))
    print(report(content))


if __name__ == "__main__":
    main()
