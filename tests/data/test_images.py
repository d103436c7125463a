import errno
import io
import os
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from data.errors import ImageError
from data.images import (
    FORMATS,
    MAX_PIXELS,
    open_image,
    read_image,
    read_orientation,
    size_of,
)
from data.masks import read_mask
from data.readers.checks import image_facts

from .conftest import gradient, odd_exif


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


def test_an_image_that_may_not_be_read_or_is_a_link_to_nowhere(tmp_path, monkeypatch):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match=r"no image .*link\.jpg, a link to a file that is gone; check"):
        read_image(tmp_path / "link.jpg")
    Image.fromarray(gradient()).save(tmp_path / "x.png")

    def refused(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(ImageError, match=r"x\.png: Permission denied; replace"):
        read_image(tmp_path / "x.png")
    assert image_facts(tmp_path / "x.png").problem == "Permission denied"


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


@pytest.mark.parametrize("kind", ["AVIF", "EPS", "BLP", "PPM", "TGA", "JPEG2000", "PDF"])
def test_other_kinds_are_refused_whatever_they_are_called(tmp_path, kind, monkeypatch):
    """None of their decoders is asked, least of all Ghostscript."""
    image = Image.fromarray(gradient(40, 60))
    try:
        (image.convert("P") if kind == "BLP" else image).save(tmp_path / "x.jpg", format=kind)
    except (KeyError, OSError, ValueError) as error:
        pytest.skip(f"this Pillow does not write {kind}: {error}")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    with pytest.raises(ImageError, match=", ".join(FORMATS)):
        read_image(tmp_path / "x.jpg")
    assert image_facts(tmp_path / "x.jpg").problem == "no picture in it that can be read"


@pytest.mark.parametrize("where", [10**9, 13, "itself"])
def test_a_broken_next_page_does_not_matter(tmp_path, where):
    buffer = io.BytesIO()
    image = Image.fromarray(gradient())
    image.save(buffer, format="TIFF", save_all=True, append_images=[image])
    content = bytearray(buffer.getvalue())
    first = struct.unpack("<I", content[4:8])[0]
    at = first + 2 + 12 * struct.unpack("<H", content[first : first + 2])[0]
    content[at : at + 4] = struct.pack("<I", first if where == "itself" else where)
    (tmp_path / "x.tif").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), gradient())
    assert image_facts(tmp_path / "x.tif").problem == ""


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_a_damaged_second_picture_does_not_matter(tmp_path, suffix):
    image = Image.fromarray(gradient(40, 60))
    image.save(tmp_path / f"x{suffix}", save_all=True, append_images=[image.rotate(90)])
    content = (tmp_path / f"x{suffix}").read_bytes()
    (tmp_path / f"x{suffix}").write_bytes(content[: len(content) - 40] if suffix == ".gif" else content)
    assert read_image(tmp_path / f"x{suffix}").shape == (40, 60, 3)
    assert "several pictures" in image_facts(tmp_path / f"x{suffix}").kinds


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a folder"])
def test_what_is_no_file_is_refused_without_opening_it(tmp_path, kind):
    path = tmp_path / "a.png"
    match kind:
        case "a named pipe":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a folder":
            path.mkdir()
    for read in (read_image, size_of, read_mask):
        with pytest.raises(ImageError, match=f"{kind}, not a file"):
            read(path)
    assert read_orientation(path) == 1
    assert kind in image_facts(path).problem


def test_masks_are_opened_by_the_same_rules(tmp_path):
    Image.fromarray(gradient(40, 60)).save(tmp_path / "m.png", format="PPM")
    with pytest.raises(ImageError, match="Cannot read the mask"):
        read_mask(tmp_path / "m.png")
    side = int(MAX_PIXELS**0.5) + 2
    Image.new("1", (side, side)).save(tmp_path / "large.png")
    with pytest.raises(ImageError, match="too large"):
        read_mask(tmp_path / "large.png")


def test_a_fault_of_our_own_is_no_image_error(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "x.png")
    with pytest.raises(KeyboardInterrupt), open_image(tmp_path / "x.png"):
        raise KeyboardInterrupt


def samples_of_every_kind() -> list[bytes]:
    """Small files of each format, in its variants."""
    rgb = np.random.default_rng(1).integers(0, 255, (17, 23, 3), np.uint8)
    image = Image.fromarray(rgb)
    exif, turned = odd_exif((0x010F, 2, 6, b"maker\0")), [image.rotate(90)]
    several = {"save_all": True, "append_images": turned}
    variants = [
        ("JPEG", image, {"exif": exif}), ("JPEG", image, {"progressive": True}), ("PNG", image, {"exif": exif}),
        ("PNG", image.convert("P"), {"transparency": 3}), ("PNG", image, several), ("TIFF", image, {}),
        ("TIFF", image, {"compression": "tiff_lzw"}), ("TIFF", image, {"compression": "jpeg", **several}),
        ("TIFF", image.convert("1"), {"compression": "group4"}), ("GIF", image, several), ("BMP", image, {}),
        ("BMP", image.convert("P"), {}), ("WEBP", image, {"exif": exif}), ("WEBP", image, {"lossless": True}),
        ("WEBP", image, several),
    ]  # fmt: skip
    contents = []
    for kind, picture, options in variants:
        buffer = io.BytesIO()
        picture.save(buffer, format=kind, **options)
        contents.append(buffer.getvalue())
    return contents


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip, set or cut out bytes at one to four places, most of them in the header."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(changed) if rng.random() < 0.4 else min(len(changed), 300)))
        match int(rng.integers(0, 5)):
            case 0:
                changed[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                changed[at] = int(rng.integers(0, 256))
            case 2:
                changed[at : at + 4] = b"\xff\xff\xff\xff"
            case 3:
                del changed[at : at + int(rng.integers(1, 9))]
            case _ if rng.random() < 0.3:
                del changed[max(at, 1) :]
        changed = changed or bytearray(b"x")
    return bytes(changed)


@pytest.mark.parametrize("rounds", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused_and_check_says_the_same(tmp_path, rounds, capfd):
    rng, path, read, refused = np.random.default_rng(7), tmp_path / "x.jpg", 0, set[str]()
    for content in samples_of_every_kind():
        for _ in range(rounds):
            path.write_bytes(mutated(content, rng))
            try:
                size_hw = read_image(path).shape[:2]
            except ImageError as error:
                refused.add(str(error))
                assert image_facts(path).problem
                continue
            read += 1
            facts = image_facts(path)
            assert (facts.problem, facts.size_hw, size_of(path)) == ("", size_hw, size_hw)
    assert not any("\n" in line for line in refused)
    assert 0.2 < read / (rounds * 15) < 0.8
    capfd.readouterr()  # libtiff talks to stderr
