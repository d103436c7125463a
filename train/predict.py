"""Masks from a trained network for images of any size, written as a store that every other command reads."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, UInt8
from PIL import Image
from tqdm import tqdm

from data.classes import IGNORE
from data.config import DataConfig, require, to_plain
from data.console import warn_of_idle
from data.errors import ConfigError, ImageError
from data.files import write_atomically
from data.images import read_image
from data.masks import overlay
from data.readers.folder import image_samples
from data.readers.layout import open_samples
from data.samples import Sample
from data.store.records import image_record
from data.store.softmaps import SoftMaps
from data.store.source import stored_data, stored_path
from data.store.store import MaskStore
from data.wording import count
from train.checkpoint import file_digest, load_network
from train.crf_tiles import blocks_of_large
from train.dataset import to_tensor
from train.inference import InferenceConfig, probabilities, sharpen, with_engine
from train.memory import image_in_memory
from train.network import Segmenter
from train.probability_file import probability_file
from train.tiles import CELL_PX, Block

logger = logging.getLogger(__name__)


def predict(
    ckpt_path: Path,
    output: Path,
    images: Path | None = None,
    data: DataConfig | None = None,
    inference: InferenceConfig = InferenceConfig(),  # noqa: B008 - frozen
    ignore_below: float = 0.0,
    overlays: bool = True,
    soft: bool = True,
    probabilities: bool = False,
    device: str = "auto",
    on_error: Literal["stop", "skip"] = "stop",
) -> None:
    """Write masks and overlays for a folder of images, or one image.

    The output is a mask store: score, refine, report and export of `pseudolabel` work on it. The same command again
    goes on where it stopped.

    Args:
        ckpt_path: checkpoint that `segtrain fit` wrote; nothing else is needed.
        output: folder of the store that is written.
        images: a folder, searched with its subfolders, or one image.
        data: in place of images: a data set, such as --data.root R --data.split val.
        inference: scales, flip, windows, CRF.
        ignore_below: pixels whose best probability is below this are written as 255.
        overlays: write overlays/<id>.jpg, the image with the mask over it.
        soft: keep probabilities at an eighth of the size, from which `pseudolabel refine` starts.
        probabilities: write probabilities/<id>.npz, float16 (classes with background, height, width).
        device: auto, cpu, cuda, cuda:1.
        on_error: an image that cannot be read: stop, or leave it out and name it at the end.

    """
    require("ignore_below", ignore_below, 0 <= ignore_below <= 1, "from 0 to 1")
    warn_of_idle([f"inference.{name}" for name in inference.idle()])
    samples, source = _list_images(images, data)
    network, classes, _ = load_network(ckpt_path)
    network = network.to(choose_device(device))
    inference = with_engine(inference, str(choose_device(device)))
    config = {"inference": to_plain(inference), "ignore_below": ignore_below}
    model = {"id": str(ckpt_path), "fingerprint": file_digest(ckpt_path)}
    store = MaskStore.open_or_create(
        output, classes=classes, config=config, model=model, data=source, program="segtrain"
    )
    writer = _Writer(store, Path(source["root"]), inference, ignore_below, overlays, soft, probabilities)
    done = store.finished()
    left = [sample for sample in samples if sample.id not in done]
    failed = []
    for sample in tqdm(left, initial=len(samples) - len(left), total=len(samples), unit="image", desc="predict"):
        try:
            writer.write(network, sample)
        except ImageError as error:
            if on_error == "stop":
                raise
            failed.append(f"{sample.id}: {error}")
    _say_what_is_there(output, len(samples), len(samples) - len(left), failed)


def _list_images(images: Path | None, data: DataConfig | None) -> tuple[Sequence[Sample], dict[str, Any]]:
    """Return the images and what the store's header says about them."""
    if (images is None) == (data is None):
        raise ConfigError("Name the images with --images FOLDER, or a data set with --data.root; one of the two.")
    if data is not None:
        found = open_samples(data, need_labels=False, need_truth=False).samples
        return found, stored_data(data)
    assert images is not None
    root = (images if images.is_dir() else images.parent).absolute()
    return image_samples(images), {"format": "folder", "root": str(root), "split": "all"}


def choose_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: no such device here.

    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} is not available on this machine; use auto, cpu or cuda.") from error
    return torch.device(name)


@torch.inference_mode()
def predict_image(
    network: Segmenter,
    rgb: UInt8[np.ndarray, "height width 3"],
    inference: InferenceConfig,
    model: str = "The network",
) -> tuple[Float[np.ndarray, "classes height width"], Float[np.ndarray, "classes height width"]]:
    """Return the class probabilities of an image of any size, before and after the CRF (the same without one)."""
    batch = to_tensor(rgb)[None].to(network.mean.device).float()
    found = probabilities(network, batch, inference, network.mean, model)[0].float().cpu().numpy()
    return found, sharpen(rgb, found, inference.crf, str(network.mean.device))


