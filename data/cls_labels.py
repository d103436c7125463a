"""Turn the field's cls_labels.npy into a label file, without running what is inside it.

`cls_labels.npy`, passed around by IRN, MCTformer and others, is a pickled dictionary of image id to a vector of zeros
and ones. `numpy.load(allow_pickle=True)` on such a file runs any code its author put in. Here the pickle is read by an
unpickler that can build arrays, numbers, strings and containers, and refuses everything else by name.

    python -m data.cls_labels cls_labels.npy labels.jsonl --classes voc
"""

import argparse
import io
import json
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from data.classes import COCO, VOC, ClassSet, load_classes
from data.errors import LabelError, UserError
from data.masks import write_atomically


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


def convert(source: Path, output: Path, classes: ClassSet) -> int:
    """Write labels.jsonl (or .csv) from cls_labels.npy; return the number of images.

    Raises:
        LabelError: a vector whose length is not the number of classes, or what `read_cls_labels` refuses.

    """
    rows = []
    for sample_id, vector in sorted(read_cls_labels(source).items()):
        if len(vector) != len(classes):
            raise LabelError(
                f"{source}: {sample_id} has {len(vector)} labels for {len(classes)} classes; choose --classes."
            )
        rows.append((sample_id, [classes.names[position] for position in np.flatnonzero(vector)]))
    if output.suffix.lower() == ".csv":
        text = "image,labels\n" + "".join(f"{sample_id},{';'.join(names)}\n" for sample_id, names in rows)
    else:
        text = "".join(json.dumps({"image": sample_id, "labels": names}) + "\n" for sample_id, names in rows)
    write_atomically(output, text.encode())
    return len(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the converter from the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data.cls_labels", description="cls_labels.npy to a label file")
    parser.add_argument("source", type=Path, help="the .npy file")
    parser.add_argument("output", type=Path, help="labels.jsonl or labels.csv")
    parser.add_argument("--classes", default="voc", help="voc, coco, or a class file; default: voc")
    options = parser.parse_args(arguments)
    try:
        known = {"voc": VOC, "coco": COCO}.get(options.classes)
        count = convert(options.source, options.output, known or load_classes(Path(options.classes)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote the labels of {count} images to {options.output}; use them with --data.labels={options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
