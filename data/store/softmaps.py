"""Soft maps: the seam between the diffusion model and the masks, as they are kept on disk."""

import io
import math
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float16

from data.classes import MAX_CLASSES
from data.errors import StoreError
from data.images import MAX_PIXELS
from data.wording import count

SOFT_VERSION = 1  # of the npz files
WORDS_VERSION = 2  # of those that hold a map of background words too
MAX_SOFT_BYTES = 1 << 30
_TOLERANCE = 0.001  # float16 rounds
# The arrays of a file: number format as numpy writes it, and number of axes.
_ARRAYS = {
    "format_version": ("<i4", 0),
    "maps": ("<f2", 3),
    "labels": ("<i4", 1),
    "background": ("|b1", 0),
    "sizes": ("<i4", 2),
    "words": ("<f2", 2),
}
_OPTIONAL = frozenset({"words"})
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<|=>]\w{2,3})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,9},? ?){0,4})\), \} *\n"
)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError, OverflowError)


@dataclass(frozen=True)
class Frame:
    """Where an image lies in the padded image a model sees; sizes are (height, width) in pixels.

    Attributes:
        padded_hw: size the model sees, whole cells.
        resized_hw: size of the image in it, at the top left.
        image_hw: size of the image file.

    """

    padded_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    image_hw: tuple[int, int]

    def valid_cells(self, grid_hw: tuple[int, int]) -> tuple[int, int]:
        """Return how many rows and columns of a grid over the padded image hold at least one pixel of the image."""
        rows = -(-self.resized_hw[0] * grid_hw[0] // self.padded_hw[0])
        columns = -(-self.resized_hw[1] * grid_hw[1] // self.padded_hw[1])
        return rows, columns


@dataclass(frozen=True)
class SoftMaps:
    """Scores of one image before thresholds, CRF and upsampling.

    Attributes:
        maps: one map per class at grid resolution.
        labels: the class ids of the image, ascending.
        background: False: the rows are the labels' maps in [0, 1], and the background is derived from them later, so
            that its threshold can be changed; True: row 0 is the background, the others the labels (probabilities).
        padded_hw: height and width in pixels that the grid covers, the padding included.
        resized_hw: height and width of the part at the top left that is image.
        image_hw: height and width of the upright image.
        words: the largest of the background words' maps, which competes with the labels' under some settings; None
            where these words were not read.

    """

    maps: Float16[np.ndarray, "rows grid_height grid_width"]
    labels: tuple[int, ...]
    background: bool
    padded_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    image_hw: tuple[int, int]
    words: Float16[np.ndarray, "grid_height grid_width"] | None = None

    def __post_init__(self) -> None:
        if len(self.maps) != len(self.labels) + self.background:
            raise StoreError(
                f"{count(len(self.maps), 'soft map')} for {count(len(self.labels), 'label')} "
                f"(background={self.background}): one each."
            )


def encode_soft(soft: SoftMaps) -> bytes:
    """Return soft maps as the bytes of an .npz file; equal maps give equal bytes."""
    buffer = io.BytesIO()
    sizes = np.array([soft.padded_hw, soft.resized_hw, soft.image_hw], dtype=np.int32)
    arrays = {
        "format_version": np.int32(SOFT_VERSION if soft.words is None else WORDS_VERSION),
        "maps": soft.maps.astype(np.float16),
        "labels": np.array(soft.labels, dtype=np.int32),
        "background": np.bool_(soft.background),
        "sizes": sizes,
    }
    if soft.words is not None:
        arrays["words"] = soft.words.astype(np.float16)
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # equal content gives equal bytes: numpy fixes dates
    return buffer.getvalue()


def decode_soft(content: bytes) -> SoftMaps:
    """Return the soft maps of an .npz file's bytes; nothing pickled is read, and nothing is believed.

    Raises:
        StoreError: not such a file, of a newer version, or with values that soft maps cannot have.

    """
    arrays = _read_arrays(content)
    version = int(arrays["format_version"])
    if version not in (SOFT_VERSION, WORDS_VERSION):
        raise StoreError(f"format version {version}, this program reads {SOFT_VERSION} and {WORDS_VERSION}")
    words = arrays.get("words")
    if (words is None) != (version == SOFT_VERSION):
        raise StoreError(f"format version {version} {'without' if words is None else 'with'} a map of words")
    labels = tuple(int(label) for label in arrays["labels"])
    if list(labels) != sorted(set(labels)) or not all(1 <= label <= MAX_CLASSES for label in labels):
        raise StoreError(f"labels {labels}, which must be class ids, ascending")
    background = bool(arrays["background"])
    maps, sizes = arrays["maps"], arrays["sizes"]
    if not len(maps) or len(maps) != len(labels) + background:
        raise StoreError(
            f"{count(len(maps), 'map')} for {count(len(labels), 'label')} (background={background}): one each"
        )
    if sizes.shape != (3, 2) or sizes.min() < 1:
        raise StoreError("sizes that are not three heights and widths")
    if words is not None and (words.shape != maps.shape[1:] or background):
        raise StoreError(f"a map of words of {words.shape} cells beside maps of {maps.shape[1:]}")
    padded, resized, image = ((int(height), int(width)) for height, width in sizes)
    if max(resized[0] - padded[0], resized[1] - padded[1], maps.shape[1] - padded[0], maps.shape[2] - padded[1]) > 0:
        raise StoreError(f"a grid of {maps.shape[1:]} cells for {padded} pixels, {resized} of them image")
    if math.prod(padded) > 4 * MAX_PIXELS or math.prod(image) > MAX_PIXELS or not maps.size:
        raise StoreError(f"sizes {padded} and {image}, larger than any image that is read")
    for values in (maps, *(() if words is None else (words,))):
        if not (values.min() >= -_TOLERANCE and values.max() <= 1 + _TOLERANCE):  # nan is neither
            raise StoreError("values that are not numbers from 0 to 1")
    return SoftMaps(maps, labels, background, padded, resized, image, words)


def check_soft(soft: SoftMaps, record: dict[str, Any], n_classes: int) -> None:
    """Raise StoreError if soft maps do not go with the line of their image in the index, as far as it says."""
    if soft.labels and soft.labels[-1] > n_classes:
        raise StoreError(f"label {soft.labels[-1]}, but class ids end at {n_classes}")
    if "height" in record and "width" in record and soft.image_hw != (record["height"], record["width"]):
        raise StoreError(f"made for {soft.image_hw} pixels, the index says {(record['height'], record['width'])}")
    if "labels" in record and set(soft.labels) != set(record["labels"]):
        raise StoreError(f"made for the labels {list(soft.labels)}, the index says {record['labels']}")


def _read_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file, each of the number format and the axes that it must have."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = {info.filename: info for info in file.infolist()}
            names = [name for name in _ARRAYS if f"{name}.npy" in members]
            if len(names) != len(members) or not {*names} >= _ARRAYS.keys() - _OPTIONAL:
                raise StoreError(f"no .npz file of soft maps: it holds {', '.join(members)[:60]!r}")
            if any(info.flag_bits & 1 or info.file_size > MAX_SOFT_BYTES for info in members.values()):
                raise StoreError("encrypted, or larger than soft maps can be")
            return {name: _decode_array(file.read(f"{name}.npy"), name) for name in names}
    except _ZIP_ERRORS as error:
        raise StoreError(f"no .npz file: {error or type(error).__name__}") from error


def _decode_array(content: bytes, name: str) -> np.ndarray:
    """Return the array of an .npy member; its header is read as text and never evaluated."""
    kind, n_axes = _ARRAYS[name]
    (length,) = struct.unpack("<H", content[8:10]) if content[:8] == b"\x93NUMPY\x01\x00" else (0,)
    header = _NPY_HEADER.fullmatch(content[10 : 10 + length])
    if header is None:
        raise StoreError(f"{name} is no array of numbers")
    shape = tuple(int(size) for size in re.findall(rb"\d+", header[3]))
    values = content[10 + length :]
    if header[1].decode() != kind or len(shape) != n_axes:
        raise StoreError(f"{name} has the format {header[1].decode()} and {len(shape)} axes, not {kind} and {n_axes}")
    if len(values) != math.prod(shape) * np.dtype(kind).itemsize:
        raise StoreError(f"{name} is cut short")
    flat = np.frombuffer(values, dtype=kind)
    return flat.reshape(shape, order="F" if header[2] == b"True" else "C").copy()


def resize_scores(
    scores: Float[np.ndarray, "rows height width"], size_hw: tuple[int, int]
) -> Float[np.ndarray, "rows new_height new_width"]:
    """Resize score maps, bilinear, half-pixel centres; no rows give no rows."""
    import cv2

    if not len(scores):
        return np.empty((0, *size_hw), scores.dtype)
    return np.stack([cv2.resize(row, size_hw[::-1], interpolation=cv2.INTER_LINEAR) for row in scores])


def upsample(
    scores: Float[np.ndarray, "rows grid_height grid_width"], soft: SoftMaps, size_hw: tuple[int, int] | None = None
) -> Float[np.ndarray, "rows height width"]:
    """Return scores on a soft map's grid over its image: padded image, crop, image; bilinear throughout.

    Args:
        scores: one map per row on the grid of `soft`.
        soft: says where the image lies on that grid.
        size_hw: height and width of the result; the image's own if not given.

    """
    height, width = soft.resized_hw
    padded = resize_scores(scores, soft.padded_hw)
    return resize_scores(np.ascontiguousarray(padded[:, :height, :width]), size_hw or soft.image_hw)
