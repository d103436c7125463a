"""Label Studio: tasks with brush masks as predictions, and the labelling interface that shows them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from data.classes import ClassSet
from data.exporters.brush import encode_brush
from data.exporters.items import Exported, ExportOptions, Item, classes_in, read_items
from data.files import write_atomically
from data.masks import voc_palette
from data.store.store import MaskStore


def write_labelstudio(store: MaskStore, output: Path, options: ExportOptions) -> Exported:
    """Write tasks.json (one task per image, one brush mask per class, as predictions) and label_config.xml."""
    version = str(store.header["model"].get("id", "text2mask-wsss"))
    path = output / "tasks.json"
    partial = output / f".tasks.json.{os.getpid()}.tmp"
    count = 0
    with partial.open("w", encoding="utf-8") as file:  # task by task: the lists of numbers are long
        for item in read_items(store, options):
            file.write("[\n" if count == 0 else ",\n")
            json.dump(_task(item, store.classes, version, options), file, separators=(",", ":"))
            count += 1
        file.write("\n]\n")
    partial.replace(path)
    write_atomically(output / "label_config.xml", _label_config(store.classes).encode())
    note = "Paste label_config.xml into the project's labelling interface, then import tasks.json."
    return Exported(count, path, (note,))


def _task(item: Item, classes: ClassSet, version: str, options: ExportOptions) -> dict[str, Any]:
    height, width = item.mask.shape
    name = str(item.record.get("image", item.image.name))
    results = [
        {
            "id": hashlib.sha1(f"{item.record['id']}/{class_id}".encode(), usedforsecurity=False).hexdigest()[:10],
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": encode_brush(item.mask == class_id),
                "brushlabels": [classes.name(class_id)],
            },
        }
        for class_id in classes_in(item.mask, classes)
    ]
    prediction = {"model_version": version, "result": results}
    return {"data": {"image": options.url_prefix + name, "id": item.record["id"]}, "predictions": [prediction]}


def _label_config(classes: ClassSet) -> str:
    from xml.sax.saxutils import quoteattr

    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in voc_palette()]
    labels = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(colours[number])}/>\n"
        for number, name in enumerate(classes.names, start=1)
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
    )
