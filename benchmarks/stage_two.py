"""Is loading the bottleneck of training? Images a second of the loader alone, of the step alone, and of both.

    python benchmarks/stage_two.py --store S [--config configs/train/demo.yaml] [--workers 0 1 2] [--steps 30]

Prints one JSON line per worker count, and appends it with hardware and commit to benchmarks/stage_two.jsonl.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path

import torch
import yaml

from data.console import available_cpus
from data.store.store import MaskStore
from train.datamodule import SegmentationData
from train.losses import LossConfig, segmentation_loss
from train.network import NetworkConfig, build_network
from train.transforms import AugmentConfig

HERE = Path(__file__).parent


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=HERE.parent / "configs/train/demo.yaml")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    settings = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    for workers in arguments.workers:
        row = measure(arguments.store, settings, workers, arguments.steps) | hardware()
        print(json.dumps(row))
        with (HERE / "stage_two.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def measure(store: Path, settings: dict, workers: int, steps: int) -> dict:
    """Return images per second; the cache of decoded images is off, so that the loader does all its work."""
    data = SegmentationData(
        store=store,
        augment=AugmentConfig(**settings["data"].get("augment", {})),
        batch_size=settings["data"].get("batch_size", 10),
        workers=workers,
    )
    data.setup("fit")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = settings["model"]["network"]
    rates = network.get("atrous_rates")
    config = NetworkConfig(**(network | {"weights": None, "atrous_rates": tuple(rates) if rates else None}))
    model = build_network(config, len(MaskStore.open(store).classes) + 1).to(device)
    if settings["model"].get("channels_last"):
        model = model.to(memory_format=torch.channels_last)
    step = make_step(model, device, settings)
    batch = next(iter(data.train_dataloader()))
    step(batch)
    size = data.batch_size
    return {
        "workers": workers,
        "batch_size": size,
        "loader_images_per_s": round(size / per_batch(batches(data, steps), lambda batch: None), 1),
        "step_images_per_s": round(size / per_batch((batch for _ in range(steps)), step), 1),
        "both_images_per_s": round(size / per_batch(batches(data, steps), step), 1),
    }


def make_step(model: torch.nn.Module, device: torch.device, settings: dict):
    """Return a function that does one training step, as the module does it, and waits for its end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_config = LossConfig(kind=settings["model"].get("loss", {}).get("kind", "cross_entropy"))
    bf16 = "bf16" in str(settings["trainer"].get("precision", ""))
    layout = torch.channels_last if settings["model"].get("channels_last") else torch.contiguous_format

    def step(batch: dict) -> None:
        images = batch["image"].to(device).float().contiguous(memory_format=layout)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            scores = model(images)
        loss = segmentation_loss(loss_config, scores.float(), batch["mask"].to(device).long())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def batches(data: SegmentationData, count: int):
    """Yield this many batches, over epochs; the loader's processes have started before the first one is counted."""
    loader = data.train_dataloader()
    given = 0
    while given < count:
        for batch in loader:
            yield batch
            given += 1
            if given == count:
                return


def per_batch(source, work) -> float:
    """Return seconds per batch; the first one warms up and does not count."""
    work(next(source))
    start, count = time.perf_counter(), 0
    for batch in source:
        work(batch)
        count += 1
    return (time.perf_counter() - start) / count


def hardware() -> dict:
    """Return what the figures were measured on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "device": name,
        "cores": available_cpus(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


if __name__ == "__main__":
    main()
