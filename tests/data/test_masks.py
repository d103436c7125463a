import numpy as np
import pytest
from PIL import Image

from data.errors import ImageError
from data.images import to_upright
from data.masks import colorize, overlay, read_mask, read_truth, voc_palette, write_mask


def test_truth_drawn_on_the_raw_rows_is_turned(tmp_path):
    image = Image.new("RGB", (9, 6))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    raw_mask = np.arange(54, dtype=np.uint8).reshape(6, 9)
    write_mask(tmp_path / "m.png", raw_mask)
    truth = read_truth(tmp_path / "m.png", (9, 6), tmp_path / "x.png")
    np.testing.assert_array_equal(truth, to_upright(raw_mask, 6))
    with pytest.raises(ImageError, match="6 x 9 pixels"):
        read_truth(tmp_path / "m.png", (9, 6))


def test_masks_keep_ids_and_colours(tmp_path):
    mask = np.uint8([[0, 1, 255]])
    write_mask(tmp_path / "m.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert np.asarray(image.convert("RGB"))[0].tolist() == [[0, 0, 0], [128, 0, 0], [224, 224, 192]]
    assert colorize(mask)[0, 1].tolist() == [128, 0, 0]


def test_masks_in_colours_and_damaged_masks_are_refused(tmp_path):
    Image.new("RGB", (9, 6)).save(tmp_path / "rgb.png")
    with pytest.raises(ImageError, match="holds colours"):
        read_mask(tmp_path / "rgb.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:40])
    with pytest.raises(ImageError, match="Cannot read the mask"):
        read_mask(tmp_path / "cut.png")
    with pytest.raises(ImageError, match="no such file"):
        read_mask(tmp_path / "none.png")


def test_overlay_leaves_the_background_alone():
    rgb = np.full((1, 2, 3), 100, np.uint8)
    shown = overlay(rgb, np.uint8([[0, 1]]), alpha=0.5)
    assert shown.tolist() == [[[100, 100, 100], [114, 50, 50]]]


def test_palette_is_the_development_kits():
    palette = voc_palette()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    for value, colour in known.items():
        assert tuple(palette[value]) == colour
    assert len(np.unique(palette, axis=0)) == 256
