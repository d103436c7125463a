"""Time and peak memory of stage one, beside a plain pass of the whole model and a straightforward implementation.

    python -m benchmarks.stage_one                                    # all cases of this machine
    python -m benchmarks.stage_one --models sd15 --sizes 512x512      # some; the others are kept as they are
    python -m benchmarks.stage_one --device cuda                      # on a GPU: half precision

Each case runs in its own process, so that its peak memory is its own; each is written into stage_one.json and
stage_one.md as soon as it is done, in the place of what was measured of it before. From latents on:

    ours       one conditional pass of the cut model, class maps, S S (boxes * map): `reading.read_batch`
    plain      one pass of the whole model as diffusers runs it, nothing read
    naive      the formulas as they stand: guidance doubles the batch, every layer's attention map is built and kept
    published  naive, with the solver's second call, whose result is thrown away (method of the published code)
    encoder    image to latent, which all of them need
    tiny       the same with a tiny encoder (TAESD's width), as `--model.vae` puts it in
    stripes    the model's own encoder in stripes, as `--model.vae_stripes`, or a GPU that is full, has it

Stable Diffusion 1.5 and the transformers have their true width and random weights: time and memory do not depend on
their values. What `NOTES` says of a model stands on the page.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import DEMO_MODEL, HERE, machine, table, write_json, write_text
from benchmarks.stage_one_cases import ENCODERS, TRANSFORMERS, run_case
from pseudolabel.softmaps.diffusion.parts import multiplies_bfloat16

METHODS = ("ours", "plain", "naive", "published", "encoder", "tiny", "stripes")
SIZES = {
    "sd15": ((512, 512), (576, 768), (1024, 1024)),
    "narrow": ((256, 256), (512, 512)),
    "demo": ((128, 128), (160, 160)),
    "pixart_sigma": ((512, 512), (1024, 1024)),
    "pixart_middle": ((512, 512), (1024, 1024)),
    "sd3": ((512, 512), (1024, 1024)),
    "sd35_medium": ((512, 512), (1024, 1024)),
    "flux_part": ((512, 512), (1024, 1024)),
    "flux2_klein": ((512, 512), (1024, 1024)),
}
NOTES = {
    "pixart_sigma": "PixArt-Sigma as configs/pseudolabel/pixart_sigma_voc12.yaml reads it: up to block 18 of 0 to 27.",
    "pixart_middle": "PixArt-Sigma read in one block in the middle, 13 of 0 to 27; its configuration reads up to 18.",
    "sd3": "SD3 medium as its configuration reads it: block 9 of 0 to 23.",
    "sd35_medium": "SD3.5 medium as its configuration reads it: block 9 of 0 to 23.",
    "flux_part": "Scaled down: Flux.1's width with 2 of its 19 blocks and 4 of its 38 single ones, read in the second, "
    "a third of the way as block 18 of the configuration is. A pass ends inside the block, which is more of a model of "
    "6 blocks: the ratio of time is somewhat below the whole model's. Seconds and memory are not the whole's.",
    "flux2_klein": "Flux.2 klein 4B as its configuration reads it: up to block 4 of 0 to 4, before 20 single ones.",
}
BATCH = {"demo": 16}
USUAL_BATCH = 1
MIB = 2**20
# What is measured again replaces a row of the same; rows of more threads are from before there was one, by the clock.
KEY = ("model", "size_hw", "method", "device", "threads", "dtype", "channels_last")


def measure_apart(case: dict[str, Any]) -> dict[str, Any]:
    """Run a case in its own process; a case that does not fit is recorded with its error."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.stage_one", "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)
    found = machine(case["device"])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {**case, **found, "error": last[:200]}
    return {**case, **found, **json.loads(done.stdout.strip().splitlines()[-1])}


def usual_format(model: str, method: str, device: str) -> tuple[str, bool]:
    """Return number format and whether channels are last, as stage one has them for a model."""
    transformer = model in TRANSFORMERS
    if device == "cuda":
        return ("bfloat16" if transformer else "float16"), not transformer or method in ENCODERS
    newer = method == "tiny" or (transformer and method in ENCODERS)
    return ("bfloat16" if transformer and multiplies_bfloat16() else "float32"), newer


# ------------------------------------------------------------------------------------------------ the report


def report(results: list[dict[str, Any]]) -> str:
    """Return the Markdown page."""
    lines = ["# Stage one: time and memory", "", *_introduction(results), ""]
    rows = [result for result in results if result["method"] != "crossover"]
    usual = [row for row in rows if _is_usual(row)]
    for model, size, threads in dict.fromkeys(map(_group, usual)):
        same = {row["method"]: row for row in usual if _group(row) == (model, size, threads)}
        first = next(iter(same.values()))
        dtype = usual_format(model, "ours", first["device"])[0]
        clock = "" if threads == 1 or first["device"] == "cuda" else f", {threads} threads by the clock"
        lines += [f"## {model}, {size[1]} x {size[0]} pixels, batch {first['batch']}, {dtype}{clock}", ""]
        lines += [NOTES[model], ""] if model in NOTES else []
        lines += [table(HEADER, [_row(method, same) for method in METHODS if method in same]), ""]
        lines += _with_encoder(same)
    lines += _formats(rows)
    lines += _linearity(usual)
    for result in results:
        if result["method"] == "crossover" and "rows" in result:
            lines += _crossover_section(result["rows"])
    return "\n".join(lines)


