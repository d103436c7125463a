"""The masks of a store in other programs' formats: COCO, YOLO, VOC, Label Studio.

Every exporter reads the store's index and masks alone and writes into an empty folder. None changes the store.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from data.brush import encode_brush
from data.classes import ClassSet, save_classes, voc_palette
from data.errors import ConfigError, ImageError, StoreError
from data.masks import write_atomically, write_mask
from data.polygons import outlines, yolo_rows
from data.samples import read_orientation, to_raw_layout
from data.store import MaskStore

ExportFormat = Literal["coco", "yolo", "voc", "labelstudio"]
_JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif"})


@dataclass(frozen=True)
class ExportOptions:
    """How masks are exported.

    Attributes:
        source: "masks" keeps undecided pixels apart (255 in VOC, part of no shape elsewhere); "argmax" gives each pixel
            its best class.
        images: "link" or "copy" puts the images beside the labels, "none" does not, "auto" links where the format finds
            labels through images (yolo, voc).
        orientation: "upright" as a viewer shows the image; "raw" as the file stores it, for readers blind to EXIF.
        components: one object for each connected region instead of one for each class (coco; yolo always does).
        min_area_px: smaller regions are left out (yolo, and coco with components).
        root: folder of the images, if it is not where the store says.
        url_prefix: what Label Studio finds before an image's path; the default is its local file storage.

    """

    source: Literal["masks", "argmax"] = "masks"
    images: Literal["auto", "none", "link", "copy"] = "auto"
    orientation: Literal["upright", "raw"] = "upright"
    components: bool = False
    min_area_px: int = 1
    root: Path | None = None
    url_prefix: str = "/data/local-files/?d="


@dataclass(frozen=True)
class Exported:
    """What an export did: the number of images, the file to open, and remarks."""

    n_images: int
    opens: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Item:
    record: dict[str, Any]
    mask: UInt8[np.ndarray, "height width"]
    image: Path


def export_store(store: MaskStore, format: ExportFormat, output: Path, options: ExportOptions) -> Exported:
    """Write a store's masks in another format.

    Raises:
        StoreError: the store holds no masks, or the output folder is not empty.
        ImageError: an image that is to be linked, copied or turned is missing.
        ConfigError: a package is missing that the format needs.

    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StoreError(f"{output} exists and is not empty; name a new folder with --output.")
    if not store.finished():
        raise StoreError(f"{store.path} holds no finished masks; run pseudolabel generate first.")
    writers: dict[ExportFormat, Callable[[MaskStore, Path, ExportOptions], Exported]] = {
        "coco": _export_coco,
        "yolo": _export_yolo,
        "voc": _export_voc,
        "labelstudio": _export_labelstudio,
    }
    output.mkdir(parents=True, exist_ok=True)
    return writers[format](store, output, options)


def _items(store: MaskStore, options: ExportOptions) -> Iterator[_Item]:
    read = store.read_mask if options.source == "masks" else store.read_argmax
    for record in store.records():
        image = store.image_path(record, options.root)
        mask = read(record["id"])
        if options.orientation == "raw":
            if not image.is_file():
                raise ImageError(f"There is no image {image}, whose EXIF says how the raw file lies; give --root.")
            mask = to_raw_layout(mask, read_orientation(image))
        yield _Item(record, mask, image)


def _present(mask: UInt8[np.ndarray, "height width"], classes: ClassSet) -> list[int]:
    return [int(value) for value in np.unique(mask) if 1 <= value <= len(classes)]


def _split(store: MaskStore) -> str:
    return str(store.header["data"].get("split") or "train")


