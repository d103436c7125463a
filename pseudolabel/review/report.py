"""A page about a store for people: overlays, coverage, warnings, classes; ground truth is welcome, not needed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from data.classes import IGNORE, ClassSet
from data.errors import ConfigError, StoreError, UserError
from data.images import read_image
from data.masks import overlay, read_truth
from data.store.review import Review, read_corrected
from data.store.softmaps import SoftMaps
from data.store.source import truth_paths, truth_white
from data.store.store import MaskStore
from data.wording import count, plural
from pseudolabel.review import blocks
from pseudolabel.review.coverage import Coverage, measure_coverage
from pseudolabel.review.decided import decisions, in_words
from pseudolabel.review.doubtful import flagged_labels
from pseudolabel.review.pages import render
from pseudolabel.review.score import StoreScores, score_store

T = TypeVar("T")
NAMED = 6  # image ids named for each kind of warning


@dataclass(frozen=True)
class ClassRow:
    """A line of the table of classes: a count of images, shares from 0 to 1, None where there is no figure."""

    chip: blocks.Chip
    images: int
    share: float
    empty: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class ClassTable:
    """The table of classes.

    Attributes:
        rows: background first, then the classes that occur, the most frequent first.
        scored: there is ground truth, hence IoU.
        scored_part: what to say of it where not every image has ground truth.
        mean_before: mIoU before the CRF.
        mean_after: mIoU after it.
        absent: names of the classes no image carries.

    """

    rows: tuple[ClassRow, ...]
    scored: bool
    scored_part: str
    mean_before: float | None
    mean_after: float | None
    absent: tuple[str, ...]


@dataclass(frozen=True)
class ImageCard:
    """One image's line of pictures, with what a person should know of it."""

    id: str
    labels: tuple[int, ...]
    chips: tuple[blocks.Chip, ...]
    warnings: tuple[str, ...]
    pictures: tuple[blocks.Picture, ...]
    problems: tuple[str, ...] = ()
    decided: str = ""


def report_page(store: MaskStore, limit: int = 48, root: Path | None = None, truth: str | None = None) -> str:
    """Return the page about a store as HTML; equal stores give equal pages.

    Raises:
        StoreError: the store holds no finished image.
        ConfigError: a limit below 0.

    """
    if limit < 0:
        raise ConfigError(f"--limit is {limit}: it must be 0 or more images to show")
    coverage = measure_coverage(store)
    if not coverage.images:
        raise StoreError(f"{store.path} holds no finished image yet; run pseudolabel generate first.")
    doubted = flagged_labels(store)
    for sample_id in sorted(doubted):
        for text in _doubts(doubted[sample_id]):
            coverage.warnings.setdefault(text, []).append(sample_id)
    truths, scores, not_scored = _scores(store, root, truth)
    shown = choose_images(store, limit, {sample_id for ids in coverage.warnings.values() for sample_id in ids})
    reviews, decided = decisions(store)
    tiles = summary_tiles(coverage, scores) + [(f"{number:,}", f"{word} in review") for word, number in decided.items()]
    return render(
        "report.html.j2",
        name=store.path.resolve().name,
        model=str(store.header["model"].get("id", "a network")),
        made=count(coverage.images, "mask"),
        shown=count(len(shown), "image is", "images are"),
        tiles=tiles,
        classes=class_table(store.classes, coverage, scores),
        not_scored=not_scored,
        warnings=warning_rows(coverage),
        images=(
            image_card(
                store,
                record | {"warnings": [*record.get("warnings", []), *_doubts(doubted.get(record["id"], []))]},
                root,
                truths.get(record["id"]),
                reviews.get(record["id"]),
            )
            for record in shown
        ),
        choices=class_choices(store.classes, shown),
        settings=settings(store),
    )


def _doubts(names: list[str]) -> list[str]:
    """Return what a page says of labels that may be wrong."""
    return [f"{name}: is it there? (little attention; see pseudolabel doubt)" for name in names]


def _scores(store: MaskStore, root: Path | None, truth: str | None) -> tuple[dict[str, Path], StoreScores | None, str]:
    """Return ground truth, figures, and why there are none where there are none and none were asked for."""
    truths: dict[str, Path] = {}
    try:
        truths = truth_paths(store, root, truth)
        return truths, score_store(store, root, truth, truths), ""
    except UserError as error:
        if truth is not None:
            raise
        return truths, None, str(error) if truths else ""


