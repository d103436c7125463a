"""MS COCO: instances_<split>.json with compressed RLE."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import ConfigError
from data.exporters.items import Exported, ExportOptions, Item, classes_in, place_image, split_of
from data.files import write_atomically
from data.store.store import MaskStore


def write_coco(store: MaskStore, items: Iterable[Item], folder: Path, options: ExportOptions) -> Exported:
    """Write instances_<split>.json with compressed RLE, category ids as in the masks.

    An image's file_name is its path below the folder of the data; where images are placed, they lie at that path below
    the folder <split>, as COCO's own do.
    """
    how = "none" if options.images == "auto" else options.images
    place = folder / split_of(store)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(items, start=1):
        height, width = item.mask.shape
        place_image(item, place / item.name, how)
        images.append({"id": number, "file_name": item.name, "height": height, "width": width})
        for class_id in classes_in(item.mask, store.classes):
            for region in _regions(item.mask == class_id, options):
                annotations.append(_annotation(region, len(annotations) + 1, number, class_id))
    categories = [{"id": number, "name": name} for number, name in enumerate(store.classes.names, start=1)]
    info = {
        "description": f"Masks of {store.path.name}",
        "version": "1",
        "contributor": store.header.get("written_by", ""),
    }
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    path = folder / f"instances_{split_of(store)}.json"
    write_atomically(path, json.dumps(content).encode())
    return Exported(len(images), path)


def _regions(mask: np.ndarray, options: ExportOptions) -> Iterator[np.ndarray]:
    if not options.components:
        yield mask
        return
    import cv2

    n_regions, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    for region in range(1, n_regions):
        found = regions == region
        if found.sum() >= options.min_area_px:
            yield found


def _annotation(mask: np.ndarray, number: int, image_id: int, class_id: int) -> dict[str, Any]:
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ConfigError("COCO export needs pycocotools: pip install 'text2mask-wsss[coco]'.") from error
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": class_id,
        "iscrowd": 0,
        "area": int(coco_mask.area(code)),
        "bbox": [float(value) for value in coco_mask.toBbox(code)],
        "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
    }
