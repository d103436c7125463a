"""What `pseudolabel calibrate` finds on the demo's scenes, what each step costs, and what the find is worth on others.

    python -m benchmarks.calibration_search                 # 60 scenes; writes calibration_search.md and .json
    python -m benchmarks.calibration_search --scenes 10     # a quick look

All scenes are of the calibration split, none of train or val; those that the find is compared on are of other seeds
than those it is chosen on. Seconds are those of the processor, all cores together, so that other work on the machine
does not count.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

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
from data.config import DataConfig
from data.demo.world import write_world
from data.readers.layout import open_samples
from pseudolabel.calibrate.budget import Budget
from pseudolabel.calibrate.finish import Maps, Measured, measure
from pseudolabel.calibrate.kept import Kept
from pseudolabel.calibrate.search import Found, Options, Task, prepare, run_search, start
from pseudolabel.config import GenerateConfig, differences, mask_config

ABOUT = """\
`pseudolabel calibrate` on {scenes} calibration scenes of seed {seed}, started from `{config}`; written by
`python -m benchmarks.calibration_search`. Seconds are those of the processor, without {loading_s:.0f} s of loading.
A step begins with what it has reached: mIoU on these scenes, before the CRF, with fewer draws and ground truth at
reduced size; of the settings given, and from the threshold on, after the CRF as `generate` runs it."""


def task_of(config: GenerateConfig, folder: Path, scenes: int, seed: int, options: Options) -> Task:
    """Draw scenes and return the calibration on them."""
    root = folder / f"world_{seed}"
    write_world(root, train=0, val=0, personal=0, calibration=scenes, seed=seed)
    data = DataConfig(root=root, split="calibration", classes=config.data.classes)
    samples = open_samples(data, need_labels=True, need_truth=True)
    return prepare(replace(config, data=data), samples, list(samples.samples), options)


def compare(task: Task, folder: Path, configs: Sequence[GenerateConfig]) -> list[Measured]:
    """Return what each of some settings reaches on a task's scenes."""
    search = start(task, Kept(folder, Budget()))
    return [measure(Maps(search, config), [mask_config(config)])[0] for config in configs]


def report(figures: dict[str, Any]) -> str:
    """Return the Markdown page."""
    lines = ["# What calibrate finds on the demo world, and what it costs", "", machine_line(figures["machine"]), ""]
    lines += [ABOUT.format(**figures), ""]
    rows = [(entry["step"], f"{entry['seconds']:.0f}") for entry in figures["steps"]]
    lines += [
        table(("step", "seconds"), [*rows, ("all", f"{sum(entry['seconds'] for entry in figures['steps']):.0f}")]),
        "",
    ]
    lines += ["mIoU before / after the CRF:", ""]
    header = ("scenes", "as configured", "found")
    lines += [table(header, [(entry["scenes"], entry["given"], entry["found"]) for entry in figures["compared"]]), ""]
    return "\n".join(
        [*lines, "Found:", "", "```yaml", yaml.safe_dump(figures["found"], sort_keys=False).rstrip(), "```"]
    )


def step_rows(found: Found) -> list[dict[str, Any]]:
    """Return each step and what it cost."""
    search = found.search
    return [{"step": step, "seconds": seconds} for step, seconds in zip(search.steps, search.seconds, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration_search", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--scenes", type=int, default=60, help="of each seed")
    parser.add_argument("--seed", type=int, default=5, help="of the scenes that are chosen on")
    parser.add_argument("--others", type=int, nargs="+", default=[6, 7], help="seeds of those that are compared on")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[], help="by default those of calibrate")
    parser.add_argument("--config", type=Path, default=DEMO_CONFIG, help="settings to start from")
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--output", type=Path, default=HERE / "calibration_search.md", help="the .json goes beside it")
    given = parser.parse_args(arguments)
    config = load_config(given.config)
    config = replace(config, model=replace(config.model, id=str(given.model)), run=replace(config.run, device="cpu"))
    options, budget = Options(timesteps=tuple(given.timesteps)), Budget(clock=time.process_time)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = task_of(config, folder, given.scenes, given.seed, options)
        loading_s, budget.started_s = budget.spent_s, budget.clock()
        found = run_search(task, Kept(folder / "kept", budget))
        compared = [{"scenes": f"chosen on (seed {given.seed})", "given": str(found.before), "found": str(found.after)}]
        for seed in given.others:
            other = task_of(config, folder, given.scenes, seed, options)
            figures = compare(other, folder / f"kept_{seed}", [task.given, found.search.config])
            compared.append({"scenes": f"others (seed {seed})", "given": str(figures[0]), "found": str(figures[1])})
    changed = differences(found.search.config)
    content = {
        "machine": machine(), "scenes": given.scenes, "seed": given.seed, "config": str(given.config.name),
        "loading_s": loading_s, "steps": step_rows(found), "compared": compared,
        "found": {name: group for name, group in changed.items() if name not in ("data", "model")},
    }  # fmt: skip
    write_json(given.output.with_suffix(".json"), content)
    text = report(content)
    write_text(given.output, text)
    print(text)


if __name__ == "__main__":
    main()
