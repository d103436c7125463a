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
    small object shows on a large one. Crowd regions are 255, not scored, unless `data.crowd` says "class". COCO's own
    evaluation ignores them (`iscrowd` in pycocotools' cocoeval.py), COCO-Stuff's cocoSegmentationToSegmentationMap
    leaves them out of the classes by default, and scripts that write VOC-like masks offer the same choice and advise to
    ignore them. Others draw a crowd as its class: the figures differ a little, so say which. We differ from scripts
    that draw in file order.

Source:
    Lin et al., "Microsoft COCO: Common Objects in Context", arXiv 1405.0312, section 5.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import UInt8

from data.classes import COCO, IGNORE, ClassSet, class_key, load_classes
from data.config import DataConfig
from data.errors import ConfigError, LabelError
from data.files import write_atomically
from data.images import read_orientation, size_of, to_upright
from data.masks import write_mask
from data.readers.listing import Listing, interned, suggest_classes, to_samples
from data.samples import Sample, SampleSet, check_id

INDEX_VERSION = 1


@dataclass(frozen=True)
class CocoSamples(Sequence[Sample]):
    """Samples of a COCO split; the ground truth of one is rendered when it is asked for the first time.

    Attributes:
        samples: the samples without ground truth.
        folder: folder of the index.
        lines: for each sample, where its line in the index's segments.jsonl begins, in bytes.
        crowd: what a crowd region becomes.

    """

    samples: Sequence[Sample]
    folder: Path
    lines: Sequence[int]
    crowd: str

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        sample = self.samples[index]
        truth = self.folder / f"truth-{self.crowd}" / f"{sample.id}.png"
        if not truth.is_file():
            self._render(self.lines[index], sample.image_path, truth)
        return Sample(sample.id, sample.image_path, sample.labels, truth)

    def _render(self, line: int, image: Path, truth: Path) -> None:
        with (self.folder / "segments.jsonl").open("rb") as file:
            file.seek(line)
            entry = json.loads(file.readline())
        mask = render_truth(entry["segments"], (entry["height"], entry["width"]), self.crowd)
        truth.parent.mkdir(exist_ok=True)
        write_mask(truth, _turned(mask, image))


def _turned(mask: UInt8[np.ndarray, "rows columns"], image: Path) -> UInt8[np.ndarray, "height width"]:
    """Turn a mask drawn on the raw rows of an image that lies on its side; the sizes tell which way it was drawn."""
    orientation = read_orientation(image) if image.is_file() else 1
    if orientation >= 5 and mask.shape == size_of(image)[::-1]:
        return to_upright(mask, orientation)
    return mask


def render_truth(
    segments: Iterable[dict[str, Any]], size_hw: tuple[int, int], crowd: str = "ignore"
) -> UInt8[np.ndarray, "height width"]:
    """Draw a semantic mask from annotations.

    Args:
        segments: {"label": class id, "crowd": 0 or 1, "area": pixels, "shape": polygons or RLE as in COCO's JSON}.
        size_hw: height and width of the mask.
        crowd: "ignore" draws crowd regions as 255, "class" as their class.

    Returns:
        Class ids, 0 where there is no annotation.

    """
    from pycocotools import mask as coco_mask

    height, width = size_hw
    truth = np.zeros(size_hw, dtype=np.uint8)
    for segment in sorted(segments, key=lambda one: (not one["crowd"], -one["area"])):
        shape = segment["shape"]
        if isinstance(shape, list):  # fewer than three points enclose nothing, and four numbers would be read as a box
            shape = [polygon for polygon in shape if len(polygon) >= 6]
            if not shape:
                continue
            code = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
        else:
            code = coco_mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
        ignored = segment["crowd"] and crowd == "ignore"
        truth[coco_mask.decode(code).astype(bool)] = IGNORE if ignored else segment["label"]
    return truth


def open_coco(config: DataConfig, need_labels: bool = True, need_truth: bool = True) -> SampleSet:
    """List the samples of a COCO split; see `data.readers.layout.open_samples`."""
    if config.labels:
        raise ConfigError("COCO's labels come from its annotations; drop --data.labels, or use --data.format=folder.")
    if config.truth:
        return to_samples(list_coco(config), config, need_labels, need_truth)
    path = annotation_file(config)
    index = build_index(path, config)
    listing, lines = _read_index(index, path, config)
    sample_set = to_samples(listing, config, need_labels, need_truth=False)
    if not need_truth:
        return sample_set
    line_of = dict(zip(listing.ids, lines, strict=True))
    kept = [line_of[sample.id] for sample in sample_set.samples]
    samples = CocoSamples(sample_set.samples, index, kept, config.crowd)
    return SampleSet(sample_set.classes, samples, sample_set.notes)


def list_coco(config: DataConfig) -> Listing:
    """List images and category names without writing an index."""
    path = annotation_file(config)
    index = index_folder(path, config)
    if (index / "images.jsonl").is_file():
        return _read_index(index, path, config)[0]
    content = _parse(path)
    classes, ids = _categories(content, path, config)
    rows = [row for row, _ in _rows(content, ids)]
    return _listing(rows, classes, path, config)


def annotation_file(config: DataConfig) -> Path:
    """Return the instances JSON of the split: 2014's, else 2017's, else instances_<split>.json.

    Raises:
        ConfigError: none of them.

    """
    folder = Path(config.root) / "annotations"
    split = config.split.removesuffix("2014")
    names = [f"instances_{split}{year}.json" for year in ("2014", "2017", "")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        there = sorted(file.name for file in folder.glob("instances_*.json"))
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

    It holds categories.json (their names), images.jsonl (file, size, names, where the segments are) and segments.jsonl
    (the outlines), one line per image; images.jsonl is written last and makes it complete.
    """
    index = index_folder(path, config)
    if (index / "images.jsonl").is_file():
        return index
    content = _parse(path)
    _, ids = _categories(content, path, config)
    try:
        index.mkdir(parents=True, exist_ok=True)
        _write_index(index, content, ids)
    except OSError as error:
        raise ConfigError(
            f"Cannot write the COCO index {index}: {error.strerror}; name a folder with --data.cache."
        ) from error
    return index


def _write_index(index: Path, content: dict[str, Any], ids: dict[int, tuple[int, str]]) -> None:
    rows, offset = [], 0
    partial = index / f".segments.{os.getpid()}.tmp"
    with partial.open("wb") as file:
        for row, line in _rows(content, ids):
            rows.append(json.dumps({**row, "line": offset}, ensure_ascii=False))
            offset += file.write(line)
    partial.replace(index / "segments.jsonl")
    names = [category["name"] for category in sorted(content["categories"], key=lambda one: one["id"])]
    write_atomically(index / "categories.json", json.dumps({"names": names}).encode())
    write_atomically(index / "images.jsonl", ("\n".join(rows) + "\n").encode())


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LabelError(f"Cannot read {path}: {error}; unpack the annotations again.") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise LabelError(f"{path} has no {missing[0]!r}; it must be an instances JSON of COCO.")
    return content


def _categories(content: dict[str, Any], path: Path, config: DataConfig) -> tuple[ClassSet, dict[int, tuple[int, str]]]:
    """Return the classes, and for each category id its class id and name."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    classes = load_classes(config.classes) if config.classes else _known(names)
    try:
        ids = {category["id"]: (classes.index(category["name"]), category["name"]) for category in categories}
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from error
    return classes, ids


def _known(names: Sequence[str]) -> ClassSet:
    same = [class_key(name) for name in names] == [class_key(name) for name in COCO.names]
    return COCO if same else suggest_classes(names)


def _rows(content: dict[str, Any], ids: dict[int, tuple[int, str]]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield for each image its row of images.jsonl and its line of segments.jsonl, in the order of the image ids."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    for image in sorted(content["images"], key=lambda one: one["id"]):
        annotations = by_image.get(image["id"], [])
        names = sorted({ids[annotation["category_id"]][1] for annotation in annotations})
        row = {"file": image["file_name"], "height": image["height"], "width": image["width"], "names": names}
        segments = [
            {
                "label": ids[annotation["category_id"]][0],
                "crowd": int(annotation.get("iscrowd", 0)),
                "area": annotation.get("area", 0),
                "shape": annotation["segmentation"],
            }
            for annotation in annotations
            if annotation.get("segmentation")
        ]
        entry = {"height": image["height"], "width": image["width"], "segments": segments}
        yield row, json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _read_index(index: Path, path: Path, config: DataConfig) -> tuple[Listing, list[int]]:
    with (index / "images.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    names = json.loads((index / "categories.json").read_bytes())["names"]
    classes = load_classes(config.classes) if config.classes else _known(names)
    return _listing(rows, classes, path, config), [row["line"] for row in rows]


def _listing(rows: Sequence[dict[str, Any]], classes: ClassSet, path: Path, config: DataConfig) -> Listing:
    base = Path(config.root)
    split = path.stem.removeprefix("instances_")
    folders = (f"{split}", f"images/{split}", "images", ".")
    folder = next((name for name in folders if rows and (base / name / rows[0]["file"]).is_file()), split)
    prefix = "" if folder == "." else f"{folder}/"
    return Listing(
        base,
        [check_id(Path(row["file"]).stem) for row in rows],
        [prefix + row["file"] for row in rows],
        [interned(row["names"]) for row in rows],
        classes,
        (config.truth,) if config.truth else (),
        source=path.name,
        drawn_truth=not config.truth,
    )
