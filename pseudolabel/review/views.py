"""What the review page is sent of an image: pictures as JPEG, masks as bare class ids, and figures as JSON values."""

import gzip
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.classes import IGNORE, ClassSet
from data.errors import ConfigError, UserError
from data.images import encode_picture, read_image
from data.masks import overlay, voc_palette
from data.store.records import size_of_record
from data.store.review import Review, mask_hash
from data.store.reviewed import known_labels
from data.wording import printable
from pseudolabel.review import blocks
from pseudolabel.review.desk import Desk
from pseudolabel.review.queue import Line, labels_in_use, warnings_in_use
from pseudolabel.review.retuning import displayed

THUMBNAIL_PX = 88  # height of a thumbnail in the queue; it is shown at half of that
HEAT_PX = 320  # height of a soft map


def jpeg(rgb_u8: UInt8[np.ndarray, "height width 3"], quality: int = 88) -> bytes:
    """Return a picture as a JPEG file, colours at full resolution."""
    return encode_picture(rgb_u8, "JPEG", quality=quality, subsampling=0)


def thumbnail(desk: Desk, line: Line) -> bytes:
    """Return the small picture of the queue: the image under the mask that counts, or alone where that is damaged.

    Raises:
        UserError: the image cannot be read.

    """
    rgb_u8 = read_image(desk.store.image_path(line.record, desk.root))
    size = blocks.thumbnail_size((rgb_u8.shape[0], rgb_u8.shape[1]), 1, THUMBNAIL_PX)
    small = blocks.shrink(rgb_u8, size)
    try:
        mask = desk.mask(line)
    except UserError:
        mask = None
    return jpeg(small if mask is None else overlay(small, blocks.shrink_mask(mask, size)), 80)


def heat_picture(desk: Desk, line: Line, label: int) -> bytes | None:
    """Return the soft map of a label over the image, or None if there is none.

    Raises:
        UserError: image or soft maps cannot be read.

    """
    soft = desk.soft(line)
    if soft is None or label not in soft.labels:
        return None
    rgb_u8 = desk.image(line)
    scale = min(1.0, HEAT_PX / min(rgb_u8.shape[:2]))
    size = (max(1, round(rgb_u8.shape[0] * scale)), max(1, round(rgb_u8.shape[1] * scale)))
    heat = blocks.heat_maps(soft, size)[soft.labels.index(label)]
    return jpeg(blocks.heat_overlay(blocks.shrink(rgb_u8, size), heat))


def packed(mask: UInt8[np.ndarray, "height width"]) -> bytes:
    """Return the class ids of a mask, row by row, compressed by gzip; as the page draws them."""
    return gzip.compress(displayed(mask).tobytes(), compresslevel=1, mtime=0)


def mask_from_runs(runs: Any, size_hw: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """Return the mask that a page sends: a list of class id and length of a run, one after the other, row by row.

    Raises:
        ConfigError: no such list, or not of the image's pixels.

    """
    pixels = size_hw[0] * size_hw[1]
    if not isinstance(runs, list) or len(runs) % 2 or len(runs) > 2 * pixels:
        raise ConfigError("runs must be a list of class ids and lengths.")
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= pixels for value in runs):
        raise ConfigError("runs must be whole numbers from 0 on.")
    values, lengths = np.array(runs[::2], np.int64), np.array(runs[1::2], np.int64)
    if lengths.sum() != pixels or (values > IGNORE).any():
        raise ConfigError(f"runs must add up to the image's {pixels} pixels, in class ids up to {IGNORE}.")
    return np.repeat(values.astype(np.uint8), lengths).reshape(size_hw)


def class_view(classes: ClassSet, class_id: int) -> dict[str, Any]:
    """Return a class's id, its name with everything unseen written out, and its colour in masks."""
    colour = [int(value) for value in voc_palette()[class_id]]
    return {"id": class_id, "name": printable(classes.name(class_id)), "rgb": colour}


