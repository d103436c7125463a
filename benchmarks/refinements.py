"""What each refinement gains on the demo world: mIoU on `val` before and after the CRF, and seconds per image.

    python -m benchmarks.refinements                     # 200 scenes; writes refinements.md and .json
    python -m benchmarks.refinements --scenes 20         # a quick look

Finished rows are kept in the .json and not measured again (other model, settings or scenes: measured anew), so an
interrupted run goes on. The threshold of every row but the paper's is the best one on scenes of the calibration split,
which share nothing with `val`; no other setting is fitted here.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
from data.demo.world import Scene, split_scenes
from data.machine import available_cpus
from data.scoring import confusion_matrix, score
from data.store.softmaps import SoftMaps, resize_scores
from pseudolabel.calibrate.criteria import THRESHOLDS, best_threshold, count_pixels
from pseudolabel.config import GenerateConfig, mask_config, stored_settings
from pseudolabel.masks.fuse import before_crf
from pseudolabel.masks.labelmap import label_map
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.parts import pick_device, pick_dtype
from pseudolabel.softmaps.diffusion.unet import list_layers
from pseudolabel.softmaps.layers import resolve_layers

N_CLASSES = len(DEMO_CLASSES) + 1
TOGETHER = 16  # scenes handed to the pipeline at once


@dataclass(frozen=True)
class Variant:
    """One row: what it is called, its settings, and whether its threshold is fitted."""

    group: str
    name: str
    config: GenerateConfig
    fitted: bool = True


def variants(default: GenerateConfig, layers: Sequence[str]) -> list[Variant]:
    """Return all rows; each refinement changes one thing of the default."""
    rows = [
        Variant("baselines", "plain: all cross layers averaged", plain(default)),
        Variant("baselines", "paper preset at the analogous layers", paper(default), fitted=False),
        Variant("baselines", "paper preset, threshold fitted", paper(default)),
        Variant("baselines", "**default**", default, fitted=False),
        Variant("baselines", "default, threshold fitted", default),
    ]
    rows += _affinity_rows(default, layers)
    attention, diffusion = default.attention, default.diffusion
    flipped = not attention.token_rescaling
    rows.append(
        Variant(
            "attention",
            f"token rescaling {'on' if flipped else 'off'}",
            _with(default, "attention", token_rescaling=flipped),
        )
    )
    words = not default.prompt.background_words
    rows.append(
        Variant(
            "attention",
            f"background words {'on' if words else 'off'}",
            _with(default, "prompt", background_words=words),
        )
    )
    if attention.naming_layers:
        rows.append(Variant("attention", "no naming layers", _with(default, "attention", naming_layers=())))
    first = diffusion.timesteps[0]
    spread = tuple(sorted({max(10, first - 50), first, first + 50}))
    rows += [
        Variant("ensembles", f"{n} noise draw{'s' if n > 1 else ''}", _with(default, "diffusion", draws=n))
        for n in (1, 2, 4, 10)
    ]
    rows.append(Variant("ensembles", f"timesteps {spread}", _with(default, "diffusion", timesteps=spread)))
    rows.append(Variant("ensembles", "flip", _with(default, "diffusion", flip=True)))
    for scales in ((1.0,), (0.8, 1.0, 1.2)):
        name = f"scale{'s' if len(scales) > 1 else ''} {', '.join(f'{scale:g}' for scale in scales)}"
        rows.append(Variant("ensembles", name, _with(default, "diffusion", scales=scales)))
    rows += [
        Variant("crf", f"{n} iterations", _with(default, "crf", iterations=n), fitted=False) for n in (1, 3, 5, 20)
    ]
    rows += [Variant("crf", f"scale {s}", _with(default, "crf", scale=s), fitted=False) for s in (0.75, 0.5)]
    rows += [
        Variant("crf", f"PAMR, {n} rounds", _with(default, "crf", kind="pamr", iterations=n), fitted=False)
        for n in (5, 10)
    ]
    guide = 9.0 if default.crf.guide == 0 else 0.0
    rows.append(Variant("crf", f"guide {'on' if guide else 'off'}", _with(default, "crf", guide=guide), fitted=False))
    return [*rows, Variant("crf", "TLP", _with(default, "crf", kind="tlp"), fitted=False)]


def _with(config: GenerateConfig, group: str, **values: Any) -> GenerateConfig:
    """Return settings with some fields of one group changed."""
    return replace(config, **{group: replace(getattr(config, group), **values)})


def plain(default: GenerateConfig) -> GenerateConfig:
    """Return the simplest method: the mean of all layers' maps at one size, at the default's timestep and sentence.

    Nothing names classes, spreads or cuts the maps; their refinement is the default's.
    """
    config = _with(default, "attention", cross_layers=("all",), naming_layers=(), token_rescaling=False)
    config = _with(config, "diffusion", scales=(1.0,))
    return _with(config, "affinity", kind="none", balance=False, saturate=0.0)


def paper(default: GenerateConfig) -> GenerateConfig:
    """Return the published settings with all their quirks, at the layers of this model that stand where SD 1.x's stand.

    SD 1.x: cross-attention at the level above the middle, down and up, and in the middle; self-attention one level up.
    """
    published = load_config(HERE.parent / "configs/pseudolabel/voc12_paper.yaml")
    config = replace(published, data=default.data, model=default.model, run=default.run)
    config = _with(config, "resize", long_side_px=None)
    return _with(config, "attention", cross_layers=("1/4", "mid"), self_layers=("up_blocks.1.attentions.1",))


def _affinity_rows(default: GenerateConfig, layers: Sequence[str]) -> list[Variant]:
    """Return rows that differ in the affinity; where the default has none, the finest layers stand in."""
    base = default if default.affinity.kind != "none" else _with(default, "attention", self_layers=("1/1",))
    kinds: dict[str, dict[str, Any]] = {
        "none": {"kind": "none"},
        "caa, theta 0.2": {"kind": "caa", "boxes": True, "theta": 0.2},
        "caa, theta 0.5": {"kind": "caa", "boxes": True, "theta": 0.5},
        "caa without boxes": {"kind": "caa", "boxes": False},
        **{f"iterated x{n}": {"kind": "iterated", "boxes": False, "iterations": n} for n in (1, 2, 4, 8)},
        "iterated x2 with boxes": {"kind": "iterated", "boxes": True, "iterations": 2, "theta": 0.4},
        "iSeg, 0.015": {"kind": "iseg", "sharpening": 0.015},
        "iSeg, 0.1": {"kind": "iseg", "sharpening": 0.1},
        "CLIP-ES, theta 0.4": {"kind": "clipes", "theta": 0.4},
        "CLIP-ES, theta 0.7": {"kind": "clipes", "theta": 0.7},
    }
    rows = [Variant("affinity", name, _with(base, "affinity", **kind)) for name, kind in kinds.items()]
    balance, saturate = not base.affinity.balance, 0.03 if base.affinity.saturate == 0 else 0.0
    rows += [
        Variant("affinity", f"balance {'on' if balance else 'off'}", _with(base, "affinity", balance=balance)),
        Variant("affinity", f"saturate {'on' if saturate else 'off'}", _with(base, "affinity", saturate=saturate)),
    ]
    several = _with(base, "attention", self_layers=tuple(layers))
    if several.affinity.kind == "none":
        several = _with(several, "affinity", kind="iterated", boxes=False, iterations=1)
    return [*rows, Variant("affinity", f"the default's kind on all {len(layers)} self layers", several)]


# ------------------------------------------------------------------------------------------------ measuring


class Bench:
    """The model, the scenes, and soft maps that several rows share."""

    def __init__(self, default: GenerateConfig, val: int, calibration: int) -> None:
        """Load the model and draw the scenes."""
        self.device = pick_device(default.run.device)
        self.parts = load_parts(default.model, self.device, pick_dtype(default.run.dtype, self.device))
        self.val = list(split_scenes("val", val))
        self.calibration = list(split_scenes("calibration", calibration))
        self._kept: dict[str, tuple[list[SoftMaps], float]] = {}

    def soft_maps(self, config: GenerateConfig, split: str) -> tuple[list[SoftMaps], float]:
        """Return the soft maps of a split and the seconds per image; equal settings are computed once."""
        stored = stored_settings(config)
        key = split + json.dumps({k: v for k, v in stored.items() if k not in ("fuse", "crf", "ignore_below")})
        if key not in self._kept:
            pipeline = Pipeline(self.parts, config, DEMO_CLASSES, cut=False)
            scenes: list[Scene] = getattr(self, split)
            start = time.perf_counter()
            found: list[SoftMaps] = []
            for first in tqdm(range(0, len(scenes), TOGETHER), split, leave=False):
                group = scenes[first : first + TOGETHER]
                ids = [f"{split}_{first + i:06d}" for i in range(len(group))]
                found += pipeline.soft_maps([s.rgb for s in group], [s.labels for s in group], ids)
            self._kept[key] = found, (time.perf_counter() - start) / len(scenes)
        return self._kept[key]

    def measure(self, variant: Variant) -> dict[str, Any]:
        """Return one row's figures."""
        config = variant.config
        if variant.fitted:
            soft, _ = self.soft_maps(config, "calibration")
            config = _with(config, "fuse", threshold=fitted_threshold(soft, self.calibration))
        soft, seconds = self.soft_maps(config, "val")
        before = after = np.zeros((N_CLASSES, N_CLASSES), np.int64)
        start = time.perf_counter()
        for scene, each in zip(tqdm(self.val, "crf", leave=False), soft, strict=True):
            _, argmax = label_map(scene.rgb, each, mask_config(config), self.device.type)
            after = after + confusion_matrix(scene.mask, argmax, N_CLASSES)
        crf_seconds = (time.perf_counter() - start) / len(self.val)
        for scene, each in zip(self.val, soft, strict=True):
            before = before + confusion_matrix(scene.mask, before_crf(each, config.fuse), N_CLASSES)
        return {
            "group": variant.group,
            "name": variant.name,
            "threshold": config.fuse.threshold,
            "before": score(before).miou,
            "after": score(after).miou,
            "seconds": seconds,
            "crf_seconds": crf_seconds,
        }


