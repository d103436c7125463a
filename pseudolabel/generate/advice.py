"""Which known model this machine takes, and about how long an image would take: computed before any is fetched."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import ModelError
from data.machine import available_memory_bytes
from data.texts import FileKind, read_json

MODELS = Path(__file__).with_name("models.json")  # counted by benchmarks/costs.py
# Of the rate of one large product of matrices, what the layers of a diffusion model are assumed to reach.
REACHED = 0.5
BESIDE_GB = 2.0  # for a pass; not measured
_SIDE = {"cuda": 4096, "cpu": 1024}
_TRIES = 3
_KIND = FileKind("the list of known models", 1 << 20, "install text2mask-wsss again", ModelError)


@dataclass(frozen=True)
class Advised:
    """A known model on this machine.

    Attributes:
        title: what it is called.
        id: on the hub.
        config: the shipped configuration it is read with; None: the defaults.
        fits: whether its weights and a pass fit into the memory of the device.
        weights_gb: what its weights need: on a GPU at once, in 16 bits; on a CPU all of them, in float32.
        seconds: of an image with its noise draws, without the CRF.

    """

    title: str
    id: str
    config: str | None
    fits: bool
    weights_gb: float
    seconds: float


def advise(device: str) -> tuple[Advised, ...]:
    """Return what the known models need and would take on a device, the quickest first.

    The time is the operations of an image (counted for a photograph of 500 x 375) over `REACHED` of the rate at which
    the device multiplies large matrices now; nothing of a model is run.

    Args:
        device: "cpu", or of CUDA.

    """
    import torch

    on_gpu = device.startswith("cuda")
    rate = REACHED * product_rate(device)
    there = torch.cuda.get_device_properties(device).total_memory if on_gpu else available_memory_bytes()
    return tuple(sorted((_advised(model, on_gpu, there, rate) for model in _known()), key=lambda one: one.seconds))


def _known() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(MODELS, _KIND)["models"]
    return found


def _advised(model: dict[str, Any], on_gpu: bool, there: int | None, rate: float) -> Advised:
    tflop = model["encoder_tflop"] + model["draws"] * model["draw_tflop"]
    needed = model["at_once_gb"] if on_gpu else 2 * model["all_gb"]  # float32, and nothing leaves
    fits = there is None or needed + BESIDE_GB <= there / 1e9
    config = None if model["config"] is None else f"configs/pseudolabel/{model['config']}.yaml"
    return Advised(model["title"], model["id"], config, fits, round(needed, 1), tflop * 1e12 / rate)


def product_rate(device: str) -> float:
    """Return the operations a second of a large product of matrices: 16 bits on a GPU, float32 on a CPU."""
    import torch

    kind = device.partition(":")[0]
    side = _SIDE.get(kind, _SIDE["cpu"])
    one = torch.ones(side, side, device=device, dtype=torch.float16 if kind == "cuda" else torch.float32)
    best = float("inf")
    for _ in range(_TRIES + 1):  # the first sets things up
        start = time.perf_counter()
        float((one @ one)[0, 0])  # waits for the result
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def advice_lines(device: str, models: tuple[Advised, ...]) -> list[str]:
    """Return the lines for a person."""
    lines = [f"On {device}, computed from an image's operations and the rate of the device now, without the CRF:"]
    for one in models:
        how = f"about {_duration(one.seconds)} per image" if one.fits else "too large"
        config = "" if one.config is None else f", {one.config}"
        lines.append(f"  {one.title:22} {one.weights_gb:5.1f} GB  {how:22} {one.id}{config}")
    return lines


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds / 60:.0f} min"
