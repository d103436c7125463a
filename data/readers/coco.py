"""MS COCO, the 2014 splits and what is laid out like them.

Layout:
    annotations/instances_<split>2014.json beside <split>2014/ or images/<split>2014/. The JSON is parsed once (2014's
    train file: about a minute and 2.5 GB of memory); a compact index of it and the rendered masks are kept under
    `data.cache`, by default ~/.cache/text2mask-wsss, and are read in a few seconds.

Labels:
    The categories of all annotations of an image, crowd regions included; category ids (1 to 90 with gaps) become class
    ids 1 to 80 in ascending order. Images without annotations are left out and counted: 82,783 train images less 702
    are 82,081.

Truth:
    Rendered from the annotations: crowd regions first, then objects from the largest area to the smallest, so that a
    small object shows on a large one (an annotation without an area is measured). Crowd regions are 255, not scored,
    unless `data.crowd` says "class". COCO's own evaluation ignores them (`iscrowd` in pycocotools' cocoeval.py),
    COCO-Stuff's cocoSegmentationToSegmentationMap leaves them out of the classes by default, and scripts that write
    VOC-like masks offer the same choice and advise to ignore them. Others draw a crowd as its class: the figures differ
    a little, so say which. We differ from scripts that draw in file order.

Source:
    Lin et al., "Microsoft COCO: Common Objects in Context", arXiv 1405.0312, section 5.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.class_file import load_classes
from data.classes import COCO, IGNORE, ClassSet, class_key
from data.config import DataConfig
from data.errors import ConfigError, LabelError, UserError
from data.files import write_atomically
from data.images import read_orientation, size_of, to_upright
from data.masks import write_mask
from data.readers.coco_json import CocoImage, Id, Instances, read_instances
from data.readers.ids import make_ids
from data.readers.listing import Listing, distinct_names, interned, suggest_classes, to_samples
from data.samples import LazySamples, Sample, SampleSet

INDEX_VERSION = 2
FIRST = 100  # images to look for on the disk


def _with_truth(samples: Sequence[Sample], index: Path, lines: Sequence[int], crowd: str, place: int) -> Sample:
    """Return a sample with its ground truth, which is rendered when it is asked for the first time.

    Args:
        samples: the samples without ground truth.
        index: folder of the index.
        lines: for each sample, where its line in the index's segments.jsonl begins, in bytes.
        crowd: what a crowd region becomes.
        place: which of the samples.

    """
    sample = samples[place]
    truth = index / f"truth-{crowd}" / f"{sample.id}.png"
    if not truth.is_file():
        _render(index, lines[place], sample.image_path, truth, crowd)
    return replace(sample, truth_path=truth, white="ignore")


def _render(index: Path, line: int, image: Path, truth: Path, crowd: str) -> None:
    """Draw the ground truth that a line of segments.jsonl describes."""
    with (index / "segments.jsonl").open("rb") as file:
        file.seek(line)
        try:
            entry = json.loads(file.readline())
        except (ValueError, RecursionError) as error:
            raise _damaged(index) from error
    mask = render_truth(entry["segments"], (entry["height"], entry["width"]), crowd)
    truth.parent.mkdir(exist_ok=True)
    write_mask(truth, _turned(mask, image))


def _turned(mask: UInt8[np.ndarray, "rows columns"], image: Path) -> UInt8[np.ndarray, "height width"]:
    """Turn a mask drawn on the raw rows of an image that lies on its side; the sizes tell which way it was drawn."""
    orientation = read_orientation(image) if os.path.isfile(image) else 1
    if orientation >= 5 and mask.shape == size_of(image)[::-1]:
        return to_upright(mask, orientation)
    return mask


def render_truth(
    segments: Iterable[dict[str, Any]], size_hw: tuple[int, int], crowd: str = "ignore"
) -> UInt8[np.ndarray, "height width"]:
    """Draw a semantic mask from annotations.

    Args:
        segments: {"id": as in the JSON, "label": class id, "crowd": 0 or 1, "area": pixels or None, "shape": polygons
            or RLE as in COCO's JSON}, checked by `data.readers.coco_json`.
        size_hw: height and width of the mask.
        crowd: "ignore" draws crowd regions as 255, "class" as their class.

    Returns:
        Class ids, 0 where there is no annotation.

    Raises:
        LabelError: run lengths of another size.

    """
    from pycocotools import mask as coco_mask

    height, width = size_hw
    outlines = []
    for segment in segments:
        shape = segment["shape"]
        if isinstance(shape, list):  # fewer than three points enclose nothing, and four numbers would be read as a box
            shape = [polygon for polygon in shape if len(polygon) >= 6]
            if not shape:
                continue
            code = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
        elif list(shape["size"]) != [height, width]:
            raise LabelError(
                f"Annotation {segment.get('id')} is of the size {shape['size']}, its image of {[height, width]}."
            )
        else:
            code = coco_mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
        area = float(coco_mask.area(code)) if segment["area"] is None else segment["area"]
        outlines.append((not segment["crowd"], -area, segment, code))
    truth = np.zeros(size_hw, dtype=np.uint8)
    for _, _, segment, code in sorted(outlines, key=lambda one: one[:2]):
        ignored = segment["crowd"] and crowd == "ignore"
        truth[coco_mask.decode(code).astype(bool)] = IGNORE if ignored else segment["label"]
    return truth


def found(root: Path) -> bool:
    """Return whether a folder has this layout."""
    return any((root / "annotations").glob("instances_*.json"))


def open_samples(config: DataConfig, need_labels: bool = True, need_truth: bool = True) -> SampleSet:
    """List the samples of a COCO split; see `data.readers.layout.open_samples`."""
    if config.labels:
        raise ConfigError("COCO's labels come from its annotations; drop --data.labels, or use --data.format=folder.")
    if config.truth:
        return to_samples(list_data(config), config, need_labels, need_truth)
    path = annotation_file(config)
    index = build_index(path, config)
    listing, lines = _read_index(index, path, config)
    sample_set = to_samples(listing, config, need_labels, need_truth=False)
    if not need_truth:
        return sample_set
    line_of = dict(zip(listing.ids, lines, strict=True))
    kept = [line_of[sample.id] for sample in sample_set.samples]
    make = partial(_with_truth, sample_set.samples, index, kept, config.crowd)
    return replace(sample_set, samples=LazySamples(len(kept), make))


def list_data(config: DataConfig, own_classes: bool = True) -> Listing:
    """List images and category names without writing an index."""
    path = annotation_file(config)
    index = index_folder(path, config)
    if (index / "images.jsonl").is_file():
        return _read_index(index, path, config)[0]
    content = read_instances(path)
    classes, ids = _categories(content, path, config)
    rows = [_row(image, ids) for image in content.images]
    return _listing(rows, classes, content.notes, path, config)


def annotation_file(config: DataConfig) -> Path:
    """Return the instances JSON of the split: 2014's, else 2017's, else instances_<split>.json.

    Raises:
        ConfigError: none of them.

    """
    folder = Path(config.root) / "annotations"
    split = config.split.removesuffix("2014")
    names = [f"instances_{split}{year}.json" for year in ("2014", "2017", "")]
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        there = sorted(file.name for file in folder.glob("instances_*.json") if file.exists())
        raise ConfigError(
            f"{folder} has no {names[0]} (it has {', '.join(there) or 'none'}); choose another --data.split."
        )
    return path


def index_folder(path: Path, config: DataConfig) -> Path:
    """Return where the index of an annotation file lies; it changes when the file does."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "text2mask-wsss"
    stat = path.stat()
    own = load_classes(config.classes).names if config.classes else None
    key = json.dumps([INDEX_VERSION, str(path.resolve()), stat.st_size, stat.st_mtime_ns, own])
    digest = hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest()[:12]
    return Path(config.cache or home) / f"{path.stem}-{digest}"


def build_index(path: Path, config: DataConfig) -> Path:
    """Write the index of an annotation file unless it is there, and return its folder.

    It holds categories.json (their names, and what was left out), images.jsonl (file, size, names, where the segments
    are) and segments.jsonl (the outlines), one line per image; images.jsonl is written last and makes it complete.
    """
    index = index_folder(path, config)
    if (index / "images.jsonl").is_file():
        return index
    content = read_instances(path)
    _, ids = _categories(content, path, config)
    try:
        index.mkdir(parents=True, exist_ok=True)
        _write_index(index, content, ids)
    except OSError as error:
        raise ConfigError(
            f"Cannot write the COCO index {index}: {error.strerror}; name a folder with --data.cache."
        ) from error
    return index


def _write_index(index: Path, content: Instances, ids: dict[Id, tuple[int, str]]) -> None:
    rows, offset = [], 0
    partial = index / f".segments.{os.getpid()}.tmp"
    with partial.open("wb") as file:
        for image in content.images:
            rows.append(json.dumps({**_row(image, ids), "line": offset}, ensure_ascii=False))
            offset += file.write(_segments(image, ids))
    partial.replace(index / "segments.jsonl")
    about = {"names": list(content.categories.values()), "notes": list(content.notes)}
    write_atomically(index / "categories.json", json.dumps(about).encode())
    write_atomically(index / "images.jsonl", ("\n".join(rows) + "\n").encode())


def _categories(content: Instances, path: Path, config: DataConfig) -> tuple[ClassSet, dict[Id, tuple[int, str]]]:
    """Return the classes, and for each category id its class id and name; a class file may lack unused categories."""
    try:
        classes = load_classes(config.classes) if config.classes else _known(list(content.categories.values()))
        used = content.used() if config.classes else content.categories
        ids = {number: (classes.index(name), name) for number, name in content.categories.items() if number in used}
    except UserError as error:
        raise LabelError(f"{path}: {error}") from error
    return classes, ids


def _known(names: Sequence[str]) -> ClassSet:
    same = [class_key(name) for name in names] == [class_key(name) for name in COCO.names]
    if same:
        return COCO
    distinct_names([tuple(names)])  # refuses two that differ in spelling alone
    return suggest_classes(names)


def _row(image: CocoImage, ids: dict[Id, tuple[int, str]]) -> dict[str, Any]:
    """Return the line of images.jsonl of an image."""
    names = sorted({ids[segment.category][1] for segment in image.segments})
    return {"file": image.file, "height": image.height, "width": image.width, "names": names}


def _segments(image: CocoImage, ids: dict[Id, tuple[int, str]]) -> bytes:
    """Return the line of segments.jsonl of an image."""
    segments = [
        {
            "id": segment.id,
            "label": ids[segment.category][0],
            "crowd": segment.crowd,
            "area": segment.area,
            "shape": segment.shape,
        }
        for segment in image.segments
        if segment.shape
    ]
    entry = {"height": image.height, "width": image.width, "segments": segments}
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _read_index(index: Path, path: Path, config: DataConfig) -> tuple[Listing, list[int]]:
    try:
        with (index / "images.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        about = json.loads((index / "categories.json").read_bytes())
        names, notes, lines = list(about["names"]), tuple(about["notes"]), [row["line"] for row in rows]
        texts = [*names, *notes, *(text for row in rows for text in (row["file"], *row["names"]))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(index) from error
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(line, int) for line in lines):
        raise _damaged(index)
    classes = load_classes(config.classes) if config.classes else _known(names)
    return _listing(rows, classes, notes, path, config), lines


def _damaged(index: Path) -> ConfigError:
    return ConfigError(f"The COCO index {index} is damaged; delete that folder, and it is made again.")


def _listing(
    rows: Sequence[dict[str, Any]], classes: ClassSet, notes: tuple[str, ...], path: Path, config: DataConfig
) -> Listing:
    base = Path(config.root)
    split = path.stem.removeprefix("instances_")
    folders = (f"{split}", f"images/{split}", "images", ".")
    looked_at = [row["file"] for row in rows[:FIRST]]  # of a part of a data set some are missing
    there = (folder for file in looked_at for folder in folders if os.path.isfile(base / folder / file))
    folder = next(there, split)
    prefix = "" if folder == "." else f"{folder}/"
    return Listing(
        base,
        make_ids([row["file"] for row in rows], [Path(row["file"]).stem for row in rows]),
        [prefix + row["file"] for row in rows],
        [interned(row["names"]) for row in rows],
        classes,
        (config.truth,) if config.truth else (),
        source=path.name,
        drawn_truth=not config.truth,
        notes=notes,
    )
