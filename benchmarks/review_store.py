"""Stores of drawn scenes for the review page: masks and soft maps that look like the machine's, made in seconds.

Scenes of the demonstration world; a soft map is the true mask on a coarse grid, blurred, with blotches, better or worse
from image to image, so that some masks are good and some are to be thrown out. Nothing is read from a model.
"""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks.common import DEMO_CLASSES
from data.demo.scene import draw_scene
from data.files import json_bytes
from data.store.folder import INDEX
from data.store.records import image_record
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from pseudolabel.config import stored_mask_settings
from pseudolabel.masks.config import CrfConfig, FuseConfig, MaskConfig
from pseudolabel.masks.labelmap import label_map

SETTINGS = MaskConfig(FuseConfig(0.4), CrfConfig(kind="none"), 0.6)
CELL_PX = 16


def draw_soft(truth: np.ndarray, labels: tuple[int, ...], rng: np.random.Generator) -> SoftMaps:
    """Return maps that are right to a degree that is drawn: blurred truth, and blotches where there is nothing."""
    height, width = truth.shape
    padded = (-(-height // CELL_PX) * CELL_PX, -(-width // CELL_PX) * CELL_PX)
    grid_wh = (padded[1] // CELL_PX, padded[0] // CELL_PX)
    fault = rng.beta(1, 3)
    maps = []
    for label in labels:
        whole = np.zeros(padded, np.float32)
        whole[:height, :width] = truth == label
        small = cv2.resize(whole, grid_wh, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), 0.6 + 2 * fault)
        blotches = cv2.GaussianBlur(rng.normal(size=small.shape).astype(np.float32), (0, 0), 2.0)
        small = small / max(small.max(), 1e-6) + 2.5 * fault * np.maximum(blotches, 0)
        maps.append((small - small.min()) / max(np.ptp(small), 1e-6))
    return SoftMaps(np.stack(maps).astype(np.float16), labels, False, padded, (height, width), (height, width))


def write_drawn(store: MaskStore, images: Path, name: str, seed: int, size_hw: tuple[int, int]) -> None:
    """Draw a scene and write its image, soft maps, masks and line."""
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, size_px=max(size_hw))
    rgb, truth = scene.rgb[: size_hw[0], : size_hw[1]], scene.mask[: size_hw[0], : size_hw[1]]
    labels = tuple(int(value) for value in np.unique(truth) if 1 <= value <= len(DEMO_CLASSES)) or (1,)
    Image.fromarray(rgb).save(images / f"{name}.jpg", quality=92)
    soft = draw_soft(truth, labels, rng)
    mask, argmax = label_map(rgb, soft, SETTINGS)
    record = image_record(name, f"{name}.jpg", mask, argmax, labels, DEMO_CLASSES, 0.1)
    store.write(name, mask, argmax=argmax, soft=soft, record=record)


def draw_store(folder: Path, count: int, distinct: int = 48, size_hw: tuple[int, int] = (375, 500)) -> MaskStore:
    """Write `folder`/images and `folder`/masks, a store of `count` images, and return it.

    Args:
        folder: a new folder.
        count: how many images.
        distinct: how many of them are drawn; the others are links to these under names of their own.
        size_hw: height and width of the images.

    """
    images = folder / "images"
    images.mkdir(parents=True)
    data = {"format": "folder", "root": str(images.absolute()), "split": "all"}
    config = stored_mask_settings(SETTINGS)
    store = MaskStore.create(folder / "masks", classes=DEMO_CLASSES, config=config, model={"id": "drawn"}, data=data)
    drawn = min(count, distinct)
    for number in range(drawn):
        write_drawn(store, images, _name(number), number, size_hw)
    records = {record["id"]: record for record in store.records()}
    lines = []
    for number in range(drawn, count):
        name, source = _name(number), _name(number % drawn)
        os.link(images / f"{source}.jpg", images / f"{name}.jpg")
        for kind, suffix in (("masks", "png"), ("argmax", "png"), ("scores", "npz")):
            os.link(store.path / kind / f"{source}.{suffix}", store.path / kind / f"{name}.{suffix}")
        lines.append(_renamed(records[source], name))
    with (store.path / INDEX).open("ab") as file:
        file.writelines(json_bytes(line, separators=(",", ":")) + b"\n" for line in lines)
    return store


def _name(number: int) -> str:
    return f"scene_{number:06d}"


def _renamed(record: dict[str, Any], name: str) -> dict[str, Any]:
    copy = json.loads(json.dumps(record))
    return copy | {"id": name, "image": f"{name}.jpg"}
