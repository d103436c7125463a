"""What a run has done so far, shown while it runs and told at its end."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import UserError
from data.files import write_atomically
from data.samples import SampleSet
from data.store.folder import SKIPPED
from data.store.store import MaskStore
from data.wording import count, printable, some
from pseudolabel.generate.workers import Outcome

SHOWN = 20  # skipped images named at the end; all of them are in skipped.txt


@dataclass
class Tally:
    """What a run has done so far.

    Attributes:
        written: number of masks.
        relabelled: number of images that had a mask of other labels and were to be made again.
        skipped: id and reason of each image that was left out.
        warned: number of masks with warnings.
        without_words: number of images whose sentence had no room for all background words.
        dropped_words: how often each of these words was left out.
        handed_on: number of images whose review was taken over from the store that this one is made from.
        objects: connected parts that SAM was asked about.
        changed: number of those that it changed.
        started: when the run began.

    """

    written: int = 0
    relabelled: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    warned: int = 0
    without_words: int = 0
    dropped_words: Counter[str] = field(default_factory=Counter)
    handed_on: int = 0
    objects: int = 0
    changed: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started


def count_outcome(outcome: Outcome, tally: Tally, on_error: str) -> None:
    """Add an outcome to the tally; an error stops the run unless `on_error` is "skip"."""
    if outcome.error is not None:
        if on_error == "stop":
            raise UserError(outcome.error if outcome.id in outcome.error else f"{outcome.id}: {outcome.error}")
        tally.skipped.append((outcome.id, outcome.error))
    else:
        tally.written += 1
        record = outcome.record or {}
        tally.warned += bool(record.get("warnings"))
        tally.without_words += bool(record.get("dropped_words"))
        tally.objects += record.get("sam", {}).get("objects", 0)
        tally.changed += record.get("sam", {}).get("changed", 0)
        tally.dropped_words.update(record.get("dropped_words", ()))


def print_sam(tally: Tally) -> None:
    """Say what SAM changed, where it was asked."""
    if tally.objects:
        print(
            f"SAM changed {tally.changed} of {count(tally.objects, 'connected part')}; the others stayed as they were."
        )


def print_skipped(store_path: Path, skipped: list[tuple[str, str]]) -> None:
    """Name the images that were skipped, the first ones here and all of them in skipped.txt."""
    listing = store_path / SKIPPED
    if not skipped:
        return
    print(f"{count(len(skipped), 'IMAGE WAS', 'IMAGES WERE')} SKIPPED:")
    for sample_id, reason in sorted(skipped)[:SHOWN]:
        print(f"  {printable(sample_id)}: {printable(reason)}")
    if store_path.is_dir():
        lines = "".join(f"{sample_id}\t{reason}\n" for sample_id, reason in sorted(skipped))
        write_atomically(listing, lines.encode(errors="backslashreplace"))
        print(f"  All of them: {listing}")


def check_some_made(store_path: Path, skipped: Sequence[tuple[str, str]]) -> None:
    """Raise UserError where images were skipped and the store holds no mask at all, of this run or of one before."""
    if skipped and not ((store_path / "store.json").exists() and MaskStore.open(store_path).finished()):
        raise UserError(f"none of {count(len(skipped), 'image')} could be processed; the reasons are above")


def print_summary(store_path: Path, samples: SampleSet, tally: Tally) -> None:
    """Print what was written where, what was left out and why, and what to run next."""
    found = MaskStore.open(store_path).finished_labels() if (store_path / "store.json").exists() else {}
    there = len(found)
    rate = f", {tally.written / tally.seconds:.1f} images/s" if tally.written else ""
    print(f"{count(there, 'mask')} in {store_path / 'masks'}: {tally.written} made now in {tally.seconds:.0f} s{rate}.")
    if tally.relabelled:
        print(f"{tally.relabelled} of them again, because their labels have changed.")
    if tally.warned:
        print(f"Warnings (nothing found for a class, for example) for {tally.warned} of them; the report lists them.")
    print_sam(tally)
    print_skipped(store_path, tally.skipped)
    if tally.dropped_words:
        words = printable(", ".join(f"{word} ({number})" for word, number in tally.dropped_words.most_common()))
        images = count(tally.without_words, "image")
        print(f"Note: the sentences of {images} had no room for all background words: {words}.")
    _print_label_notes(found, samples)
    for note in samples.notes:
        print(f"Note: {printable(note)}")
    if there:
        print(f"Next: pseudolabel report --store {store_path}    a page of overlays, coverage and warnings")
        print(f"      pseudolabel score --store {store_path}     mIoU, where there is ground truth")
        print(f"      segtrain fit --data.store {store_path}     train a network on the masks")


def _print_label_notes(found: dict[str, tuple[int, ...] | None], samples: SampleSet) -> None:
    """Say which masks of the store nobody can vouch for: of images without labels by now, or of labels unknown."""
    listed = {sample.id for sample in samples.samples} if found else set()
    orphans = sorted(set(found) - listed)
    if orphans:
        names = some(orphans, SHOWN)
        masks = count(len(orphans), "mask is of an image", "masks are of images")
        print(f"Note: {masks} that the data no longer lists with labels: {printable(names)}.")
        print("      They are kept, and a network would train on them; make a new store to be rid of them.")
    unknown = sum(labels is None for labels in found.values())
    if unknown:
        masks = count(unknown, "mask")
        print(f"Note: of {masks} the store does not say the labels; whether they have changed is not known.")
