"""Time and peak memory of stage one, beside a plain U-Net pass and a straightforward implementation.

    python -m benchmarks.stage_one                       # all cases on this machine; writes stage_one.md and .json
    python -m benchmarks.stage_one --models demo         # the shipped model alone (seconds)
    python -m benchmarks.stage_one --device cuda         # on a GPU: half precision

Each case runs in its own process, so that its peak memory is its own. From latents on:

    ours       one conditional pass of the cut U-Net, class maps, S S (boxes * map): `reading.read_batch`
    plain      one pass of the whole U-Net as diffusers runs it, nothing read
    naive      the formulas as they stand: guidance doubles the batch, every layer's attention map is built and kept
    published  naive, with the solver's second call, whose result is thrown away (method of the published code)
    encoder    image to latent, which all of them need
    tiny       the same with a tiny encoder (TAESD's width), as `--model.vae` puts it in

Stable Diffusion 1.5 and the transformers have their true width and random weights: time and memory do not depend on
their values. `flux_part` is Flux's width with 2 of its 19 blocks and 4 of its 38 single ones, the last block read being
as deep in it: its ratios are those of the whole, its seconds and memory are not.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.backbones import BACKBONES, build_denoiser, build_image_encoder, settings_of
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
from pseudolabel.config import GenerateConfig
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.affinity import SelfAttention
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion import pixart, sd3
from pseudolabel.softmaps.diffusion.families import family_in_memory, run_denoiser
from pseudolabel.softmaps.diffusion.flux import PACKED, T5_TOKENS_SCHNELL
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.parts import Parts, TextEmbedding
from pseudolabel.softmaps.diffusion.unet import list_layers
from pseudolabel.softmaps.frame import frame_latent
from pseudolabel.softmaps.layers import resolve_layers
from pseudolabel.softmaps.passes import Pass
from pseudolabel.softmaps.prompt import Prompt
from pseudolabel.softmaps.reading import read_batch

METHODS = ("ours", "plain", "naive", "published", "encoder", "tiny")
SIZES = {
    "sd15": ((512, 512), (576, 768), (1024, 1024)),
    "narrow": ((256, 256), (512, 512)),
    "demo": ((128, 128), (160, 160)),
    "pixart_sigma": ((512, 512), (1024, 1024)),
    "sd3": ((512, 512), (1024, 1024)),
    "sd35_medium": ((512, 512), (1024, 1024)),
    "flux_part": ((512, 512), (1024, 1024)),
}
# Transformers: which of `backbones.BACKBONES`, what of its shape is changed, and the layer read if not the configured.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "pixart_sigma": ("pixart_sigma", {}, None),
    "sd3": ("sd3", {}, None),
    "sd35_medium": ("sd35_medium", {}, None),
    "flux_part": ("flux", {"num_layers": 2, "num_single_layers": 4}, "block:1"),
}
BATCH = {"demo": 16}
CELL_PX = {"demo": 4}  # pixels per side of one latent cell
USUAL_BATCH, USUAL_CELL_PX = 1, 8
CROSSOVER_CELLS = (256, 576, 1024, 1728, 2304, 4096)
GUIDANCE = 7.5
TOKENS = (4, 6, 8)  # positions of three classes
TIMESTEP = 150
WORDS = 40  # tokens of a sentence that are no filler
MIB = 2**20


# ------------------------------------------------------------------------------------------------ models


def build_models(name: str, method: str, device: torch.device, dtype: torch.dtype, demo: Path) -> Parts:
    """Return the parts of a model that a method needs: sd15 and narrow with random weights, demo as shipped."""
    if name == "demo":
        models = load_parts(ModelConfig(id=str(demo)), device, dtype)
        models.vae = models.vae if method == "encoder" else None
        return models
    if method in ("encoder", "tiny"):
        channels = BACKBONES[TRANSFORMERS[name][0]].channels if name in TRANSFORMERS else 4
        vae = _random(lambda: build_image_encoder(channels, method == "tiny"), device, dtype)
        return Parts(denoiser=torch.nn.Linear(1, 1), vae=vae, device=device)
    if name in TRANSFORMERS:
        backbone, changes, _ = TRANSFORMERS[name]
        denoiser = _random(lambda: build_denoiser(BACKBONES[backbone], **changes), device, dtype)
        return Parts(denoiser=denoiser, device=device, family=family_in_memory(denoiser))
    return Parts(denoiser=_random(lambda: _build_unet(name), device, dtype), device=device)


def _build_unet(name: str) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    widths = (320, 640, 1280, 1280) if name == "sd15" else (64, 128, 128, 128)
    text = 768 if name == "sd15" else 64
    return UNet2DConditionModel(
        sample_size=64, block_out_channels=widths, cross_attention_dim=text, attention_head_dim=8, layers_per_block=2
    )


def _random(build: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """Build a model without its slow initialisation and fill it with small random numbers."""
    with torch.device("meta"):
        model = build()
    model = model.to(dtype).to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.uniform_(-0.03, 0.03)
    return model.eval().requires_grad_(False)


def settings(name: str) -> GenerateConfig:
    """Return the default settings, or those that the demo model or a transformer comes with."""
    if name in TRANSFORMERS:
        backbone, _, layer = TRANSFORMERS[name]
        config = settings_of(BACKBONES[backbone])
        if layer is None:
            return config
        return replace(config, attention=replace(config.attention, cross_layers=(layer,), self_layers=(layer,)))
    return load_config(DEMO_CONFIG) if name == "demo" else GenerateConfig(data=DataConfig(root=Path()))


# ------------------------------------------------------------------------------------------------ methods


def prepare(
    method: str, models: Parts, config: GenerateConfig, size_hw: tuple[int, int], batch: int, cell_px: int = 8
) -> Callable[[], Any]:
    """Return a function that does one repetition of a method on random latents (or an image)."""
    device, dtype = models.device, torch.float32
    generator = torch.Generator().manual_seed(0)
    if method in ("encoder", "tiny"):
        vae = models.vae
        pixels = torch.rand(batch, 3, *size_hw, generator=generator).to(device, vae.dtype)
        return lambda: vae.encode(pixels * 2 - 1)[0]
    channels = models.denoiser.config.in_channels // (PACKED**2 if models.family == "flux" else 1)
    latent_hw = (size_hw[0] // cell_px, size_hw[1] // cell_px)
    latents = torch.randn(batch, channels, *latent_hw, generator=generator).to(device, dtype)
    text = sentence_like(models, batch, generator)
    match method:
        case "ours":
            return _ours(models, config, latents, text, cell_px)
        case "plain":
            return lambda: run_denoiser(models, latents, [TIMESTEP] * batch, text, size_hw)
        case "naive" | "published":
            return _naive(models, config, latents, text.tokens, calls=2 if method == "published" else 1)
    raise ValueError(method)


def sentence_like(models: Parts, batch: int, generator: torch.Generator) -> TextEmbedding:
    """Return random embeddings of the shape that a model's own text encoders give."""
    config = models.denoiser.config
    match models.family:
        case "unet":
            tokens, width, pooled = models.window if models.tokenizers else 77, config.cross_attention_dim, None
        case "sd3":
            tokens, width, pooled = 77 + sd3.T5_TOKENS, config.joint_attention_dim, config.pooled_projection_dim
        case "flux":
            tokens, width, pooled = T5_TOKENS_SCHNELL, config.joint_attention_dim, config.pooled_projection_dim
        case "pixart":
            tokens, width, pooled = pixart.T5_TOKENS_SIGMA, config.caption_channels, None

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(models.device)

    found = TextEmbedding(drawn(batch, tokens, width), None if pooled is None else drawn(batch, pooled))
    if models.family == "pixart":
        found.mask = (torch.arange(tokens, device=models.device) < WORDS).long().expand(batch, -1)
    return found


