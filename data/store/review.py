"""review.jsonl: what people have decided about the masks of a store, and the masks they have corrected.

```
review.jsonl                     one line for each decision, only ever appended to
corrected/<id>.<12 digits>.png   a mask that a person has made, palette PNG as in masks/; the digits begin its hash
```

A line says who decided what about which mask, when, and with which program. It sets one or more of `decision`, `wrong`
(labels whose region is wrong, by name) and `correction` (hash of a corrected mask, empty if one was taken back); what
it does not name stays as earlier lines left it, so that two people who work on one image at once lose nothing: of each
of the three the last line counts, and all lines are kept. `mask` is the hash of the mask that was looked at, `machine`
that of the machine's mask at the time. A decision about a mask that has changed since is stale.

Nothing here is ever deleted or written over: neither by `generate --overwrite`, which empties masks/ alone, nor by
`refine` and `relabel`, which hand decisions on to the store they write. `reviewed` says what they mean for training.
"""

import datetime
import hashlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8

from data.errors import StoreError
from data.files import append_line, parse_json, write_atomically
from data.machine import written_by
from data.masks import read_mask, write_mask
from data.samples import check_id
from data.store.folder import CORRECTED, REVIEW
from data.store.records import check_mask
from data.store.store import MaskStore

logger = logging.getLogger(__name__)