def fitted_threshold(soft: Sequence[SoftMaps], scenes: Sequence[Scene]) -> float:
    """Return the threshold with the highest mIoU before the CRF (maps enlarged first, then cut)."""
    counts = np.zeros((N_CLASSES, N_CLASSES, len(THRESHOLDS) + 1), np.int64)
    for each, scene in zip(soft, scenes, strict=True):
        height, width = each.resized_hw
        padded = resize_scores(each.maps.astype(np.float32), each.padded_hw)[:, :height, :width]
        maps = resize_scores(np.ascontiguousarray(padded), each.image_hw)
        counts += count_pixels(maps, each.labels, scene.mask, N_CLASSES)
    return round(best_threshold(counts)[1], 4)


def row_key(variant: Variant, fingerprint: str, scenes: tuple[int, int]) -> str:
    """Return a hash of everything a row depends on but the code."""
    content = json.dumps([stored_settings(variant.config), variant.fitted, fingerprint, scenes], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def report(rows: list[dict[str, Any]], found: dict[str, str], scenes: tuple[int, int], default: GenerateConfig) -> str:
    """Return the Markdown page."""
    by_name = {row["name"]: row for row in rows}
    lines = ["# Refinements on the demo world", "", machine_line(found), ""]
    lines += [f"mIoU in percent on {scenes[0]} scenes of `val`, 21 classes, one confusion matrix; written by"]
    lines += [
        "`python -m benchmarks.refinements`. Each row changes one thing of the default and takes the threshold that"
    ]
    lines += [f"was best on {scenes[1]} calibration scenes; rows marked = keep their config's. Seconds an image"]
    lines += ["on all cores: class maps, and CRF in one process.", ""]
    reference = by_name.get("**default**")
    for group in dict.fromkeys(row["group"] for row in rows):
        cells = [
            (row["name"], f"{row['threshold']:.3f}" + ("" if row["fitted"] else " ="), f"{100 * row['before']:.1f}",
             f"{100 * row['after']:.1f}", _difference(row, reference), f"{row['seconds']:.3f}",
             f"{row['crf_seconds']:.3f}")
            for row in rows if row["group"] == group
        ]  # fmt: skip
        header = (group, "threshold", "before CRF", "after CRF", "after, to default", "s maps", "s CRF")
        lines += [table(header, cells), ""]
    if reference:
        lines += ["## Gains of the default", ""]
        for name in ("plain: all cross layers averaged", "paper preset at the analogous layers"):
            if name in by_name:
                other = by_name[name]
                gains = [100 * (reference[key] - other[key]) for key in ("before", "after")]
                lines.append(f"- over {name}: {gains[0]:+.1f} points before the CRF, {gains[1]:+.1f} after")
    attention, affinity = default.attention, default.affinity
    lines += ["", f"Default: t = {list(default.diffusion.timesteps)}, cross {', '.join(attention.cross_layers)};"]
    lines += [f"self {', '.join(attention.self_layers)}; {json.dumps(asdict(affinity))}."]
    return "\n".join(lines)


def _difference(row: dict[str, Any], reference: dict[str, Any] | None) -> str:
    return "" if reference is None else f"{100 * (row['after'] - reference['after']):+.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.refinements", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--scenes", type=int, default=200, help="scenes of val")
    parser.add_argument("--calibration", type=int, default=60, help="scenes thresholds are fitted on")
    parser.add_argument("--config", type=Path, default=DEMO_CONFIG, help="the default's settings")
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", help="groups to measure: baselines affinity attention ensembles crf")
    parser.add_argument("--output", type=Path, default=HERE / "refinements.md", help="the .json goes beside it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(available_cpus())
    config = load_config(options.config if options.config.is_file() else None)
    default = _with(_with(config, "model", id=str(options.model)), "run", device=options.device)
    scenes = (options.scenes, options.calibration)
    bench = Bench(default, *scenes)
    layers = list_layers(bench.parts.denoiser)
    if not options.config.is_file():
        print(f"No {options.config}: the finest layers stand in for the default's.")
        default = _with(default, "attention", cross_layers=("1/2", "1/1"), self_layers=("1/1",))
    resolve_layers(layers, default.attention.cross_layers, "attention.cross_layers")
    kept_path, done = options.output.with_suffix(".json"), {}
    if kept_path.is_file():
        done = {row["key"]: row for row in json.loads(kept_path.read_text(encoding="utf-8"))["rows"]}
    rows = []
    wanted = [
        row
        for row in variants(default, [layer.name for layer in layers])
        if not options.only or row.group in options.only
    ]
    for variant in wanted:
        key = row_key(variant, bench.parts.fingerprint, scenes)
        row = done.get(key) or {"key": key, "fitted": variant.fitted, **bench.measure(variant)}
        rows.append(row | {"group": variant.group, "name": variant.name})
        figures = f"{row['before']:.4f} {row['after']:.4f} {row['seconds']:.3f} s + {row['crf_seconds']:.3f} s"
        print(f"{figures}  {variant.name}", flush=True)
        found = machine(bench.device.type)
        write_json(kept_path, {"machine": found, "scenes": scenes, "rows": rows + _others(done, rows)})
        write_text(options.output, report(rows, found, scenes, default))


def _others(done: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of an earlier run that have not come up yet."""
    here = {row["key"] for row in rows}
    return [row for key, row in done.items() if key not in here]


if __name__ == "__main__":
    main()