def one_of(text: TextEmbedding, index: int) -> TextEmbedding:
    """Return one sentence of a batch."""
    each = (None if part is None else part[index : index + 1] for part in (text.tokens, text.pooled, text.mask))
    return TextEmbedding(*each)  # type: ignore[arg-type]


def _ours(
    models: Parts, config: GenerateConfig, latents: Tensor, text: TextEmbedding, cell_px: int
) -> Callable[[], Any]:
    pipeline = Pipeline(models, config, None)
    frame = frame_latent((latents.shape[-2], latents.shape[-1]), cell_px, None)
    spans = tuple((token,) for token in TOKENS)
    prompt = Prompt("", tuple(range(len(TOKENS))), spans, tuple(range(1, 20)))
    passes = [Pass(index, prompt, one_of(text, index), frame, latent, TIMESTEP) for index, latent in enumerate(latents)]
    settings = {"settings": config.attention, "valid_only": config.resize.valid_only}
    settings |= {"affinity": config.affinity}
    return lambda: read_batch(models, pipeline.cross_layers, pipeline.self_layers, passes, **settings).refined


class _KeepingProcessor:
    """The attention formula as it stands: builds softmax(Q K^T / sqrt(d)) and keeps its mean over heads."""

    def __init__(self, kept: dict[str, Tensor], name: str) -> None:
        self.kept, self.name = kept, name

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Any:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        queries, keys, values = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        queries, keys, values = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (queries, keys, values)
        )
        scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
        probabilities = scores.float().softmax(dim=-1)
        self.kept[self.name] = probabilities.mean(dim=1)
        output = (probabilities.to(values.dtype) @ values).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](output))


