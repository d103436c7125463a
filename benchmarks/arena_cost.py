"""What a method of the arena costs: CPU seconds an image, and the memory of a process that does nothing else."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.arena_read import PEER_DRAWS, PEERS, layers_of, ours, peer_maps
from benchmarks.common import DEMO_CLASSES
from data.demo.world import Scene, split_scenes
from data.machine import peak_memory_bytes
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.calibrate.recordings import record
from pseudolabel.config import GenerateConfig
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.config import DiffusionConfig, ResizeConfig
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.parts import pick_device
from pseudolabel.softmaps.passes import Reader

SCENES = 8
WARM_UP = 2


def cost_of(method: str, default: GenerateConfig) -> dict[str, float]:
    """Return seconds of one thread an image, class maps without the CRF, and the process's peak memory in MiB.

    The clock counts what the processor spends on this process, so that a busy machine changes it little.
    """
    torch.set_num_threads(1)
    make = _maker(method, default)
    scenes = list(split_scenes("calibration", SCENES, seed=1))
    for index, scene in enumerate(scenes):
        if index == WARM_UP:
            start = time.process_time()
        make(scene, f"calibration_{index}")
    seconds = (time.process_time() - start) / (SCENES - WARM_UP)
    return {"seconds": seconds, "peak_mib": _peak_bytes() / 2**20}


def _peak_bytes() -> int:
    """Return the process's peak memory; getrusage would count what the process was before its program began."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_memory_bytes() or 0
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[1])  # type: ignore[index]


def _maker(method: str, default: GenerateConfig) -> Callable[[Scene, str], Any]:
    """Return what makes the class maps of a scene, recording what this method reads and no more."""
    parts = load_parts(default.model, pick_device("cpu"), torch.float32)
    if method not in PEERS:
        pipeline = Pipeline(parts, ours(default)[method], DEMO_CLASSES)
        return lambda scene, name: pipeline.soft_maps([scene.rgb], [scene.labels], [name])
    peer, model = PEERS[method], layers_of(parts, default)
    diffusion = DiffusionConfig(timesteps=default.diffusion.timesteps, draws=PEER_DRAWS)
    reader = Reader(parts, DEMO_CLASSES, default.prompt, diffusion, ResizeConfig(), default.run)

    def make(scene: Scene, name: str) -> Any:
        [sentences] = record(reader, [Picture(name, scene.rgb, scene.labels)], peer.wanted(model))
        return peer_maps(peer, sentences, model)

    return make
