"""COCO's instances JSON, checked from end to end before anything is made of it.

pycocotools is written in C and trusts what it is given: an infinite coordinate or runs that are too long end in a crash
or take all memory. So every value that is used later is looked at here; a fault is one line that names the image, the
category or the annotation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.classes import MAX_NAME, class_key
from data.errors import LabelError
from data.images import MAX_PIXELS
from data.texts import FileKind, read_json
from data.wording import count, holds_control, plural, short

ANNOTATIONS = FileKind("the annotations", 2 * 1024**3, "unpack the annotations again", LabelError)
MAX_COORDINATE = 1_000_000
MAX_FILE_BYTES = 1000

Id = int | str
Shape = list[list[float]] | dict[str, Any]


@dataclass(frozen=True)
class Segment:
    """An annotation: its id (or place in the file), category, crowd or not, area in pixels, and outline or none."""

    id: Id
    category: Id
    crowd: int
    area: float | None
    shape: Shape | None


@dataclass(frozen=True)
class CocoImage:
    """An image of the file with its annotations."""

    id: Id
    file: str
    height: int
    width: int
    segments: list[Segment]


@dataclass(frozen=True)
class Instances:
    """The content of an instances JSON.

    Attributes:
        images: in the order of their ids.
        categories: name by id, in the order of the ids.
        notes: what was left out, and why.

    """

    images: list[CocoImage]
    categories: dict[Id, str]
    notes: tuple[str, ...]

    def used(self) -> set[Id]:
        """Return the ids of the categories that annotations have."""
        return {segment.category for image in self.images for segment in image.segments}


def read_instances(path: Path) -> Instances:
    """Read an instances JSON.

    Raises:
        LabelError: unreadable, or a value of the wrong type or size; the message names it.

    """
    content = read_json(path, ANNOTATIONS)
    try:
        return _instances(content)
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from error


def _instances(content: Any) -> Instances:
    parts: list[Any] = [
        content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations", "categories")
    ]
    for name, part in zip(("images", "annotations", "categories"), parts, strict=True):
        if not isinstance(part, list):
            raise LabelError(f"It has no {name!r}, a list; it must be an instances JSON of COCO.")
        for position, entry in enumerate(part):
            if not isinstance(entry, dict):
                raise LabelError(f"Entry {position} of {name!r} is {short(entry)}, not an object.")
    images = [_image(entry, position) for position, entry in enumerate(parts[0])]
    if len({type(image.id) for image in images}) != 1:
        raise LabelError(
            "Some ids of images are numbers and some texts; use one kind." if images else "It lists no images."
        )
    by_id = {image.id: image for image in sorted(images, key=lambda image: image.id)}
    if len(by_id) < len(images):
        raise LabelError(f"Several images have the id {short(_twice([one.id for one in images]))}; ids must differ.")
    every = _categories(parts[2])
    stray: list[str] = []
    bare = 0
    for position, entry in enumerate(parts[1]):
        name = _annotation_name(entry, position)
        image = _find(entry, "image_id", by_id, name)
        category = _whole_or_text(entry.get("category_id"), f"category_id of {name}")
        if category not in every:
            raise LabelError(f"The category_id of {name} is {short(category)}, which is not among the categories.")
        if image is None:
            stray.append(name)
            continue
        segment = _segment(entry, category, image, name, position)
        bare += segment.shape is None
        image.segments.append(segment)
    if stray and len(stray) == len(parts[1]):
        raise LabelError(f"No annotation is of an image of the file; the first is {stray[0]}.")
    notes = _left_out_notes(stray, bare, len(parts[1]))
    found = Instances(list(by_id.values()), every, notes)
    return replace(found, categories=_without_root(every, parts[2], found.used()))


def _left_out_notes(stray: Sequence[str], bare: int, n_annotations: int) -> tuple[str, ...]:
    """Return a sentence for annotations of images that are not listed, and one for those without an outline."""
    notes = []
    if stray:
        are = count(len(stray), "annotation is of an image", "annotations are of images")
        were = plural(len(stray), "it was", "they were")
        notes.append(f"{are} that the file does not list (the first is {stray[0]}); {were} left out.")
    if bare:
        have = f"{bare} of {count(n_annotations, 'annotation')} {plural(bare, 'has', 'have')}"
        notes.append(f"{have} no outline; a drawn ground truth lacks {plural(bare, 'it', 'them')}.")
    return tuple(notes)


def _image(entry: dict[str, Any], position: int) -> CocoImage:
    sample_id = _whole_or_text(entry.get("id"), f"id of image {position} (counted from 0)")
    file = entry.get("file_name")
    name = f"image {short(sample_id)}"
    if not isinstance(file, str) or not file.strip() or holds_control(file):
        raise LabelError(f"The file_name of {name} is {short(file)}; it must be the name of a file.")
    file = file.replace("\\", "/")
    if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts or file[1:2] == ":":
        raise LabelError(f"The file_name of {name} is {short(file)}, which leaves the folder of the images.")
    if len(file.encode()) > MAX_FILE_BYTES or any(len(part.encode()) > 255 for part in file.split("/")):
        raise LabelError(f"The file_name of {name} is {short(file)}, longer than a file's name can be.")
    height, width = (_whole(entry.get(key)) for key in ("height", "width"))
    if height is None or width is None or min(height, width) < 1 or height * width > MAX_PIXELS:
        raise LabelError(
            f"Height and width of {name} are {short(entry.get('height'))} and {short(entry.get('width'))}; they must "
            f"be whole numbers from 1, of at most {MAX_PIXELS:,} pixels together."
        )
    return CocoImage(sample_id, file, height, width, [])


def _categories(entries: Sequence[dict[str, Any]]) -> dict[Id, str]:
    found: list[tuple[Id, str]] = []
    for position, entry in enumerate(entries):
        number = _whole_or_text(entry.get("id"), f"id of category {position} (counted from 0)")
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
            raise LabelError(
                f"The name of category {short(number)} is {short(name)}; it must be a text of 1 to {MAX_NAME} "
                "characters."
            )
        found.append((number, name))
    if not found:
        raise LabelError("It has no categories.")
    if len(dict(found)) < len(found):
        raise LabelError(f"Several categories have the id {short(_twice([one for one, _ in found]))}; ids must differ.")
    if len({type(number) for number, _ in found}) > 1:
        raise LabelError("Some ids of categories are numbers and some texts; use one kind.")
    return dict(sorted(found, key=lambda pair: pair[0]))


def _without_root(names: dict[Id, str], entries: Sequence[dict[str, Any]], used: set[Id]) -> dict[Id, str]:
    """Return the categories without one that nothing uses, over all others (Roboflow's), of the name of another one."""
    above = {entry.get("supercategory") for entry in entries if isinstance(entry.get("supercategory"), str)}
    keys = [class_key(name) for name in names.values()]
    roots = {
        number
        for number, name in names.items()
        if number not in used and name in above and keys.count(class_key(name)) > 1
    }
    return {number: name for number, name in names.items() if number not in roots}


def _segment(entry: dict[str, Any], category: Id, image: CocoImage, name: str, position: int) -> Segment:
    crowd, area = entry.get("iscrowd", 0), entry.get("area")
    if not isinstance(crowd, int | float) or crowd not in (0, 1):
        raise LabelError(f"The iscrowd of {name} is {short(crowd)}; it must be 0 or 1.")
    if area is not None and not (_is_number(area) and 0 <= area < math.inf):
        raise LabelError(f"The area of {name} is {short(area)}; it must be a number of pixels.")
    shape = entry.get("segmentation")
    size_hw = (image.height, image.width)
    if shape is None or shape == [] or shape == {}:
        shape = None
    elif isinstance(shape, dict):
        _check_runs(shape, size_hw, name)
        shape = {"size": list(size_hw), "counts": shape["counts"]}
    elif isinstance(shape, list):
        for polygon in shape:
            _check_polygon(polygon, size_hw, name)
    else:
        raise LabelError(f"The segmentation of {name} is {short(shape)}; it must be polygons or run lengths.")
    number: Any = entry.get("id")
    own: Id = number if type(number) in (int, str) else f"at position {position}"
    return Segment(own, category, int(crowd), None if area is None else area, shape)


def _check_polygon(polygon: Any, size_hw: tuple[int, int], name: str) -> None:
    """Raise LabelError unless a polygon is x, y, x, y, ... near its image, and not of a monstrous length."""
    if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
        raise LabelError(
            f"The segmentation of {name} holds {short(polygon)}; it must be a list of polygons, each a list of "
            "numbers x, y, x, y, ..."
        )
    if len(polygon) % 2:
        raise LabelError(f"A polygon of {name} has {len(polygon)} numbers; x and y must come in pairs.")
    if not polygon:
        return
    low, high = min(polygon), max(polygon)
    if not (low >= -MAX_COORDINATE and high <= MAX_COORDINATE) or not all(map(math.isfinite, polygon)):
        raise LabelError(f"A polygon of {name} has coordinates from {short(low)} to {short(high)}, far off its image.")
    longest = 100_000 + 100 * sum(size_hw)  # pixels; memory and time of drawing it grow with its length
    if len(polygon) * (high - low) > longest:
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
        length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
        if length > longest:
            raise LabelError(f"A polygon of {name} is {length:,.0f} pixels long, too long for its image.")


def _check_runs(shape: dict[str, Any], size_hw: tuple[int, int], name: str) -> None:
    """Raise LabelError unless run lengths fit their image."""
    size, counts = shape.get("size"), shape.get("counts")
    if not isinstance(size, list) or [_whole(one) for one in size] != list(size_hw):
        raise LabelError(
            f"The run lengths of {name} are of the size {short(size)}, its image of {list(size_hw)} (height, width): "
            "they must be equal."
        )
    if isinstance(counts, str):
        total = _packed_total(counts)
    elif isinstance(counts, list) and set(map(type, counts)) <= {int} and min(counts, default=0) >= 0:
        total = sum(counts)
    else:
        total = None
    if total is None or total > size_hw[0] * size_hw[1]:
        what = "are no run lengths" if total is None else f"cover {total} pixels of {size_hw[0] * size_hw[1]}"
        raise LabelError(f"The counts of {name} {what}; write numbers from 0 that add up to height x width.")


def _packed_total(counts: str) -> int | None:
    """Return how many pixels COCO's packed run lengths cover; None if they are none (maskApi.c, rleFrString)."""
    if not counts.isascii() or not counts:
        return None if counts else 0
    digits = np.frombuffer(counts.encode(), dtype=np.uint8).astype(np.int64) - 48
    last = digits & 32 == 0
    if digits.min() < 0 or digits.max() > 63 or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 5:  # 30 bits are enough for any image that is read
        return None
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((digits & 31) << (5 * places), starts)
    values -= np.where(digits[ends] & 16, np.int64(1) << (5 * (ends - starts + 1)), 0)
    runs = values.copy()  # from the fourth on, each is stored as the difference to the one two before
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return int(runs.sum()) if runs.min() >= 0 else None


def _find(entry: dict[str, Any], key: str, by_id: dict[Id, CocoImage], name: str) -> CocoImage | None:
    number = _whole_or_text(entry.get(key), f"{key} of {name}")
    if by_id and type(number) is not type(next(iter(by_id))):
        raise LabelError(
            f"The {key} of {name} is {short(number)}, but ids of images are of another kind; use one kind."
        )
    return by_id.get(number)


def _annotation_name(entry: dict[str, Any], position: int) -> str:
    number = entry.get("id")
    return f"annotation {short(number)}" if type(number) in (int, str) else f"annotation at position {position}"


def _twice(values: Sequence[Id]) -> Id:
    seen: set[Id] = set()
    return next(value for value in values if value in seen or seen.add(value))  # type: ignore[func-returns-value]


def _whole_or_text(value: Any, what: str) -> Id:
    whole = _whole(value)
    if whole is None and (not isinstance(value, str) or not value):
        raise LabelError(f"The {what} is {short(value)}; it must be a whole number (or a text).")
    return value if whole is None else whole


def _whole(value: Any) -> int | None:
    """Return a number without fraction as an int; None for anything else."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