def _introduction(results: list[dict[str, Any]]) -> list[str]:
    """Say what was measured, how, and on what."""
    machines = dict.fromkeys(f"{row['hardware']}, torch {row['torch']}" for row in results)
    lines = [f"Written by `python -m benchmarks.stage_one`; measured on {'; '.join(machines)}."]
    lines += [
        "Seconds are the median of one noise draw of one image (of a batch, divided by its size), from latents on; the"
    ]
    lines += ["encoder is its own row."]
    if any(row["device"] == "cpu" for row in results):
        lines += ["On a CPU they are processor time of one thread where nothing else is said, and memory is what the"]
        lines += [
            "process takes at most after loading, Python and its libraries included; what a model loses by being cut is"
        ]
        lines += ["gone by then."]
    return lines


def _group(row: dict[str, Any]) -> tuple[str, tuple[int, ...], int]:
    """Return what rows have in common that are compared with each other."""
    return row["model"], tuple(row["size_hw"]), row["threads"]


def _is_usual(row: dict[str, Any]) -> bool:
    """Whether a row was measured in the formats that stage one has for the model."""
    return (row["dtype"], row["channels_last"]) == usual_format(row["model"], row["method"], row["device"])


HEADER = ("method", "s a draw", "of plain", "naive / ours", "images/s, 1 draw", "images/s, 10 draws", "peak MiB",
          "of plain", "commit")  # fmt: skip


def _ratio(value: float, other: float | None) -> str:
    return f"{value / other:.2f}" if other else ""


def _row(method: str, same: dict[str, dict[str, Any]]) -> list[str]:
    row = same[method]
    if "error" in row:
        return [method, row["error"], "", "", "", "", "", "", row["commit"]]
    plain, ours = same.get("plain", {}), same.get("ours", {})
    seconds, encoder = row["seconds"], same.get("encoder", {}).get("seconds")
    known = encoder is not None and method not in ENCODERS
    rates = [f"{1 / (encoder + n * seconds):.3g}" if known else "" for n in (1, 10)]
    return [
        method,
        f"{seconds:.4g}",
        _ratio(seconds, plain.get("seconds")),
        _ratio(seconds, ours.get("seconds")) if method in ("naive", "published") else "",
        *rates,
        f"{row['peak_mib']:.0f}",
        _ratio(row["peak_mib"], plain.get("peak_mib")),
        row["commit"],
    ]


def _with_encoder(same: dict[str, dict[str, Any]]) -> list[str]:
    """Say what an image with one draw takes, of a plain pass, with each encoder."""
    seconds = {method: row["seconds"] for method, row in same.items() if "seconds" in row}
    if not {"ours", "plain"} <= set(seconds):
        return []
    names = {"encoder": "with the model's own encoder", "tiny": "with a tiny one", "stripes": "with its own in stripes"}
    parts = [
        f"{(seconds['ours'] + seconds[method]) / seconds['plain']:.2f} {words}"
        for method, words in names.items()
        if method in seconds
    ]
    return [f"An image with one draw takes, of a plain pass: {', '.join(parts)}.", ""] if parts else []


def _formats(rows: list[dict[str, Any]]) -> list[str]:
    """Tables of what was measured in more than one number format or memory layout."""
    cells = []
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "seconds" in row:
            groups.setdefault((*_group(row), row["method"]), []).append(row)
    for (model, size, _, method), group in groups.items():
        base = next((row for row in group if (row["dtype"], row["channels_last"]) == ("float32", False)), None)
        if len(group) < 2 or base is None:
            continue
        for row in sorted(group, key=lambda row: (row["dtype"] != "float32", row["channels_last"])):
            name = f"{model} {size[1]} x {size[0]}, {method}"
            layout = "last" if row["channels_last"] else "first"
            cells.append((name, row["dtype"], layout, f"{row['seconds']:.4g}", _ratio(row["seconds"], base["seconds"]),
                          f"{row['peak_mib']:.0f}", _ratio(row["peak_mib"], base["peak_mib"])))  # fmt: skip
    if not cells:
        return []
    header = ("case", "numbers", "channels", "s", "of float32, first", "peak MiB", "of float32, first")
    return ["## Number formats and memory layouts", "", table(header, cells), ""]


def _linearity(rows: list[dict[str, Any]]) -> list[str]:
    """Memory beyond the loaded model, per pixel: constant, or falling, where memory grows linearly."""
    lines = ["## Memory against pixels", ""]
    cells = []
    for row in rows:
        if row["method"] in ("ours", "encoder", "stripes") and "error" not in row:
            pixels = row["size_hw"][0] * row["size_hw"][1] * (row["batch"] if row["method"] == "ours" else 1)
            beyond = row["peak_mib"] - row["loaded_mib"]
            size = f"{row['model']} {row['size_hw'][1]} x {row['size_hw'][0]}, {row['method']}"
            size += "" if row["threads"] == 1 else f", {row['threads']} threads"
            cells.append((size, f"{row['peak_mib']:.0f}", f"{row['loaded_mib']:.0f}", f"{beyond * MIB / pixels:.0f}"))
    return [*lines, table(("case", "peak MiB", "loaded MiB", "bytes per pixel beyond"), cells), ""]


