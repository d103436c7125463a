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

What is opened. `open_image` is the one place where a picture file is opened, masks and ground truth included. It looks
at the kind of file first, so that a named pipe or a device is refused and not waited for, and lets Pillow try
`FORMATS` alone, whatever the file is called, so that no other decoder (Ghostscript for EPS) is ever started.
"""

import io
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from data.errors import ImageError

# The largest image that is read: Pillow's own limit against decompression bombs, 12,000 x 7,456 pixels for example.
# Reading one takes about 0.7 GB for a moment, 1 GB if it lies on its side.
MAX_PIXELS = 89_478_485
BAND_PIXELS = 4_194_304  # converted or counted at a time, because that takes several bytes a pixel
_LARGE_PIXELS = 16_777_216  # images from here on are decoded one at a time
_DECODING = threading.Lock()
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # by content, not by name
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jfif"})
# What Pillow's decoders raise for damaged bytes: found by cutting and flipping bytes of each format (see the tests).
# A warning is among them for programs that turn warnings into errors.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError),
    *(AssertionError, RuntimeError, MemoryError, struct.error, zlib.error, UserWarning),
)
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FILE_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)

# Remarks of Pillow about metadata would stand in the middle of a progress bar; the size is checked below, exactly.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image upright as 8-bit RGB (the rules are in this file's first lines).

    Raises:
        ImageError: missing, no regular file, damaged, cut short, of an unknown kind, or larger than `MAX_PIXELS`.

    """
    with open_image(path) as image, _alone_if_large(image):
        upright = turned_upright(image)
        rgb = np.empty((upright.height, upright.width, 3), np.uint8)
        rows = max(1, BAND_PIXELS // upright.width)  # in bands, so that conversions take no second and third image
        for top in range(0, upright.height, rows):
            box = (0, top, upright.width, min(top + rows, upright.height))
            rgb[top : top + rows] = np.asarray(to_rgb(upright.crop(box), path))
        return rgb


@contextmanager
def open_image(path: Path, what: str = "image") -> Iterator[Image.Image]:
    """Open a picture of one of `FORMATS`; what goes wrong while it is opened, or used in the block, is an ImageError.

    Args:
        path: the file.
        what: "image" or "mask", for the message.

    Raises:
        ImageError: as `read_image`.

    """
    try:
        fault = _file_fault(path)
        if not fault:
            with Image.open(path, formats=FORMATS) as image:
                _check_size(image, path)
                yield image
                return
    except (FileNotFoundError, NotADirectoryError) as error:
        where = "; check the label file and --root" if what == "image" else ": no such file"
        gone = ", a link to a file that is gone" if path.is_symlink() else ""
        raise ImageError(f"There is no {what} {path}{gone}{where}.", "no such file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, str(error).split(" exceeds ")[0]) from error
    except UnidentifiedImageError as error:
        raise _unreadable(path, what, "no picture in it that can be read", f" ({', '.join(FORMATS)})") from error
    except _DAMAGED as error:
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _unreadable(path, what, " ".join(said.split()) or type(error).__name__) from error
    raise _unreadable(path, what, fault)


@contextmanager
def _alone_if_large(image: Image.Image) -> Iterator[None]:
    """Let threads decode one large image at a time, so that memory has a bound whatever their number."""
    if image.width * image.height < _LARGE_PIXELS:
        yield
        return
    with _DECODING:
        yield


def _file_fault(path: Path) -> str:
    """Return why a file cannot hold a picture, before it is opened; empty if it can."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return f"{next((name for test, name in _FILE_KINDS if test(status.st_mode)), 'something else')}, not a file"
    return "" if status.st_size else "an empty file"


def _unreadable(path: Path, what: str, reason: str, more: str = "") -> ImageError:
    remedy = ", or leave such images out with --on_error skip" if what == "image" else ""
    return ImageError(f"Cannot read the {what} {path}: {reason}{more}; replace or convert it{remedy}.", reason)


def _check_size(image: Image.Image, path: Path) -> None:
    """Raise ImageError if the image is larger than `MAX_PIXELS` or has no pixels."""
    if image.width < 1 or image.height < 1:
        raise ImageError(f"The image {path} has no pixels ({image.width} x {image.height}); replace it.")
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} x {image.height} pixels")


def _too_large(path: Path, what: str) -> ImageError:
    rule = f"at most {MAX_PIXELS:,} pixels are read"
    return ImageError(f"The image {path} is too large ({what}); {rule}: scale it down.", f"too large ({what}), {rule}")


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


def turned_upright(image: Image.Image) -> Image.Image:
    """Return the decoded image as a viewer shows it.

    `ImageOps.exif_transpose` does the same but also writes all of the EXIF data anew, and stops at what cameras get
    wrong in it.
    """
    image.load()  # a TIFF is turned while it is decoded, and says so in its EXIF only afterwards
    method = _UPRIGHT.get(orientation_of(image))
    return image if method is None else image.transpose(method)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) where it says none or nonsense, or cannot be read."""
    if image.format == "PNG":
        image.load()  # Pillow would do so below, for EXIF behind the pixels, and damaged pixels must not pass as read
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DAMAGED:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def holds_several(image: Image.Image) -> bool:
    """Return whether more pictures follow the first; to be asked last, because it may move on to the second."""
    try:
        return bool(getattr(image, "is_animated", False))
    except _DAMAGED:  # the second is damaged; it is not read
        return True


def read_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image file; 1 (upright) where it cannot be read."""
    try:
        with open_image(path) as image:
            return orientation_of(image)
    except ImageError:
        return 1


def encode_picture(
    picture: UInt8[np.ndarray, "height width *channels"], kind: Literal["PNG", "JPEG"], **options: Any
) -> bytes:
    """Return a grey or RGB picture as the bytes of a file; options are those of Pillow for that kind."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def size_of(path: Path) -> tuple[int, int]:
    """Return height and width of an image as a viewer shows it, from the file's header alone.

    Raises:
        ImageError: missing, damaged, or of an unknown kind.

    """
    with open_image(path) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width as a viewer shows an opened image; Pillow gives a TIFF's so already."""
    turned = orientation_of(image) >= 5 and image.format != "TIFF"
    return (image.width, image.height) if turned else (image.height, image.width)


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


def as_shown(
    mask: UInt8[np.ndarray, "rows columns"], size_hw: tuple[int, int], image_path: Path
) -> UInt8[np.ndarray, "height width"]:
    """Turn a mask that was drawn on the raw rows of an image which lies on its side; another one stays as it is.

    The sizes tell how it was drawn: only a mask of the image's width by its height is turned.

    Args:
        mask: class ids.
        size_hw: height and width of the upright image.
        image_path: the image, whose EXIF says which way to turn.

    """
    if mask.shape == tuple(size_hw) or mask.shape != tuple(size_hw)[::-1]:
        return mask
    orientation = read_orientation(image_path)
    return to_upright(mask, orientation) if orientation >= 5 else mask


def to_raw_layout(upright: UInt8[np.ndarray, "height width"], orientation: int) -> UInt8[np.ndarray, "rows columns"]:
    """Turn a mask back to the raw layout of the image file; the inverse of `to_upright`."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    return to_upright(upright, back)
