"""Stage one beside other methods of reading a diffusion model: one model, the same images, the same labels.

    python -m benchmarks.arena --why "the default changed"      # under 25 minutes on two cores; writes arena.md, .json
    python -m benchmarks.arena --scenes 20 --shifted 20 --calibration 20 --epochs 1 --output quick.md    # a quick look
    python -m benchmarks.arena --why "SAM" --sam facebook/sam-vit-base                                   # one row more

The demo's model reads two worlds: `val`, like the scenes it was trained on, and the shifted world, of drawings that
were held out and grounds that no split shows. Val has 200 scenes, as everywhere; the shifted world is drawn for this
page alone, and of it there are 600, so that its intervals are narrow enough to tell methods apart. Every peer is a file
in `benchmarks/peers`. Attention is recorded once for each image and sentence, and all peers are made from that; ours go
through the pipeline as `generate` does. Whatever a method has to choose, its threshold before and after the CRF and the
sentence with or without background words, is chosen on the same calibration scenes, which are drawn like train and
share nothing with val. Each run that measures val adds a line to the looks that the .json keeps, and has to say why.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.arena_cost import cost_of
from benchmarks.arena_judge import Judged, difference, fitted, interval, judged
from benchmarks.arena_read import OURS, PEERS, Arena, Maps, ours, read_world, titles
from benchmarks.common import (
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
from benchmarks.peers import gradcam
from data.demo.grounds import OTHER_GROUNDS
from data.demo.scene import draw_scene
from data.demo.world import Scene, split_generator, split_scenes
from data.machine import available_cpus
from pseudolabel.config import GenerateConfig, mask_config
from pseudolabel.masks.config import MaskConfig, SamConfig

WORLDS = ("val", "shifted")
DEFAULT, WITH_SAM = "default", "default + SAM"


def draw_worlds(val: int, shifted: int, calibration: int) -> dict[str, list[Scene]]:
    """Return the scenes of both worlds, and those that are calibrated on: another seed than the default's own."""
    other = (
        draw_scene(split_generator("shifted", index, seed=1), drawings="held_out", grounds=OTHER_GROUNDS)
        for index in range(shifted)
    )
    return {
        "calibration": list(split_scenes("calibration", calibration, seed=1)),
        "val": list(split_scenes("val", val)),
        "shifted": list(other),
    }


def choose(
    read: dict[str, dict[str, Maps]], scenes: Sequence[Scene], masks: dict[str, MaskConfig]
) -> dict[str, tuple[str, float, float]]:
    """Return each method's reading (a sentence, for peers) and its thresholds before and after the CRF."""
    chosen = {}
    for method, readings in read.items():
        found = {reading: fitted(scenes, maps, masks[method]) for reading, maps in readings.items()}
        best = max(found, key=lambda reading: found[reading].after)
        chosen[method] = best, found[best].threshold_before, found[best].threshold_after
        print(f"{100 * found[best].after:.1f} on the calibration scenes: {method}, {best}", flush=True)
    return chosen


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return it as JSON values."""
    default = default_settings(options.config, options.model)
    worlds = draw_worlds(options.scenes, options.shifted, options.calibration)
    classifier = gradcam.train(list(split_scenes("train", options.train)), options.epochs)
    arena = Arena.load(default, classifier)
    masks = {method: mask_config(default) for method in (*PEERS, "gradcam")}
    masks |= {method: mask_config(config) for method, config in ours(default).items()}
    calibration = worlds.pop("calibration")
    chosen = choose(read_world(arena, "calibration", calibration), calibration, masks)
    read = {name: read_world(arena, name, scenes) for name, scenes in worlds.items()}
    if options.sam is not None:
        add_sam(options.sam, masks, chosen, read)
    found: dict[str, dict[str, Judged]] = {}
    for world in WORLDS:
        found[world] = {
            method: judged(worlds[world], read[world][method][reading], masks[method], before, after)
            for method, (reading, before, after) in chosen.items()
        }
    costs = {method: run_cost(method, options) for method in chosen if method in (*PEERS, *OURS)}
    return {
        "scenes": {"calibration": len(calibration)} | {name: len(scenes) for name, scenes in worlds.items()},
        "chosen": {method: list(values) for method, values in chosen.items()},
        "worlds": {world: rows_of(methods) for world, methods in found.items()},
        "costs": costs,
    }


def add_sam(
    sam: str,
    masks: dict[str, MaskConfig],
    chosen: dict[str, tuple[str, float, float]],
    read: dict[str, dict[str, dict[str, Maps]]],
) -> None:
    """Add a row in place: the default's soft maps and thresholds, its masks sharpened by a SAM."""
    masks[WITH_SAM] = replace(masks[DEFAULT], sam=SamConfig(id=sam))
    chosen[WITH_SAM] = chosen[DEFAULT]
    for methods in read.values():
        methods[WITH_SAM] = methods[DEFAULT]


def default_settings(config: Path, model: Path) -> GenerateConfig:
    """Return the settings of the rows that are ours."""
    settings = load_config(config)
    return replace(settings, model=replace(settings.model, id=str(model)))


def rows_of(methods: dict[str, Judged]) -> dict[str, Any]:
    """Return the figures of each method on one world, with what the default is ahead of it by."""
    return {
        method: {
            "before": found.before,
            "before_interval": interval(found.counts_before),
            "after": found.after,
            "after_interval": interval(found.counts_after),
            "boundary": found.boundary,
            "ahead": difference(methods[DEFAULT].counts_after, found.counts_after),
        }
        for method, found in methods.items()
    }


