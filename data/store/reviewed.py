"""Which mask of each image counts once people have looked: what `fit` and `export` make of review.jsonl.

Doubt counts against a mask. A rejected image leaves, even if its mask has changed since; an accepted one counts as
accepted as long as the mask is the one that was looked at. A corrected mask takes the machine's place, whatever the
machine's has become. What leaves or changes is counted and named.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from data.classes import IGNORE
from data.errors import LabelError, UserError
from data.machine import available_cpus
from data.masks import read_mask
from data.store.folder import REVIEW
from data.store.records import size_of_record
from data.store.review import Review, corrected_path, mask_hash, read_corrected, read_reviews
from data.store.store import MaskStore
from data.wording import count, plural, printable, some

Use = Literal["use", "ignore", "accepted_only"]
WrongLabels = Literal["undecided", "leave_out"]


@dataclass(frozen=True)
class Counted:
    """The mask of an image that counts.

    Attributes:
        record: the image's line in the index.
        corrected: file of the corrected mask; None: the machine's counts.
        wrong: class ids whose region is undecided.

    """

    record: dict[str, Any]
    corrected: Path | None = None
    wrong: tuple[int, ...] = ()


@dataclass
class Reviewed:
    """What people's decisions make of a store.

    Attributes:
        counted: the images that stay, in the order they were given.
        rejected: ids of images that leave because they were rejected.
        not_accepted: ids of images that leave because only accepted ones are wanted.
        wrong_out: ids of images that leave because a label is wrong.
        unusable: ids of images that leave because their corrected mask cannot be used, with the reason.
        corrected: ids of images whose corrected mask counts.
        undecided: ids of images with a region that counts as undecided because its label is wrong.
        stale: ids of images with a decision about a mask that has changed since.
        unknown: ids that decisions are about and the store does not hold.

    """

    counted: list[Counted] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    not_accepted: list[str] = field(default_factory=list)
    wrong_out: list[str] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for each thing that leaves or changes, with the first ids."""
        unusable = [f"{sample_id} ({reason})" for sample_id, reason in self.unusable]
        said = (
            (self.rejected, "{images} rejected, left out: {names}"),
            (self.not_accepted, "{images} not accepted as {it_is} now, left out: {names}"),
            (self.wrong_out, "{images} with a label marked wrong, left out: {names}"),
            (unusable, "{images} whose corrected mask cannot be used, left out: {names}"),
            (self.corrected, "corrected masks of {images}: {names}"),
            (self.undecided, "regions of labels marked wrong are undecided in {images}: {names}"),
            (self.stale, "decisions about masks that have changed since, in {images}: {names}"),
            (self.unknown, "decisions about {images} that the store does not hold: {names}"),
        )
        notes = []
        for ids, text in said:
            if ids:
                words = {"images": count(len(ids), "image"), "it_is": plural(len(ids), "it is", "they are")}
                notes.append(f"{REVIEW}: {text.format(**words, names=printable(some(ids)))}.")
        return tuple(notes)


def apply_reviews(
    store: MaskStore, records: Sequence[dict[str, Any]], use: Use, wrong_labels: WrongLabels = "undecided"
) -> Reviewed:
    """Return which images of a store stay, and with which masks.

    Args:
        store: the store.
        records: lines of its index.
        use: what decisions mean: use leaves out what was rejected, accepted_only all that was not accepted, ignore
            nothing; the last also leaves corrected masks aside.
        wrong_labels: the region of a label that was marked wrong is undecided (255), or its image is left out.

    Raises:
        StoreError: review.jsonl holds what it cannot.

    """
    reviews = {} if use == "ignore" else read_reviews(store)
    found = Reviewed(unknown=_unknown(reviews, records))
    machine = machine_hashes(store, (record for record in records if record["id"] in reviews))
    for record in records:
        review = reviews.get(record["id"])
        if review is None:
            if use == "accepted_only":
                found.not_accepted.append(record["id"])
            else:
                found.counted.append(Counted(record))
        else:
            _decide(store, record, review, machine[record["id"]], use, wrong_labels, found)
    return found


def _unknown(reviews: dict[str, Review], records: Sequence[dict[str, Any]]) -> list[str]:
    said = {sample_id for sample_id, review in reviews.items() if review.says_something}
    return sorted(said - {record["id"] for record in records})


def _decide(
    store: MaskStore,
    record: dict[str, Any],
    review: Review,
    machine: str,
    use: Use,
    wrong_labels: WrongLabels,
    found: Reviewed,
) -> None:
    """Put an image that was decided on where it belongs."""
    sample_id = record["id"]
    if review.is_stale(machine):
        found.stale.append(sample_id)
    wrong = known_labels(store, review.wrong)
    if review.decision == "reject":
        found.rejected.append(sample_id)
        return
    if use == "accepted_only" and not is_accepted(review, machine):
        found.not_accepted.append(sample_id)
        return
    if wrong and wrong_labels == "leave_out":
        found.wrong_out.append(sample_id)
        return
    path = None
    if review.correction:
        fault = correction_fault(store, record, review.correction)
        if fault:
            found.unusable.append((sample_id, fault))
            return
        path = corrected_path(store, sample_id, review.correction)
        found.corrected.append(sample_id)
    if wrong:
        found.undecided.append(sample_id)
    found.counted.append(Counted(record, path, wrong))


def is_accepted(review: Review, machine: str) -> bool:
    """Return whether the mask that counts is the one that was accepted."""
    return review.decision == "accept" and review.decided_on == (review.correction or machine)


def known_labels(store: MaskStore, names: Iterable[str]) -> tuple[int, ...]:
    """Return the class ids of names, without those that are no class of the store (any more)."""
    found = []
    for name in names:
        try:
            found.append(store.classes.index(name))
        except LabelError:
            continue
    return tuple(found)


def correction_fault(store: MaskStore, record: dict[str, Any], correction: str) -> str:
    """Return why a corrected mask cannot stand for the machine's, or an empty text."""
    try:
        mask = read_corrected(store, record["id"], correction)
    except UserError as error:
        return str(error).rstrip(".")
    if mask.shape != size_of_record(record):
        return f"it is of {mask.shape[0]} x {mask.shape[1]} pixels, the image of other ones by now"
    return ""


def machine_hashes(store: MaskStore, records: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the hash of the machine's mask of each image; empty where it cannot be read."""

    def hashed(record: dict[str, Any]) -> tuple[str, str]:
        try:
            return record["id"], mask_hash(store.read_mask(record))
        except UserError:
            return record["id"], ""

    with ThreadPoolExecutor(available_cpus()) as pool:
        return dict(pool.map(hashed, records))


def without_wrong(mask: UInt8[np.ndarray, "height width"], wrong: Sequence[int]) -> UInt8[np.ndarray, "height width"]:
    """Return a mask whose pixels of the labels marked wrong are undecided."""
    return np.where(np.isin(mask, wrong), np.uint8(IGNORE), mask) if wrong else mask


def reviewed_mask(counted: Counted, machine: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Return the mask of an image that counts, given the machine's."""
    mask = machine
    if counted.corrected is not None:
        mask = read_mask(counted.corrected)
    return without_wrong(mask, counted.wrong)
