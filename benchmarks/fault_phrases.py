"""Drawn phrase data sets that are damaged, and their readers; `benchmarks.faults` tries them with the others.

A target is (build, read, files to damage), as `benchmarks.fault_inputs.Target` takes it.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.images import read_image
from data.readers.phrases import read_phrase_table
from data.readers.target_layout import open_targets
from data.readers.targets import read_region

POLYGON = [[4.0, 4.0, 20.0, 4.0, 20.0, 18.0, 4.0, 18.0]]


def save(path: Path, picture: np.ndarray, **options: Any) -> None:
    """Write a picture, and the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)


def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def drawn() -> np.ndarray:
    mask = np.zeros((24, 32), np.uint8)
    mask[4:18, 4:20] = 255
    return mask


def build_personal(root: Path) -> None:
    for subset in ("all", "other"):
        save(root / "mug" / subset / "images" / "1.png", picture())
        save(root / "mug" / subset / "masks" / "1.png", drawn())
    (root / "mug" / "concept.yaml").write_text('token: "<mine>"\nclass_word: mug\n')


def build_permis(root: Path) -> None:
    for video in ("1", "2"):
        for frame in range(3):
            save(root / video / f"{frame}.png", picture())
        with (root / video / "masks.npz.npy").open("wb") as file:
            np.save(file, np.array([{7: drawn()}] * 3, dtype=object), allow_pickle=True)


def build_refcoco(root: Path) -> None:
    save(root / "images" / "1.png", picture())
    annotations = [{"id": 5, "image_id": 1, "category_id": 18, "segmentation": POLYGON}]
    images = [{"id": 1, "file_name": "1.png", "height": 24, "width": 32}]
    sentences = [{"sent_id": 1, "sent": "left mug"}, {"sent_id": 2, "sent": "my mug"}]
    refs = [{"split": "val", "ann_id": 5, "image_id": 1, "sentences": sentences}]
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 18, "name": "mug"}]}
    (root / "instances.json").write_text(json.dumps(instances))
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))


def build_png(root: Path) -> None:
    save(root / "images" / "val2017" / "1.png", picture())
    save(root / "annotations" / "panoptic_segmentation" / "val2017" / "1.png", np.stack([drawn()] * 3, axis=-1))
    panoptic = {
        "images": [{"id": 1, "file_name": "1.png", "height": 24, "width": 32}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 16777215, "category_id": 1}]}],
        "categories": [{"id": 1, "isthing": 1}],
    }
    parts = [{"utterance": "my mug", "segment_ids": ["16777215"], "noun": True}]
    narratives = [{"image_id": "1", "caption": "Here is my mug.", "segments": parts}]
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(panoptic))
    (root / "annotations" / "png_coco_val2017.json").write_text(json.dumps(narratives))


def build_table(root: Path) -> None:
    (root / "phrases.csv").write_text("image,phrase,sentence\na.png,my mug,\na.png,the sky,my mug under the sky\n")


def read_targets(root: Path) -> Any:
    found = open_targets(root)
    read = [(one.id, one.phrase, one.sentence, one.tags, read_region(one).tobytes()) for one in found.targets]
    shapes = [read_image(one.image_path).shape for one in found.targets]
    return read, shapes, found.concepts, found.notes


PHRASE_TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any], tuple[str, ...]]] = {
    "particular things": (build_personal, read_targets, ("mug/concept.yaml", "mug/all/masks/1.png")),
    "permis": (build_permis, read_targets, ("1/masks.npz.npy",)),
    "refcoco": (build_refcoco, read_targets, ("instances.json", "refs(unc).p")),
    "narratives": (
        build_png,
        read_targets,
        (
            "annotations/png_coco_val2017.json",
            "annotations/panoptic_val2017.json",
            "annotations/panoptic_segmentation/val2017/1.png",
        ),
    ),
    "phrases.csv": (build_table, lambda root: read_phrase_table(root / "phrases.csv"), ("phrases.csv",)),
}
