"""Label Studio: tasks with brush masks as predictions, and the labelling interface that shows them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from data.classes import ClassSet
from data.exporters.brush import encode_brush
from data.exporters.items import Exported, ExportOptions, Item, classes_in, place_image
from data.files import write_atomically
from data.masks import voc_palette
from data.store.store import MaskStore


def write_labelstudio(
    store: MaskStore, items: Iterable[Item], folder: Path, options: ExportOptions, output: Path
) -> Exported:
    """Write tasks.json (one task per image, one brush mask per class, as predictions) and label_config.xml.

    A task names its image by the path below the folder of the data; where images are placed, by that below the exported
    folder, images/<path>.
    """
    version = str(store.header["model"].get("id", "text2mask-wsss"))
    how = "none" if options.images == "auto" else options.images
    path, count = folder / "tasks.json", 0
    with path.open("x", encoding="utf-8") as file:  # task by task: the lists of numbers are long
        for item in items:
            name = item.name if how == "none" else f"images/{item.name}"
            place_image(item, folder / name, how)
            file.write("[\n" if count == 0 else ",\n")
            address = options.url_prefix + quote(name, errors="surrogateescape")
            json.dump(_task(item, address, store.classes, version), file, separators=(",", ":"))
            count += 1
        file.write("\n]\n")
    write_atomically(folder / "label_config.xml", _label_config(store.classes).encode())
    root = output.resolve() if how != "none" else options.root or store.root
    notes = [
        "Paste label_config.xml into the project's labelling interface, then import tasks.json.",
        f"The addresses in tasks.json are {options.url_prefix} and paths below {root}.",
    ]
    return Exported(count, path, tuple(notes))


def _task(item: Item, address: str, classes: ClassSet, version: str) -> dict[str, Any]:
    height, width = item.mask.shape
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
    return {"data": {"image": address, "id": item.record["id"]}, "predictions": [prediction]}


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