@torch.inference_mode()
def predict_blocks(
    network: Segmenter,
    rgb: UInt8[np.ndarray, "height width 3"],
    n_classes: int,
    inference: InferenceConfig,
    model: str = "The network",
) -> Iterator[tuple[Block, Block]]:
    """Yield what `predict_image` returns in parts that cover the image once: one, or several of a large image.

    The edges between parts lie on multiples of `CELL_PX`.
    """
    height, width = rgb.shape[:2]
    with image_in_memory((height, width), inference.window):
        image = torch.from_numpy(rgb).permute(2, 0, 1)
        parts = blocks_of_large(network, image, n_classes, inference, network.mean, model)
        if parts is not None:
            yield from parts
        else:
            whole = slice(0, height), slice(0, width)
            before, after = predict_image(network, rgb, inference, model)
            yield Block(*whole, before), Block(*whole, after)


class _Writer:
    """Predicts images and writes what was asked for."""

    def __init__(
        self,
        store: MaskStore,
        root: Path,
        inference: InferenceConfig,
        ignore_below: float,
        overlays: bool,
        soft: bool,
        full: bool,
    ) -> None:
        self.store, self.root, self.inference, self.ignore_below = store, root, inference, ignore_below
        self.overlays, self.soft, self.full = overlays, soft, full
        for name, wanted in (("overlays", overlays), ("probabilities", full)):
            if wanted:
                store.own_folder(name)

    def write(self, network: Segmenter, sample: Sample) -> None:
        """Predict one image and write it; its line in the index comes last."""
        start = time.perf_counter()
        rgb = read_image(sample.image_path)
        size_hw, n_classes = rgb.shape[:2], len(self.store.classes) + 1
        argmax, mask = (np.empty(size_hw, np.uint8) for _ in range(2))
        grid_hw = [-(-side // CELL_PX) for side in size_hw]
        maps = np.empty((n_classes, *grid_hw), np.float16) if self.soft else None
        model = str(self.store.header["model"]["id"])
        shown = np.empty_like(rgb) if self.overlays else None
        with self._full_file(sample.id, (n_classes, *size_hw)) as keep:
            for before, after in predict_blocks(network, rgb, n_classes, self.inference, model):
                at = after.rows, after.columns
                argmax[at] = after.values.argmax(0)
                mask[at] = np.where(after.values.max(0) < self.ignore_below, np.uint8(IGNORE), argmax[at])
                if shown is not None:
                    shown[at] = overlay(rgb[at], mask[at])
                if maps is not None:
                    maps[:, cells(before.rows), cells(before.columns)] = shrink(before.values)
                if keep is not None:
                    keep(after)
        labels = tuple(int(label) for label in np.unique(argmax) if label)
        if shown is not None:
            write_atomically(self.store.path / "overlays" / f"{sample.id}.jpg", _jpeg(shown))
        image = stored_path(sample.image_path, self.root)
        seconds = time.perf_counter() - start
        record = image_record(sample.id, image, mask, argmax, labels, self.store.classes, seconds)
        soft = None if maps is None else soft_maps(maps, labels, size_hw)
        self.store.write(sample.id, mask, argmax=argmax, soft=soft, record=record)

    def _full_file(
        self, sample_id: str, shape: tuple[int, int, int]
    ) -> AbstractContextManager[Callable[[Block], None] | None]:
        """Return what takes the probabilities of all pixels, or None where nobody wants them."""
        if not self.full:
            return nullcontext()
        return probability_file(self.store.path / "probabilities" / f"{sample_id}.npz", shape)


def shrink(probability: Float[np.ndarray, "classes height width"]) -> Float16[np.ndarray, "classes rows columns"]:
    """Return probabilities on a grid of cells of `CELL_PX` pixels."""
    height, width = probability.shape[1:]
    rows = torch.from_numpy(np.ascontiguousarray(probability))[None].float()
    padded = F.pad(rows, (0, -width % CELL_PX, 0, -height % CELL_PX), mode="replicate")
    return F.avg_pool2d(padded, CELL_PX)[0].numpy().astype(np.float16)


def cells(pixels: slice) -> slice:
    """Return which cells of `shrink`'s grid pixels from one edge of a cell to another, or to the image's, lie in."""
    return slice(pixels.start // CELL_PX, -(-pixels.stop // CELL_PX))


def soft_maps(
    maps: Float16[np.ndarray, "classes rows columns"], labels: tuple[int, ...], size_hw: tuple[int, int]
) -> SoftMaps:
    """Return the maps of background and labels out of `shrink`'s, for an image of this size."""
    padded_hw = (maps.shape[1] * CELL_PX, maps.shape[2] * CELL_PX)
    return SoftMaps(np.ascontiguousarray(maps[[0, *labels]]), labels, True, padded_hw, size_hw, size_hw)


def _jpeg(rgb: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()


def _say_what_is_there(output: Path, total: int, skipped: int, failed: list[str]) -> None:
    for line in failed:
        logger.warning("left out %s", line)
    there = f" ({skipped} there already)" if skipped else ""
    missing = f", {len(failed)} left out" if failed else ""
    print(f"Written: masks of {count(total - len(failed), 'image')} in {output}{there}{missing}.")
    print(f"Next: pseudolabel report --store {output}")
