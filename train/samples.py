"""Which images a training learns from and which it is measured on, with the files of their masks."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from data.classes import ClassSet
from data.config import DataConfig, White
from data.errors import StoreError
from data.masks import read_mask, white_as_class
from data.readers.layout import open_samples
from data.samples import Sample
from data.store.reviewed import Counted, Use, WrongLabels, apply_reviews, without_wrong
from data.store.source import truth_paths, truth_white
from data.store.store import MaskStore
from data.wording import count, plural

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
