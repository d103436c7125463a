"""What a calibration keeps beside its output while it runs, so that the same command goes on after an interruption.

The folder `.<output>.checkpoint` holds a header (which model, data and settings it is of), a line for every setting
that has been judged, and, for the step it is at, a file for each picture that has been read. A resumed run takes the
same steps again and finds them answered: its result is that of a run that was never interrupted (to the bit on a CPU;
on a GPU pictures share batches, and last bits depend on which). Every file appears whole or not at all.
"""

import contextlib
import errno
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from data.config import to_plain
from data.errors import StoreError
from data.files import append_line, file_sha256, json_bytes, parse_json, write_atomically
from data.machine import written_by
from pseudolabel.calibrate.budget import Budget

FORMAT, FORMAT_VERSION = "pseudolabel-calibration", 1
HEADER, JUDGED, WRITTEN = "calibration.json", "judged.jsonl", "written.jsonl"
FULL = (errno.ENOSPC, errno.EDQUOT)

Found = Sequence[float]  # a score, and the number that goes with it
Item = TypeVar("Item")

logger = logging.getLogger(__name__)


def checkpoint_path(output: Path) -> Path:
    """Return the folder in which the calibration of an output file is kept while it runs."""
    return output.with_name(f".{output.name}.checkpoint")


def digest(*what: Any) -> str:
    """Return a name for what some settings and texts say."""
    return blake2b(json_bytes([to_plain(each) for each in what], sort_keys=True), digest_size=16).hexdigest()


def wrote(output: Path) -> bool:
    """Return whether a calibration that is still kept wrote this file, as it is now, and so may replace it."""
    lines = _lines(checkpoint_path(output) / WRITTEN)
    written = {line.get("sha256") for line in lines}
    return bool(written) and output.is_file() and file_sha256(output) in written


@contextlib.contextmanager
def kept_beside(output: Path, content: Mapping[str, Any], budget: Budget) -> Iterator["Kept"]:
    """Give what is kept of the calibration of an output file; arguments and errors as `Kept.start`.

    Raises:
        StoreError: another process is at it.

    """
    kept = Kept(checkpoint_path(output), budget)
    kept.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(kept.folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise StoreError(
            f"Another process is calibrating {output}; wait for it, or choose another --output."
        ) from error
    try:
        kept.start(content, output)
        yield kept
    finally:
        lock.release()
        if kept.over or not kept.holds_anything():
            shutil.rmtree(kept.folder, ignore_errors=True)


@dataclass
class Kept:
    """The folder of a calibration that runs, and what has been judged.

    Attributes:
        folder: where it is.
        budget: checked before every picture that is read.
        judged: what is known, by `digest` of what was judged.
        over: the calibration has come to its end, and the folder can go.

    """

    folder: Path
    budget: Budget = field(default_factory=Budget)
    judged: dict[str, Found] = field(default_factory=dict)
    over: bool = False
    _full: bool = False
    _used: set[str] = field(default_factory=set)

    def start(self, content: Mapping[str, Any], output: Path) -> None:
        """Write the header, or check that the one that is there says the same and read what has been judged.

        Args:
            content: what decides the result, JSON values by a word for each.
            output: the file that is going to be written.

        Raises:
            StoreError: another model, data or settings, or a damaged header.

        """
        path = self.folder / HEADER
        if not path.is_file():
            head = {"format": FORMAT, "format_version": FORMAT_VERSION, "written_by": written_by("pseudolabel")}
            self._write(path, json_bytes({**head, **content}, indent=1) + b"\n")
            return
        remedy = "delete it, or choose another --output"
        try:
            there = parse_json(path.read_bytes())
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}): {remedy}.") from error
        version = there.get("format_version") if isinstance(there, dict) else None
        if version != FORMAT_VERSION:
            raise StoreError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}: {remedy}.")
        now = parse_json(json_bytes(content))
        other = [key for key, value in now.items() if there.get(key) != value]
        if other:
            raise StoreError(
                f"{self.folder} is the checkpoint of a calibration of {output} that differs in "
                f"{', '.join(other)}: use the same, {remedy}."
            )
        for line in _lines(self.folder / JUDGED):
            found = line.get("judged")
            self.judged |= found if isinstance(found, dict) else {}

    def add(self, found: Mapping[str, Found]) -> None:
        """Remember what has been judged; one line."""
        self.judged |= found
        self._try(lambda: append_line(self.folder / JUDGED, {"judged": found}))

    def by_picture(
        self,
        key: str,
        pictures: Sequence[Item],
        make: Callable[[Sequence[Item]], Iterable[dict[str, Tensor]]],
    ) -> Iterator[tuple[Item, dict[str, Tensor]]]:
        """Yield what is made of each picture, out of a file where a run before this one has come so far.

        Args:
            key: `digest` of what decides what is made.
            pictures: in the order in which they are made.
            make: makes it for the pictures that are left, in their order.

        Raises:
            OutOfTime: the time for searching is used up.

        """
        folder, done = self.folder / key, 0
        self._used.add(key)
        for picture in pictures:
            there = _read(folder / f"{done}.safetensors")
            if there is None:
                break
            done += 1
            yield picture, there
        if done == len(pictures):
            return
        self.budget.check()
        for number, made in enumerate(make(pictures[done:]), start=done):
            self._try(partial(self._write, folder / f"{number}.safetensors", save(made)))
            yield pictures[number], made
            if number + 1 < len(pictures):
                self.budget.check()

    def drop_pictures(self) -> None:
        """Delete what was made of pictures since this was called last: what it was made for has been judged."""
        for key in self._used:
            shutil.rmtree(self.folder / key, ignore_errors=True)
        self._used.clear()

    def note_output(self, content: bytes) -> None:
        """Note what is about to be written to the output while the search is not over, so that it may be replaced."""
        self._try(lambda: append_line(self.folder / WRITTEN, {"sha256": sha256(content).hexdigest()}))

    def holds_anything(self) -> bool:
        """Return whether anything was found that is worth going on from."""
        return bool(self.judged) or any(path.is_dir() and any(path.iterdir()) for path in self.folder.iterdir())

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)

    def _try(self, keep: Callable[[], None]) -> None:
        """Keep something; on a full disk say so once and go on without."""
        if self._full:
            return
        try:
            keep()
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._full = True
            logger.warning(
                "%s: the disk is full; the calibration goes on, but from now on an interruption loses what it found",
                self.folder,
            )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file that are whole; a torn one was never finished, and its settings are judged again."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = parse_json(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a file, or None where it is missing or was cut off by a power failure."""
    try:
        return load(path.read_bytes())
    except (FileNotFoundError, SafetensorError):
        return None
