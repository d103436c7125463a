"""Images with phrases to find in them: a table of one's own, RefCOCO and its kin, panoptic narrative grounding.

Layout:
    Own: a CSV file with the columns image and phrase, and sentence where there is one (a first line of these names;
    comma, semicolon or tab; UTF-8); a row a phrase. Images are named relative to the file's folder.
    RefCOCO, RefCOCO+, RefCOCOg: a folder with instances.json and refs(unc).p (or refs(umd).p, refs(google).p, or the
    same list as refs(unc).json). The images are COCO's train2014, found in the folder itself, in images/, or in
    ../images/mscoco/images/, where the authors' scripts expect them.
    PNG: annotations/png_coco_<split>.json, annotations/panoptic_<split>.json, the PNGs in
    annotations/panoptic_segmentation/<split>/ and the images in images/<split>/, or <split>/.

Masks:
    RefCOCO: the polygons or run-length code of the referred object in instances.json. PNG: the union of the segments
    that the phrase names. refs(unc).p is a pickle; it is read by an unpickler that builds numbers, text and containers
    alone (`data.readers.pickled`).

Metric:
    RefCOCO: oIoU = sum(I) / sum(U) and mIoU over all expressions of the split. PNG: average recall over IoU thresholds,
    for all phrases and apart for things and stuff, singular and plural; a phrase that names several segments is plural.
    PNG's authors leave out narratives whose words do not match their tokenizer's; we leave out none.

Source:
    Yu et al., "Modeling Context in Referring Expressions", ECCV 2016; Mao et al., CVPR 2016 (RefCOCOg); Gonzalez et
    al., "Panoptic Narrative Grounding", ICCV 2021.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import ConfigError, LabelError
from data.readers.coco_json import ANNOTATIONS, CocoImage, Id, read_instances
from data.readers.pickled import PickleFault, load_pickle
from data.readers.targets import CocoShape, PanopticSegments, Target, TargetSet
from data.texts import FileKind, read_bytes, read_json, read_text
from data.wording import count

_HINT = "write `image,phrase` as the first line and `street.jpg,a brown dog` below it"
PHRASES = FileKind("the phrases", 256 * 1024 * 1024, f"{_HINT}, in UTF-8", LabelError)
REFER_SPLITS = ("unc", "umd", "google", "berkeley")
IMAGE_FOLDERS = (
    *(".", "images", "images/train2014", "train2014", "../train2014", "../images/train2014"),
    *("../images/mscoco/images/train2014", "../images/mscoco/train2014", "images/mscoco/images/train2014"),
)


@dataclass(frozen=True)
class PhraseRow:
    """A row of a phrase table: an image file, a phrase, and the sentence it stands in, where there is one."""

    image_path: Path
    phrase: str
    sentence: str | None = None


def read_phrase_table(path: Path, root: Path | None = None) -> list[PhraseRow]:
    """Read a CSV file of images and phrases.

    Args:
        path: the file; see this file's first lines.
        root: folder that the images are named from; the file's own if not given.

    Raises:
        LabelError: missing, not such a table, or a row without image or phrase (with its number).

    """
    lines = read_text(path, PHRASES).splitlines()
    header_line = next((line for line in lines if line.strip()), "")
    delimiter = next((mark for mark in ",;\t" if mark in header_line), ",")
    header = [cell.strip().casefold() for cell in next(csv.reader([header_line], delimiter=delimiter), [])]
    missing = [name for name in ("image", "phrase") if header.count(name) != 1]
    if missing:
        raise LabelError(f"{path} has no column {missing[0]!r} in its first line {header_line[:60]!r}; {_HINT}.")
    rows = []
    try:
        for number, cells in enumerate(csv.reader(lines, delimiter=delimiter, skipinitialspace=True), start=1):
            if not any(cell.strip() for cell in cells) or [cell.strip().casefold() for cell in cells] == header:
                continue
            rows.append(_row(dict(zip(header, cells, strict=False)), number, path, root or path.parent))
    except csv.Error as error:
        raise LabelError(f"{path} is not CSV ({error}); {_HINT}.") from error
    if not rows:
        raise LabelError(f"{path} has no rows; {_HINT}.")
    return rows


def _row(cells: dict[str, str], number: int, path: Path, root: Path) -> PhraseRow:
    image, phrase = cells.get("image", "").strip(), cells.get("phrase", "").strip()
    if not image or not phrase:
        raise LabelError(f"{path}, row {number} has no {'image' if not image else 'phrase'}; {_HINT}.")
    return PhraseRow(root / image.replace("\\", "/"), phrase, cells.get("sentence", "").strip() or None)


def open_refcoco(root: Path, split: str = "val") -> TargetSet:
    """List the referring expressions of a split of RefCOCO, RefCOCO+ or RefCOCOg.

    Raises:
        ConfigError: no such split, no images.
        LabelError: a file that is not of the authors' form, or a pickle that holds more than data.

    """
    refs = _read_refs(root)
    images = {image.id: image for image in read_instances(root / "instances.json").images}
    try:
        wanted = [ref for ref in refs if ref["split"] == split]
        if not wanted:
            known = ", ".join(sorted({str(ref["split"]) for ref in refs}))
            raise ConfigError(f"{root} has no split {split!r}; --split may be {known}.")
        folder = _image_folder(root, images[wanted[0]["image_id"]].file)
        return TargetSet("refcoco", [one for ref in wanted for one in _expressions(ref, images, folder)], {})
    except (KeyError, TypeError, AttributeError) as error:
        raise LabelError(
            f"{root} holds no RefCOCO annotations ({error!r}); unpack the authors' archive there."
        ) from error


def _expressions(ref: Any, images: dict[Id, CocoImage], folder: Path) -> list[Target]:
    """Return the targets of one referred object: a target for each of its sentences."""
    image = images[ref["image_id"]]
    shape = next((segment.shape for segment in image.segments if segment.id == ref["ann_id"]), None)
    if shape is None:
        raise LabelError(f"Annotation {ref['ann_id']!r} of image {image.id!r} is missing or has no outline.")
    region, path = CocoShape(shape, (image.height, image.width)), folder / image.file
    return [Target(str(one["sent_id"]), path, one["sent"].strip(), region, group="all") for one in ref["sentences"]]


def _read_refs(root: Path) -> list[Any]:
    """Read the list of referred objects, from JSON where there is one, else from the authors' pickle, safely."""
    for kind in REFER_SPLITS:
        if (root / f"refs({kind}).json").is_file():
            return _list_of(read_json(root / f"refs({kind}).json", ANNOTATIONS), root)
    path = next((root / f"refs({kind}).p" for kind in REFER_SPLITS if (root / f"refs({kind}).p").is_file()), None)
    if path is None:
        raise ConfigError(f"{root} holds no refs(unc).p; --root must name the folder refcoco, refcoco+ or refcocog.")
    try:
        return _list_of(load_pickle(read_bytes(path, ANNOTATIONS)), root)
    except PickleFault as error:
        raise LabelError(f"{path} is no list of referring expressions ({error}).") from error


