"""What a reader finds in a folder before class names become ids: shared by the readers and the pre-flight check."""

import difflib
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

from data.classes import (
    COCO,
    DEFAULT_BACKGROUND,
    MAX_CLASSES,
    MAX_NAME,
    VOC,
    ClassSet,
    check_name,
    class_key,
    repeated_names,
)
from data.config import DataConfig, White
from data.errors import ConfigError, LabelError
from data.readers.ids import check_distinct
from data.samples import LazySamples, Sample, SampleSet
from data.wording import count, plural, printable, some


@dataclass(frozen=True)
class Listing:
    """The images of a split with their labels as they are spelt.

    Attributes:
        base: folder that the image paths are relative to.
        ids: id of each image.
        images: path of each image, relative to `base`, with forward slashes.
        names: class names of each image as the labels spell them; empty for an image without labels.
        classes: the classes, or None where they are to be taken from the names.
        truth_folders: folders to look for `<id>.png` or `<image path>.png` in, relative to `base`; the first wins.
        orphans: rows of the label file that no image belongs to.
        unsupported: files that look like images of a kind that is not read.
        source: where the labels come from, for messages.
        drawn_truth: ground truth of every image is drawn when it is asked for (COCO), so no file need be there.
        missing: ids of a list whose image is not on the disk.
        notes: what else the reader has left out, and why.

    """

    base: Path
    ids: Sequence[str]
    images: Sequence[str]
    names: Sequence[tuple[str, ...]]
    classes: ClassSet | None
    truth_folders: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    source: str = "the labels"
    drawn_truth: bool = False
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_distinct(self.ids, self.images)

    @cached_property
    def namesakes(self) -> frozenset[str]:
        """Paths without suffix that several images have: a mask of that name may be of any of them."""
        counts = Counter(os.path.splitext(image)[0] for image in self.images)
        return frozenset(path for path, times in counts.items() if times > 1)

    def truth(self, position: int) -> Path | None:
        """Return the file of an image's ground truth, if there is one: `<id>.png` or `<image path>.png`."""
        return find_truth(self.base, self.truth_folders, self.ids[position], self.images[position], self.namesakes)


def find_truth(
    base: Path, folders: Sequence[str], sample_id: str, image: str, namesakes: frozenset[str] = frozenset()
) -> Path | None:
    """Return the first ground-truth file there is, in the order of the folders, but none that two images claim."""
    path = os.path.splitext(image)[0]
    own = [] if path in namesakes else [f"{path}.png", f"{path.removeprefix('JPEGImages/')}.png"]
    candidates = (base / folder / name for folder in folders for name in dict.fromkeys([f"{sample_id}.png", *own]))
    return next((path for path in candidates if os.path.isfile(path)), None)  # False for a name too long


def to_samples(listing: Listing, config: DataConfig, need_labels: bool, need_truth: bool) -> SampleSet:
    """Turn a listing into samples: names into ids, and images without labels left out and counted.

    Raises:
        LabelError: an unknown class, no labels at all, or an image without labels under `unlabelled="stop"`.

    """
    classes = listing_classes(listing)
    labels = _label_ids(listing, classes)
    _check_white(config, listing, classes, need_truth)
    keep = [position for position, found in enumerate(labels) if found or not need_labels]
    left_out = _left_out(listing, labels) if len(keep) < len(labels) else []
    if left_out and not keep:
        raise LabelError(
            none_matched(listing) or f"{left_out[0]}; add labels, or name a label file with --data.labels."
        )
    if left_out and config.unlabelled == "stop":
        raise LabelError(f"{left_out[0]}; add labels, or leave such images out with --data.unlabelled=skip.")
    notes = [*_label_notes(listing), *(f"{note}; left out." for note in left_out)]
    kept = [(position, labels[position]) for position in keep]
    make = partial(_sample, listing, kept, config.truth_255, need_truth)
    return SampleSet(classes, LazySamples(len(kept), make), tuple(notes))


def _sample(
    listing: Listing, kept: Sequence[tuple[int, tuple[int, ...]]], white: White, need_truth: bool, place: int
) -> Sample:
    """Return the sample at a place among those that are kept: positions in the listing, with labels."""
    position, labels = kept[place]
    truth = listing.truth(position) if need_truth else None
    return Sample(listing.ids[position], listing.base / listing.images[position], labels, truth, white)


def _check_white(config: DataConfig, listing: Listing, classes: ClassSet, need_truth: bool) -> None:
    if need_truth and config.truth_255 == "class" and (len(classes) > 1 or listing.drawn_truth):
        what = "masks drawn from COCO's annotations" if listing.drawn_truth else count(len(classes), "class")
        raise ConfigError(
            f"--data.truth_255=class reads 255 as the one class of black-and-white masks, but there are {what}; "
            "drop it."
        )


def _left_out(listing: Listing, labels: Sequence[tuple[int, ...]]) -> list[str]:
    """Return one sentence, without its end, for the images that are not there, and one for those without labels."""
    missing = set(listing.missing)
    empty = [sample_id for sample_id, found in zip(listing.ids, labels, strict=True) if not found]
    gone = [sample_id for sample_id in empty if sample_id in missing]
    bare = [sample_id for sample_id in empty if sample_id not in missing]
    notes = []
    if bare:
        there = f"{len(bare)} of {count(len(labels), 'image')} {plural(len(bare), 'has', 'have')}"
        notes.append(f"{there} no labels in {listing.source} (the first is {printable(bare[0])})")
    if gone:
        there = f"{len(gone)} of {count(len(labels), 'image')} of the list {plural(len(gone), 'is', 'are')}"
        notes.append(f"{there} not on disk ({printable(some(gone))})")
    return notes


