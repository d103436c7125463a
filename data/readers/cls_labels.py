"""The field's cls_labels.npy as a label file, read without running what is inside it.

`cls_labels.npy`, passed around by IRN, MCTformer and others, is a pickled dictionary of image id to a vector of zeros
and ones. `numpy.load(allow_pickle=True)` on such a file runs any code its author put in; `data.readers.pickled` reads
it without.
"""

from pathlib import Path
from typing import Any

import numpy as np

from data.classes import COCO, MAX_CLASSES, VOC, ClassSet
from data.errors import LabelError
from data.readers.pickled import PickleFault, load_npy_objects
from data.texts import FileKind, read_bytes
from data.wording import count

CLS_LABELS = FileKind("the label file", 256 * 1024 * 1024, "get the labels from another source", LabelError)


def read_cls_labels(path: Path) -> dict[str, np.ndarray]:
    """Read a cls_labels.npy.

    Returns:
        For each image id the vector of its classes, 0 or 1. Whole-number ids become VOC's (2007000032 is 2007_000032)
        or, with more than 20 classes, COCO's twelve digits.

    Raises:
        LabelError: not such a file, or one that holds more than arrays; nothing of it has been run then.

    """
    path = Path(path)
    try:
        content = load_npy_objects(read_bytes(path, CLS_LABELS))
    except PickleFault as error:
        raise LabelError(
            f"{path} is no cls_labels.npy: {error}; do not open it with numpy, and get the labels from another source."
        ) from error
    if not isinstance(content, dict) or not content:
        raise LabelError(f"{path} holds {type(content).__name__}, not a dictionary of image id to label vector.")
    for key in content:
        _check_key(key, path)
    vectors = {key: _vector(value, key, path) for key, value in content.items()}
    found = {_id(key, len(vector)): vector for key, vector in vectors.items()}
    if len(found) < len(vectors):
        raise LabelError(f"{path}: several keys, such as 1 and '1', name the same image.")
    return found


def _vector(value: Any, key: Any, path: Path) -> np.ndarray:
    if isinstance(value, list | tuple) and len(value) <= MAX_CLASSES:
        plain = all(isinstance(one, bool | int | float | np.number | np.bool_) for one in value)
        try:
            value = np.asarray([float(one) for one in value]) if plain else None
        except OverflowError:  # a whole number beyond every float
            value = None
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "biuf":
        raise LabelError(f"{path}: the labels of {key!r} are no vector of numbers.")
    if not np.isin(value, (0, 1)).all():
        raise LabelError(
            f"{path}: the labels of {key!r} hold {value[~np.isin(value, (0, 1))][0]}; they must be 0 or 1."
        )
    return value


def _id(key: Any, n_classes: int) -> str:
    if isinstance(key, bytes):
        key = key.decode("latin1")
    if isinstance(key, int | np.integer):
        number = int(key)
        return f"{number // 10**6:04d}_{number % 10**6:06d}" if n_classes <= 20 else f"{number:012d}"
    return str(key)


def _check_key(key: Any, path: Path) -> None:
    whole = isinstance(key, int | np.integer) and 0 <= key < 10**12
    if not (whole or isinstance(key, str | bytes)):
        raise LabelError(f"{path}: an image id is {type(key).__name__}, or too large; it must be a text or a number.")


def read_cls_label_names(path: Path, classes: ClassSet | None = None) -> dict[str, tuple[str, ...]]:
    """Return the class names of each image of a cls_labels.npy, by image id.

    Args:
        path: the .npy file.
        classes: the classes the vectors stand for, in order; without it VOC's for vectors of 20, COCO's for 80.

    Raises:
        LabelError: a vector whose length is not the number of classes, or what `read_cls_labels` refuses.

    """
    found: dict[str, tuple[str, ...]] = {}
    for sample_id, vector in read_cls_labels(path).items():
        known = classes or {len(VOC): VOC, len(COCO): COCO}.get(len(vector))
        if known is None or len(vector) != len(known):
            expected = count(len(known), "class") if known else "classes it cannot know (VOC has 20, COCO 80)"
            raise LabelError(
                f"{path}: {sample_id} has {count(len(vector), 'label')} for {expected}; name them in --data.classes."
            )
        found[sample_id] = tuple(known.names[position] for position in np.flatnonzero(vector))
    return found
