"""The line about an image in a store's index, the same from both stages; and what must hold of one that is read.

A store may come from somebody else, so nothing of it is believed: every line is checked when it is read, and an image's
path must stay in the folder of the data. `MaskStore` goes through here alone.
"""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.classes import IGNORE, ClassSet
from data.errors import ImageError, LabelError, StoreError
from data.images import MAX_PIXELS
from data.masks import value_counts
from data.samples import check_id
from data.wording import short

FEW_PIXELS = 0.001  # a class below this share of the image is worth a warning
MOSTLY_IGNORED = 0.9


def image_record(
    sample_id: str,
    image: str,
    mask: UInt8[np.ndarray, "height width"],
    argmax: UInt8[np.ndarray, "height width"],
    labels: Sequence[int],
    classes: ClassSet,
    seconds: float,
    dropped_words: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the line about an image in the store's index.

    Args:
        sample_id: id of the image.
        image: its file, as `data.store.source.stored_path` gives it.
        mask: class ids, 255 where there is no decision.
        argmax: class ids without the 255 band.
        labels: class ids that the mask may show, without the background.
        classes: names of the classes.
        seconds: work that the image took.
        dropped_words: background words for which the sentence had no room; named in the line only where there are some.

    Returns:
        JSON values. `class_share` is the share of the image's pixels of the background and of each label in the mask
        with the 255 band, by name; `ignore_share` that of 255; `warnings` say what a person should look at.

    """
    shares = value_counts(mask) / mask.size
    record = {
        "id": sample_id,
        "image": image,
        "height": int(mask.shape[0]),
        "width": int(mask.shape[1]),
        "labels": [int(label) for label in labels],
        "ignore_share": round(float(shares[IGNORE]), 6),
        "class_share": {classes.name(i): round(float(shares[i]), 6) for i in (0, *labels)},
        "warnings": mask_warnings(argmax, labels, classes, float(shares[IGNORE])),
        "seconds": round(seconds, 3),
    }
    return record | ({"dropped_words": list(dropped_words)} if dropped_words else {})


def mask_warnings(
    argmax: UInt8[np.ndarray, "height width"], labels: Sequence[int], classes: ClassSet, ignore_share: float
) -> list[str]:
    """Return one line for each thing about a mask that a person should look at; most masks have none."""
    shares = value_counts(argmax) / argmax.size
    if shares[0] == 1.0:
        return ["all background"]
    warnings = [f"{classes.name(i)}: no pixels" for i in labels if shares[i] == 0]
    warnings += [f"{classes.name(i)}: almost no pixels" for i in labels if 0 < shares[i] < FEW_PIXELS]
    if shares[0] == 0:
        warnings.append("no background")
    if ignore_share > MOSTLY_IGNORED:
        warnings.append("almost all ignored")
    return warnings


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= high  # nan is not either


def _is_path(value: Any) -> bool:
    return _is_text(value) and bool(value) and "\0" not in value


def _are_labels(value: Any) -> bool:
    whole = isinstance(value, list) and all(_is_whole(label, 1, IGNORE - 1) for label in value)
    return whole and len(set(value)) == len(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_shares(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(share, 1.001) for share in value.values())


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_whole(number, 0, MAX_PIXELS) for number in value.values())


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image": (_is_path, "the path of a file"),
    "height": (lambda value: _is_whole(value, 1, MAX_PIXELS), "a number of pixels"),
    "width": (lambda value: _is_whole(value, 1, MAX_PIXELS), "a number of pixels"),
    "labels": (_are_labels, "a list of class ids, each once"),
    "ignore_share": (lambda value: _is_number(value, 1.001), "a number from 0 to 1"),
    "class_share": (_are_shares, "numbers from 0 to 1 by class name"),
    "warnings": (_are_texts, "a list of sentences"),
    "dropped_words": (_are_texts, "a list of words"),
    "presence": (_are_shares, "numbers from 0 to 1 by class name"),
    "sam": (_are_counts, "numbers of objects by name"),
    "crf_engine": (_is_text, "the name of a program part"),
    "seconds": (lambda value: _is_number(value, 1e12), "a number of seconds"),
}


def record_fault(record: dict[str, Any], n_classes: int) -> str:
    """Return what is wrong with a line that was read from an index, or an empty text; fields may be missing."""
    try:
        check_id(record["id"])
    except LabelError as error:
        return str(error)
    for name, (holds, rule) in _RULES.items():
        if name in record and not holds(record[name]):
            return f"{name} of {record['id']!r} is {short(record[name])}, not {rule}"
    unknown = [label for label in record.get("labels", ()) if label > n_classes]
    if unknown:
        return f"the label {unknown[0]} of {record['id']!r} does not exist: class ids end at {n_classes}"
    if "image" in record and not os.path.isabs(record["image"]) and _leaves(os.path.normpath(record["image"])):
        return f"the image of {record['id']!r} is {short(record['image'])}, which leads out of the data's folder"
    return ""


def _leaves(path: str) -> bool:
    return path.split(os.sep)[0] in {os.curdir, os.pardir}


def path_below(image: str, root: Path) -> Path:
    """Return an index line's image as a path relative to the folder of the data.

    Raises:
        StoreError: it lies elsewhere; a store must not be a way to any other file of the machine.

    """
    base = os.path.abspath(root)
    path = Path(os.path.normpath(os.path.join(base, image)))
    if Path(base) not in path.parents:
        raise StoreError(
            f"The store names the image {image!r}, which does not lie in the data's folder {root}; if you trust the "
            "store, name the folder that it lies in with --root."
        )
    return path.relative_to(base)


def size_of_record(record: dict[str, Any]) -> tuple[int, int]:
    """Return height and width of an index line's image.

    Raises:
        StoreError: the line does not say.

    """
    if "height" not in record or "width" not in record:
        raise StoreError(f"The store's index does not say how large {record['id']!r} is; generate it again.")
    return record["height"], record["width"]


def labels_of_record(record: dict[str, Any]) -> tuple[int, ...]:
    """Return the class ids that an index line's mask may show.

    Raises:
        StoreError: the line does not say.

    """
    if "labels" not in record:
        raise StoreError(f"The store's index does not say which labels {record['id']!r} has; generate it again.")
    return tuple(record["labels"])


def is_up_to_date(done: dict[str, tuple[int, ...] | None], sample_id: str, labels: Collection[int]) -> bool:
    """Return whether an image's mask is there and was made with these labels.

    Args:
        done: labels of the masks that are there, as `MaskStore.finished_labels` gives them; None where the line about
            a mask names none, which then counts as made with any.
        sample_id: the image.
        labels: the class ids that it has now.

    """
    if sample_id not in done:
        return False
    found = done[sample_id]
    return found is None or set(found) == set(labels)


def check_mask(
    mask: UInt8[np.ndarray, "height width"],
    size_hw: tuple[int, ...] | None,
    n_classes: int,
    path: Path,
    undecided: bool = True,
) -> None:
    """Raise ImageError if a mask has another size than its image or a class that does not exist.

    Args:
        mask: what the file holds.
        size_hw: height and width of the image; None where they are not known.
        n_classes: number of classes with the background.
        path: the file, for the message.
        undecided: whether 255 may occur.

    """
    if size_hw is not None and mask.shape != tuple(size_hw):
        raise ImageError(
            f"The mask {path} has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), its image {size_hw[0]} x "
            f"{size_hw[1]}: they must be equal; was the image replaced after `pseudolabel generate`?"
        )
    wrong = mask[(mask >= n_classes) & ((mask != IGNORE) | (not undecided))]
    if wrong.size:
        raise ImageError(
            f"The mask {path} holds class {wrong.max()}, but ids end at {n_classes - 1}: wrong class list?"
        )
