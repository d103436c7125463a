import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from data.errors import ImageError
from data.images import MAX_PIXELS, read_image, read_orientation, size_of, to_raw_layout, to_upright


def gradient(height: int = 6, width: int = 9) -> np.ndarray:
    return np.linspace(0, 255, height * width * 3).astype(np.uint8).reshape(height, width, 3)


def save_turned(path: Path, raw: np.ndarray, orientation: int) -> None:
    image = Image.fromarray(raw)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
def test_lossless_formats(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    Image.fromarray(gradient()).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read_image(path), gradient())


@pytest.mark.parametrize("suffix", [".JPG", ".Jpeg", ".PNG"])
def test_capital_suffixes(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    Image.fromarray(gradient()).save(path)
    assert read_image(path).shape == (6, 9, 3)


def test_greyscale_is_repeated(tmp_path):
    Image.fromarray(gradient()[..., 0]).save(tmp_path / "x.png")
    rgb = read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(rgb, np.repeat(gradient()[..., :1], 3, axis=2))


def test_one_bit(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png")[0, :, 0].tolist() == [255, 0]


def test_palette(tmp_path):
    image = Image.fromarray(np.uint8([[0, 1]]))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.fromarray(np.uint8([[0, 1]]))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "x.png", transparency=0)
    assert read_image(tmp_path / "x.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.uint8([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 128]]])
    Image.fromarray(rgba).save(tmp_path / "x.png")
    rgb = read_image(tmp_path / "x.png")[0]
    assert rgb[0].tolist() == [200, 0, 0]
    assert rgb[1].tolist() == [255, 255, 255]
    assert abs(int(rgb[2, 0]) - 127) <= 1


def test_cmyk(tmp_path):
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    rgb = read_image(tmp_path / "x.jpg").astype(int)
    assert np.abs(rgb - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_keeps_the_high_byte_whatever_the_content(tmp_path, suffix):
    values = np.array([[0, 255, 256, 4095, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"x{suffix}")
    assert read_image(tmp_path / f"x{suffix}")[0, :, 0].tolist() == [0, 0, 1, 15, 255]


def test_values_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ImageError, match="floating-point"):
        read_image(tmp_path / "f.tif")
    Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(ImageError, match="32-bit"):
        read_image(tmp_path / "i.tif")


def test_first_picture_of_several(tmp_path):
    first, second = (Image.new("RGB", (3, 2), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "x.tif", save_all=True, append_images=[second])
    assert read_image(tmp_path / "x.tif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size_hw", [(1, 500), (500, 1), (1, 1)])
def test_thin_images(tmp_path, size_hw):
    Image.fromarray(np.zeros((*size_hw, 3), np.uint8)).save(tmp_path / "x.jpg")
    assert read_image(tmp_path / "x.jpg").shape == (*size_hw, 3)


def test_a_very_wide_image_takes_memory_in_proportion(tmp_path):
    Image.new("RGB", (12_000, 400), "green").save(tmp_path / "x.png")
    tracemalloc.start()
    rgb = read_image(tmp_path / "x.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rgb.shape == (400, 12_000, 3)
    assert peak < 3 * rgb.nbytes


def test_too_large_images_are_refused_by_their_header(tmp_path):
    side = int(MAX_PIXELS**0.5) + 2
    Image.new("1", (side, side)).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="too large"):
        read_image(tmp_path / "x.png")


def test_damaged_and_missing_images_are_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    faulty = {"cut.jpg": content[: len(content) // 2], "empty.jpg": b"", "text.jpg": b"<html>404</html>"}
    for name, part in faulty.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ImageError, match=name) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match=r"There is no image .*none\.jpg"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="Cannot read"):
        read_image(tmp_path)


@pytest.mark.parametrize("cut", range(0, 100, 7))
def test_a_png_cut_anywhere_is_an_image_error_or_lacks_no_pixel(tmp_path, cut):
    Image.fromarray(gradient()).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[: len(content) * cut // 100])
    try:
        rgb = read_image(tmp_path / "x.png")
    except ImageError:
        return
    np.testing.assert_array_equal(rgb, gradient())


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
