"""The masks of a store in other programs' formats: COCO, YOLO, VOC, Label Studio.

Every exporter reads the store's index and masks alone and fills a new folder, which appears whole or not at all. None
changes the store or the images.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from data.errors import StoreError
from data.exporters.coco import write_coco
from data.exporters.items import Exported, ExportOptions, read_items
from data.exporters.labelstudio import write_labelstudio
from data.exporters.voc import write_voc
from data.exporters.yolo import write_yolo
from data.files import is_free, new_folder
from data.store.reviewed import apply_reviews
from data.store.store import MaskStore

ExportFormat = Literal["coco", "yolo", "voc", "labelstudio"]


def export_store(store: MaskStore, format: ExportFormat, output: Path, options: ExportOptions) -> Exported:
    """Write a store's masks in another format.

    Args:
        store: the store; images that people have thrown out are left out, and corrected masks count.
        format: which format.
        output: the new folder.
        options: how.

    Raises:
        StoreError: the store holds no masks, or the output folder is not empty.
        ImageError: an image that is to be linked, copied or turned is missing, or a mask is not its image's.
        ConfigError: a package is missing that the format needs.

    """
    if not is_free(output):
        raise StoreError(f"{output} exists and is not empty; name a new folder with --output.")
    if not store.finished():
        raise StoreError(f"{store.path} holds no finished masks; run pseudolabel generate first.")
    reviewed = apply_reviews(store, list(store.records()), options.review)
    if not reviewed.counted:
        raise StoreError(
            f"No image of {store.path} is left once its review.jsonl is followed (--review {options.review}); accept "
            "some in `pseudolabel review`, or give --review ignore."
        )
    items = read_items(store, reviewed.counted, options)
    with new_folder(output) as folder:
        match format:
            case "coco":
                done = write_coco(store, items, folder, options)
            case "yolo":
                done = write_yolo(store, items, folder, options, output)
            case "voc":
                done = write_voc(store, items, folder, options)
            case "labelstudio":
                done = write_labelstudio(store, items, folder, options, output)
    return replace(done, opens=output / done.opens.relative_to(folder), notes=(*done.notes, *reviewed.notes()))
