"""The predictor that ships without the project reads files as `segtrain predict` does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import images
from data.errors import ImageError
from data.images import read_image
from data.masks import read_mask
from data.store.store import MaskStore
from train import predictor
from train.cli import main
from train.predictor import FORMAT, VERSION, Predictor, read_rgb

from .conftest import draw


def exif(orientation: object) -> Image.Exif:
    values = Image.Exif()
    values[0x0112] = orientation
    return values


def pictures(folder: Path) -> list[Path]:
    """Write a picture of every kind that a camera, a scanner or a drawing program makes."""
    rgb = Image.fromarray(draw(2, 40, 61)[0])
    ramp = np.linspace(0, 65535, 40 * 61).reshape(40, 61)
    alpha = Image.fromarray((ramp / 257).astype(np.uint8))
    clear = rgb.copy()
    clear.putalpha(alpha)
    palette = rgb.quantize(16)
    for orientation in range(1, 9):
        rgb.save(folder / f"turned{orientation}.jpg", exif=exif(orientation))
    rgb.save(folder / "turned.png", exif=exif(6))
    rgb.save(folder / "turned.tif", exif=exif(6))
    rgb.save(folder / "nonsense.jpg", exif=exif(17))
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("CMYK").save(folder / "cmyk.tif")
    for mode in ("L", "1"):
        rgb.convert(mode).save(folder / f"grey{mode}.png")
    rgb.convert("LAB").save(folder / "lab.tif")
    clear.save(folder / "clear.png")
    clear.save(folder / "clear.webp", lossless=True)
    clear.convert("LA").save(folder / "clear_grey.png")
    palette.save(folder / "palette.png")
    palette.save(folder / "palette_clear.png", transparency=3)
    palette.save(folder / "palette.gif", transparency=2)
    rgb.save(folder / "keyed.png", transparency=rgb.getpixel((0, 0)))
    Image.fromarray(ramp.astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(ramp.astype(np.uint16)).save(folder / "deep.tif")
    Image.fromarray(ramp.astype(np.int32)).save(folder / "deep32.tif")
    rgb.save(folder / "two.tif", save_all=True, append_images=[palette.convert("RGB")])
    rgb.save(folder / "named.png", format="BMP")
    return sorted(folder.iterdir())


def test_every_kind_of_picture_is_read_alike(tmp_path):
    assert predictor.FORMATS == images.FORMATS
    assert predictor.MAX_PIXELS == images.MAX_PIXELS
    found = pictures(tmp_path)
    assert len(found) > 25
    for path in found:
        expected = read_image(path)
        assert np.array_equal(read_rgb(path), expected), path.name
    assert read_rgb(tmp_path / "turned6.jpg").shape == (61, 40, 3)


def test_what_one_refuses_the_other_does(tmp_path, monkeypatch):
    Image.fromarray(np.full((4, 5), 0.5, np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 5), 70000, np.int32)).save(tmp_path / "deep.tif")
    Image.new("RGB", (5, 4)).save(tmp_path / "postscript.jpg", format="EPS")
    Image.new("RGB", (50, 40)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (30, 20)).save(tmp_path / "large.png")
    for module in (images, predictor):
        monkeypatch.setattr(module, "MAX_PIXELS", 599)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ImageError):
            read_image(path)
        with pytest.raises((ValueError, OSError)):
            read_rgb(path)


def test_masks_of_files_are_those_of_segtrain_predict(exported, checkpoint, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    kept = {"turned6.jpg", "clear.png", "deep.png", "palette_clear.png"}
    for path in pictures(folder):
        if path.name not in kept:
            path.unlink()
    arguments = ["--ckpt_path", str(checkpoint), "--images", str(folder), "--output", str(tmp_path / "P")]
    assert main(["predict", *arguments, "--device", "cpu", "--soft", "false", "--overlays", "false"]) == 0
    store = MaskStore.open(tmp_path / "P")
    for name in kept:
        Predictor(exported).predict_file(folder / name, tmp_path / "mask.png")
        mask = read_mask(tmp_path / "mask.png")
        expected = store.read_mask(name.split(".")[0])
        assert mask.shape == expected.shape
        assert (mask == expected).mean() > 0.999  # a tie may fall either way between two runtimes


def test_the_file_runs_alone(exported, tmp_path):
    (tmp_path / "predictor.py").write_bytes(Path(predictor.__file__).read_bytes())
    Image.fromarray(draw(1)[0]).save(tmp_path / "a.png")
    code = f"from predictor import Predictor; Predictor({str(exported)!r}).predict_file('a.png', 'mask.png')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, check=True)
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "pip"}, "was not written by `segtrain export`"),
        ({"format_version": VERSION + 1}, "format version 2, this file reads up to 1"),
        ({"kind": "torchscript"}, "is of a network as torchscript"),
    ],
)
def test_a_card_of_something_else_is_refused(change, message, exported, tmp_path):
    card = json.loads((exported / "model.json").read_text())
    assert (card["format"], card["format_version"]) == (FORMAT, VERSION)
    (tmp_path / "model.json").write_text(json.dumps(card | change))
    shutil.copy(exported / "model.onnx", tmp_path)
    with pytest.raises(ValueError, match=message):
        Predictor(tmp_path)


@pytest.mark.parametrize(("version", "fits"), [("1.20.1", False), ("1.21.0", True), ("1.30.0.dev20270101", True)])
def test_a_runtime_that_computes_wrongly_is_refused(version, fits, tmp_path, monkeypatch):
    monkeypatch.setattr(predictor.onnxruntime, "__version__", version)
    with pytest.raises(FileNotFoundError if fits else ValueError, match="model.json" if fits else "install 1.21"):
        Predictor(tmp_path)
