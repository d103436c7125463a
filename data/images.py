"""How an image file becomes an array, and how it lies.

Orientation. Cameras store a picture as the sensor saw it and say in EXIF how to turn it. This project works on the
picture as a viewer shows it: images are turned upright when they are read, masks have the upright height and width, and
polygons, previews and exports agree with browsers, annotation tools and OpenCV (`cv2.imread` turns too). A program that
reads the raw rows of a file (`PIL.Image.open` without `ImageOps.exif_transpose`) wants the mask in the raw layout:
`to_raw_layout` turns it back exactly, and `pseudolabel export --orientation raw` does so for a whole store.

Colour. Everything becomes 8-bit RGB by fixed rules that do not depend on the image's content: greyscale is repeated in
the three channels; palettes are looked up; transparency is laid over white; CMYK is converted without colour profiles;
of 16-bit values the high byte is kept; of animations and multi-page files the first picture is taken. Floating-point
and 32-bit images are refused, because their range is unknown.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from data.errors import ImageError

# The largest image that is read: Pillow's own limit against decompression bombs, 12,000 x 7,456 pixels for example.
# Reading one takes about 0.7 GB for a moment; the whole is never held twice as floating point.
MAX_PIXELS = 89_478_485
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jfif"})
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, UnidentifiedImageError)
_EXIF_ORIENTATION = 0x0112


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image upright as 8-bit RGB (the rules are in this file's first lines).

    Raises:
        ImageError: missing, damaged, cut short, of an unknown kind, or larger than `MAX_PIXELS`.

    """
    try:
        with Image.open(path) as image:
            check_size(image, path)
            return np.array(to_rgb(ImageOps.exif_transpose(image), path))
    except FileNotFoundError as error:
        raise ImageError(f"There is no image {path}; check the label file and --root.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, str(error)) from error
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ImageError(
            f"Cannot read the image {path}: {reason}; replace or convert it, or leave such images out with "
            "--on_error skip."
        ) from error


def check_size(image: Image.Image, path: Path) -> None:
    """Raise ImageError if the image is larger than `MAX_PIXELS` or has no pixels."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} x {image.height} pixels")


def _too_large(path: Path, what: str) -> ImageError:
    return ImageError(f"The image {path} is too large ({what}); at most {MAX_PIXELS:,} pixels are read: scale it down.")


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Return a picture of any mode as 8-bit RGB; see this file's first lines for the rules."""
    mode = image.mode
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 0xFFFF):
            raise ImageError(
                f"{path} holds 32-bit values, whose range is unknown; save it with 8 or 16 bits a channel."
            )
        return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if mode == "F":
        raise ImageError(f"{path} holds floating-point values, whose range is unknown; save it with 8 bits a channel.")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def read_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (upright) where it says none or nonsense."""
    try:
        with Image.open(path) as image:
            value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def size_of(path: Path) -> tuple[int, int]:
    """Return height and width of an image as a viewer shows it, from the file's header alone.

    Raises:
        ImageError: missing, damaged, or of an unknown kind.

    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in range(5, 9) and image.format != "TIFF"
    except FileNotFoundError as error:
        raise ImageError(f"There is no image {path}; check the label file and --root.") from error
    except DECODE_ERRORS as error:
        raise ImageError(f"Cannot read the image {path}: {' '.join(str(error).split())}; replace it.") from error
    return (width, height) if turned else (height, width)  # Pillow reports a TIFF's size upright already


def to_upright(raw: UInt8[np.ndarray, "rows columns"], orientation: int) -> UInt8[np.ndarray, "height width"]:
    """Turn a mask from the raw layout of an image file to how a viewer shows it.

    Args:
        raw: mask in the order of the file's rows.
        orientation: EXIF orientation of the image, 1 to 8 (EXIF 2.32, tag 0x0112).

    """
    if orientation >= 5:
        raw = raw.T
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(raw[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def to_raw_layout(upright: UInt8[np.ndarray, "height width"], orientation: int) -> UInt8[np.ndarray, "rows columns"]:
    """Turn a mask back to the raw layout of the image file; the inverse of `to_upright`."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    return to_upright(upright, back)