def _naive(models: Parts, config: GenerateConfig, latents: Tensor, text: Tensor, calls: int) -> Callable[[], Tensor]:
    """Guidance on, whole U-Net, all maps kept; then the class maps and S S (map) with S as a matrix."""
    unet, batch = models.denoiser, len(latents)
    kept: dict[str, Tensor] = {}
    unet.set_attn_processor({name: _KeepingProcessor(kept, name) for name in unet.attn_processors})
    layers = list_layers(unet)
    cross = resolve_layers(layers, config.attention.cross_layers, "cross")
    [own] = resolve_layers(layers, config.attention.self_layers, "self")
    latent_hw = (latents.shape[-2], latents.shape[-1])
    both = torch.cat([torch.zeros_like(text), text]).to(models.dtype)
    steps = torch.full((2 * batch,), TIMESTEP, device=models.device)

    def evaluate() -> Tensor:
        for _ in range(calls):
            noise = unet(torch.cat([latents, latents]).to(models.dtype), steps, both, return_dict=False)[0]
            without, conditional = noise.chunk(2)
            without + GUIDANCE * (conditional - without)
        grid_hw = own.grid_hw(latent_hw)
        maps = []
        for layer in cross:
            read = kept[f"{layer.blocks[0]}.attn2.processor"][batch:, :, list(TOKENS)].transpose(1, 2)
            sized = read.unflatten(-1, layer.grid_hw(latent_hw))
            maps.append(torch.nn.functional.interpolate(sized, size=grid_hw, mode="bilinear"))
        columns = torch.stack(maps).mean(dim=0).flatten(2).transpose(1, 2)
        matrix = kept[f"{own.blocks[0]}.attn1.processor"][batch:]
        return matrix @ matrix @ columns

    return evaluate


# ------------------------------------------------------------------------------------------------ measuring


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Measure one case in this process: seconds per pass (median), and peak memory while it runs."""
    device = torch.device(case["device"])
    half = torch.bfloat16 if case["model"] in TRANSFORMERS else torch.float16
    dtype = half if device.type == "cuda" else torch.float32
    if case["method"] == "crossover":
        return {"rows": crossover(device, case["repeats"])}
    models = build_models(case["model"], case["method"], device, dtype, Path(case["demo_model"]))
    name, size_hw = case["model"], tuple(case["size_hw"])
    run = prepare(case["method"], models, settings(name), size_hw, case["batch"], CELL_PX.get(name, USUAL_CELL_PX))
    reset_peak(device)
    loaded = peak_mib(device)
    with torch.inference_mode():
        seconds = timed(run, device, case["repeats"])
    return {"seconds": seconds / case["batch"], "peak_mib": peak_mib(device), "loaded_mib": loaded}


def timed(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median seconds of some repetitions, after one to warm up."""
    durations = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations[1:])


def reset_peak(device: torch.device) -> None:
    """Forget the peak that loading the model reached."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_mib(device: torch.device) -> float:
    """Return the highest memory since `reset_peak`: of the process, or of the GPU's tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    status = Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1]
    return int(status.split()[0]) / 1024


def crossover(device: torch.device, repeats: int) -> list[dict[str, float]]:
    """Time S S V with S as a matrix, and as two fused attentions, at several numbers of cells (8 heads of 80)."""
    rows = []
    for cells in CROSSOVER_CELLS:
        torch.manual_seed(0)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        queries, keys = torch.randn(2, 1, 8, cells, 80, device=device, dtype=dtype)
        attention = SelfAttention(queries, keys, (1, cells))
        columns = torch.rand(1, cells, len(TOKENS), device=device)

        def dense(attention: SelfAttention = attention, columns: Tensor = columns) -> Tensor:
            matrix = attention.matrix()
            return matrix @ (matrix @ columns)

        def fused(attention: SelfAttention = attention, columns: Tensor = columns) -> Tensor:
            return attention.apply(attention.apply(columns))

        with torch.inference_mode():
            found = {"cells": cells, "dense_s": timed(dense, device, repeats), "fused_s": timed(fused, device, repeats)}
        rows.append(found)
    return rows


