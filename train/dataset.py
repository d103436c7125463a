"""Training images with the masks of a store, and validation images with their ground truth."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from data.classes import ClassSet
from data.config import DataConfig, White
from data.console import count, plural
from data.errors import StoreError
from data.images import read_image
from data.masks import read_mask, read_truth, white_as_class
from data.readers.layout import open_samples
from data.samples import Sample
from data.store.records import check_mask
from data.store.reviewed import Counted, Use, WrongLabels, apply_reviews, without_wrong
from data.store.softmaps import SoftMaps, upsample
from data.store.source import truth_paths, truth_white
from data.store.store import MaskStore
from train.order import Key, sample_seed
from train.transforms import Augmentation

logger = logging.getLogger(__name__)

Masks = Literal["store", "argmax", "truth"]


@dataclass(frozen=True)
class TrainingSample:
    """One image to learn from.

    Attributes:
        id: its id.
        image_path: its file.
        mask_path: the file of its mask.
        white: what 255 means in a true mask.
        wrong: class ids that a person has marked wrong; nothing is learnt where the mask says so.
        corrected: whether a person has made the mask, so that soft maps say nothing about it.

    """

    id: str
    image_path: Path
    mask_path: Path
    white: White = "ignore"
    wrong: tuple[int, ...] = ()
    corrected: bool = False

    def mask(self) -> UInt8[np.ndarray, "height width"]:
        """Return the mask, 255 where nothing is to be learnt."""
        mask = without_wrong(read_mask(self.mask_path), self.wrong)
        return white_as_class(mask) if self.white == "class" else mask


def list_training(
    store: MaskStore,
    masks: Masks,
    truth: Path | None,
    root: Path | None,
    review: Use = "use",
    wrong_labels: WrongLabels = "undecided",
    min_presence: float = 0.0,
) -> list[TrainingSample]:
    """Return the samples of a store, sorted by id, after checking that every file is there.

    What people have decided about the masks (`data.store.reviewed`) is followed, and logged, unless true masks are
    learnt from, which nobody has reviewed.

    Args:
        store: the store.
        masks: its masks with the ignore band, its masks without (`argmax`), or the true masks instead.
        truth: folder of true masks named <id>.png; where the store's data set keeps them if not given.
        root: folder of the data set, if it is not where the store says.
        review: what people's decisions mean; see `data.store.reviewed.apply_reviews`.
        wrong_labels: what a label that was marked wrong does to its image.
        min_presence: labels less present than this are not learnt (`drop_doubted`).

    Raises:
        StoreError: no images, or files that are missing; the message counts them and names the first.

    """
    records = sorted(store.records(), key=lambda record: record["id"])
    if not records:
        raise StoreError(f"The store {store.path} holds no finished image; run `pseudolabel generate` first.")
    if masks == "truth":
        truths, white = _true_masks(store, truth, root, records), truth_white(store, root)
        samples = [
            TrainingSample(record["id"], store.image_path(record, root), truths[record["id"]], white)
            for record in records
        ]
    else:
        doubted = _doubted(store, records, min_presence) if min_presence else {}
        records = [record for record in records if not _is_doubted(record, doubted)]
        if not records:
            raise StoreError(f"--data.min_presence {min_presence} leaves no image of {store.path}: lower it.")
        folder = store.path / ("argmax" if masks == "argmax" else "masks")
        counted = _reviewed(store, records, review, wrong_labels)
        samples = [
            _sample(one, store.image_path(one.record, root), folder, doubted.get(one.record["id"], ()))
            for one in counted
        ]
    _check_files([sample.image_path for sample in samples], "image", "--data.root names the folder they are under")
    remedy = "--data.truth names their folder" if masks == "truth" else "generate them again"
    _check_files([sample.mask_path for sample in samples], "mask", remedy)
    return samples


def _reviewed(store: MaskStore, records: list[dict[str, Any]], review: Use, wrong_labels: WrongLabels) -> list[Counted]:
    """Return the masks that count once people have looked, and log what leaves or changes."""
    found = apply_reviews(store, records, review, wrong_labels)
    for note in found.notes():
        logger.warning("%s", note)
    if not found.counted:
        raise StoreError(
            f"None of the {count(len(records), 'image')} of {store.path} is left to learn from once its review.jsonl "
            f"is followed (--data.review {review}); accept some in `pseudolabel review`, or give --data.review ignore."
        )
    return found.counted


def _sample(counted: Counted, image_path: Path, folder: Path, doubted: tuple[int, ...]) -> TrainingSample:
    """Return the sample of a mask; what is doubted of it is not learnt either, unless a person has corrected it."""
    sample_id, corrected = counted.record["id"], counted.corrected
    if corrected is not None:
        return TrainingSample(sample_id, image_path, corrected, wrong=counted.wrong, corrected=True)
    return TrainingSample(sample_id, image_path, folder / f"{sample_id}.png", wrong=(*counted.wrong, *doubted))


def list_supervised(config: DataConfig, classes: ClassSet | None) -> tuple[list[TrainingSample], ClassSet]:
    """Return the images of a data set that have true masks, to learn from those, and its classes.

    Args:
        config: which data set and split.
        classes: those of a checkpoint, which the data must have; None takes the data's.

    Raises:
        ConfigError, LabelError, StoreError: as `list_truth`.

    """
    samples, found = list_truth(config, classes, need_truth=True, group="data", done="learnt from")
    training = [
        TrainingSample(sample.id, sample.image_path, sample.truth_path, sample.white)
        for sample in samples
        if sample.truth_path is not None
    ]
    return sorted(training, key=lambda sample: sample.id), found


def _doubted(store: MaskStore, records: list[dict[str, Any]], least: float) -> dict[str, tuple[int, ...]]:
    """Return the labels of each image that are less present than `least`, and say how many there are.

    Raises:
        StoreError: the store says of no label how present it is.

    """
    if not any(record.get("presence") for record in records):
        raise StoreError(
            f"--data.min_presence: {store.path} says of no label how present it is; make the masks again with "
            "`pseudolabel generate --overwrite`, or leave it at 0."
        )
    ids = {store.classes.name(label): label for label in range(1, len(store.classes) + 1)}
    found = {}
    for record in records:
        scores = record.get("presence", {})
        low = {ids[name] for name, score in scores.items() if score < least and name in ids}
        low &= set(record.get("labels", []))
        if low:
            found[record["id"]] = tuple(sorted(low))
    empty = sum(_is_doubted(record, found) for record in records)
    logger.warning(
        "--data.min_presence %g: %s in %s not learnt, which leaves %s without any; left out.",
        *(least, count(sum(map(len, found.values())), "label"), count(len(found), "image"), count(empty, "image")),
    )
    return found


def _is_doubted(record: dict[str, Any], doubted: dict[str, tuple[int, ...]]) -> bool:
    """Return whether all labels of an image are doubted."""
    return record["id"] in doubted and set(doubted[record["id"]]) == set(record["labels"])


def _true_masks(
    store: MaskStore, truth: Path | None, root: Path | None, records: list[dict[str, Any]]
) -> dict[str, Path]:
    """Return the true mask of every record; see `data.store.source.truth_paths`."""
    found = truth_paths(store, root, truth)
    unknown = [record["id"] for record in records if record["id"] not in found]
    if unknown:
        raise StoreError(
            f"--data.masks truth: the data set has no true mask of {len(unknown)} of {count(len(records), 'image')}, "
            f"the first {unknown[0]}; --data.truth names the folder of their masks."
        )
    return found


def _check_files(paths: list[Path], what: str, remedy: str) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        are = plural(len(missing), "is", "are")
        raise StoreError(
            f"{len(missing)} of {count(len(paths), what)} {are} missing, the first {missing[0]}; {remedy}."
        )


class TrainingSet(Dataset[dict[str, Any]]):
    """Augmented images and masks; a sample is drawn from (seed, epoch, index), so its order and process do not matter.

    Items: `image` uint8 (3, crop, crop) RGB; `mask` uint8 (crop, crop) with `IGNORE`; `weight` float (crop, crop) in
    [0, 1] where confidence weights are used; `id`.
    """

    def __init__(
        self,
        samples: Sequence[TrainingSample],
        n_classes: int,
        augmentation: Augmentation,
        seed: int,
        *,
        soft_from: MaskStore | None = None,
        cache: bool = False,
    ) -> None:
        self._samples = samples
        self._n_classes = n_classes
        self._augmentation = augmentation
        self._seed = seed
        self._soft_from = soft_from
        self._cache: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray | None]] | None = {} if cache else None

    def draw_with(self, augmentation: Augmentation) -> None:
        """Choose another augmentation; before any loader's process starts."""
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield every sample as epoch 0 draws it."""
        return (self[0, index] for index in range(len(self)))

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index = key
        rgb, mask, weight = self._load(index)
        image, mask, weight = self._augmentation(rgb, mask, weight, sample_seed(self._seed, epoch, index))
        item: dict[str, Any] = {"image": to_tensor(image), "mask": torch.from_numpy(np.ascontiguousarray(mask))}
        if weight is not None:
            item["weight"] = torch.from_numpy(weight.astype(np.float32) / 255)
        return item | {"id": self._samples[index].id}

    def histogram(self, look_at: int) -> tuple[np.ndarray, int]:
        """Return the number of pixels of each mask value over evenly spaced masks, and how many were read."""
        picked = range(0, len(self), max(1, len(self) // look_at))
        counts = (np.bincount(self._mask(self._samples[index]).ravel(), minlength=256) for index in picked)
        return sum(counts, np.zeros(256, np.int64)), len(picked)

    def _mask(self, sample: TrainingSample) -> UInt8[np.ndarray, "height width"]:
        """Return a mask after it was checked against the classes."""
        mask = sample.mask()
        check_mask(mask, None, self._n_classes, sample.mask_path)
        return mask

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self._samples[index]
        rgb, mask = read_image(sample.image_path), sample.mask()
        check_mask(mask, rgb.shape[:2], self._n_classes, sample.mask_path)
        soft = self._soft_from.read_soft(sample.id) if self._soft_from else None
        if self._soft_from and soft is None:
            raise StoreError(f"{self._soft_from.path} has no soft maps of {sample.id!r}; use --data.weights none.")
        weight = None if soft is None else confidence(soft, mask)
        if weight is not None and sample.corrected:
            weight = np.full_like(weight, 255)  # a person is sure of it
        loaded = (rgb, mask, weight)
        if self._cache is not None:
            self._cache[index] = loaded
        return loaded


def confidence(soft: SoftMaps, mask: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Return how much the soft maps support the mask, 0 to 255 for 0 to 1.

    A pixel of a class gets that class's score; a background pixel gets the background's probability, or 1 minus the
    largest class score where the maps hold no background. Ours; the paper trains on all kept pixels alike.
    """
    maps = upsample(soft.maps.astype(np.float32), soft)
    background = maps[0] if soft.background else 1 - maps.max(axis=0)
    support = np.where(mask == 0, background, 0).astype(np.float32)
    for row, label in enumerate(soft.labels, start=int(soft.background)):
        support = np.where(mask == label, maps[row], support)
    return np.round(255 * np.clip(support, 0, 1)).astype(np.uint8)