def run_cost(method: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure one method in a process of its own, whose memory is its own."""
    command = [sys.executable, "-m", "benchmarks.arena", "--cost", method]
    command += ["--config", str(options.config), "--model", str(options.model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent)
    return json.loads(done.stdout.splitlines()[-1])


def report(found: dict[str, Any], looks: Sequence[dict[str, str]], measured_on: dict[str, str]) -> str:
    """Return the page."""
    names = titles()
    scenes = found["scenes"]
    lines = [
        "# The arena: ours and other methods on the same model",
        machine_line(measured_on),
        f"mIoU in percent over {scenes['val']} scenes of val and {scenes['shifted']} of the shifted world (held-out "
        "drawings on grounds that no split shows), 21 classes, one confusion matrix; in brackets the 95 % interval of "
        f"1,000 bootstrap samples of the scenes. Thresholds and sentence of every row were chosen on "
        f"{scenes['calibration']} calibration scenes. Ahead: by how many points the default leads after the CRF, the "
        "scenes being drawn for both at once. CPU seconds are of one thread, one image, class maps without the CRF. "
        "Made by `python -m benchmarks.arena`; what a method is and where we differ from its authors is in its file in "
        "`benchmarks/peers`. The paper preset looks twice at an image, as the peers do; "
        f"all other rows take the default's refinement, the guided filter included. {_sam_line(found)} "
        f"All of it took {found['cpu_minutes']:.0f} minutes of one core.",
    ]
    header = ("before CRF", "after CRF", "boundary IoU", "default is ahead by", "CPU s", "peak MiB")
    for world, rows in found["worlds"].items():
        cells = [_cells(names.get(method, method), row, found["costs"].get(method)) for method, row in rows.items()]
        lines.append(table((world, *header), cells))
    picks = [
        (names.get(method, method), reading, f"{before:.3f}", f"{after:.3f}")
        for method, (reading, before, after) in found["chosen"].items()
    ]
    lines += ["## Chosen on the calibration scenes", table(("method", "sentence", "before CRF", "after CRF"), picks)]
    lines += ["## Looks at val", LOOKS]
    lines.append("\n".join(f"{number}. {look['commit']}: {look['why']}" for number, look in enumerate(looks, start=1)))
    return "\n\n".join(lines)


def _sam_line(found: dict[str, Any]) -> str:
    """Say which SAM the row with one is of, or why there is no such row."""
    if found.get("sam") is None:
        return "No row has a SAM, of which no weights were at hand; `--sam FOLDER_OR_ID` adds one."
    return f"The SAM is `{found['sam']}`."


LOOKS = (
    "Nothing above was chosen on val. Before the arena, val had been looked at when the steps of the demo model's "
    "training were settled, and for the tables of `refinements.md`, `doubt.md` and stage two. Every change of the "
    "settings is followed by one look each for the model's card and for `doubt.md`, `phrases.md` and `refinements.md` "
    "where these are measured again, and by those of stage two. The arena has looked at it this often:"
)


def _cells(name: str, row: dict[str, Any], cost: dict[str, float] | None) -> tuple[str, ...]:
    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    def with_range(key: str) -> str:
        low, high = row[f"{key}_interval"]
        return f"{percent(row[key])} ({percent(low)} to {percent(high)})"

    middle, low, high = row["ahead"]
    ahead = "" if middle == low == high == 0 else f"{100 * middle:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    costs = ("", "") if cost is None else (f"{cost['seconds']:.3f}", f"{cost['peak_mib']:.0f}")
    bold = f"**{name}**" if name == DEFAULT else name
    return bold, with_range("before"), with_range("after"), percent(row["boundary"]), ahead, *costs


def cpu_seconds() -> float:
    """Return what this process and those that it waited for have used of the processor."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arena", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=int, default=200, help="scenes of val")
    parser.add_argument("--shifted", type=int, default=600, help="scenes of the shifted world")
    parser.add_argument("--calibration", type=int, default=100, help="scenes that thresholds are chosen on")
    parser.add_argument("--train", type=int, default=600, help="scenes that Grad-CAM's classifier is trained on")
    parser.add_argument("--epochs", type=int, default=gradcam.EPOCHS, help="of Grad-CAM's classifier")
    parser.add_argument("--config", type=Path, default=DEMO_CONFIG, help="settings of the default")
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--sam", help="folder or hub id of a SAM: one row more")
    parser.add_argument("--why", help="what this look at val is for; needed where the page has been made before")
    parser.add_argument("--output", type=Path, default=HERE / "arena.md", help="the .json goes beside it")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--cost", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.cost is not None:
        print(json.dumps(cost_of(options.cost, default_settings(options.config, options.model))))
        return
    torch.set_num_threads(options.threads)
    kept_path, measured_on = options.output.with_suffix(".json"), machine()
    looks = json.loads(kept_path.read_text(encoding="utf-8"))["looks"] if kept_path.is_file() else []
    if looks and options.why is None:
        parser.error("this is one more look at val: say what it is for, --why TEXT")
    found = run(options) | {"sam": options.sam, "cpu_minutes": cpu_seconds() / 60}
    looks.append({"commit": measured_on["commit"], "why": options.why or "the table"})
    write_json(kept_path, {"machine": measured_on, "looks": looks, **found})
    text = report(found, looks, measured_on)
    write_text(options.output, text)
    print(text)


if __name__ == "__main__":
    main()
