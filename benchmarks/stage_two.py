"""Is loading the bottleneck of training? Images a second of the loader alone, of the step alone, and of both.

    python -m benchmarks.stage_two [--store S] [--config configs/train/demo.yaml] [--workers 0 1] [--steps 30]
    python -m benchmarks.stage_two [--store S] --compare [--config FILE] [--rounds 12] [--minutes 3]

Prints one JSON line per worker count, and appends it with hardware and commit to benchmarks/stage_two.jsonl. With
--compare it is the step alone, with channels innermost or not, a fused optimizer or not, and in a line of its own
compiled or not (STEPS): a step of each in turn, so that what else the machine does slows all of them; the medians'
ratios are what counts. No more rounds are begun after --minutes. Without --store the images are drawn and written as
JPEG photographs of 500 x 375 pixels, with masks: for --config configs/train/voc12_small.yaml --crop 321.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.common import DEMO_CLASSES, HERE, machine
from data.demo.world import split_scenes
from data.store.store import MaskStore
from train.datamodule import SegmentationData
from train.inference import padded_scores
from train.losses import LossConfig, segmentation_loss
from train.network import NetworkConfig, build_network
from train.transforms import AugmentConfig

STEPS = (  # in each line of the file; name: channels innermost, fused optimizer, compiled
    {
        "plain": (False, False, False),
        "channels_last": (True, False, False),
        "fused": (False, True, False),
        "channels_last, fused": (True, True, False),
    },
    {"channels_last": (True, False, False), "channels_last, compiled": (True, False, True)},
)
PHOTOGRAPHS = 48
PHOTOGRAPH_HW = (375, 500)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--store", type=Path, help="default: drawn photographs")
    parser.add_argument("--config", type=Path, default=HERE.parent / "configs/train/demo.yaml")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compare", action="store_true", help="ways to do a step, in place of the loader")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=3.0, help="for --compare, of each line")
    parser.add_argument("--crop", type=int, help="in place of the config's")
    arguments = parser.parse_args()
    settings = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    if arguments.crop:
        settings["data"]["augment"]["crop"] = arguments.crop
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store or write_photographs(Path(folder))
        shared = {"config": arguments.config.name, "crop": settings["data"]["augment"]["crop"]}
        shared |= {"images": "drawn photographs" if arguments.store is None else "of a store"}
        if arguments.compare:
            for kinds in STEPS:
                keep(compare(store, settings, kinds, arguments.rounds, arguments.minutes) | shared)
            return
        for workers in arguments.workers:
            keep(measure(store, settings, workers, arguments.steps) | shared)


def write_photographs(folder: Path) -> Path:
    """Draw photographs, write them as JPEG, and return a store of their true masks."""
    data = {"format": "folder", "root": str(folder), "split": "all"}
    store = MaskStore.create(folder / "store", classes=DEMO_CLASSES, config={}, model={}, data=data)
    height, width = PHOTOGRAPH_HW
    for index, scene in enumerate(split_scenes("train", PHOTOGRAPHS)):
        drawn = Image.fromarray(scene.rgb).resize((width, height), Image.Resampling.BICUBIC)
        drawn.save(folder / f"{index}.jpg", quality=92)
        mask = np.asarray(Image.fromarray(scene.mask).resize((width, height), Image.Resampling.NEAREST))
        record = {
            "image": f"{index}.jpg",
            "labels": [int(label) for label in np.unique(mask) if label],
            "ignore_share": 0,
        }
        store.write(str(index), mask, argmax=mask, soft=None, record=record)
    return store.path


def keep(row: dict) -> None:
    """Print a row and append it to the file."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    line = json.dumps(row | {"load": round(os.getloadavg()[0], 1)} | machine(device))
    print(line)
    with (HERE / "stage_two.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def compare(
    store: Path, settings: dict, kinds: dict[str, tuple[bool, bool, bool]], rounds: int, minutes: float
) -> dict:
    """Return the median seconds of each kind of step, and what each is of the first kind."""
    data = loader(store, settings, 0)
    batch = next(iter(data.train_dataloader()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps, first = {}, {}
    for name, (innermost, fused, compiled) in kinds.items():
        model = make_model(store, settings, device)
        chosen = settings | {"model": settings["model"] | {"channels_last": innermost}}
        steps[name] = make_step(model, device, chosen, fused=fused, compiled=compiled)
        start = time.perf_counter()
        steps[name](batch)
        first[name] = time.perf_counter() - start
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + 60 * minutes
    while len(times[name]) < rounds and (not times[name] or time.perf_counter() < end):
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians[next(iter(kinds))]
    return {
        "batch_size": data.batch_size,
        "rounds": len(times[name]),
        "seconds_a_step": {name: round(value, 3) for name, value in medians.items()},
        "of_the_first": {name: round(value / base, 3) for name, value in medians.items()},
        "first_step_s": {name: round(value, 1) for name, value in first.items()},
        "threads": torch.get_num_threads(),
    }


def measure(store: Path, settings: dict, workers: int, steps: int) -> dict:
    """Return images per second; the cache of decoded images is off, so that the loader does all its work."""
    data = loader(store, settings, workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(store, settings, device)
    step = make_step(model, device, settings)
    batch = next(iter(data.train_dataloader()))
    step(batch)
    size = data.batch_size
    alone = size / per_batch((batch for _ in range(steps)), step)
    both = size / per_batch(batches(data, steps), step)
    return {
        "workers": workers,
        "batch_size": size,
        "loader_images_per_s": round(size / per_batch(batches(data, steps), lambda batch: None), 1),
        "step_images_per_s": round(alone, 1),
        "both_images_per_s": round(both, 1),
        "both_of_step": round(both / alone, 3),
    }


def loader(store: Path, settings: dict, workers: int) -> SegmentationData:
    """Return the data of a training, its cache of decoded images off, so that the loader does all its work."""
    data = SegmentationData(
        store=store,
        augment=AugmentConfig(**settings["data"].get("augment", {})),
        batch_size=settings["data"].get("batch_size", 10),
        workers=workers,
    )
    data.setup("fit")
    return data


def make_model(store: Path, settings: dict, device: torch.device) -> torch.nn.Module:
    """Return the network of a config, with random weights."""
    network = settings["model"]["network"]
    rates = network.get("atrous_rates")
    config = NetworkConfig(**(network | {"weights": None, "atrous_rates": tuple(rates) if rates else None}))
    return build_network(config, len(MaskStore.open(store).classes) + 1).to(device)


def make_step(
    model: torch.nn.Module, device: torch.device, settings: dict, fused: bool = False, compiled: bool = False
):
    """Return a function that does one training step, as the module does it, and waits for its end."""
    if settings["model"].get("channels_last"):
        model = model.to(memory_format=torch.channels_last)
    fill = model.mean
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused or None)
    model = torch.compile(model) if compiled else model
    loss_config = LossConfig(kind=settings["model"].get("loss", {}).get("kind", "cross_entropy"))
    bf16 = "bf16" in str(settings["trainer"].get("precision", ""))
    layout = torch.channels_last if settings["model"].get("channels_last") else torch.contiguous_format

    def step(batch: dict) -> None:
        images = batch["image"].to(device).float().contiguous(memory_format=layout)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            scores = padded_scores(model, images, fill)
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


if __name__ == "__main__":
    main()
