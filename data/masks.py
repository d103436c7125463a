"""Masks as palette PNG files, and masks as pictures for people."""

import io
import os
import threading
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from data.classes import voc_palette
from data.errors import ImageError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part: temporary file, then os.replace.

    The temporary file lies beside the target, begins with a dot and carries process and thread, so that two writers of
    one name do not meet. There is no fsync: after a power cut the file may be missing, and is then made again.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def encode_mask(mask: UInt8[np.ndarray, "height width"], palette: UInt8[np.ndarray, "256 3"] | None = None) -> bytes:
    """Return a mask as the bytes of an 8-bit palette PNG; the pixel values are the class ids."""
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette((voc_palette() if palette is None else palette).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_mask(
    path: Path,
    mask: UInt8[np.ndarray, "height width"],
    palette: UInt8[np.ndarray, "256 3"] | None = None,
) -> None:
    """Write a mask as an 8-bit palette PNG, atomically; `palette` is VOC's when it is not given."""
    write_atomically(Path(path), encode_mask(mask, palette))


def read_mask(path: Path) -> UInt8[np.ndarray, "height width"]:
    """Read a mask of class ids from a palette or greyscale PNG; the palette's colours do not matter.

    Raises:
        ImageError: missing, damaged, or a picture in colours (whose class ids would have to be guessed).

    """
    try:
        with Image.open(path) as image:
            if image.mode not in {"P", "L", "1"}:
                raise ImageError(
                    f"{path} holds colours (mode {image.mode}), not class ids; save the mask as an 8-bit palette or "
                    "greyscale PNG whose pixel values are the class ids."
                )
            return np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise ImageError(f"Cannot read the mask {path}: {reason}.") from error


def colorize(
    mask: UInt8[np.ndarray, "height width"],
    palette: UInt8[np.ndarray, "256 3"] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the mask in the palette's colours (RGB)."""
    return (voc_palette() if palette is None else palette)[mask]


def overlay(
    rgb: UInt8[np.ndarray, "height width 3"],
    mask: UInt8[np.ndarray, "height width"],
    palette: UInt8[np.ndarray, "256 3"] | None = None,
    alpha: float = 0.6,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image with the mask's colours laid over it; the background stays as it is.

    Args:
        rgb: the image.
        mask: class ids; pixels of 0 are left alone.
        palette: colour of each id, VOC's when it is not given.
        alpha: share of the colour, from 0 (image alone) to 1 (colour alone).

    """
    mixed = (1.0 - alpha) * rgb + alpha * colorize(mask, palette)
    return np.where((mask > 0)[..., None], np.rint(mixed).astype(np.uint8), rgb)