def choose_images(store: MaskStore, limit: int, warned: set[str]) -> list[dict[str, Any]]:
    """Return the records of the images to show, by id: a third with warnings, the rest spread over the store."""
    ids = store.ids()
    with_warnings = _spread([sample_id for sample_id in ids if sample_id in warned], limit // 3)
    rest = _spread([sample_id for sample_id in ids if sample_id not in warned], limit - len(with_warnings))
    if len(rest) < limit - len(with_warnings):
        with_warnings = _spread([sample_id for sample_id in ids if sample_id in warned], limit - len(rest))
    chosen = {*with_warnings, *rest}
    return sorted((record for record in store.records() if record["id"] in chosen), key=lambda record: record["id"])


def _spread(ids: list[str], number: int) -> list[str]:
    if len(ids) <= number:
        return ids
    return [ids[position * len(ids) // number] for position in range(number)]


def summary_tiles(coverage: Coverage, scores: StoreScores | None) -> list[tuple[str, str]]:
    """Return the figures at the top of the page: what is shown large, and what it is."""
    values = [(f"{coverage.images:,}", plural(coverage.images, "image"))]
    if scores is not None:
        if scores.before_crf is not None:
            values.append((f"{100 * scores.before_crf.miou:.1f} %", "mIoU before CRF"))
        after = "mIoU" if scores.before_crf is None else "mIoU after CRF"
        values.append((f"{100 * scores.after_crf.miou:.1f} %", after))
    values += [
        (f"{100 * coverage.background / coverage.images:.1f} %", "background pixels"),
        (f"{100 * coverage.ignore / coverage.images:.1f} %", "undecided pixels (255)"),
        (f"{coverage.warned:,}", f"{plural(coverage.warned, 'image')} with warnings"),
        (f"{coverage.seconds / coverage.images:.2f} s", "work per image"),
    ]
    return values


def class_table(classes: ClassSet, coverage: Coverage, scores: StoreScores | None) -> ClassTable:
    """Return the figures of each class, with IoU where there are scores."""
    before = None if scores is None else scores.before_crf
    after = None if scores is None else scores.after_crf

    def row(class_id: int, images: int, share: float, empty: int) -> ClassRow:
        iou = [None if found is None else blocks.share_or_none(found.iou[class_id]) for found in (before, after)]
        return ClassRow(blocks.chip(classes, class_id), images, share, empty, iou[0], iou[1])

    rows = [row(0, coverage.images, coverage.background / coverage.images, 0)]
    rows += [
        row(label, images, coverage.pixels[label] / images, coverage.empty[label])
        for label, images in sorted(coverage.with_label.items(), key=lambda item: (-item[1], item[0]))
    ]
    part = ""
    if scores is not None and scores.missing_truth:
        part = f" ({scores.images} of {count(coverage.images, 'image')} with ground truth)"
    return ClassTable(
        tuple(rows),
        scores is not None,
        part,
        None if before is None else blocks.share_or_none(before.miou),
        None if after is None else blocks.share_or_none(after.miou),
        tuple(name for position, name in enumerate(classes.names, 1) if not coverage.with_label[position]),
    )


def warning_rows(coverage: Coverage) -> list[dict[str, Any]]:
    """Return how often each warning was given, and for which images, the most frequent first."""
    ordered = sorted(coverage.warnings.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        {"text": warning, "images": len(ids), "examples": ids[:NAMED], "more": len(ids) > NAMED}
        for warning, ids in ordered
    ]


def class_choices(classes: ClassSet, records: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Return the classes that some of the images carry, by id, as the gallery's choice."""
    return [
        (label, classes.name(label)) for label in sorted({label for one in records for label in one.get("labels", [])})
    ]


def image_card(
    store: MaskStore, record: dict[str, Any], root: Path | None, truth: Path | None, review: Review | None = None
) -> ImageCard:
    """Return what a page shows of one image; what cannot be read is named, the rest is there all the same."""
    sample_id, labels = record["id"], tuple(record.get("labels", []))
    problems: list[str] = []

    def read(what: Callable[[], T]) -> T | None:
        try:
            return what()
        except UserError as error:
            problems.append(str(error))
            return None

    pictures: tuple[blocks.Picture, ...] = ()
    rgb_u8 = read(lambda: read_image(store.image_path(record, root)))
    if rgb_u8 is not None:
        height, width = rgb_u8.shape[:2]
        soft = read(lambda: store.read_soft(sample_id))
        mask = read(lambda: store.read_mask(sample_id))
        true = None
        if truth is not None:
            white = truth_white(store, root)
            true = read(lambda: read_truth(truth, (height, width), store.image_path(record, root), white))
        corrected = None
        if review is not None and review.correction:
            corrected = read(lambda: read_corrected(store, sample_id, review.correction))
        pictures = image_strip(store.classes, rgb_u8, soft, mask, true, corrected)
    return ImageCard(
        sample_id,
        labels,
        tuple(blocks.chip(store.classes, label) for label in labels),
        tuple(record.get("warnings", [])),
        pictures,
        tuple(problems),
        in_words(review),
    )


def image_strip(
    classes: ClassSet,
    rgb_u8: UInt8[np.ndarray, "height width 3"],
    soft: SoftMaps | None,
    mask: UInt8[np.ndarray, "height width"] | None,
    truth: UInt8[np.ndarray, "height width"] | None,
    corrected: UInt8[np.ndarray, "height width"] | None = None,
) -> tuple[blocks.Picture, ...]:
    """Return an image's pictures: itself, attention of each class, and over it mask, corrected mask and truth.

    What does not exist has no picture.
    """
    labels = () if soft is None else soft.labels
    undecided = "" if mask is None else f", {100 * float(np.mean(mask == IGNORE)):.0f} % undecided"
    laid_over = [
        (layer, caption)
        for layer, caption in ((mask, f"mask{undecided}"), (corrected, "corrected mask"), (truth, "ground truth"))
        if layer is not None
    ]
    size = blocks.thumbnail_size((rgb_u8.shape[0], rgb_u8.shape[1]), 1 + len(labels) + len(laid_over))
    small = blocks.shrink(rgb_u8, size)
    pictures = [blocks.picture(small, "image")]
    if soft is not None:
        for label, heat in zip(labels, blocks.heat_maps(soft, size), strict=True):
            pictures.append(blocks.picture(blocks.heat_overlay(small, heat), classes.name(label)))
    for layer, caption in laid_over:
        pictures.append(blocks.picture(overlay(small, blocks.shrink_mask(layer, size)), caption))
    return tuple(pictures)


def settings(store: MaskStore) -> list[tuple[str, list[str]]]:
    """Return how the store was made: headings, each with lines of JSON."""
    parts = (("Model", "model"), ("Data", "data"), ("Settings", "config"))
    return [(name, json.dumps(store.header[key], indent=1, ensure_ascii=False).split("\n")) for name, key in parts]
