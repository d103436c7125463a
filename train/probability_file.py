"""Class probabilities of every pixel of an image, written as they are made: `numpy.load` reads the file."""

import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float

from data.files import atomic_file
from train.tiles import Block

NAME = "probabilities"  # of the array in the file
COPIED_BYTES = 1 << 20  # at a time
_TYPE = np.dtype("<f2")


@contextmanager
def probability_file(path: Path, shape: tuple[int, int, int]) -> Iterator[Callable[[Block], None]]:
    """Give a function that takes the image's blocks; the file stands there when all is well at the end.

    The blocks go to a nameless file beside it, which is compressed at the end: an array holds one class after another,
    and the blocks one part of the image after another. Files are written, not mapped into memory: a full disk is an
    error then, and not the end of the process.

    Args:
        path: an .npz; its array `probabilities` is float16, of the shape below.
        shape: classes with background, height, width.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.

    """
    try:
        with tempfile.TemporaryFile(dir=path.parent) as unpacked:
            header = {"descr": _TYPE.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(unpacked, header)
            start = unpacked.tell()
            unpacked.truncate(start + _TYPE.itemsize * math.prod(shape))

            def add(block: Block) -> None:
                for where, numbers in _runs(block, shape):
                    unpacked.seek(start + _TYPE.itemsize * where)
                    unpacked.write(numbers.data)

            yield add
            unpacked.seek(0)
            with (
                atomic_file(path) as file,
                zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
                archive.open(f"{NAME}.npy", "w", force_zip64=True) as packed,
            ):
                shutil.copyfileobj(unpacked, packed, COPIED_BYTES)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file
        raise


def _runs(block: Block, shape: tuple[int, int, int]) -> Iterator[tuple[int, Float[np.ndarray, " numbers"]]]:
    """Yield the numbers of a block that follow each other in the array, and the place of the first."""
    _, height, width = shape
    values = np.ascontiguousarray(block.values, _TYPE)
    for plane, whole_rows in enumerate(values):
        if whole_rows.shape[1] == width:
            yield (plane * height + block.rows.start) * width, whole_rows.ravel()
            continue
        for row, numbers in enumerate(whole_rows, start=block.rows.start):
            yield (plane * height + row) * width + block.columns.start, numbers
