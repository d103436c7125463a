"""Masks that another program made, as a store: score, report, review, refine and training then work on them."""

import os
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from data.classes import IGNORE
from data.config import DataConfig, White
from data.console import progress_bar
from data.errors import ConfigError, ImageError, UserError
from data.images import as_shown, size_of
from data.masks import only_black_and_white, read_mask, white_as_class
from data.readers.folder import split_folder
from data.readers.layout import detect_format, open_samples
from data.samples import Sample, SampleSet
from data.store.records import check_mask, image_record
from data.store.softmaps import SoftMaps
from data.store.source import stored_data, stored_path
from data.store.store import MaskStore
from data.wording import count, some

CELL_PX = 8  # side of a cell of the soft maps that are made from a mask


@dataclass
class Imported:
    """What an import did.

    Attributes:
        written: masks that were taken now.
        there: masks that the store had before.
        without: ids of the images that have no mask.
        strays: masks that belong to no image, by file name.
        unlabelled: how many masks show each class that their image's labels do not name.
        skipped: id and reason of each mask that could not be taken.

    """

    written: int = 0
    there: int = 0
    without: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    unlabelled: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def import_masks(
    store_path: Path,
    masks: Path,
    data: DataConfig,
    white: White = "ignore",
    soft: bool = True,
    on_error: Literal["stop", "skip"] = "stop",
) -> Imported:
    """Write the masks of a folder as a store; a store that is there already is continued.

    Args:
        store_path: the store.
        masks: PNGs of class ids, each named as its image's id, or lying as the image lies below the data's root.
        data: the images that the masks are of, their classes, and their labels where there are any.
        white: what 255 means in masks that hold only 0 and 255: no decision, or the one class.
        soft: keep soft maps too, a cell for `CELL_PX` x `CELL_PX` pixels, from which `pseudolabel refine` starts.
        on_error: a mask that cannot be taken stops the import, or is left out and named at the end.

    Raises:
        ConfigError: no such folder, or no mask in it is an image's.
        UserError: a mask that cannot be taken, under `on_error="stop"`.

    """
    samples = samples_with_masks(masks, data)
    if white == "class" and len(samples.classes) > 1:
        raise ConfigError(
            f"--white=class reads 255 as the one class, but there are {count(len(samples.classes), 'class')}; drop it."
        )
    header: dict[str, Any] = {
        "config": {"import": {"white": white, "soft": soft}},
        "model": {"id": f"another program ({os.path.abspath(masks)})", "fingerprint": ""},
        "data": stored_data(data),
    }
    store = MaskStore.open_or_create(store_path, classes=samples.classes, **header)
    done, result, used = store.finished(), Imported(), set()
    with progress_bar(total=len(samples.samples), unit="image", smoothing=0.05) as bar:
        for sample in samples.samples:
            bar.update()
            if sample.truth_path is None:
                result.without.append(sample.id)
                continue
            used.add(os.path.abspath(sample.truth_path))
            if sample.id in done:
                result.there += 1
                continue
            try:
                _import_one(store, sample, data.root, white, soft, result)
            except ImageError as error:
                if on_error == "stop":
                    raise UserError(f"{sample.id}: {error}") from error
                result.skipped.append((sample.id, str(error)))
    result.strays = sorted(path.name for path in masks.rglob("*.png") if os.path.abspath(path) not in used)
    return result


def samples_with_masks(masks: Path, data: DataConfig) -> SampleSet:
    """Return the images of a data set, each with the file of its mask in a folder as `truth_path`.

    Raises:
        ConfigError: no such folder, or none of its masks is an image's.

    """
    if not masks.is_dir():
        raise ConfigError(f"There is no folder {masks}; --masks must name a folder of PNG masks.")
    found = open_samples(replace(data, truth=_as_truth(masks.absolute(), data), truth_255="ignore"), need_labels=False)
    if not any(sample.truth_path for sample in found.samples):
        first = next((path.name for path in sorted(masks.rglob("*.png"))), None)
        there = f"the first mask is {first}" if first else "it holds no PNG"
        example = next((sample.id for sample in found.samples), "image")
        raise ConfigError(
            f"None of {count(len(found.samples), 'image')} has a mask in {masks} ({there}); a mask is named as its "
            f"image's id, such as {example}.png, or lies as the image does below {data.root}."
        )
    return found