REVIEW_VERSION = 1  # of a line
MAX_LINE_BYTES = 1_000_000
MAX_WHO = 200  # characters of a person's name
DIGITS = 12  # of a hash, in the name of a corrected mask
Verdict = Literal["accept", "reject", "skip", "none"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Change:
    """What one decision sets; None: as it was.

    Attributes:
        decision: accept, reject, skip (looked at, not decided), or none, which takes back what was decided.
        wrong: names of the labels whose region is wrong.
        correction: hash of the corrected mask that takes the place of the machine's; empty: the machine's again.
        settings: mask settings of a correction that was made by retuning; None where it was drawn by hand alone.

    """

    decision: Verdict | None = None
    wrong: tuple[str, ...] | None = None
    correction: str | None = None
    settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class Review:
    """What holds of one image after all lines about it.

    Attributes:
        decision: the last decision.
        decided_on: hash of the mask that was looked at then.
        wrong: names of the labels whose region is wrong.
        wrong_on: hash of the machine's mask then.
        correction: hash of the corrected mask that counts; empty if none does.
        corrected_on: hash of the machine's mask that was corrected.
        settings: mask settings of a correction made by retuning.
        who: who wrote the last line.
        when: when that was, UTC.
        lines: how many lines there are about the image.

    """

    decision: Verdict = "none"
    decided_on: str = ""
    wrong: tuple[str, ...] = ()
    wrong_on: str = ""
    correction: str = ""
    corrected_on: str = ""
    settings: dict[str, Any] | None = None
    who: str = ""
    when: str = ""
    lines: int = 0

    @property
    def says_something(self) -> bool:
        """Whether anything holds that was not so before the first line."""
        return bool(self.decision != "none" or self.wrong or self.correction)

    def is_stale(self, machine: str) -> bool:
        """Return whether a decision or mark is about another mask than the one that counts now.

        Args:
            machine: hash of the machine's mask now.

        """
        decided = self.decision != "none" and self.decided_on != (self.correction or machine)
        return decided or bool(self.wrong and self.wrong_on != machine)


@dataclass
class ReviewLog:
    """The decisions of a store as they stand; `refresh` reads what was appended since.

    Attributes:
        path: the file, which need not exist.
        reviews: what holds, by image.

    """

    path: Path
    reviews: dict[str, Review] = field(default_factory=dict)
    _read: int = 0  # bytes
    _lines: int = 0
    _inode: int = -1

    def refresh(self) -> bool:
        """Read the lines that were appended since; return whether there were any.

        Raises:
            StoreError: a line with values that cannot be, or of a newer version of the program.

        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            changed, self.reviews = bool(self.reviews), {}
            self._read = self._lines = 0
            return changed
        if status.st_ino != self._inode or status.st_size < self._read:  # another file: restored, or cut
            self.reviews, self._read, self._lines, self._inode = {}, 0, 0, status.st_ino
        if status.st_size == self._read:
            return False
        if not self.path.is_file():
            raise StoreError(f"{self.path} is not a file; move it away.")
        with self.path.open("rb") as file:
            file.seek(self._read)
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):  # another is being written
                self._read += len(line)
                self._lines += 1
                self._take(line)
            if len(line) == MAX_LINE_BYTES:
                raise StoreError(f"Line {self._lines + 1} of {self.path} is longer than {MAX_LINE_BYTES} bytes.")
        return True

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            values = parse_json(line)
        except ValueError:
            logger.warning("Line %d of %s is torn and was skipped.", self._lines, self.path)
            return
        fault = line_fault(values)
        if fault:
            raise StoreError(f"Line {self._lines} of {self.path}: {fault}; mend or delete the line.")
        self.reviews[values["id"]] = with_line(self.reviews.get(values["id"], Review()), values)


def read_reviews(store: MaskStore) -> dict[str, Review]:
    """Return what people have decided about the images of a store, by id.

    Raises:
        StoreError: a line with values that cannot be, or of a newer version of the program.

    """
    log = ReviewLog(store.path / REVIEW)
    log.refresh()
    return log.reviews


def with_line(before: Review, line: Mapping[str, Any]) -> Review:
    """Return what holds of an image after one more line."""
    after = replace(before, who=line["who"], when=line["when"], lines=before.lines + 1)
    if "decision" in line:
        after = replace(after, decision=line["decision"], decided_on=line["mask"])
    if "wrong" in line:
        after = replace(after, wrong=tuple(line["wrong"]), wrong_on=line["machine"])
    if "correction" in line:
        after = replace(after, correction=line["correction"], corrected_on=line["machine"])
        after = replace(after, settings=line.get("settings"))
    return after


def line_fault(line: Any) -> str:
    """Return what is wrong with a line, or an empty text."""
    if not isinstance(line, dict):
        return "no object"
    version = line.get("format_version")
    if version != REVIEW_VERSION:
        return f"format version {version!r:.20}, this program reads {REVIEW_VERSION}: install a newer text2mask-wsss"
    texts = ("id", "who", "when", "mask", "machine")
    if not all(isinstance(line.get(name), str) for name in texts):
        return f"not every one of {', '.join(texts)} is a text"
    if not all(_HASH.fullmatch(line[name]) for name in ("mask", "machine")):
        return "mask and machine must be hashes of 64 hexadecimal digits"
    if "decision" in line and line["decision"] not in VERDICTS:
        return f"decision is {line['decision']!r:.40}, not one of {', '.join(VERDICTS)}"
    wrong = line.get("wrong", [])
    if not isinstance(wrong, list) or not all(isinstance(name, str) for name in wrong):
        return "wrong is not a list of class names"
    correction = line.get("correction", "")
    if not isinstance(correction, str) or (correction and not _HASH.fullmatch(correction)):
        return "correction is not a hash of 64 hexadecimal digits, and not empty"
    if not isinstance(line.get("settings", {}), dict | None):
        return "settings are no object"
    return ""


def write_decision(
    store: MaskStore, sample_id: str, change: Change, *, mask: str, machine: str, who: str, program: str = "pseudolabel"
) -> dict[str, Any]:
    """Append a decision to a store's review.jsonl and return its line.

    Args:
        store: the store.
        sample_id: the image.
        change: what is decided.
        mask: hash of the mask that was looked at.
        machine: hash of the machine's mask.
        who: who decides, any text.
        program: name of the program.

    Raises:
        StoreError: values that cannot be.
        OSError: the file is a link, or the disk does not take the line.

    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    line: dict[str, Any] = {"format_version": REVIEW_VERSION, "id": check_id(sample_id)}
    if change.decision is not None:
        line["decision"] = change.decision
    if change.wrong is not None:
        line["wrong"] = list(change.wrong)
    if change.correction is not None:
        line["correction"] = change.correction
        if change.settings is not None:
            line["settings"] = change.settings
    line |= {"who": who[:MAX_WHO], "when": now, "program": written_by(program), "mask": mask, "machine": machine}
    fault = line_fault(line)
    if fault:
        raise StoreError(f"A decision about {sample_id} cannot be written: {fault}.")
    append_line(store.path / REVIEW, line)
    return line


def mask_hash(mask: UInt8[np.ndarray, "height width"]) -> str:
    """Return the SHA-256 of a mask's size and pixels, 64 hexadecimal digits, however a file packs them."""
    digest = hashlib.sha256(f"{mask.shape[0]} {mask.shape[1]} ".encode())
    digest.update(np.ascontiguousarray(mask).tobytes())
    return digest.hexdigest()


def corrected_path(store: MaskStore, sample_id: str, correction: str) -> Path:
    """Return the file of a corrected mask."""
    return store.path / CORRECTED / f"{check_id(sample_id)}.{correction[:DIGITS]}.png"


def write_corrected(store: MaskStore, sample_id: str, mask: UInt8[np.ndarray, "height width"]) -> str:
    """Write a corrected mask beside all others of its image and return its hash.

    Raises:
        ImageError: a class that does not exist.
        OSError: the folder is a link, or the disk does not take the file.

    """
    found = mask_hash(mask)
    path = corrected_path(store, sample_id, found)
    check_mask(mask, None, len(store.classes) + 1, path)
    store.own_folder(CORRECTED)
    if not path.exists():
        write_mask(path, mask)
    return found


def read_corrected(store: MaskStore, sample_id: str, correction: str) -> UInt8[np.ndarray, "height width"]:
    """Return a corrected mask.

    Raises:
        ImageError: missing, damaged, or with a class that does not exist.
        StoreError: it is not the one that was decided on.

    """
    path = corrected_path(store, sample_id, correction)
    mask = read_mask(path)
    check_mask(mask, None, len(store.classes) + 1, path)
    if mask_hash(mask) != correction:
        raise StoreError(f"The corrected mask {path} is not the one that {REVIEW} names; restore it, or correct again.")
    return mask


def hand_on(source: MaskStore, target: MaskStore) -> int:
    """Give a store the decisions of the store that it is made from; return for how many images.

    Images that the target has decisions about already keep those. Lines are copied as they are, so that a decision
    about a mask which is another one in the target is stale there; corrected masks count there too.
    """
    there = read_reviews(target)
    images: dict[str, list[dict[str, Any]]] = {}
    try:
        lines = (source.path / REVIEW).read_bytes().splitlines()
    except FileNotFoundError:
        return 0
    read_reviews(source)  # raises where a line cannot be
    for line in lines:
        try:
            values = parse_json(line) if line.strip() else {}
        except ValueError:
            continue
        if values and values["id"] not in there:
            images.setdefault(values["id"], []).append(values)
    for sample_id, found in images.items():
        for correction in {line["correction"] for line in found if line.get("correction")}:
            _copy(source, target, sample_id, correction)
        for values in found:
            append_line(target.path / REVIEW, values)
    return len(images)


def _copy(source: MaskStore, target: MaskStore, sample_id: str, correction: str) -> None:
    """Copy a corrected mask, if it is there; a missing one is an error where it is read."""
    path, copy = (corrected_path(store, sample_id, correction) for store in (source, target))
    if path.is_file() and not os.path.lexists(copy):
        target.own_folder(CORRECTED)
        write_atomically(copy, path.read_bytes())
