"""Whether the label-only criterion of `pseudolabel calibrate` ranks settings as mIoU does, on the demo world.

    python -m benchmarks.calibration                     # 100 scenes; writes calibration.md and .json
    python -m benchmarks.calibration --scenes 20         # a quick look

Every cross-attention layer at every timestep is judged twice on the same scenes, none of them from `val`: by mIoU
before the CRF (single layer, no affinity, best threshold, ordinary sentence), and by criteria that know image-level
labels alone, read from a sentence with three absent classes in it. Their Spearman rank correlation is what counts.
Otsu's threshold is compared with the best one on the way.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import (
    DEMO_CLASSES,
    DEMO_CONFIG,
    DEMO_MODEL,
    HERE,
    load_config,
    machine,
    machine_line,
    table,
    write_json,
    write_text,
)
from data.demo.world import calibration_scenes
from data.machine import available_cpus
from pseudolabel.calibrate.candidates import with_affinity, with_attention, with_timesteps
from pseudolabel.calibrate.criteria import (
    THRESHOLDS,
    best_threshold,
    count_pixels,
    edge_alignment,
    image_edges,
    label_score,
    mious,
    otsu_threshold,
    separation,
)
from pseudolabel.calibrate.judge import present_and_absent
from pseudolabel.calibrate.offline import refined_maps, view
from pseudolabel.calibrate.pictures import Picture, draw_decoys
from pseudolabel.calibrate.recordings import Sentences, Wanted, record
from pseudolabel.calibrate.search import DECOYS, TIMESTEPS
from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.parts import pick_device, pick_dtype
from pseudolabel.softmaps.diffusion.unet import list_layers
from pseudolabel.softmaps.passes import Reader

Maps = list[np.ndarray]


def _mean_of(function: Callable[..., float]) -> Callable[[Maps, Maps, Maps], float]:
    return lambda *maps: float(np.mean([function(*image) for image in zip(*maps, strict=True)]))


def smoothness(maps: np.ndarray) -> float:
    """Return how alike neighbouring cells are (Moran's I, four neighbours): 0 for noise, towards 1 for blobs."""
    centred = maps - maps.mean(axis=(-2, -1), keepdims=True)
    products = [centred[..., 1:, :] * centred[..., :-1, :], centred[..., :, 1:] * centred[..., :, :-1]]
    pairs = sum(product[0].size for product in products)
    across = sum(product.sum(axis=(-2, -1)) for product in products) / max(pairs, 1)
    variance = np.maximum((centred**2).mean(axis=(-2, -1)), 1e-20)
    return float((across / variance).mean())


def distinctness(present: np.ndarray, absent: np.ndarray) -> float:
    """Return how little maps of present classes resemble those of absent ones: 0 alike, 0.5 unrelated, 1 opposite."""
    first, second = (maps.reshape(len(maps), -1) for maps in (present, absent))
    first, second = (maps - maps.mean(axis=1, keepdims=True) for maps in (first, second))
    norms = np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=1)[None]
    return float((0.5 - 0.5 * first @ second.T / np.maximum(norms, 1e-20)).mean())


CRITERIA: dict[str, Callable[[Maps, Maps, Maps], float]] = {
    "label_score (used)": label_score,
    "separation": _mean_of(lambda present, absent, _: separation(present, absent)),
    "edge alignment": _mean_of(lambda present, _, edges: edge_alignment(present, edges)),
    "smoothness": _mean_of(lambda present, *_: smoothness(present)),
    "separation x smoothness": lambda *maps: CRITERIA["separation"](*maps) * CRITERIA["smoothness"](*maps),
    "distinctness": _mean_of(lambda present, absent, _: distinctness(present, absent)),
}


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation (no ties expected).

    >>> round(rank_correlation([1, 2, 3], [10, 30, 20]), 3)
    0.5
    """
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def measure(
    config: GenerateConfig, scenes: int, seed: int, timesteps: Sequence[int], decoys: int
) -> list[dict[str, Any]]:
    """Return one row per layer and timestep: mIoU, the criteria, and the cost of Otsu's threshold."""
    device = pick_device(config.run.device)
    models = load_parts(config.model, device, pick_dtype(config.run.dtype, device))
    base = with_affinity(with_attention(with_timesteps(config, timesteps), cross_layers=("all",)), kind="none")
    reader = Reader(models, DEMO_CLASSES, base.prompt, base.diffusion, base.resize, base.run)
    layers = list_layers(models.denoiser)
    drawn = list(calibration_scenes(scenes, seed))
    names = [f"calibration_{index:06d}" for index in range(scenes)]
    plain = [Picture(name, scene.rgb, scene.labels, (), scene.mask) for name, scene in zip(names, drawn, strict=True)]
    decoyed = [replace(each, decoys=draw_decoys(each.id, each.labels, len(DEMO_CLASSES), decoys)) for each in plain]
    total = scenes * len(timesteps)
    ordinary: dict[int, list[Sentences]] = {timestep: [] for timestep in timesteps}
    with_decoys: dict[int, list[Sentences]] = {timestep: [] for timestep in timesteps}
    for found, pictures in ((ordinary, plain), (with_decoys, decoyed)):
        for item in tqdm(record(reader, pictures, Wanted(layers)), "read", total=total):
            found[item[0].timestep].append(item)
    edges = [image_edges(item[0].picture.rgb_u8) for item in with_decoys[timesteps[0]]]
    rows = []
    for timestep in timesteps:
        for layer in layers:
            one = with_attention(base, cross_layers=(layer.name,))
            row = by_truth(ordinary[timestep], one, layers)
            pairs = [present_and_absent(item, one, layers) for item in with_decoys[timestep]]
            present, absent = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            row |= {name: criterion(present, absent, edges) for name, criterion in CRITERIA.items()}
            rows.append({"layer": layer.name, "timestep": timestep} | row)
    return rows