def _as_truth(masks: Path, data: DataConfig) -> str:
    """Return how a folder of masks is named as ground truth; by its place where images lie around it."""
    if detect_format(data) != "folder" or not data.root.is_dir():
        return str(masks)
    base = split_folder(Path(data.root), data.split).absolute()
    return masks.relative_to(base).as_posix() if base in masks.parents else str(masks)


def _import_one(store: MaskStore, sample: Sample, root: Path, white: White, soft: bool, result: Imported) -> None:
    start = time.perf_counter()
    assert sample.truth_path is not None
    mask = read_foreign(sample.truth_path, sample.image_path, white, len(store.classes) + 1)
    shown = {int(value) for value in np.unique(mask)} - {0, IGNORE}
    labels = tuple(sorted(shown | set(sample.labels)))
    argmax = without_undecided(mask)
    image = stored_path(sample.image_path, root)
    record = image_record(sample.id, image, mask, argmax, labels, store.classes, time.perf_counter() - start)
    store.write(sample.id, mask, argmax=argmax, soft=soft_maps(mask, labels) if soft else None, record=record)
    result.written += 1
    if sample.labels:
        result.unlabelled.update(store.classes.name(label) for label in shown - set(sample.labels))


def read_foreign(path: Path, image: Path, white: White, n_classes: int) -> UInt8[np.ndarray, "height width"]:
    """Return another program's mask, upright as its image is shown, 255 where there is no decision.

    Raises:
        ImageError: missing, damaged, in colours, of another size than its image, or with a class that does not exist.

    """
    mask, size_hw = read_mask(path), size_of(image)
    if white == "class":
        mask = white_as_class(mask)
    elif n_classes == 2 and only_black_and_white(mask):
        raise ImageError(f"{path} holds only 0 and 255; say with --white=class that 255 is the class.")
    mask = as_shown(mask, size_hw, image)
    check_mask(mask, size_hw, n_classes, path)
    return mask


def without_undecided(mask: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Return a mask whose undecided pixels (255) have the class of the nearest decided one; background without any."""
    import cv2

    undecided = mask == IGNORE
    if undecided.all():
        return np.zeros_like(mask)
    if not undecided.any():
        return mask
    _, nearest = cv2.distanceTransformWithLabels(
        undecided.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    classes = np.zeros(int(nearest.max()) + 1, np.uint8)
    classes[nearest[~undecided]] = mask[~undecided]
    return classes[nearest]


def soft_maps(mask: UInt8[np.ndarray, "height width"], labels: tuple[int, ...]) -> SoftMaps:
    """Return the share of each cell, a square of `CELL_PX` pixels, that is background and each label.

    An undecided pixel (255) counts in equal parts for all of them.
    """
    height, width = mask.shape
    missing = ((0, -height % CELL_PX), (0, -width % CELL_PX))
    padded = np.pad(mask, missing, mode="edge")
    rows, columns = padded.shape[0] // CELL_PX, padded.shape[1] // CELL_PX
    kinds = (0, *labels)
    maps = np.empty((len(kinds), rows, columns), np.float16)
    unknown = (padded == IGNORE) / len(kinds)
    for position, kind in enumerate(kinds):
        share = ((padded == kind) + unknown).reshape(rows, CELL_PX, columns, CELL_PX)
        maps[position] = share.mean(axis=(1, 3))
    return SoftMaps(maps, labels, True, padded.shape, (height, width), (height, width))


def import_lines(result: Imported, store: Path) -> list[str]:
    """Return what to print at the end of an import."""
    lines = [f"{count(result.written + result.there, 'mask')} in {store / 'masks'}: {result.written} taken now."]
    if result.without:
        lines.append(f"Note: {count(len(result.without), 'image has', 'images have')} no mask: {some(result.without)}.")
    if result.strays:
        belong = count(len(result.strays), "mask belongs", "masks belong")
        lines.append(f"Note: {belong} to no image of the split: {some(result.strays)}.")
    if result.unlabelled:
        named = ", ".join(f"{name} ({number})" for name, number in result.unlabelled.most_common())
        lines.append(f"Note: masks show classes that their image's labels do not name: {named}.")
    return lines
