"""Run an exported network with numpy, Pillow and onnxruntime alone; copy this file to wherever it is needed."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # by content, not by name
FORMAT, VERSION = "segtrain-model", 1  # of model.json
OLDEST_RUNTIME = (1, 21)  # 1.20 gives scores that are off by 2 and more, without a word
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


class Predictor:
    """An exported network: RGB pictures of any size in, class ids out.

    Args:
        folder: what `segtrain export` wrote: model.onnx and model.json.

    Raises:
        ValueError: the folder is of another program, a newer version or another kind of file, or the model file is not
            the one that model.json was written for; onnxruntime is too old to compute it rightly.

    """

    def __init__(self, folder: str | Path) -> None:
        self._check_runtime()
        self.card = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
        self._check_card(Path(folder) / "model.json")
        self.names = ["background", *self.card["classes"]["names"]]
        self._path = Path(folder) / self.card["file"]
        model = self._path.read_bytes()
        # Cards of before had no hash. A flipped bit in a model is another weight, and nothing else would notice.
        if self.card.get("sha256", hashlib.sha256(model).hexdigest()) != hashlib.sha256(model).hexdigest():
            raise ValueError(f"{self._path} is not the file that model.json was written for: export or copy it again.")
        self._session = onnxruntime.InferenceSession(model)

    @staticmethod
    def _check_runtime() -> None:
        version = onnxruntime.__version__
        if tuple(map(int, version.split(".")[:2])) < OLDEST_RUNTIME:
            raise ValueError(
                f"onnxruntime {version} computes other scores than the network has: install 1.21 or newer."
            )

    def _check_card(self, path: Path) -> None:
        card, version = self.card, self.card.get("format_version")
        if card.get("format") != FORMAT:
            raise ValueError(f"{path} was not written by `segtrain export`.")
        if not isinstance(version, int) or version > VERSION:
            raise ValueError(f"{path} has format version {version}, this file reads up to {VERSION}: take a newer one.")
        if card.get("kind", "onnx") != "onnx":
            raise ValueError(
                f"{path} is of a network as {card['kind']}, which onnxruntime cannot run: export it as onnx."
            )

    def scores(self, rgb_u8: np.ndarray) -> np.ndarray:
        """Return class scores, float32 (classes, height, width), of a uint8 picture (height, width, 3).

        Raises:
            ValueError: the network gave scores that are no numbers, from which no mask can be made.

        """
        height, width = rgb_u8.shape[:2]
        step, fill = self.card["input"]["size_multiple"], 255 * np.float32(self.card["input"]["mean"])
        padded = np.empty((height + -height % step, width + -width % step, 3), np.float32)
        padded[:] = fill
        padded[:height, :width] = rgb_u8
        scores = self._session.run(None, {"rgb": padded.transpose(2, 0, 1)[None]})[0][0, :, :height, :width]
        if not np.isfinite(scores).all():
            raise ValueError(f"{self._path} gave scores that are NaN or infinite in {scores.dtype}; do not use it.")
        return scores

    def __call__(self, rgb_u8: np.ndarray) -> np.ndarray:
        """Return class ids, uint8 (height, width): 0 is the background, i is `names[i]`."""
        return self.scores(rgb_u8).argmax(axis=0).astype(np.uint8)

    def predict_file(self, path: str | Path, mask_path: str | Path) -> None:
        """Read a picture as `segtrain predict` does and write its mask, upright as a viewer shows it, as a palette PNG.

        Raises:
            OSError, ValueError: the picture cannot be read, or its range of values is unknown.

        """
        mask = Image.fromarray(self(read_rgb(path)))
        mask.putpalette(bytes(np.uint8(self.card["palette"]).ravel()))
        mask.save(mask_path, format="PNG")


def read_rgb(path: str | Path) -> np.ndarray:
    """Return a picture upright as uint8 RGB (height, width, 3), by the rules that the network was trained with.

    Turned as EXIF says; grey repeated in the three channels; palettes looked up; transparency laid over white; CMYK
    without colour profiles; of 16-bit values the high byte; of several pictures the first. Floating-point and 32-bit
    values are refused, and so are more than `MAX_PIXELS`. (In the project these are the rules of `data/images.py`; a
    test holds the two together.)
    """
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{path} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read.")
        image.load()  # a TIFF is turned while it is decoded
        method = _UPRIGHT.get(_orientation(image))
        return np.array(_to_rgb(image if method is None else image.transpose(method)))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, struct.error):
        return 1  # EXIF that cannot be read turns nothing
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 0xFFFF):
            raise ValueError("32-bit values, whose range is unknown; save the picture with 8 or 16 bits a channel.")
        return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("Floating-point values, whose range is unknown; save the picture with 8 bits a channel.")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
