"""A sample is an image, its labels and, where there is one, its ground truth."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from data.classes import ClassSet
from data.config import White
from data.errors import LabelError
from data.wording import holds_control

_WINDOWS = os.name == "nt"
_NOT_ON_WINDOWS = frozenset('<>:"|?*')
_PORTS = (f"{port}{digit}" for port in ("COM", "LPT") for digit in "123456789\u00b9\u00b2\u00b3")
_WINDOWS_DEVICES = frozenset(("CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *_PORTS))
MAX_ID_BYTES = 200  # file systems allow 255 bytes per name; suffixes and temporary names need some


@dataclass(frozen=True)
class Sample:
    """One image with its image-level labels.

    Attributes:
        id: name of the image in a store, checked by `check_id`.
        image_path: the image file.
        labels: class ids present, ascending, from 1; empty only where unlabelled images were asked for.
        truth_path: mask of the true classes, for scoring only; None where there is none.
        white: what 255 in that mask means; see `data.masks.read_truth`.

    """

    id: str
    image_path: Path
    labels: tuple[int, ...]
    truth_path: Path | None = None
    white: White = "ignore"


@dataclass(frozen=True)
class SampleSet:
    """The samples of one split.

    Attributes:
        classes: what the label ids mean.
        samples: the samples; may make each one only when it is asked for.
        notes: what was left out and why, one sentence each, to be printed at the end of a run.

    """

    classes: ClassSet
    samples: Sequence[Sample]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LazySamples(Sequence[Sample]):
    """Samples that are made each time they are asked for.

    Attributes:
        size: how many there are.
        make: returns the sample at a position; what it raises is the caller's, an IndexError too.

    """

    size: int
    make: Callable[[int], Sample]

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Sample]:
        """Yield every sample; an IndexError inside is an error, where `Sequence` would take it for the end."""
        return map(self.make, range(self.size))

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        places = range(self.size)[index]
        return self.make(places) if isinstance(places, int) else [self.make(place) for place in places]


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """Return up to `limit` positions out of `count`, spread evenly, the first among them; None: all.

    >>> evenly_spaced(10, 4), evenly_spaced(2, 4)
    ([0, 2, 5, 7], [0, 1])
    """
    taken = count if limit is None else min(count, limit)
    return [position * count // taken for position in range(taken)]


def check_id(sample_id: str) -> str:
    """Return the id if it can be a file name inside a store.

    An id that comes from a list (VOC, COCO) or a store is taken as it is, though Windows may not be able to name a file
    so; it is refused there alone. Ids that are made from the names of a person's own files are names that every
    system can hold (`is_portable`).

    Raises:
        LabelError: empty, too long, hidden, with a separator, "..", or a character that cannot be printed; on Windows
            also what Windows cannot name.

    """
    reason = _id_fault(sample_id)
    if reason:
        raise LabelError(
            f"Image id {sample_id[:MAX_ID_BYTES]!r} {reason}; an id becomes a file name, so rename the image."
        )
    return sample_id


def _id_fault(sample_id: str) -> str:
    if not sample_id:
        return "is empty"
    if any(character in sample_id for character in "/\\"):
        return "holds a path separator"
    if ".." in sample_id or sample_id.startswith("."):
        return "begins with a dot or holds '..'"
    if holds_control(sample_id):
        return "holds a control character"
    if len(sample_id.encode()) > MAX_ID_BYTES:
        return f"is longer than {MAX_ID_BYTES} bytes"
    if _WINDOWS and not is_portable(sample_id):
        return "is no file name on Windows"
    return ""


def is_portable(sample_id: str) -> bool:
    """Return whether Windows can name a file so: no <>:"|?*, no dot or space at the end, no device as CON or nul.x.

    Source: learn.microsoft.com/windows/win32/fileio/naming-a-file.
    """
    device = sample_id.split(".")[0].rstrip(" ").upper()
    return not (_NOT_ON_WINDOWS & set(sample_id) or sample_id.endswith((".", " ")) or device in _WINDOWS_DEVICES)
