"""What `benchmarks.stage_one` measures, one case in a process: models of true width, each method, time and memory."""

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.backbones import BACKBONES, build_denoiser, build_image_encoder, settings_of
from benchmarks.common import DEMO_CONFIG, DEMO_MODEL, load_config
from data.config import DataConfig
from pseudolabel.config import GenerateConfig
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.affinity import SelfAttention
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion import flux2, pixart, sd3
from pseudolabel.softmaps.diffusion.families import family_in_memory, run_denoiser
from pseudolabel.softmaps.diffusion.flux import PACKED, T5_TOKENS_SCHNELL
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.parts import Parts, TextEmbedding
from pseudolabel.softmaps.diffusion.stripes import in_stripes
from pseudolabel.softmaps.diffusion.unet import list_layers
from pseudolabel.softmaps.frame import frame_latent
from pseudolabel.softmaps.layers import resolve_layers
from pseudolabel.softmaps.passes import Pass
from pseudolabel.softmaps.prompt import Prompt
from pseudolabel.softmaps.reading import read_batch

CELL_PX = {"demo": 4}  # pixels per side of one latent cell
USUAL_CELL_PX = 8
ENCODERS = ("encoder", "tiny", "stripes")
TINY_ENCODER = DEMO_MODEL.parent / "tiny_encoder"
# Transformers: which of `backbones.BACKBONES`, what of its shape is changed, and the layer read if not the configured.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "pixart_sigma": ("pixart_sigma", {}, None),
    "pixart_middle": ("pixart_sigma", {}, "block:13"),
    "sd3": ("sd3", {}, None),
    "sd35_medium": ("sd35_medium", {}, None),
    "flux_part": ("flux", {"num_layers": 2, "num_single_layers": 4}, "block:1"),
    "flux2_klein": ("flux2_klein", {}, None),
}
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
        vae = str(TINY_ENCODER) if method == "tiny" else None
        models = load_parts(ModelConfig(id=str(demo), vae=vae), device, dtype)
        models.vae = models.vae if method in ENCODERS else None
        return models
    if method in ENCODERS:
        channels = BACKBONES[TRANSFORMERS[name][0]].channels if name in TRANSFORMERS else 4
        vae = _random(lambda: build_image_encoder(channels, method == "tiny"), device, dtype)
        vae.decoder = None
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
    if method in ENCODERS:
        return partial(_encode, models.vae, torch.rand(batch, 3, *size_hw, generator=generator), method == "stripes")
    channels = models.denoiser.config.in_channels // (PACKED**2 if models.family in ("flux", "flux2") else 1)
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


def _encode(vae: Any, pixels: Tensor, striped: bool) -> Any:
    """Encode images one at a time, as stage one does."""
    for image in pixels.split(1):
        with in_stripes(vae) if striped else nullcontext():
            encoded = vae.encode(image.to(vae.device, vae.dtype) * 2 - 1)[0]
    return encoded


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
        case "flux2":
            tokens, width, pooled = flux2.TOKENS, config.joint_attention_dim, None
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
    if device.type == "cpu" and case.get("threads"):
        torch.set_num_threads(case["threads"])
    if case["method"] == "crossover":
        return {"rows": crossover(device, case["repeats"])}
    dtype = getattr(torch, case["dtype"])
    models = build_models(case["model"], case["method"], device, dtype, Path(case["demo_model"]))
    name, size_hw = case["model"], tuple(case["size_hw"])
    if case["channels_last"]:
        for part in (models.denoiser, models.vae):
            if part is not None:
                part.to(memory_format=torch.channels_last)
    run = prepare(case["method"], models, settings(name), size_hw, case["batch"], CELL_PX.get(name, USUAL_CELL_PX))
    reset_peak(device)
    loaded = peak_mib(device)
    with torch.inference_mode():
        seconds = timed(run, device, case["repeats"])
    return {"seconds": seconds / case["batch"], "peak_mib": peak_mib(device), "loaded_mib": loaded}


def timed(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median seconds of some repetitions, after one to warm up: on a CPU of processor time.

    The processor's time does not depend on what else a machine is doing; with one thread it is that of a quiet one.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    durations = []
    for _ in range(repeats + 1):
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        durations.append(clock() - start)
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