def measure_apart(case: dict[str, Any]) -> dict[str, Any]:
    """Run a case in its own process; a case that does not fit is recorded with its error."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.stage_one", "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {**case, "error": last[:200]}
    return {**case, **json.loads(done.stdout.strip().splitlines()[-1])}


# ------------------------------------------------------------------------------------------------ the report


def report(results: list[dict[str, Any]], found: dict[str, str], device: str) -> str:
    """Return the Markdown page."""
    lines = ["# Stage one: time and memory", "", machine_line(found), ""]
    number_format = "float16 (transformers bfloat16)" if device == "cuda" else "float32"
    lines += [f"{device}, {number_format}; written by `python -m benchmarks.stage_one`. Seconds are the median of one"]
    lines += ["noise draw of one image (of a batch, divided by its size), from latents on; the encoder is its own row."]
    lines += ["Peak is what the process (Python and its libraries included) or the GPU's tensors take at most after"]
    lines += ["loading; the cut U-Net's freed weights are gone by then.", ""]
    rows = [result for result in results if result["method"] != "crossover"]
    for model, size in dict.fromkeys((row["model"], tuple(row["size_hw"])) for row in rows):
        same = {row["method"]: row for row in rows if (row["model"], tuple(row["size_hw"])) == (model, size)}
        lines += [f"## {model}, {size[1]} x {size[0]} pixels, batch {next(iter(same.values()))['batch']}", ""]
        lines += [table(HEADER, [_row(method, same) for method in METHODS if method in same]), ""]
    lines += _linearity(rows)
    for result in results:
        if result["method"] == "crossover" and "rows" in result:
            lines += _crossover_section(result["rows"])
    return "\n".join(lines)


HEADER = (
    "method",
    "s a draw",
    "of plain",
    "naive / ours",
    "images/s, 1 draw",
    "images/s, 10 draws",
    "peak MiB",
    "of plain",
)


def _row(method: str, same: dict[str, dict[str, Any]]) -> list[str]:
    row = same[method]
    if "error" in row:
        return [method, row["error"], "", "", "", "", "", ""]
    plain, ours = same.get("plain", {}), same.get("ours", {})
    seconds, encoder = row["seconds"], same.get("encoder", {}).get("seconds", 0.0)

    def ratio(value: float, other: float | None) -> str:
        return f"{value / other:.2f}" if other else ""

    rates = ["", ""] if method in ("encoder", "tiny") else [f"{1 / (encoder + n * seconds):.3g}" for n in (1, 10)]
    return [
        method,
        f"{seconds:.4g}",
        ratio(seconds, plain.get("seconds")),
        ratio(seconds, ours.get("seconds")) if method in ("naive", "published") else "",
        *rates,
        f"{row['peak_mib']:.0f}",
        ratio(row["peak_mib"], plain.get("peak_mib")),
    ]


def _linearity(rows: list[dict[str, Any]]) -> list[str]:
    """Memory beyond the loaded model, per pixel: constant, or falling, where memory grows linearly."""
    lines = ["## Memory against pixels (ours)", ""]
    cells = []
    for row in rows:
        if row["method"] == "ours" and "error" not in row:
            pixels = row["size_hw"][0] * row["size_hw"][1] * row["batch"]
            beyond = row["peak_mib"] - row["loaded_mib"]
            size = f"{row['model']} {row['size_hw'][1]} x {row['size_hw'][0]}"
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stage_one", description=(__doc__ or "").split("\n")[0])
    usual = [name for name in SIZES if name != "narrow"]
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=usual)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", help="height x width, as 512x512; default: those of each model")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--repeats", type=int, default=None, help="default: 2 on a CPU (demo: 5), 10 on a GPU")
    parser.add_argument("--demo_model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--output", type=Path, default=HERE / "stage_one.md", help="the .json goes beside it")
    parser.add_argument("--no_crossover", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(run_case(json.loads(options.case))))
        return
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    results = []
    for case in list_cases(options, device):
        print(case["model"], case["size_hw"], case["method"], end=" ... ", flush=True)
        results.append(measure_apart(case))
        print({key: results[-1][key] for key in ("seconds", "peak_mib", "error") if key in results[-1]}, flush=True)
        found = machine(device)
        write_json(options.output.with_suffix(".json"), {"machine": found, "device": device, "results": results})
        write_text(options.output, report(results, found, device))


def list_cases(options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """Return all cases.

    Naive is left out for transformers, of which the paper has no formulas, and at more than a megapixel on a CPU, where
    it takes 34 GB; the demo has no tiny encoder.
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
                if method == "tiny" and model == "demo":
                    continue
                repeats = options.repeats or (10 if device == "cuda" else 5 if model == "demo" else 2)
                cases.append(
                    {"model": model, "size_hw": size, "method": method, "device": device, "repeats": repeats,
                     "batch": BATCH.get(model, USUAL_BATCH), "demo_model": str(options.demo_model)}
                )  # fmt: skip
    if not options.no_crossover:
        case = {"model": "", "size_hw": (0, 0), "method": "crossover", "device": device, "demo_model": "", "batch": 1}
        cases.append({**case, "repeats": options.repeats or 5})
    return cases


if __name__ == "__main__":
    main()