def _place_image(item: _Item, target: Path, how: Literal["auto", "none", "link", "copy"]) -> None:
    """Put the image at `target`: a link, or a copy where links cannot be made."""
    if how == "none":
        return
    if not item.image.is_file():
        raise ImageError(
            f"There is no image {item.image}; name the folder of the images with --root, or --images=none."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "link" or (how == "auto" and _ends_cleanly(item.image)):
        with contextlib.suppress(OSError):
            target.symlink_to(item.image.resolve())
            return
    shutil.copyfile(item.image, target)


def _ends_cleanly(image: Path) -> bool:
    """Return False for a JPEG with bytes after its end marker, as telephones write them.

    Ultralytics takes such a file for damaged and writes it anew in its place; before 8.4 that went through a link and
    changed the original (verify_image_label in ultralytics/data/utils.py).
    """
    if image.suffix.lower() not in _JPEG_SUFFIXES:
        return True
    with image.open("rb") as file:
        file.seek(-min(2, image.stat().st_size), os.SEEK_END)
        return file.read() == b"\xff\xd9"


def _suffix(image: Path) -> str:
    """Return the suffix that other programs look for: lower case, and .jpg for every JPEG."""
    suffix = image.suffix.lower()
    return ".jpg" if suffix in _JPEG_SUFFIXES else suffix


def _export_coco(store: MaskStore, output: Path, options: ExportOptions) -> Exported:
    """Write instances_<split>.json with compressed RLE, category ids as in the masks."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(_items(store, options), start=1):
        height, width = item.mask.shape
        _place_image(
            item, output / _split(store) / item.image.name, "none" if options.images == "auto" else options.images
        )
        name = str(item.record.get("image", item.image.name))
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for class_id in _present(item.mask, store.classes):
            for region in _regions(item.mask == class_id, options):
                annotations.append(_annotation(region, len(annotations) + 1, number, class_id))
    categories = [{"id": number, "name": name} for number, name in enumerate(store.classes.names, start=1)]
    info = {"description": f"Masks of {store.path.name}", "version": "1", "contributor": store.header["written_by"]}
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    path = output / f"instances_{_split(store)}.json"
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


def _export_yolo(store: MaskStore, output: Path, options: ExportOptions) -> Exported:
    """Write labels/<split>/<id>.txt, images/<split>/ and data.yaml; class indices begin with 0, without background."""
    split = _split(store)
    labels = output / "labels" / split
    labels.mkdir(parents=True)
    count, passed_over = 0, []
    for item in _items(store, options):
        rows = [
            yolo_rows(outline, class_id - 1, item.mask.shape)
            for class_id in _present(item.mask, store.classes)
            for outline in outlines(item.mask == class_id, options.min_area_px)
        ]
        sample_id = item.record["id"]
        write_atomically(labels / f"{sample_id}.txt", "".join(f"{row}\n" for row in rows).encode())
        _place_image(item, output / "images" / split / f"{sample_id}{_suffix(item.image)}", options.images)
        if min(item.mask.shape) < 10 or _suffix(item.image) == ".gif":
            passed_over.append(sample_id)
        count += 1
    names = "".join(
        f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(store.classes.names)
    )
    text = f"path: {json.dumps(str(output.resolve()))}\ntrain: images/{split}\nval: images/{split}\nnames:\n{names}"
    write_atomically(output / "data.yaml", text.encode())
    note = "data.yaml names the same images for train and val, as Ultralytics wants both; point val to your own."
    notes = [note]
    if passed_over:
        count_text = f"{len(passed_over)} images, first {passed_over[0]}"
        notes.append(f"Ultralytics passes over GIF and sides under 10 pixels: {count_text}.")
    return Exported(count, output / "data.yaml", tuple(notes))


def _export_voc(store: MaskStore, output: Path, options: ExportOptions) -> Exported:
    """Write JPEGImages, SegmentationClass, ImageSets/Segmentation, labels.csv and classes.yaml."""
    split = _split(store)
    for folder in ("SegmentationClass", "ImageSets/Segmentation", "ImageSets/SegmentationAug"):
        (output / folder).mkdir(parents=True)
    ids, pairs, rows, suffixes = [], [], ["image,labels"], set()
    for item in _items(store, options):
        sample_id, suffix = item.record["id"], _suffix(item.image)
        write_mask(output / "SegmentationClass" / f"{sample_id}.png", item.mask)
        _place_image(item, output / "JPEGImages" / f"{sample_id}{suffix}", options.images)
        names = [store.classes.name(label) for label in item.record.get("labels", _present(item.mask, store.classes))]
        ids.append(sample_id)
        suffixes.add(suffix)
        pairs.append(f"/JPEGImages/{sample_id}{suffix} /SegmentationClass/{sample_id}.png")
        rows.append(f'"{sample_id}{suffix}","{";".join(names)}"')
    write_atomically(output / "ImageSets" / "Segmentation" / f"{split}.txt", _lines(ids))
    write_atomically(output / "ImageSets" / "SegmentationAug" / f"{split}.txt", _lines(pairs))
    write_atomically(output / "labels.csv", _lines(rows))
    save_classes(store.classes, output / "classes.yaml")
    return Exported(len(ids), output / "SegmentationClass", _voc_notes(ids, suffixes))


def _voc_notes(ids: list[str], suffixes: set[str]) -> tuple[str, ...]:
    """Say what other trainers cannot read of a VOC folder."""
    notes = []
    if suffixes - {".jpg"}:
        kinds = ", ".join(sorted(suffixes))
        notes.append(f"The images are {kinds}; mmsegmentation reads one img_suffix a data set, .jpg if not told.")
    if any(len(sample_id.split()) > 1 for sample_id in ids):
        notes.append("Some ids hold spaces, which deeplab-pytorch's vocaug takes for separators; its voc reads them.")
    return tuple(notes)


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _export_labelstudio(store: MaskStore, output: Path, options: ExportOptions) -> Exported:
    """Write tasks.json (one task an image, a brush mask a class, as predictions) and label_config.xml."""
    version = str(store.header["model"].get("id", "text2mask-wsss"))
    path = output / "tasks.json"
    partial = output / f".tasks.json.{os.getpid()}.tmp"
    count = 0
    with partial.open("w", encoding="utf-8") as file:  # task by task: the lists of numbers are long
        for item in _items(store, options):
            file.write("[\n" if count == 0 else ",\n")
            json.dump(_task(item, store.classes, version, options), file, separators=(",", ":"))
            count += 1
        file.write("\n]\n")
    partial.replace(path)
    write_atomically(output / "label_config.xml", _label_config(store.classes).encode())
    note = "Paste label_config.xml into the project's labelling interface, then import tasks.json."
    return Exported(count, path, (note,))


def _task(item: _Item, classes: ClassSet, version: str, options: ExportOptions) -> dict[str, Any]:
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
        for class_id in _present(item.mask, classes)
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
