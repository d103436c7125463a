"""The field's cls_labels.npy as a label file, read without running what is inside it.

`cls_labels.npy`, passed around by IRN, MCTformer and others, is a pickled dictionary of image id to a vector of zeros
and ones. `numpy.load(allow_pickle=True)` on such a file runs any code its author put in. Here the pickle is read by an
unpickler that can build arrays, numbers, strings and containers, and refuses everything else by name. Not even numpy's
own constructors are called with what the file says: stand-ins take the bytes, and vectors of numbers are made of them.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.classes import COCO, MAX_CLASSES, VOC, ClassSet
from data.console import count
from data.errors import LabelError
from data.texts import FileKind, read_bytes

CLS_LABELS = FileKind("the label file", 256 * 1024 * 1024, "get the labels from another source", LabelError)
_MAGIC = b"\x93NUMPY"
_LENGTHS = {(1, 0): "<H", (2, 0): "<I", (3, 0): "<I"}  # of the header, by the version of the format
# What a damaged pickle makes the unpickler raise, besides its own error.
_BROKEN = (
    ValueError,
    EOFError,
    AttributeError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    struct.error,
)


class _Kind:
    """Stands in for numpy.dtype: a letter and a size, nothing of the numpy that runs."""

    def __init__(self, text: Any, *_: Any) -> None:
        self.text = text if isinstance(text, str) else ""
        self.order: Literal["<", ">"] = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if isinstance(state, tuple) and len(state) > 1 and state[1] == ">" else "<"

    def dtype(self) -> np.dtype[Any]:
        if self.text not in _NUMBERS:
            raise pickle.UnpicklingError(f"an array of {self.text!r}")
        return np.dtype(self.text).newbyteorder(self.order)


class _Array:
    """Stands in for a pickled array until its state has come; numpy's own would trust that state."""

    shape: Any = ()
    content: Any = None
    kind: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.kind, _, self.content = state

    def value(self) -> Any:
        """Return a vector of numbers, or the object in an array of one."""
        if isinstance(self.content, list):
            return self.content[0] if len(self.content) == 1 and self.shape == () else self.content
        return _numbers(self.content, self.kind, self.shape)


class _NoCall:
    """Stands in for numpy.ndarray, which pickles name but never call."""

    def __init__(self, *_: Any) -> None:
        raise pickle.UnpicklingError("numpy.ndarray with arguments")


_NUMBERS = frozenset({"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "bool"})


def _numbers(content: Any, kind: Any, shape: Any) -> np.ndarray:
    if not isinstance(kind, _Kind) or not isinstance(content, bytes | bytearray | str):
        raise pickle.UnpicklingError("an array of another kind")
    raw = content.encode("latin1") if isinstance(content, str) else bytes(content)
    return np.frombuffer(raw, kind.dtype()).reshape(shape)


def _scalar(kind: Any, content: Any) -> Any:
    return _numbers(content, kind, (1,))[0]


def _frombuffer(content: Any, kind: Any, shape: Any, _order: Any = "C") -> np.ndarray:
    return _numbers(content, kind, shape)


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stand in for _codecs.encode, which pickles of old protocols call to make bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NoCall,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _latin1,
}
for _core in ("numpy.core", "numpy._core"):  # the name before and since numpy 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = lambda *_: _Array()
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _frombuffer


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that builds numpy arrays, numbers, strings and containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return one of the few stand-ins; nothing is ever imported by name."""
        found = _ALLOWED.get((module, name))
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
    path = Path(path)
    try:
        content = _read_npy(read_bytes(path, CLS_LABELS))
    except pickle.UnpicklingError as error:
        raise LabelError(
            f"{path} wants to run {error}, which has no place in a label file; do not open it with numpy, and get the "
            "labels from another source."
        ) from error
    except _BROKEN as error:
        raise LabelError(f"{path} is no cls_labels.npy ({' '.join(str(error).split())[:200]}).") from error
    content = content.value() if isinstance(content, _Array) else content
    if not isinstance(content, dict) or not content:
        raise LabelError(f"{path} holds {type(content).__name__}, not a dictionary of image id to label vector.")
    for key in content:
        _check_key(key, path)
    vectors = {key: _vector(value, key, path) for key, value in content.items()}
    found = {_id(key, len(vector)): vector for key, vector in vectors.items()}
    if len(found) < len(vectors):
        raise LabelError(f"{path}: several keys, such as 1 and '1', name the same image.")
    return found


def _read_npy(content: bytes) -> Any:
    """Return what the pickle in an .npy file of objects holds; the header is measured, not evaluated."""
    if not content.startswith(_MAGIC):
        raise ValueError("it does not begin as an .npy file does")
    length = _LENGTHS.get((content[6], content[7]))
    if length is None:
        raise ValueError(f"it is of the unknown version {content[6]}.{content[7]}")
    start = 8 + struct.calcsize(length)
    end = start + struct.unpack(length, content[8:start])[0]
    header = content[start:end]
    if len(header) < end - start:
        raise ValueError("it is cut short")
    if b"|O" not in header:
        raise ValueError("it is a plain array, without image ids")
    stream = content[end:]
    for opcode, argument, _ in pickletools.genops(stream):  # ValueError where a length goes beyond the end
        if "PUT" in opcode.name and int(argument or 0) > len(stream):
            # the unpickler would take memory for all the numbers below
            raise ValueError("it numbers more objects than it has bytes")
    return ArrayUnpickler(io.BytesIO(stream), encoding="latin1").load()


def _vector(value: Any, key: Any, path: Path) -> np.ndarray:
    try:
        value = value.value() if isinstance(value, _Array) else value
        if isinstance(value, list | tuple) and len(value) <= MAX_CLASSES:
            plain = all(isinstance(one, bool | int | float | np.number | np.bool_) for one in value)
            value = np.asarray([float(one) for one in value]) if plain else None
    except (*_BROKEN, pickle.UnpicklingError):
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