def to_tensor(rgb: UInt8[np.ndarray, "height width 3"]) -> Tensor:
    """Return an image as a uint8 tensor (3, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))


class TruthSet(Dataset[dict[str, Any]]):
    """Whole images with their ground truth: `image` uint8 (3, H, W), `truth` uint8 (H, W) or None, `id`, `size_hw`."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield every image; without this a loop would take an IndexError inside for the end."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        rgb, truth = read_image(sample.image_path), None
        if sample.truth_path:
            truth = read_truth(sample.truth_path, rgb.shape[:2], sample.image_path, sample.white)
        return {"image": to_tensor(rgb), "truth": truth, "id": sample.id}


def list_truth(
    config: DataConfig, classes: ClassSet | None, need_truth: bool, group: str = "data.val", done: str = "measured"
) -> tuple[list[Sample], ClassSet]:
    """Return the samples of a data set that have ground truth (or all of them), and their classes.

    Args:
        config: which data set and split.
        classes: those of the network, which the data must have; None takes the data's.
        need_truth: leave out what has no ground truth, with a warning.
        group: the group of settings that names the data set, for messages.
        done: what is not done with images that are left out.

    Raises:
        ConfigError, LabelError: as `data.readers.layout.open_samples`.
        StoreError: none has ground truth, or its classes are not those of the network.

    """
    found = open_samples(config, need_labels=False, need_truth=True)
    without = [sample.id for sample in found.samples if sample.truth_path is None] if need_truth else []
    left_out = set(without)
    samples = [sample for sample in found.samples if sample.id not in left_out]
    for note in found.notes:
        logger.warning("%s", note)
    if without:
        logger.warning(
            "%d of %d images of split %r in %s have no ground truth and are not %s (the first is %s).",
            *(len(without), len(found.samples), config.split, config.root, done, without[0]),
        )
    if not samples:
        raise StoreError(
            f"No image of split {config.split!r} in {config.root} has ground truth; check --{group}.split and "
            f"--{group}.truth."
        )
    if classes is not None and classes.names != found.classes.names:
        raise StoreError(
            f"The network knows {count(len(classes), 'class')} ({', '.join(classes.names[:3])}, ...), the data in "
            f"{config.root} {len(found.classes)} ({', '.join(found.classes.names[:3])}, ...): they must be the same; "
            f"see --{group}.classes."
        )
    return samples, found.classes