def by_truth(recorded: Sequence[Sentences], config: GenerateConfig, layers: Any) -> dict[str, float]:
    """Return mIoU at the best threshold, and at Otsu's."""
    counts, grids = 0, []
    for item in recorded:
        maps = refined_maps(item, config, layers)
        grids.append(maps.numpy())
        picture = item[0].picture
        counts = counts + count_pixels(view(maps, item[0]), picture.labels, picture.truth, len(DEMO_CLASSES) + 1)
    miou, threshold = best_threshold(counts)
    otsu = otsu_threshold(grids)
    at_otsu = float(mious(counts)[int(np.argmin(abs(THRESHOLDS - otsu)))])
    return {"miou": miou, "threshold": threshold, "otsu": otsu, "miou_at_otsu": at_otsu}


def report(rows: list[dict[str, Any]], found: dict[str, str], scenes: int, seed: int) -> str:
    """Return the Markdown page."""
    truth = [row["miou"] for row in rows]
    lines = ["# Calibration without ground truth, on the demo world", "", machine_line(found), ""]
    lines += [
        f"{len(rows)} settings (every layer at every timestep) on {scenes} calibration scenes, seed {seed}; written by"
    ]
    lines += [
        "`python -m benchmarks.calibration`. Loss: mIoU points between the best setting and the one the criterion"
    ]
    lines += ["would pick.", ""]
    cells = []
    for name in CRITERIA:
        values = [row[name] for row in rows]
        picked = rows[int(np.argmax(values))]
        loss = 100 * (max(truth) - picked["miou"])
        pick = f"{picked['layer']}, t = {picked['timestep']}"
        cells.append((name, f"{rank_correlation(values, truth):.2f}", f"{loss:.1f}", pick))
    lines += [table(("criterion", "Spearman with mIoU", "loss, points", "its pick"), cells), ""]
    loss = [100 * (row["miou"] - row["miou_at_otsu"]) for row in rows]
    best = max(rows, key=lambda row: row["miou"])
    extra = 100 * (best["miou"] - best["miou_at_otsu"])
    lines += [f"Otsu's threshold costs {np.mean(loss):.1f} points on average; at the best setting it is"]
    lines += [f"{best['otsu']:.3f} where {best['threshold']:.3f} is best, and costs {extra:.1f} points.", ""]
    header = ("layer", "t", "mIoU", *CRITERIA, "threshold", "Otsu's")
    ordered = sorted(rows, key=lambda row: -row["miou"])
    body = [
        (row["layer"], row["timestep"], f"{100 * row['miou']:.1f}", *(f"{row[name]:.3f}" for name in CRITERIA),
         f"{row['threshold']:.3f}", f"{row['otsu']:.3f}")
        for row in ordered
    ]  # fmt: skip
    return "\n".join([*lines, table(header, body)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the demo world")
    parser.add_argument("--timesteps", type=int, nargs="+", default=list(TIMESTEPS))
    parser.add_argument("--decoys", type=int, default=DECOYS, help="absent classes in the sentence")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--config", type=Path, default=DEMO_CONFIG, help="settings to start from")
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=HERE / "calibration.md", help="the .json goes beside it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(available_cpus())
    config = load_config(options.config if options.config.is_file() else None)
    config = replace(config, model=replace(config.model, id=str(options.model)))
    config = replace(config, run=replace(config.run, device=options.device))
    config = replace(config, diffusion=replace(config.diffusion, draws=options.draws))
    rows = measure(config, options.scenes, options.seed, sorted(set(options.timesteps)), options.decoys)
    found = machine(pick_device(options.device).type)
    write_json(
        options.output.with_suffix(".json"),
        {"machine": found, "scenes": options.scenes, "seed": options.seed, "rows": rows},
    )
    text = report(rows, found, options.scenes, options.seed)
    write_text(options.output, text)
    print("\n".join(text.splitlines()[:16]))


if __name__ == "__main__":
    main()
