"""Masks against ground truth: IoU of each class, before the CRF (soft maps) and after (without the 255 band)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from data.classes import ClassSet
from data.config import White
from data.errors import ConfigError, LabelError, UserError
from data.machine import available_cpus
from data.masks import read_truth
from data.scoring import Scores, confusion_matrix
from data.scoring import score as score_matrix
from data.store.records import size_of_record
from data.store.source import truth_paths, truth_white
from data.store.store import MaskStore
from data.wording import count, printable
from pseudolabel.config import mask_settings
from pseudolabel.masks.config import MaskConfig
from pseudolabel.review.decided import decisions

SHOWN = 10  # images without ground truth named in the table
AHEAD = 64  # images read at a time, so that memory does not grow with the store

Matrix = Int64[np.ndarray, "classes classes"]


@dataclass(frozen=True)
class StoreScores:
    """What the ground truth says about a store.

    Attributes:
        classes: the classes without background.
        before_crf: figures of the argmax of the soft maps; None where a store keeps none.
        after_crf: figures of the written label without the 255 band.
        images: how many images were scored.
        missing_truth: ids of the images in the store that have no ground truth and were not scored.
        ignore_share: share of the scored images' pixels that the written masks leave undecided.
        decided: how many images people have accepted, rejected and so on; the figures are of the machine's masks.

    """

    classes: ClassSet
    before_crf: Scores | None
    after_crf: Scores
    images: int
    missing_truth: tuple[str, ...]
    ignore_share: float
    decided: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values; IoU between 0 and 1, null for a class that occurs nowhere."""
        names = [self.classes.name(i) for i in range(len(self.classes) + 1)]

        def plain(scores: Scores) -> dict[str, Any]:
            per_class = {
                name: None if np.isnan(iou) else float(iou) for name, iou in zip(names, scores.iou, strict=True)
            }
            return {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy, "iou": per_class}

        review = {"review": self.decided} if self.decided else {}
        return {
            "images": self.images,
            "missing_truth": len(self.missing_truth),
            "ignore_share": self.ignore_share,
            "before_crf": None if self.before_crf is None else plain(self.before_crf),
            "after_crf": plain(self.after_crf),
            **review,
        }


def score_store(
    store: MaskStore,
    root: Path | None = None,
    truth: str | None = None,
    truths: dict[str, Path] | None = None,
    truth_255: White | None = None,
) -> StoreScores:
    """Score every image of a store that has ground truth; the others are counted and named.

    Args:
        store: the store.
        root: folder of the data set, if it is not where the store says.
        truth: folder of ground-truth masks; see `data.store.source.truth_paths`.
        truths: what that function has returned already; the data set is not opened again then.
        truth_255: what 255 means in the ground truth; None: as the store says, which is "ignore" unless it was set.

    Raises:
        UserError: no image has ground truth, or a mask or truth cannot be read.

    """
    truths = truth_paths(store, root, truth) if truths is None else truths
    white = truth_white(store, root) if truth_255 is None else truth_255
    if white == "class" and len(store.classes) > 1:
        raise ConfigError(
            f"--truth_255=class needs a single class, but {store.path} has {len(store.classes)}; drop it."
        )
    found = _compare_all(store, truths, root, white)
    if not found.images:
        raise UserError(
            f"none of the {count(len(found.missing), 'image')} of {store.path} has ground truth; name the data set's "
            "folder with --root or the folder of masks with --truth (pseudolabel report needs no ground truth)"
        )
    return StoreScores(
        store.classes,
        None if found.before is None else score_matrix(found.before),
        score_matrix(found.after),
        found.images,
        tuple(sorted(found.missing)),
        found.ignored / found.images,
        decisions(store)[1],
    )


@dataclass
class _Sums:
    """Sums over a store's images: confusion matrices (no `before` where an image has no soft maps), shares, counts."""

    before: Matrix | None
    after: Matrix
    images: int = 0
    ignored: float = 0.0
    missing: list[str] = field(default_factory=list)


def _compare_all(store: MaskStore, truths: dict[str, Path], root: Path | None, white: White) -> _Sums:
    """Compare every image that has ground truth, several at a time, in the order of the index."""
    config, n_classes = mask_settings(store.header["config"]), len(store.classes) + 1
    empty = np.zeros((n_classes, n_classes), np.int64)
    sums = _Sums(empty, empty.copy())
    with ThreadPoolExecutor(available_cpus()) as pool:
        for records in _chunks(store.records(), AHEAD):
            scored = [record for record in records if record["id"] in truths]
            sums.missing += [record["id"] for record in records if record["id"] not in truths]
            for before, after, share in pool.map(
                lambda record: _compare(store, record, truths, config, root, white), scored
            ):
                sums.before = None if before is None or sums.before is None else sums.before + before
                sums.after += after
                sums.images += 1
                sums.ignored += share
    return sums


def _compare(
    store: MaskStore,
    record: dict[str, Any],
    truths: dict[str, Path],
    config: MaskConfig,
    root: Path | None,
    white: White,
) -> tuple[Matrix | None, Matrix, float]:
    """Return an image's confusion matrix before the CRF (None without soft maps), after it, and its share of ignore."""
    from pseudolabel.masks.fuse import before_crf

    sample_id, n_classes = record["id"], len(store.classes) + 1
    truth = read_truth(truths[sample_id], size_of_record(record), store.image_path(record, root), white)
    soft = store.read_soft(record)
    try:
        before = None
        if soft is not None:
            before = confusion_matrix(truth, before_crf(soft, config.fuse, config.crf), n_classes)
        after = confusion_matrix(truth, store.read_argmax(record), n_classes)
    except LabelError as error:
        raise LabelError(f"Image {sample_id}, ground truth {truths[sample_id]}: {error}") from error
    return before, after, float(record.get("ignore_share", 0.0))


def _chunks(items: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    yield chunk


def table(result: StoreScores) -> str:
    """Return the figures as a table for a terminal, in percent."""
    names = [printable(result.classes.name(i)) for i in range(len(result.classes) + 1)]
    width = max(map(len, names))
    before, after = result.before_crf, result.after_crf
    heading = "" if before is None else "before CRF  "
    lines = [f"{'class':<{width}}  {heading}{'IoU' if before is None else 'after CRF':>9}  precision  recall"]
    for i in range(len(result.classes) + 1):
        first = "" if before is None else f"{_percent(before.iou[i]):>10}  "
        cells = f"{first}{_percent(after.iou[i]):>9}  {_percent(after.precision[i]):>9}"
        lines.append(f"{names[i]:<{width}}  {cells}  {_percent(after.recall[i]):>6}")
    first = "" if before is None else f"{_percent(before.miou):>10}  "
    lines.append(f"{'mean (mIoU)':<{width}}  {first}{_percent(after.miou):>9}")
    lines.append(
        f"{count(result.images, 'image')}; {_percent(result.ignore_share)} % of their pixels are left undecided (255)."
    )
    if result.missing_truth:
        there = count(len(result.missing_truth), "IMAGE HAS", "IMAGES HAVE")
        shown = ", ".join(result.missing_truth[:SHOWN]) + (", ..." if len(result.missing_truth) > SHOWN else "")
        lines.append(f"{there} NO GROUND TRUTH, not scored: {printable(shown)}")
    if result.decided:
        said = ", ".join(f"{number} {word}" for word, number in result.decided.items())
        lines.append(f"Reviewed: {said}; the figures are of the machine's masks, all of them.")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.1f}"
