"""Images and masks that EXIF says are to be turned."""

import struct
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from data.images import (
    read_image,
    read_orientation,
    size_of,
    to_raw_layout,
    to_upright,
)
from data.readers.checks import image_facts

from .conftest import gradient, odd_exif


def save_turned(path: Path, raw: np.ndarray, orientation: int) -> None:
    image = Image.fromarray(raw)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_images_are_read_as_a_viewer_shows_them(tmp_path, orientation, suffix):
    path = tmp_path / f"x{suffix}"
    raw = gradient()
    if suffix == ".webp":
        image = Image.fromarray(raw)
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(path, exif=exif, lossless=True)
    else:
        save_turned(path, raw, orientation)
    upright = read_image(path)
    assert read_orientation(path) == orientation
    assert size_of(path) == upright.shape[:2]
    np.testing.assert_array_equal(upright[..., 0], to_upright(raw[..., 0], orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_our_turning_is_pillows(tmp_path, orientation):
    save_turned(tmp_path / "x.png", gradient(), orientation)
    with Image.open(tmp_path / "x.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(to_upright(gradient()[..., 1], orientation), expected[..., 1])


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5))), st.integers(1, 8))
def test_raw_layout_is_the_inverse(mask, orientation):
    np.testing.assert_array_equal(to_raw_layout(to_upright(mask, orientation), orientation), mask)


def test_a_mask_is_right_for_a_viewer_and_for_the_raw_file(tmp_path):
    """A bright object in a photograph on its side: the mask covers it upright, and turned back in the raw rows."""
    raw = np.zeros((20, 30, 3), np.uint8)
    raw[2:6, 3:9] = 255
    save_turned(tmp_path / "x.jpg", raw, 6)
    shown = read_image(tmp_path / "x.jpg")
    mask = (shown[..., 0] > 128).astype(np.uint8)
    assert mask.shape == (30, 20)
    with Image.open(tmp_path / "x.jpg") as image:  # what a reader that passes EXIF over sees
        raw_bright = np.asarray(image)[..., 0] > 128
    np.testing.assert_array_equal(to_raw_layout(mask, 6), raw_bright.astype(np.uint8))


def test_nonsense_orientation_is_upright(tmp_path):
    save_turned(tmp_path / "x.png", gradient(), 77)
    assert read_orientation(tmp_path / "x.png") == 1
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), gradient())


ODD_EXIF = {
    "a rational in a text tag": (0x010F, 5, 1, struct.pack("<II", 1, 2)),
    "resolution -1/0": (0x011A, 10, 1, struct.pack("<ii", -1, 0)),
    "resolution 0/0": (0x011A, 5, 1, struct.pack("<II", 0, 0)),
    "text of no encoding": (0x010E, 2, 5, b"\xff\xfe\xe9a\0"),
    "text beyond the end": (0x010E, 2, 50_000, b"aaaaaaa"),
    "a directory beyond the end": (0x8769, 4, 1, struct.pack("<I", 99_999)),
    "a directory in itself": (0x8769, 4, 1, struct.pack("<I", 8)),
    "a directory of text": (0x8769, 2, 5, b"abcd\0"),
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("name", ODD_EXIF)
def test_odd_exif_does_not_keep_an_image_from_being_read_or_turned(tmp_path, name, suffix):
    path = tmp_path / f"x{suffix}"
    Image.fromarray(gradient()).save(path, exif=odd_exif(ODD_EXIF[name]))
    # Pillow before 13 reads no tag behind a text that ends beyond the file, and the orientation is one.
    turned = int(PIL.__version__.split(".")[0]) >= 13 or name != "text beyond the end"
    assert read_image(path).shape == ((9, 6, 3) if turned else (6, 9, 3))
    assert size_of(path) == ((9, 6) if turned else (6, 9))
    assert ("EXIF rotation" in image_facts(path).kinds) == turned
