"""A drawn world of two classes, a store of its masks, and one short training run through the front door."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from data.class_file import save_classes
from data.classes import make_classes
from data.masks import write_mask
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from train.cli import main

CLASSES = make_classes(["disc", "box"], {}, {})
TINY = [
    *("--model.network.encoder", "tu-test_resnet", "--model.network.weights", "null"),
    *("--model.network.decoder_channels", "16", "--model.network.atrous_rates", "[1,2,3]"),
]
QUICK = [
    *("--data.augment.crop", "64", "--data.batch_size", "4", "--data.workers", "0", "--data.cache", "true"),
    *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
    *("--trainer.num_sanity_val_steps", "0", "--model.optimizer.lr", "0.01"),
]


def draw(index: int, height: int = 64, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A red disc or a green box, or both, over grey noise; and the true mask."""
    rng = np.random.default_rng(index)
    rgb = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    if index % 3 != 1:
        mask[(rows - height // 3) ** 2 + (columns - width // 3 - index % 5) ** 2 < 14**2] = 1
    if index % 3 != 0:
        mask[height // 2 : height // 2 + 24, width // 2 : width // 2 + 20] = 2
    rgb[mask == 1] = (220, 40, 40)
    rgb[mask == 2] = (40, 200, 60)
    return rgb, mask


@dataclass(frozen=True)
class World:
    root: Path
    store: Path

    @property
    def val(self) -> list[str]:
        classes = str(self.root / "classes.yaml")
        return ["--data.val.root", str(self.root), "--data.val.split", "val", "--data.val.classes", classes]

    def fit(self, output: Path, *more: str) -> list[str]:
        """Return the arguments of a short run."""
        return ["fit", "--data.store", str(self.store), *self.val, "--output", str(output), *TINY, *QUICK, *more]


def soft_maps(mask: np.ndarray, labels: tuple[int, ...]) -> SoftMaps:
    maps = np.stack([(mask == label)[::8, ::8] * 0.8 + 0.1 for label in labels]).astype(np.float16)
    height, width = mask.shape
    return SoftMaps(maps, labels, False, (height, width), (height, width), (height, width))


def make_world(root: Path, train: int = 16, val: int = 6) -> World:
    """Write a world in VOC's layout and a store of its training masks with an ignore band."""
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / "W" / folder).mkdir(parents=True)
    save_classes(CLASSES, root / "W" / "classes.yaml")
    header = {"format": "voc", "root": str(root / "W"), "split": "train", "classes": str(root / "W" / "classes.yaml")}
    store = MaskStore.create(root / "S", classes=CLASSES, config={}, model={}, data=header)
    for index in range(train + val):
        split = "train" if index < train else "val"
        name = f"{split}_{index:03d}"
        size = (64, 64) if split == "train" else (60 + index, 75)
        rgb, mask = draw(index, *size)
        labels = tuple(int(label) for label in np.unique(mask) if label)
        Image.fromarray(rgb).save(root / "W" / "JPEGImages" / f"{name}.png")
        write_mask(root / "W" / "SegmentationClass" / f"{name}.png", mask)
        objects = "".join(f"<object><name>{CLASSES.name(label)}</name></object>" for label in labels)
        (root / "W" / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        with (root / "W" / "ImageSets" / "Segmentation" / f"{split}.txt").open("a") as file:
            file.write(f"{name}\n")
        if split == "train":
            band = mask.copy()
            band[:, 30:34] = 255
            record = {"image": f"JPEGImages/{name}.png", "labels": list(labels), "ignore_share": 0.06}
            store.write(name, band, argmax=mask, soft=soft_maps(mask, labels), record=record)
    return World(root / "W", root / "S")


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], list[str]]) -> Path:
    """Return a folder that a command makes; of pytest-xdist's processes the first makes it and the others wait.

    Args:
        factory: of temporary folders.
        name: of the folder.
        make: gives the command that writes it.

    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = shared / name, shared / f"{name}.made"
    with FileLock(shared / f"{name}.lock"):
        if not made.exists():
            assert main(make(folder)) == 0
            made.touch()
    return folder


@pytest.fixture(scope="session")
def run(world, tmp_path_factory) -> Path:
    """The folder of a finished run: 60 steps, averaged weights."""
    more = ["--trainer.max_epochs", "15", "--trainer.check_val_every_n_epoch", "5", "--ema_decay", "0.9"]
    return made_once(tmp_path_factory, "run", lambda output: world.fit(output, *more))


@pytest.fixture(scope="session")
def checkpoint(run) -> Path:
    return run / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory) -> Path:
    command = ["export", "--ckpt_path", str(checkpoint), "--output"]
    return made_once(tmp_path_factory, "onnx", lambda folder: [*command, str(folder)])
