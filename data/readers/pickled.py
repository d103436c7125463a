"""Pickles of data read without running anything that is inside them.

Python's pickle is a program: it names functions and calls them. Here stand-ins take the place of the few names that
numbers and arrays need, and every other name is refused. Not even numpy's own constructors are called with what the
file says: the stand-ins keep the bytes, and arrays of numbers are made of them afterwards.
"""

import io
import pickle
import pickletools
import struct
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

_MAGIC = b"\x93NUMPY"
_LENGTHS = {(1, 0): "<H", (2, 0): "<I", (3, 0): "<I"}  # of the header, by the version of the format
_NUMBERS = frozenset({"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "bool"})
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
    RecursionError,
    struct.error,
    pickle.UnpicklingError,
)


class PickleFault(ValueError):
    """A pickle that is damaged or holds more than data; the message says which."""


class _Refused(Exception):
    """A name that a pickle wants to call."""


class _Kind:
    """Stands in for numpy.dtype: a letter and a size, nothing of the numpy that runs."""

    def __init__(self, text: Any, *_: Any) -> None:
        self.text = text if isinstance(text, str) else ""
        self.order: Literal["<", ">"] = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if isinstance(state, tuple) and len(state) > 1 and state[1] == ">" else "<"

    def dtype(self) -> np.dtype[Any]:
        if self.text not in _NUMBERS:
            raise PickleFault(f"it holds an array of {self.text!r}; arrays of numbers alone are read")
        return np.dtype(self.text).newbyteorder(self.order)


class _Array:
    """Stands in for a pickled array until its state has come; numpy's own would trust that state."""

    shape: Any = ()
    content: Any = None
    kind: Any = None
    columns_first: Any = False  # Fortran's order, which pycocotools' masks have

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.kind, self.columns_first, self.content = state

    def value(self) -> Any:
        """Return an array of numbers, or what an array of objects holds, as a list."""
        if isinstance(self.content, list):
            return self.content[0] if len(self.content) == 1 and self.shape == () else self.content
        return _frombuffer(self.content, self.kind, self.shape, "F" if self.columns_first else "C")


class _NoCall:
    """Stands in for numpy.ndarray, which pickles name but never call."""

    def __init__(self, *_: Any) -> None:
        raise _Refused("numpy.ndarray with arguments")


def _numbers(content: Any, kind: Any, shape: Any) -> np.ndarray:
    if not isinstance(kind, _Kind) or not isinstance(content, bytes | bytearray | str):
        raise PickleFault("it holds an array of another kind than numbers")
    raw = content.encode("latin1") if isinstance(content, str) else bytes(content)
    return np.frombuffer(raw, kind.dtype()).reshape(shape)


def _scalar(kind: Any, content: Any) -> Any:
    return _numbers(content, kind, (1,))[0]


def _frombuffer(content: Any, kind: Any, shape: Any, order: Any = "C") -> np.ndarray:
    values = _numbers(content, kind, shape if order != "F" else tuple(shape)[::-1])
    return values if order != "F" else values.T


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stand in for _codecs.encode, which pickles of old protocols call to make bytes."""
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode to {encoding!r}")
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


class _Unpickler(pickle.Unpickler):
    """An unpickler that builds arrays of numbers, numbers, text and containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise _Refused(f"{module}.{name}")
        return found


def load_pickle(stream: bytes) -> Any:
    """Return what a pickle holds: numbers, text, containers, arrays of numbers; arrays of objects become lists.

    Text of Python 2 is read as latin1.

    Raises:
        PickleFault: damaged, or it wants to run something; nothing of it has been run then.

    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of odd escapes in a damaged text
            for opcode, argument, _ in pickletools.genops(stream):  # ValueError where a length goes beyond the end
                if "PUT" in opcode.name and argument is not None and int(argument) > len(stream):
                    raise PickleFault("it numbers more objects than it has bytes")  # memory would be taken for them
            return _resolved(_Unpickler(io.BytesIO(stream), encoding="latin1").load())
    except PickleFault:
        raise
    except _Refused as error:
        raise PickleFault(f"it wants to run {error}, which has no place in a file of data") from error
    except _BROKEN as error:
        raise PickleFault(f"it is damaged: {' '.join(str(error).split())[:200]}") from error


def load_npy_objects(content: bytes) -> Any:
    """Return what an .npy file of objects holds, as `load_pickle` does; the header is measured, not evaluated.

    Raises:
        PickleFault: no such file, damaged, or it wants to run something.

    """
    if not content.startswith(_MAGIC) or len(content) < 10:
        raise PickleFault("it does not begin as an .npy file does")
    length = _LENGTHS.get((content[6], content[7]))
    if length is None:
        raise PickleFault(f"it is of the unknown version {content[6]}.{content[7]}")
    start = 8 + struct.calcsize(length)
    end = start + struct.unpack(length, content[8:start].ljust(start - 8, b"\xff"))[0]
    if len(content) < end:
        raise PickleFault("it is cut short")
    if b"|O" not in content[start:end]:
        raise PickleFault("it is a plain array")
    return load_pickle(content[end:])


def _resolved(value: Any, depth: int = 0) -> Any:
    """Put arrays in the place of their stand-ins, in containers too."""
    if depth > 32:
        raise PickleFault("its containers are nested too deep")
    match value:
        case _Array():
            return _resolved(value.value(), depth + 1)
        case list() | tuple():
            return type(value)(_resolved(one, depth + 1) for one in value)
        case dict():
            return {_resolved(key, depth + 1): _resolved(one, depth + 1) for key, one in value.items()}
        case _Kind() | _NoCall():
            raise PickleFault("it holds parts of an array without the array")
    return value
