"""Run an exported network with numpy, Pillow and onnxruntime alone; copy this file to wherever it is needed."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


class Predictor:
    """An exported network: RGB pictures of any size in, class ids out.

    Args:
        folder: what `segtrain export` wrote: model.onnx and model.json.

    """

    def __init__(self, folder: str | Path) -> None:
        self.card = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
        self.names = ["background", *self.card["classes"]["names"]]
        self._session = onnxruntime.InferenceSession(str(Path(folder) / self.card["file"]))

    def scores(self, rgb_u8: np.ndarray) -> np.ndarray:
        """Return class scores, float32 (classes, height, width), of a uint8 picture (height, width, 3)."""
        height, width = rgb_u8.shape[:2]
        step, fill = self.card["input"]["size_multiple"], 255 * np.float32(self.card["input"]["mean"])
        padded = np.empty((height + -height % step, width + -width % step, 3), np.float32)
        padded[:] = fill
        padded[:height, :width] = rgb_u8
        return self._session.run(None, {"rgb": padded.transpose(2, 0, 1)[None]})[0][0, :, :height, :width]

    def __call__(self, rgb_u8: np.ndarray) -> np.ndarray:
        """Return class ids, uint8 (height, width): 0 is the background, i is `names[i]`."""
        return self.scores(rgb_u8).argmax(axis=0).astype(np.uint8)

    def predict_file(self, path: str | Path, mask_path: str | Path) -> None:
        """Read a picture and write its mask as a palette PNG."""
        mask = Image.fromarray(self(np.asarray(Image.open(path).convert("RGB"))))
        mask.putpalette(bytes(np.uint8(self.card["palette"]).ravel()))
        mask.save(mask_path)