def row_view(desk: Desk, line: Line) -> dict[str, Any]:
    """Return what the queue shows of an image."""
    sample_id, review = line.record["id"], desk.review(line.record["id"])
    machine = desk.machine_hash(line)
    return {
        "id": sample_id,
        "shown": printable(sample_id),
        "doubt": round(line.doubt.value, 3),
        "warnings": len(line.record.get("warnings", ())),
        "decision": review.decision,
        "corrected": bool(review.correction),
        "wrong": len(review.wrong),
        "stale": review.says_something and review.is_stale(machine),
        "version": (review.correction or machine)[:12],
    }


def review_view(desk: Desk, line: Line, review: Review) -> dict[str, Any]:
    """Return what was decided about an image; labels that are wrong as class ids."""
    return {
        "decision": review.decision,
        "wrong": list(known_labels(desk.store, review.wrong)),
        "correction": review.correction,
        "settings": review.settings,
        "who": printable(review.who),
        "when": printable(review.when),
        "lines": review.lines,
        "stale": review.says_something and review.is_stale(desk.machine_hash(line)),
        "outdated": bool(review.correction) and review.corrected_on != desk.machine_hash(line),
    }


def item_view(desk: Desk, line: Line) -> dict[str, Any]:
    """Return all that the page shows of one image but its pictures."""
    record, review = line.record, desk.review(line.record["id"])
    problems: list[str] = []
    size = size_of_record(record)
    shown = displayed(np.zeros(size, np.uint8)).shape
    try:
        if desk.image(line).shape[:2] != shown:
            problems.append("The image has another size than its mask: it was changed after the mask was made.")
    except UserError as error:
        problems.append(printable(str(error)))
    counted, soft = None, None
    try:
        counted = desk.mask(line)
    except UserError as error:
        problems.append(printable(str(error)))
    try:
        soft = desk.soft(line)
    except UserError as error:
        problems.append(printable(str(error)))
    shares = record.get("class_share", {})
    classes = desk.store.classes
    return {
        "id": record["id"],
        "shown": printable(record["id"]),
        "height": shown[0],
        "width": shown[1],
        "full": list(size),
        "labels": [
            class_view(classes, label) | {"share": shares.get(classes.name(label))}
            for label in record.get("labels", ())
        ],
        "warnings": [printable(warning) for warning in record.get("warnings", ())],
        "doubt": round(line.doubt.value, 3),
        "reasons": [printable(reason) for reason in line.doubt.reasons],
        "review": review_view(desk, line, review),
        "machine": desk.machine_hash(line),
        "mask": "" if counted is None else mask_hash(counted),
        "soft": [] if soft is None else list(soft.labels),
        "retunable": soft is not None,
        "fused": soft is not None and not soft.background,
        "problems": problems,
    }


def store_view(desk: Desk, model: bool = False) -> dict[str, Any]:
    """Return what the page shows of the store."""
    classes, config = desk.store.classes, desk.settings()
    return {
        "name": printable(desk.store.path.resolve().name),
        "path": printable(str(desk.store.path)),
        "classes": [class_view(classes, number) for number in range(len(classes) + 1)],
        "undecided": class_view(classes, IGNORE),
        "labels": sorted(
            ([label, number] for label, number in labels_in_use(desk.lines).items()), key=lambda one: -one[1]
        ),
        "warnings": [[printable(kind), number] for kind, number in warnings_in_use(desk.lines).most_common()],
        "settings": {
            "threshold": config.fuse.threshold,
            "crf": config.crf.kind != "none",
            "scale": config.crf.scale,
            "ignore_below": config.ignore_below,
        },
        "predictions": desk.predictions is not None,
        "model": model,
        "counts": desk.counts(),
    }


def asked_lines(desk: Desk, wanted: Any) -> Sequence[Line]:
    """Return the images that a page asks for by a list of ids; what the store does not hold (any more) is left out.

    Raises:
        ConfigError: no list of texts.

    """
    if not isinstance(wanted, list) or len(wanted) > 500 or not all(isinstance(one, str) for one in wanted):
        raise ConfigError("ids must be a list of at most 500 ids.")
    return [desk.line(one) for one in wanted if desk.holds(one)]
