"""What a reader finds in a folder before class names become ids: shared by the readers and the pre-flight check."""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import overload

from data.classes import COCO, DEFAULT_BACKGROUND, VOC, ClassSet, class_key
from data.config import DataConfig
from data.console import count, plural, printable
from data.errors import LabelError
from data.samples import Sample, SampleSet


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

    def truth(self, position: int) -> Path | None:
        """Return the file of an image's ground truth, if there is one: `<id>.png` or `<image path>.png`."""
        return find_truth(self.base, self.truth_folders, self.ids[position], self.images[position])


def find_truth(base: Path, folders: Sequence[str], sample_id: str, image: str) -> Path | None:
    """Return the first ground-truth file there is, in the order of the folders."""
    names = dict.fromkeys([f"{sample_id}.png", str(PurePosixPath(image).with_suffix(".png"))])
    candidates = (base / folder / name for folder in folders for name in names)
    return next((path for path in candidates if path.is_file()), None)


@dataclass(frozen=True)
class ListedSamples(Sequence[Sample]):
    """Samples of a listing, each made when it is asked for."""

    base: Path
    ids: Sequence[str]
    images: Sequence[str]
    labels: Sequence[tuple[int, ...]]
    truth_folders: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        sample_id, image = self.ids[index], self.images[index]
        truth = find_truth(self.base, self.truth_folders, sample_id, image)
        return Sample(sample_id, self.base / image, self.labels[index], truth)


def to_samples(listing: Listing, config: DataConfig, need_labels: bool, need_truth: bool) -> SampleSet:
    """Turn a listing into samples: names into ids, and images without labels left out and counted.

    Raises:
        LabelError: an unknown class, no labels at all, or an image without labels under `unlabelled="stop"`.

    """
    classes = listing.classes or suggest_classes(distinct_names(listing.names))
    labels = _label_ids(listing, classes)
    keep = [position for position, found in enumerate(labels) if found or not need_labels]
    notes = [*_label_notes(listing)]
    missing = len(labels) - len(keep)
    if missing:
        first = next(listing.ids[position] for position, found in enumerate(labels) if not found)
        some = f"{missing} of {count(len(labels), 'image')} {plural(missing, 'has', 'have')}"
        note = f"{some} no labels in {listing.source} (the first is {printable(first)})"
        if config.unlabelled == "stop" or not keep:
            raise LabelError(f"{note}; add labels, or leave such images out with --data.unlabelled=skip.")
        notes.append(f"{note}; {plural(missing, 'it was', 'they were')} left out.")
    samples = ListedSamples(
        listing.base,
        [listing.ids[position] for position in keep],
        [listing.images[position] for position in keep],
        [labels[position] for position in keep],
        listing.truth_folders if need_truth else (),
    )
    return SampleSet(classes, samples, tuple(notes))


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
    notes = []
    if listing.orphans:
        first, some = listing.orphans[0], count(len(listing.orphans), "row")
        has, they_were = (
            plural(len(listing.orphans), "has", "have"),
            plural(len(listing.orphans), "it was", "they were"),
        )
        notes.append(
            f"{some} of {listing.source} {has} no image (the first is {first!r}"
            f"{nearest_file(first, listing.images)}); {they_were} left out."
        )
    if listing.unsupported:
        notes.append(
            f"{count(len(listing.unsupported), 'file is', 'files are')} of an unread kind (the first is "
            f"{listing.unsupported[0]!r}); convert to JPEG or PNG."
        )
    return notes


def nearest_file(name: str, images: Sequence[str], limit: int = 20_000) -> str:
    """Return ", nearest: 'x'" for the image whose file name is most like the given one; empty if none is near."""
    stem = PurePosixPath(name.replace("\\", "/")).name
    by_name = {PurePosixPath(image).name: image for image in images[:limit]}
    match = difflib.get_close_matches(stem, list(by_name), n=1, cutoff=0.6)
    return f", nearest: {by_name[match[0]]!r}" if match else ""


def suggest_classes(names: Sequence[str]) -> ClassSet:
    """Return classes for names as a person wrote them, with phrases and background words known for the like of them.

    A name that is one of VOC's or COCO's takes the phrase and the background words from there; another one is its own
    phrase, in lower case and with `_` and `-` as spaces, and takes the default background words.
    """
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
    """Return the class names found, sorted; of several spellings of one class the first in the alphabet."""
    spelt = sorted({name for group in set(names) for name in group})
    if not spelt:
        raise LabelError(
            "No image has a label; add labels.csv (image,labels), or put the images in one folder per class."
        )
    by_key: dict[str, str] = {}
    for name in spelt:
        by_key.setdefault(class_key(name), name)
    return list(by_key.values())


def interned(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple of shared strings: 100,000 rows name the same few classes."""
    return tuple(sys.intern(name) for name in names)