def _list_of(content: Any, root: Path) -> list[Any]:
    if not isinstance(content, list):
        raise LabelError(f"The refs file in {root} holds a {type(content).__name__}; it must be a list of references.")
    return content


def _image_folder(root: Path, name: str) -> Path:
    folder = next((root / place for place in IMAGE_FOLDERS if (root / place / name).is_file()), None)
    if folder is None:
        raise ConfigError(f"There is no image {name} in {root}/images or beside it; link COCO's train2014 there.")
    return folder


def open_png(root: Path, split: str = "val2017") -> TargetSet:
    """List the phrases of panoptic narrative grounding.

    Phrases without a segment are no targets and are counted in the notes.

    Raises:
        ConfigError: no images.
        LabelError: a file that is missing or not of the authors' form.

    """
    annotations = root / "annotations"
    narratives = read_json(annotations / f"png_coco_{split}.json", ANNOTATIONS)
    panoptic = read_json(annotations / f"panoptic_{split}.json", ANNOTATIONS)
    try:
        things = {entry["id"]: _kind(entry["isthing"]) for entry in panoptic["categories"]}
        segments = {
            (int(entry["image_id"]), int(segment["id"])): things[segment["category_id"]]
            for entry in panoptic["annotations"]
            for segment in entry["segments_info"]
        }
        files = {int(entry["image_id"]): entry["file_name"] for entry in panoptic["annotations"]}
        images = {int(entry["id"]): entry["file_name"] for entry in panoptic["images"]}
        folder = _png_images(root, split, next(iter(images.values())))
        drawn = annotations / "panoptic_segmentation" / split
        paths = {each: (folder / name, drawn / files[each]) for each, name in images.items() if each in files}
        targets = [
            target
            for number, entry in enumerate(narratives)
            for target in _phrases_of(entry, number, segments, *paths[int(entry["image_id"])])
        ]
        spoken = sum(1 for entry in narratives for part in entry["segments"] if part["noun"])
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise LabelError(f"{annotations} holds no PNG annotations ({error!r}); see data/readers/phrases.py.") from error
    if not targets:
        raise LabelError(f"{annotations / f'png_coco_{split}.json'} names no segment; is it the authors' file?")
    without = spoken - len(targets)
    note = f"{without} of {count(spoken, 'noun phrase')} without a segment; those are no targets."
    return TargetSet("png", targets, {}, (note,) if without > 0 else ())


def _kind(isthing: Any) -> str:
    if isinstance(isthing, bool) or isthing not in (0, 1):  # equal to 0 and 1, but by whose mistake?
        raise ValueError(f"isthing is {isthing!r:.40}, it must be 0 or 1")
    return ("stuff", "things")[isthing]


def _phrases_of(
    entry: Any, number: int, segments: dict[tuple[int, int], str], image: Path, drawn: Path
) -> Sequence[Target]:
    """Return the targets of one narrative: its noun phrases that name at least one segment."""
    found = []
    for place, part in enumerate(entry["segments"]):
        ids = tuple(int(one) for one in part["segment_ids"])
        phrase = part["utterance"].strip()
        if not part["noun"] or not ids or not phrase:
            continue
        tags = (segments[int(entry["image_id"]), ids[0]], "singular" if len(ids) == 1 else "plural")
        region = PanopticSegments(drawn, ids)
        found.append(Target(f"{number}/{place}", image, phrase, region, entry["caption"].strip(), "all", tags))
    return found


def _png_images(root: Path, split: str, name: str) -> Path:
    folders = (root / "images" / split, root / split, root / "images")
    folder = next((folder for folder in folders if (folder / name).is_file()), None)
    if folder is None:
        raise ConfigError(f"There is no image {name} in {folders[0]}; link COCO's {split} there.")
    return folder