def _label_ids(listing: Listing, classes: ClassSet) -> list[tuple[int, ...]]:
    known: dict[tuple[str, ...], tuple[int, ...]] = {}  # many images share their labels: convert each set once
    labels = []
    for sample_id, names in zip(listing.ids, listing.names, strict=True):
        found = known.get(names)
        if found is None:
            try:
                found = known[names] = tuple(sorted({classes.index(name) for name in names}))
            except LabelError as error:
                raise LabelError(f"{listing.source}, image {sample_id}: {error}") from error
        labels.append(found)
    return labels


def _label_notes(listing: Listing) -> list[str]:
    notes = list(listing.notes)
    if listing.orphans:
        first, number = listing.orphans[0], len(listing.orphans)
        notes.append(
            f"{count(number, 'row')} of {listing.source} {plural(number, 'has', 'have')} no image (the first is "
            f"{first!r}{nearest_file(first, listing.images)}); {plural(number, 'it was', 'they were')} left out."
        )
    if listing.unsupported:
        notes.append(
            f"{count(len(listing.unsupported), 'file is', 'files are')} of an unread kind (the first is "
            f"{listing.unsupported[0]!r}); convert to JPEG or PNG."
        )
    return notes


def none_matched(listing: Listing) -> str:
    """Return what to say where a label file has rows, but none of them names an image; else an empty text."""
    if not listing.orphans or any(listing.names):
        return ""
    first = listing.orphans[0]
    near = nearest_file(first, listing.images, cutoff=0)
    return (
        f"None of the {count(len(listing.orphans), 'row')} of {listing.source} names an image in {listing.base}: the "
        f"first is {first[:MAX_NAME]!r}{near}; write the path of each image below that folder."
    )


def nearest_file(name: str, images: Sequence[str], limit: int = 20_000, cutoff: float = 0.6) -> str:
    """Return ", nearest: 'x'" for the image whose file name is most like the given one; empty if none is near.

    Args:
        name: a path; without a suffix it is compared with names without theirs.
        images: paths of the images.
        limit: compare with at most this many.
        cutoff: how like the names must be, from 0 (anything) to 1; equal numbers (1 and 0001) always are.

    """
    wanted = PurePosixPath(name.replace("\\", "/")).name
    if not wanted or len(wanted) > MAX_NAME:
        return ""
    stem, suffix = os.path.splitext(wanted)
    by_name = {image.rsplit("/", 1)[-1]: image for image in images[:limit]}
    if not suffix:
        by_name = {os.path.splitext(other)[0]: image for other, image in by_name.items()}
    for other, image in by_name.items() if stem.isdecimal() else ():
        number = os.path.splitext(other)[0]
        if number.isdecimal() and len(number) < MAX_NAME and int(number) == int(stem):
            return f", nearest: {image!r}"
    match = difflib.get_close_matches(wanted, list(by_name), n=1, cutoff=cutoff)
    return f", nearest: {by_name[match[0]]!r}" if match else ""


def listing_classes(listing: Listing) -> ClassSet:
    """Return the classes of a listing: those it has, or those its labels name.

    Raises:
        LabelError: there are no labels, or two names that are one class in all but spelling.
        ConfigError: a name that cannot be a class.

    """
    if listing.classes is not None:
        return listing.classes
    message = none_matched(listing)
    if message:
        raise LabelError(message)
    return suggest_classes(distinct_names(listing.names))


def suggest_classes(names: Sequence[str]) -> ClassSet:
    """Return classes for names as a person wrote them, with phrases and background words known for the like of them.

    A name that is one of VOC's or COCO's takes the phrase and the background words from there; another one is its own
    phrase, in lower case and with `_` and `-` as spaces, and takes the default background words.
    """
    for name in names:
        check_name(name)
    phrases: dict[str, str] = {}
    words: dict[str, tuple[str, ...]] = {}
    for known in (COCO, VOC):  # VOC's have better background words, so they come last and win
        for position, name in enumerate(known.names):
            phrases[class_key(name)] = known.phrases[position]
            words[class_key(name)] = known.background_words[position]
    plain = {name: " ".join(name.replace("_", " ").replace("-", " ").lower().split()) for name in names}
    return ClassSet(
        tuple(names),
        tuple(phrases.get(class_key(name), plain[name]) for name in names),
        tuple(words.get(class_key(name), DEFAULT_BACKGROUND) for name in names),
    )


def distinct_names(names: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the class names found, sorted.

    Raises:
        LabelError: there are none, too many for a mask, or two spellings of which nobody has said that they are one
            class (a class file says so).

    """
    composed: dict[str, str] = {}
    for name in sorted({name for group in set(names) for name in group}):
        composed.setdefault(unicodedata.normalize("NFC", name), name)  # the same to every eye
    spelt = list(composed.values())
    if not spelt:
        raise LabelError(
            "No image has a label; add labels.csv (image,labels), or put the images in one folder per class."
        )
    if len(spelt) > MAX_CLASSES:
        raise LabelError(
            f"The labels name {count(len(spelt), 'class')}, such as {some(spelt)}; a mask holds at most {MAX_CLASSES}."
        )
    same = repeated_names(spelt)
    if same:
        first = next((other for other in same[1:] if class_key(other) == class_key(same[0])), "")
        raise LabelError(
            f"The class names {same[0]!r} and {first!r} differ in case, spaces, _ or - alone: write one spelling, or "
            "say which classes there are in a class file (--data.classes)."
        )
    return spelt


def interned(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple of shared strings: 100,000 rows name the same few classes."""
    return tuple(sys.intern(name) for name in names)
