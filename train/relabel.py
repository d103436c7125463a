"""Self-training: a trained network and the image-level labels correct the masks of a store."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from data.classes import IGNORE
from data.config import require, to_plain
from data.console import warn_of_idle
from data.errors import ConfigError, StoreError
from data.images import read_image
from data.store.records import image_record, is_up_to_date, labels_of_record
from data.store.review import hand_on
from data.store.source import moved, stored_path
from data.store.store import MaskStore
from data.wording import count
from train.checkpoint import file_digest, load_network
from train.inference import InferenceConfig, with_engine
from train.predict import cells, choose_device, predict_blocks, shrink, soft_maps
from train.tiles import CELL_PX


@dataclass(frozen=True)
class StoreConfig:
    """A store and its images."""

    store: Path
    """Mask store to correct; it is not changed."""
    root: Path | None = None
    """Folder of the store's images, if they are not where the store says."""


def relabel(
    ckpt_path: Path,
    data: StoreConfig,
    output: Path,
    disagreement: Literal["ignore", "network"] = "ignore",
    sure: float = 0.9,
    ignore_below: float = 0.5,
    inference: InferenceConfig = InferenceConfig(flip=True),  # noqa: B008 - frozen
    device: str = "auto",
) -> None:
    """Correct the masks of a store with a trained network and the labels.

    Classes that an image's labels do not name are forbidden. Where network and mask agree, the label stays; where they
    disagree it is ignored, unless the network is sure; where the mask had no decision, the network decides if it can.
    The result is a store for another `segtrain fit`.

    Args:
        ckpt_path: checkpoint that was trained on the store.
        data: the store to correct.
        output: the store that is written; the same command again goes on where it stopped.
        disagreement: what to write where the network contradicts the mask: ignore (255), or the network's decision.
        sure: with disagreement=ignore: the network's decision is written all the same from this probability on.
        ignore_below: pixels below this probability are ignored wherever the network's decision would be written.
        inference: scales, flip, windows, CRF.
        device: auto, cpu, cuda, cuda:1.

    """
    require("sure", sure, 0 <= sure <= 1, "from 0 to 1")
    require("ignore_below", ignore_below, 0 <= ignore_below <= 1, "from 0 to 1")
    warn_of_idle([f"inference.{name}" for name in inference.idle()])
    store, root = data.store, data.root
    source = MaskStore.open(store)
    if Path(output).resolve() == Path(store).resolve():
        raise StoreError(f"{output} is the store that is read; name another folder with --output.")
    network, classes, _ = load_network(ckpt_path)
    if classes.names != source.classes.names:
        raise StoreError(f"The classes of {store} are not those of {ckpt_path}; they must be the same.")
    network = network.to(choose_device(device))
    inference = with_engine(inference, str(choose_device(device)))
    rule = {"disagreement": disagreement, "sure": sure, "ignore_below": ignore_below}
    target = MaskStore.open_or_create(
        output,
        classes=classes,
        config={"relabel": rule, "inference": to_plain(inference), "from": source.header["config"]},
        model={"id": str(ckpt_path), "fingerprint": file_digest(ckpt_path)},
        data=moved(source.header["data"], root),
        program="segtrain",
    )
    handed_on = hand_on(source, target)
    done = target.finished_labels()
    every = list(source.records())
    records = [record for record in every if not is_up_to_date(done, record["id"], labels_of_record(record))]
    for record in tqdm(records, initial=len(every) - len(records), total=len(every), unit="image", desc="relabel"):
        _relabel_one(network, source, target, record, root, rule, inference)
    again = sum(record["id"] in done for record in records)
    changed = f", {again} of them made again because their labels have changed" if again else ""
    print(f"Written: {count(len(every), 'mask')} in {output}{changed}.")
    if handed_on:
        print(f"Decisions and corrected masks of {count(handed_on, 'image')} were taken over from {store}.")
    print(f"Next: segtrain fit --data.store {output} --output R, with the settings of {ckpt_path}")


def _relabel_one(
    network: Any,
    source: MaskStore,
    target: MaskStore,
    record: dict[str, Any],
    root: Path | None,
    rule: dict[str, Any],
    inference: InferenceConfig,
) -> None:
    start = time.perf_counter()
    path = source.image_path(record, root)
    labels = labels_of_record(record)
    rgb, old = read_image(path), source.read_mask(record)
    if old.shape != rgb.shape[:2]:
        raise StoreError(f"The image {path} is not of its mask's size; it was changed after {source.path} was made.")
    mask, argmax = np.empty_like(old), np.empty_like(old)
    n_classes = len(target.classes) + 1
    maps = np.empty((n_classes, *(-(-side // CELL_PX) for side in old.shape)), np.float16)
    for before, after in predict_blocks(network, rgb, n_classes, inference, str(target.header["model"]["id"])):
        at = after.rows, after.columns
        mask[at], argmax[at] = corrected(old[at], allow(after.values, labels), **rule)
        maps[:, cells(before.rows), cells(before.columns)] = shrink(allow(before.values, labels))
    image = stored_path(path, Path(target.header["data"]["root"]))
    line = image_record(record["id"], image, mask, argmax, labels, target.classes, time.perf_counter() - start)
    soft = soft_maps(maps, labels, rgb.shape[:2])
    kept = {name: value for name, value in record.items() if name not in ("crf_engine", "sam")}  # of stage one's mask
    target.write(record["id"], mask, argmax=argmax, soft=soft, record=kept | line)


def allow(
    probability: Float[np.ndarray, "classes height width"], labels: tuple[int, ...]
) -> Float[np.ndarray, "classes height width"]:
    """Return the probabilities with all classes but the background and the labels at 0; they sum to 1 again."""
    allowed = np.zeros((len(probability), 1, 1), probability.dtype)
    allowed[[0, *labels]] = 1
    kept = probability * allowed + 1e-9 * allowed
    return kept / kept.sum(axis=0)


def corrected(
    old: UInt8[np.ndarray, "height width"],
    probability: Float[np.ndarray, "classes height width"],
    *,
    disagreement: Literal["ignore", "network"] = "ignore",
    sure: float = 0.9,
    ignore_below: float = 0.5,
) -> tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"]]:
    """Return the corrected mask with its ignore band, and the network's decisions alone.

    Args:
        old: the mask so far, 255 where it had no decision.
        probability: of each class, absent classes at 0.
        disagreement: ignore, or take the network's decision, where the two contradict each other.
        sure: with "ignore": from this probability on the network's decision is taken all the same.
        ignore_below: a decision of the network below this probability becomes 255.

    Raises:
        ConfigError: a threshold outside 0..1.

    """
    if not (0 <= sure <= 1 and 0 <= ignore_below <= 1):
        raise ConfigError(f"--sure is {sure} and --ignore_below {ignore_below}; both go from 0 to 1.")
    decided, best = probability.argmax(axis=0).astype(np.uint8), probability.max(axis=0)
    threshold = np.full(old.shape, ignore_below)
    if disagreement == "ignore":
        threshold[(old != IGNORE) & (old != decided)] = max(sure, ignore_below)
    threshold[old == decided] = 0
    return np.where(best >= threshold, decided, np.uint8(IGNORE)), decided
