"""The field's cls_labels.npy as a label file, read without running what is inside it.

`cls_labels.npy`, passed around by IRN, MCTformer and others, is a pickled dictionary of image id to a vector of zeros
and ones. `numpy.load(allow_pickle=True)` on such a file runs any code its author put in. Here the pickle is read by an
unpickler that can build arrays, numbers, strings and containers, and refuses everything else by name.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from data.classes import COCO, VOC, ClassSet
from data.errors import LabelError


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stand in for _codecs.encode, which pickles of old protocols call to make bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    """Return the constructors that pickled arrays and numbers name, taken from what numpy itself writes."""
    table: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }
    for core in ("numpy.core", "numpy._core"):  # the name before and since numpy 2
        table[f"{core}.multiarray", "_reconstruct"] = np.empty(0).__reduce__()[0]
        table[f"{core}.multiarray", "scalar"] = np.float64(0).__reduce__()[0]
        table[f"{core}.numeric", "_frombuffer"] = np.empty(1).__reduce_ex__(5)[0]
    return table


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that builds numpy arrays, numbers, strings and containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return one of the few allowed constructors; nothing is ever imported by name."""
        found = _allowed().get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return found


def read_cls_labels(path: Path) -> dict[str, np.ndarray]:
    """Read a cls_labels.npy.

    Returns:
        For each image id the vector of its classes, 0 or 1. Whole-number ids become VOC's (2007000032 is 2007_000032)
        or, with more than 20 classes, COCO's twelve digits.

    Raises:
        LabelError: not such a file, or one that holds more than arrays; nothing of it has been run then.

    """
    try:
        content = _read_npy(Path(path))
    except pickle.UnpicklingError as error:
        raise LabelError(
            f"{path} wants to run {error}, which has no place in a label file; do not open it with numpy, and get the "
            "labels from another source."
        ) from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, IndexError, KeyError) as error:
        raise LabelError(f"{path} is no cls_labels.npy ({' '.join(str(error).split())}).") from error
    if isinstance(content, np.ndarray) and content.shape == ():
        content = content.item()
    if not isinstance(content, dict) or not content:
        raise LabelError(f"{path} holds {type(content).__name__}, not a dictionary of image id to label vector.")
    return {_id(key, len(_vector(value, key, path))): _vector(value, key, path) for key, value in content.items()}


def _read_npy(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(6) != npy_format.MAGIC_PREFIX:
            raise ValueError("it does not begin as an .npy file does")
        file.seek(0)
        version = npy_format.read_magic(file)
        read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        _, _, dtype = read_header(file)
        if not dtype.hasobject:
            raise ValueError(f"it is a plain array of {dtype}, without image ids")
        return ArrayUnpickler(io.BytesIO(file.read()), encoding="latin1").load()


def _vector(value: Any, key: Any, path: Path) -> np.ndarray:
    vector = np.asarray(value) if isinstance(value, np.ndarray | list | tuple) else None
    if vector is None or vector.ndim != 1 or vector.dtype.kind not in "biuf":
        raise LabelError(f"{path}: the labels of {key!r} are no vector of numbers.")
    return vector


def _id(key: Any, n_classes: int) -> str:
    if isinstance(key, bytes):
        key = key.decode("latin1")
    if isinstance(key, int | np.integer):
        number = int(key)
        return f"{number // 10**6:04d}_{number % 10**6:06d}" if n_classes <= 20 else f"{number:012d}"
    return str(key)


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
            expected = f"{len(known)} classes" if known else "classes it cannot know (VOC has 20, COCO 80)"
            raise LabelError(
                f"{path}: {sample_id} has {len(vector)} labels for {expected}; name them in --data.classes."
            )
        found[sample_id] = tuple(known.names[position] for position in np.flatnonzero(vector))
    return found