def _crossover_section(rows: list[dict[str, float]]) -> list[str]:
    lines = ["## S S V: S as a matrix, or two fused attentions", ""]
    lines += [
        "8 heads of 80, 3 columns, one image. `affinity.DENSE_CELLS` is the largest grid that uses the matrix.",
        "",
    ]
    cells = [
        (int(row["cells"]), f"{1000 * row['dense_s']:.2f}", f"{1000 * row['fused_s']:.2f}",
         f"{row['dense_s'] / row['fused_s']:.2f}", f"{row['cells'] ** 2 * 4 / MIB:.1f}")
        for row in rows
    ]  # fmt: skip
    lines.append(table(("cells", "matrix ms", "fused ms", "matrix / fused", "matrix MiB"), cells))
    quicker = [int(row["cells"]) for row in rows if row["dense_s"] < row["fused_s"]]
    return [*lines, "", f"The matrix is quicker at: {', '.join(map(str, quicker)) or 'none of these'} cells.", ""]


# ------------------------------------------------------------------------------------------------ the command


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stage_one", description=(__doc__ or "").split("\n")[0])
    usual = [name for name in SIZES if name != "narrow"]
    parser.add_argument("--models", nargs="*", choices=list(SIZES), default=usual)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", help="height x width, as 512x512; default: those of each model")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: what stage one takes")
    parser.add_argument("--channels", choices=["first", "last"], help="in memory; default: what stage one takes")
    parser.add_argument("--repeats", type=int, default=None, help="default: 1 on a CPU (demo: 5), 10 on a GPU")
    parser.add_argument("--demo_model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--output", type=Path, default=HERE / "stage_one.md", help="the .json goes beside it")
    parser.add_argument("--crossover", action="store_true", help="S S V in both ways, too")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(run_case(json.loads(options.case))))
        return
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    results_file = options.output.with_suffix(".json")
    for case in list_cases(options, device):
        print(*(case[name] for name in KEY), end=" ... ", flush=True)
        found = measure_apart(case)
        print({key: found[key] for key in ("seconds", "peak_mib", "error") if key in found}, flush=True)
        kept = json.loads(results_file.read_text(encoding="utf-8"))["results"] if results_file.is_file() else []
        results = merged(kept, found)
        write_json(results_file, {"results": results})
        write_text(options.output, report(results))


def merged(results: list[dict[str, Any]], found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return results with a new one in the place of that of the same case; models and sizes in their order."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(tuple(row[name]) if name == "size_hw" else row[name] for name in KEY)

    def order(row: dict[str, Any]) -> tuple[Any, ...]:
        model = [*SIZES, ""].index(row["model"])
        return model, tuple(row["size_hw"]), -row["threads"], [*METHODS, "crossover"].index(row["method"]), key(row)

    return sorted([*(row for row in results if key(row) != key(found)), found], key=order)


def list_cases(options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """Return all cases.

    Naive is left out for transformers, of which the paper has no formulas, and at more than a megapixel on a CPU, where
    it takes 34 GB.
    """
    cases = []
    for model in options.models:
        if model == "demo" and not (options.demo_model / "model_index.json").is_file():
            print(f"No model in {options.demo_model}: demo is left out.")
            continue
        sizes = [tuple(map(int, text.split("x"))) for text in options.sizes] if options.sizes else SIZES[model]
        for size in sizes:
            for method in options.methods:
                slow = size[0] * size[1] > 800_000 and device == "cpu"
                if method in ("naive", "published") and (slow or model in TRANSFORMERS):
                    continue
                repeats = options.repeats or (10 if device == "cuda" else 5 if model == "demo" else 1)
                dtype, last = usual_format(model, method, device)
                last = last if options.channels is None else options.channels == "last"
                cases.append(
                    {"model": model, "size_hw": size, "method": method, "device": device, "repeats": repeats,
                     "batch": BATCH.get(model, USUAL_BATCH), "demo_model": _shown(options.demo_model), "threads": 1,
                     "dtype": options.dtype or dtype, "channels_last": last}
                )  # fmt: skip
    if options.crossover:
        case = {"model": "", "size_hw": (0, 0), "method": "crossover", "device": device, "demo_model": "", "batch": 1}
        case |= {"threads": 1, "dtype": "float32", "channels_last": False}
        cases.append({**case, "repeats": options.repeats or 5})
    return cases


def _shown(path: Path) -> str:
    """Return a path as it is called from the repository, where it lies in it."""
    return str(path.relative_to(HERE.parent)) if path.is_relative_to(HERE.parent) else str(path)


if __name__ == "__main__":
    main()
