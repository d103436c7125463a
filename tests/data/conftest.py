"""Drawn data sets in the formats that are read."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.masks import write_mask

Labelled = dict[str, list[str]]


def draw(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def gradient(height: int = 6, width: int = 9) -> np.ndarray:
    return np.linspace(0, 255, height * width * 3).astype(np.uint8).reshape(height, width, 3)


def odd_exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF as a careless program writes it: (tag, type, count, value), then orientation 6."""
    entries = (*entries, (0x0112, 3, 1, struct.pack("<H", 6)))
    head, tail = struct.pack("<H", len(entries)), b""
    for tag, kind, count, value in entries:
        where = struct.pack("<I", 8 + 2 + 12 * len(entries) + 4 + len(tail))
        tail += value if len(value) > 4 else b""
        head += struct.pack("<HHI", tag, kind, count) + (value.ljust(4, b"\0") if len(value) <= 4 else where)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + head + struct.pack("<I", 0) + tail


@pytest.fixture
def save_image() -> Callable[..., Path]:
    def save(path: Path, rgb: np.ndarray | None = None, **options: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(seed=sum(path.name.encode())) if rgb is None else rgb).save(path, **options)
        return path

    return save


@pytest.fixture
def make_voc(save_image: Callable[..., Path]) -> Callable[..., Path]:
    """Write a VOC folder: objects are class names, with a trailing "?" for difficult ones."""

    def make(root: Path, images: Labelled, split: str = "train", suffix: str = ".jpg", truth: bool = True) -> Path:
        for folder in ("Annotations", "SegmentationClass", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for sample_id, objects in images.items():
            save_image(root / "JPEGImages" / f"{sample_id}{suffix}")
            rows = "".join(
                f"<object><name>{name.rstrip('?')}</name><difficult>{int(name.endswith('?'))}</difficult>"
                "<part><name>head</name></part></object>"
                for name in objects
            )
            (root / "Annotations" / f"{sample_id}.xml").write_text(f"<annotation>{rows}</annotation>")
            if truth:
                write_mask(root / "SegmentationClass" / f"{sample_id}.png", np.zeros((24, 32), np.uint8))
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(images) + "\n")
        return root

    return make


@pytest.fixture
def make_coco(save_image: Callable[..., Path]) -> Callable[..., Path]:
    """Write a COCO folder with two categories of ids 3 and 90, and the given annotations by image number."""

    def make(root: Path, annotations: dict[int, list[dict]], size_hw: tuple[int, int] = (24, 32)) -> Path:
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        images, rows = [], []
        for number, objects in annotations.items():
            name = f"COCO_train2014_{number:012d}.jpg"
            save_image(root / "train2014" / name, draw(*size_hw, seed=number))
            images.append({"id": number, "file_name": name, "height": size_hw[0], "width": size_hw[1]})
            rows += [
                {"id": len(rows) + 1 + n, "image_id": number, "iscrowd": 0, **one} for n, one in enumerate(objects)
            ]
        categories = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}]
        content = {"images": images, "annotations": rows, "categories": categories}
        (root / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
        return root

    return make
