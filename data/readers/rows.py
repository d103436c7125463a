"""Which image a row of a label file means.

A row fits an image by its path below the folder, else by its file name, else by its name without suffix; accents
composed or not (macOS) and capitals make no difference. A row that names folders fits only an image that lies in them:
b/1.png is not a/1.png. Absolute paths of another machine and Windows paths fit by their ends. No image takes the labels
of two files: the row that names it most exactly wins, the others fit no image.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data.errors import LabelError
from data.images import IMAGE_SUFFIXES
from data.readers.ids import folded
from data.readers.listing import interned

UNREAD_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".raw", ".cr2", ".nef", ".arw", ".dng", ".svg", ".psd", ".jp2"})
_ABSOLUTE = re.compile("/|[A-Za-z]:/")
_EXACT = 1_000_000  # beats any number of equal path parts


def match_rows(
    rows: dict[str, tuple[str, ...]], images: Sequence[str], base: Path
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Give each image the names of its rows.

    Args:
        rows: names by the image as a label file gives it, with forward slashes.
        images: paths relative to `base`, with forward slashes.
        base: the folder of the images.

    Returns:
        The names of each image (empty without a row), and the rows that fit no image.

    Raises:
        LabelError: a row that fits several images equally well, or several rows that fit one.

    """
    places = _Places(images, Path(os.path.abspath(base)).as_posix())
    fits: dict[int, list[tuple[int, str]]] = {}
    orphans = []
    for row in rows:
        position = places.find(row)
        if position is None:
            orphans.append(row)
        else:
            fits.setdefault(position, []).append((places.nearness(row, position), row))
    names: list[tuple[str, ...]] = [()] * len(images)
    for position, fit in fits.items():
        best = max(nearness for nearness, _ in fit)
        chosen = [row for nearness, row in fit if nearness == best]
        if len({folded(_plain(row)) for row in chosen}) > 1 and best < _EXACT:
            raise LabelError(
                f"The label rows {chosen[0]!r} and {chosen[1]!r} both fit {images[position]!r}; write the path below "
                "the folder."
            )
        orphans += [row for nearness, row in fit if nearness < best]
        names[position] = interned(list(dict.fromkeys(name for row in chosen for name in rows[row])))
    return names, tuple(orphans)


@dataclass(frozen=True)
class _Places:
    """Where the images are, by path, file name and name without suffix."""

    images: Sequence[str]
    base: str

    @cached_property
    def exact(self) -> dict[str, int]:
        return {unicodedata.normalize("NFC", image): position for position, image in enumerate(self.images)}

    @cached_property
    def by_name(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for position, image in enumerate(self.images):
            found.setdefault(folded(image).rsplit("/", 1)[-1], []).append(position)
        return found

    @cached_property
    def by_stem(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for name, positions in self.by_name.items():
            found.setdefault(name.rsplit(".", 1)[0], []).extend(positions)
        return found

    @cached_property
    def local_folders(self) -> dict[str, str]:
        return {}

    def find(self, row: str) -> int | None:
        """Return the position of the image that a row means, or None.

        Raises:
            LabelError: it fits several equally well.

        """
        path = self._below(row)
        exact = self._exactly(path)
        if exact is not None:
            return exact
        name = folded(path).rsplit("/", 1)[-1]
        positions = self.by_name.get(name) or self.by_stem.get(name) or self.by_stem.get(_stem(name)) or []
        if "/" in path:
            positions = [position for position in positions if self._agrees(path, position)]
        if len(positions) > 1:
            same = [position for position in positions if folded(self.images[position]) == folded(path)]
            positions = same or positions
        if len(positions) > 1:
            shown = ", ".join(self.images[position] for position in positions[:3])
            raise LabelError(f"The label row {row!r} fits several images ({shown}); write the path below the folder.")
        return positions[0] if positions else None

    def nearness(self, row: str, position: int) -> int:
        """Return how exactly a row names an image: the number of equal parts at the ends of the two paths."""
        path = self._below(row)
        if self._exactly(path) == position:
            return _EXACT
        parts = folded(path).split("/")[::-1]
        real = folded(f"{self.base}/{self.images[position]}").split("/")[::-1]
        if parts[0] != real[0]:  # another suffix
            return 0
        return next((n for n, (one, other) in enumerate(zip(parts, real, strict=False)) if one != other), len(parts))

    def _exactly(self, path: str) -> int | None:
        return self.exact.get(path, self.exact.get(f"images/{path}"))

    def _below(self, row: str) -> str:
        """Return the path of a row, relative to the folder where it lies below it."""
        return _plain(row).removeprefix(f"{self.base}/")

    def _agrees(self, path: str, position: int) -> bool:
        """Return whether the folders in a row's path are those of an image."""
        row = _stem(folded(path))
        image = folded(self.images[position]).rsplit(".", 1)[0]
        if not _ABSOLUTE.match(path):
            return f"{folded(self.base)}/{image}".endswith(f"/{row}")
        folder = self._local_folder(path.rsplit("/", 1)[0])
        if folder:
            return os.path.realpath(os.path.dirname(f"{self.base}/{self.images[position]}")) == folder
        return f"/{row}".endswith((f"/{image}", f"/{image.removeprefix('images/')}"))

    def _local_folder(self, folder: str) -> str:
        """Return the real path of a folder of this machine; empty where it has none of that name."""
        if folder not in self.local_folders:
            self.local_folders[folder] = os.path.realpath(folder) if os.path.isdir(folder or "/") else ""
        return self.local_folders[folder]


def _plain(row: str) -> str:
    path = unicodedata.normalize("NFC", row)
    while path.startswith("./"):
        path = path.removeprefix("./")
    return path


def _stem(path: str) -> str:
    """Return a path without the suffix of an image; another dot is part of the name (v1.5)."""
    stem, dot, suffix = path.rpartition(".")
    return stem if dot and f".{suffix}".lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES else path
