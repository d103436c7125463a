"""A store under review, the desk that a reviewer sits at: the queue, what was decided, and masks made anew.

It knows nothing of pages: `server` speaks for it. Every id that comes from outside is looked up among the images of the
index (`Desk.line`), so that none ever becomes a path that the index does not name. All methods may be called from
several threads at once.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import UInt8

from data.errors import ConfigError, StoreError, UserError
from data.images import read_image
from data.store.folder import INDEX, REVIEW
from data.store.records import size_of_record
from data.store.review import Change, Review, ReviewLog, mask_hash, read_corrected, write_corrected, write_decision
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from data.wording import count
from pseudolabel.config import mask_settings, stored_mask_settings
from pseudolabel.masks.config import MaskConfig
from pseudolabel.masks.labelmap import label_map
from pseudolabel.masks.working import working_size
from pseudolabel.review.queue import Line, Query, count_decisions, lines_of, select
from pseudolabel.review.retuning import Mask, Retuned, display_size, drawn_over, retuned_settings, shrunk

KEPT = 24  # pictures, soft maps and retuned masks that are kept in memory: of the last few images
Shown = Literal["machine", "correction", "counts", "predictions"]
T = TypeVar("T")


class UnknownImage(StoreError):
    """An id that the store does not hold."""


class Desk:
    """A store that is being reviewed; see this file's first lines.

    Attributes:
        store: the store.
        predictions: masks of a network, or None.
        root: folder of the data set, if it is not where the store says.

    """

    def __init__(
        self,
        path: Path,
        root: Path | None = None,
        predictions: MaskStore | None = None,
        disagreement: dict[str, float] | None = None,
    ) -> None:
        self._path, self.root, self.predictions = path, root, predictions
        self._predicted = set() if predictions is None else predictions.finished()
        self._disagreement = disagreement or {}
        self._lock = threading.RLock()
        self._cache: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._hashes: dict[str, tuple[tuple[int, int], str]] = {}
        self._stamp: tuple[tuple[int, int, int], ...] = ()
        self._lines: dict[str, Line] = {}
        self._log = ReviewLog(path / REVIEW)
        self.store = MaskStore.open(path)
        self.refresh()

    def refresh(self) -> None:
        """Take up what has happened on disk: images made meanwhile, a store started over, others' decisions."""
        with self._lock:
            self._log.refresh()
            stamp = tuple(_stamp(self._path / name) for name in ("store.json", INDEX))
            if stamp == self._stamp:
                return
            self.store = MaskStore.open(self._path)
            self._lines = lines_of(self.store, self._disagreement)
            self._stamp = stamp
            self._cache.clear()

    def line(self, sample_id: str) -> Line:
        """Return an image of the index.

        Raises:
            UnknownImage: it holds none of that id.

        """
        with self._lock:
            found = self._lines.get(sample_id)
        if found is None:
            raise UnknownImage(f"The store holds no image {sample_id[:200]!r}.")
        return found

    def holds(self, sample_id: str) -> bool:
        """Return whether the index names an image."""
        with self._lock:
            return sample_id in self._lines

    def review(self, sample_id: str) -> Review:
        """Return what was decided about an image."""
        with self._lock:
            self._log.refresh()
            return self._log.reviews.get(sample_id, Review())

    def queue(self, query: Query) -> list[str]:
        """Return the ids of the images that a query asks for, in its order."""
        self.refresh()
        with self._lock:
            lines, reviews = list(self._lines.values()), dict(self._log.reviews)
        return select(lines, reviews, query, lambda line, review: review.is_stale(self.machine_hash(line)))

    def counts(self) -> dict[str, int]:
        """Return how many images there are of each decision, and in all."""
        with self._lock:
            self._log.refresh()
            reviews = [review for sample_id, review in self._log.reviews.items() if sample_id in self._lines]
            return count_decisions(len(self._lines), reviews)

    @property
    def lines(self) -> list[Line]:
        """All images, in the order of the index."""
        with self._lock:
            return list(self._lines.values())

    def machine_hash(self, line: Line) -> str:
        """Return the hash of the machine's mask of an image; a file that has not changed is read once.

        Empty where it cannot be read.
        """
        sample_id = line.record["id"]
        try:
            status = (self.store.path / "masks" / f"{sample_id}.png").stat()
            stamp = (status.st_mtime_ns, status.st_size)
            known = self._hashes.get(sample_id)
            if known is None or known[0] != stamp:
                known = self._hashes[sample_id] = (stamp, mask_hash(self.store.read_mask(line.record)))
        except (OSError, UserError):
            return ""
        return known[1]

    def image(self, line: Line) -> UInt8[np.ndarray, "rows columns 3"]:
        """Return an image, a large one at its working size.

        Raises:
            ImageError: it cannot be read.

        """
        path = self.store.image_path(line.record, self.root)
        return self._cached("image", line, lambda: shrunk(read_image(path)))

    def soft(self, line: Line) -> SoftMaps | None:
        """Return the soft maps of an image, or None if the store keeps none.

        Raises:
            StoreError: they are damaged.

        """
        return self._cached("soft", line, lambda: self.store.read_soft(line.record))

    def mask(self, line: Line, which: Shown = "counts") -> Mask | None:
        """Return a mask at its image's size: the machine's, the corrected one, the one that counts, or a network's.

        Raises:
            UserError: it cannot be read.

        """
        correction = self.review(line.record["id"]).correction
        match which:
            case "predictions":
                there = self.predictions is not None and line.record["id"] in self._predicted
                return self.predictions.read_argmax(line.record["id"]) if there and self.predictions else None
            case "correction" | "counts" if correction:
                return read_corrected(self.store, line.record["id"], correction)
            case "correction":
                return None
            case _:
                return self.store.read_mask(line.record)

    def settings(self) -> MaskConfig:
        """Return the mask settings that the store was made with."""
        return mask_settings(self.store.header["config"])

    def retune(self, line: Line, change: Retuned) -> Mask:
        """Return an image's mask made again from its soft maps, as `pseudolabel refine` makes it.

        Raises:
            StoreError: the store keeps no soft maps of it, or they are damaged.
            UserError: the image cannot be read; a setting is out of its range.

        """
        soft = self.soft(line)
        if soft is None:
            raise StoreError(f"The store keeps no soft maps of {line.record['id']}; it cannot be retuned.")
        config = retuned_settings(self.settings(), change)
        return self._cached(
            f"mask {config}", line, lambda: label_map(self._pixels_for(line, soft, config), soft, config)[0]
        )

    def _pixels_for(self, line: Line, soft: SoftMaps, config: MaskConfig) -> UInt8[np.ndarray, "rows columns 3"]:
        """Return the image at a size that `label_map` takes; read again where the store works at another size."""
        if working_size(soft.image_hw, config.crf) == display_size(soft.image_hw):
            return self.image(line)
        return read_image(self.store.image_path(line.record, self.root))

    def decide(self, line: Line, change: Change, *, mask: str, machine: str, who: str) -> Review:
        """Write a decision and return what holds now; arguments as `data.store.review.write_decision`.

        Raises:
            ConfigError: a correction that was never made, or a label that the image does not have.

        """
        sample_id = line.record["id"]
        names = {self.store.classes.name(label) for label in line.record.get("labels", ())}
        unknown = sorted(set(change.wrong or ()) - names - set(self.review(sample_id).wrong))
        if unknown:
            raise ConfigError(f"{sample_id} does not have the label {unknown[0]!r}.")
        if change.correction:
            read_corrected(self.store, sample_id, change.correction)
        write_decision(self.store, sample_id, change, mask=mask, machine=machine, who=who)
        return self.review(sample_id)

    def correct(
        self,
        line: Line,
        drawn: Mask,
        change: Change,
        *,
        base: Literal["machine", "correction", "retuned"],
        retuned: Retuned | None,
        machine: str,
        who: str,
    ) -> Review:
        """Write a corrected mask and the decision about it; return what holds now.

        Args:
            line: the image.
            drawn: the mask as it was seen, at `display_size`.
            change: what else is decided.
            base: the mask that was drawn on; where it was left as it is, its own pixels are kept at full size.
            retuned: settings of a base that was made again.
            machine: hash of the machine's mask that was seen.
            who: who decides.

        Raises:
            ConfigError: a mask of another size than the image is shown at.
            ImageError: a class that does not exist.

        """
        sample_id, image_hw = line.record["id"], size_of_record(line.record)
        if drawn.shape != display_size(image_hw):
            raise ConfigError(f"A mask of {drawn.shape} pixels for an image that is shown at {display_size(image_hw)}.")
        under = self.mask(line, "machine" if base == "machine" else "counts")
        if base == "retuned":
            under = self.retune(line, retuned or Retuned())
        assert under is not None
        found = write_corrected(self.store, sample_id, drawn_over(under, drawn))
        if base == "retuned":
            used = retuned_settings(self.settings(), retuned or Retuned())
            change = replace(change, settings=stored_mask_settings(used))
        change = replace(change, correction=found)
        write_decision(self.store, sample_id, change, mask=found, machine=machine, who=who)
        return self.review(sample_id)

    def _cached(self, what: str, line: Line, make: Callable[[], T]) -> T:
        """Return what was made for an image lately, or make it."""
        key = (what, line.record["id"])
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        made = make()
        with self._lock:
            self._cache[key] = made
            while len(self._cache) > KEPT:
                self._cache.popitem(last=False)
        return made

    def describe(self) -> str:
        """Return in a few words what lies on the desk."""
        counts = self.counts()
        decided = counts["total"] - counts["none"]
        return f"{count(counts['total'], 'image')}, {decided} of them decided"


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return status.st_ino, status.st_mtime_ns, status.st_size
