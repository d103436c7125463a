"""The mask store: what stage one writes and everything else reads.

```
store.json          format, format_version, classes, ignore_index, and the config, model and data it was made with
masks/<id>.png      palette PNG of the image's upright height and width: class ids, 255 where there was no decision
argmax/<id>.png     the same without the 255 band; scoring reads this one
scores/<id>.npz     soft maps at grid resolution, float16; refine starts from them
index.jsonl         one line for each finished image, written last
```

Files appear whole or not at all. An image counts as finished when its line is in the index, and the line is written
after its files, so a run that is killed anywhere does that image again. The index is only ever appended to, each line
in one write under a lock; a line that was torn by a full disk or a power cut is skipped, and its image done again.
Several processes may write different images of one store at once.

What is read is checked here and nowhere else: header, index lines, paths, masks and soft maps (`header`, `index`,
`records`, `softmaps`). Every fault is a UserError that names the file.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import UInt8

from data.classes import ClassSet
from data.errors import StoreError
from data.files import append_line, read_regular, write_atomically
from data.masks import read_mask, write_mask
from data.samples import check_id
from data.store.folder import FOLDERS, INDEX, check_free, empty, is_headless, own_folder
from data.store.header import MadeWith, header_bytes, header_differences, header_fault, make_header, read_header
from data.store.index import Record, read_lines
from data.store.records import check_mask, path_below, size_of_record
from data.store.softmaps import MAX_SOFT_BYTES, SoftMaps, check_soft, decode_soft, encode_soft
from data.wording import count

logger = logging.getLogger(__name__)


class MaskStore:
    """A folder of masks, soft maps and an index; made by `create`, `open`, `open_or_create` or `start_over`.

    Attributes:
        path: the folder.
        header: content of store.json.
        classes: the classes of the masks.

    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header
        self.classes = ClassSet.from_json(header["classes"])
        self._has_told_of_repeats = False

    @classmethod
    def create(cls, path: Path, **made: Unpack[MadeWith]) -> "MaskStore":
        """Start an empty store.

        Args:
            path: a folder that does not exist yet, or is empty.
            made: what its masks are made with, by the names of `MadeWith`.

        Raises:
            StoreError: there is a store or something else already.

        """
        path = Path(path)
        if (path / "store.json").exists():
            raise StoreError(
                f"{path} is a mask store already; resume it with the same settings or name another --store."
            )
        check_free(path)
        return cls._started(path, made)

    @classmethod
    def start_over(cls, path: Path, **made: Unpack[MadeWith]) -> "MaskStore":
        """Delete the masks of a store and start it with other settings; arguments as in `create`.

        Nothing but index, masks and soft maps is deleted. Killed anywhere, it leaves a store of the old or of the new
        settings, and can be called again.

        Raises:
            StoreError: the folder is no store, or one of a newer version.
            OSError: a part of the store is a link.

        """
        path = Path(path)
        if not is_headless(path):
            read_header(path)
        empty(path)
        return cls._started(path, made)

    @classmethod
    def _started(cls, path: Path, made: MadeWith) -> "MaskStore":
        header = make_header(**made)
        fault = header_fault(header)
        if fault:
            raise StoreError(f"A store cannot be made at {path}: {fault}.")
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "store.json", header_bytes(header))
        return cls._prepared(path, header)

    @classmethod
    def open(cls, path: Path) -> "MaskStore":
        """Open a store.

        Raises:
            StoreError: no store, or a store.json that is damaged, of a newer format version, or not what one can be.

        """
        return cls._prepared(Path(path), read_header(Path(path)))

    @classmethod
    def open_or_create(cls, path: Path, **made: Unpack[MadeWith]) -> "MaskStore":
        """Resume the store at `path` if it was made with these very settings, or start it; arguments as in `create`.

        The data's root may differ from the stored one if that no longer exists (the data set was moved); where ground
        truth and caches lie may differ always.

        Raises:
            StoreError: a store made with other settings; the message lists them key by key.

        """
        if not (Path(path) / "store.json").exists():
            with contextlib.suppress(FileExistsError):
                return cls.create(path, **made)
        store = cls.open(path)
        differences = header_differences(store.header, make_header(**made))
        if differences:
            shown = "; ".join(differences[:8]) + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")
            raise StoreError(f"{path} was made with other settings ({shown}); use those, or name another --store.")
        return store

    @classmethod
    def _prepared(cls, path: Path, header: dict[str, Any]) -> "MaskStore":
        store = cls(path, header)
        with contextlib.suppress(OSError):  # a store on a read-only disk can still be read
            for folder in FOLDERS:
                (path / folder).mkdir(exist_ok=True)
        return store

    def own_folder(self, name: str) -> Path:
        """Return a folder of the store to write to, which is made if it is not there.

        Raises:
            OSError: it cannot be made, or is a link to elsewhere.

        """
        return own_folder(self.path / name)

    def write(
        self,
        sample_id: str,
        mask: UInt8[np.ndarray, "height width"],
        *,
        argmax: UInt8[np.ndarray, "height width"],
        soft: SoftMaps | None,
        record: dict[str, Any],
    ) -> None:
        """Write the files of an image and then its line in the index.

        Args:
            sample_id: id of the image.
            mask: class ids, 255 where there was no decision.
            argmax: class ids without the 255 band.
            soft: soft maps, or None to keep none.
            record: JSON values for the index; "id", "height" and "width" are filled in.

        """
        check_id(sample_id)
        write_mask(self.own_folder("masks") / f"{sample_id}.png", mask)
        write_mask(self.own_folder("argmax") / f"{sample_id}.png", argmax)
        if soft is not None:
            write_atomically(self.own_folder("scores") / f"{sample_id}.npz", encode_soft(soft))
        line = {"id": sample_id, "height": mask.shape[0], "width": mask.shape[1]}
        append_line(self.path / INDEX, {**record, **line})

    def records(self) -> Iterator[Record]:
        """Yield the record of each finished image in the order they were finished; the last one of an id wins.

        Raises:
            StoreError: a line whose values cannot be what they stand for.

        """
        found: dict[str, Record] = {}
        repeats = 0
        for record in self._lines():
            repeats += found.pop(record["id"], None) is not None  # so that it stands where it was finished last
            found[record["id"]] = record
        self._tell_of_repeats(repeats)
        yield from found.values()

    def finished(self) -> set[str]:
        """Return the ids of the images that need not be done again."""
        return {record["id"] for record in self._lines()}

    def finished_labels(self) -> dict[str, tuple[int, ...] | None]:
        """Return the labels that each finished mask was made with; None where its line does not say."""
        same: dict[tuple[int, ...], tuple[int, ...]] = {}  # so that equal labels are kept once
        found: dict[str, tuple[int, ...] | None] = {}
        repeats = 0
        for record in self._lines():
            labels = tuple(record["labels"]) if "labels" in record else None
            repeats += record["id"] in found
            found[record["id"]] = None if labels is None else same.setdefault(labels, labels)
        self._tell_of_repeats(repeats)
        return found

    def ids(self) -> list[str]:
        """Return the ids of the finished images, sorted."""
        return sorted(self.finished())

    def read_mask(self, sample: Record | str) -> UInt8[np.ndarray, "height width"]:
        """Return the mask of an image, 255 where there was no decision.

        Args:
            sample: its record, or its id; the size is checked against a record alone.

        Raises:
            ImageError: missing, damaged, of another size than its image, or with a class that does not exist.

        """
        return self._read("masks", sample, undecided=True)

    def read_argmax(self, sample: Record | str) -> UInt8[np.ndarray, "height width"]:
        """Return the mask of an image without the 255 band; as `read_mask`."""
        return self._read("argmax", sample, undecided=False)

    def _read(self, folder: str, sample: Record | str, undecided: bool) -> UInt8[np.ndarray, "height width"]:
        sample_id = sample if isinstance(sample, str) else sample["id"]
        path = self.path / folder / f"{check_id(sample_id)}.png"
        mask = read_mask(path)
        size_hw = None if isinstance(sample, str) else size_of_record(sample)
        check_mask(mask, size_hw, len(self.classes) + 1, path, undecided)
        return mask

    def read_soft(self, sample: Record | str) -> SoftMaps | None:
        """Return the soft maps of an image, or None if none were kept.

        Args:
            sample: its record, or its id; size and labels are checked against a record alone.

        Raises:
            StoreError: the file is damaged, holds what soft maps cannot hold, or was made for other labels.

        """
        record = {"id": sample} if isinstance(sample, str) else sample
        path = self.path / "scores" / f"{check_id(record['id'])}.npz"
        try:
            content = read_regular(path, MAX_SOFT_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(
                f"The soft maps {path} cannot be read ({error.strerror}); restore them, or generate again."
            ) from error
        try:
            soft = decode_soft(content)
            check_soft(soft, record, len(self.classes))
        except StoreError as error:
            raise StoreError(
                f"The soft maps {path} are damaged ({error}); delete the file and generate again."
            ) from error
        return soft

    def image_path(self, record: dict[str, Any] | str, root: Path | None = None) -> Path:
        """Return the image file of a record (or an id, which is looked up in the index).

        Args:
            record: a record of `records`, or an id.
            root: folder of the data set, if it is not where the store says.

        Raises:
            StoreError: no such id, a record that names no image, or one outside of the data's folder.

        """
        if isinstance(record, str):
            found = next((line for line in self.records() if line["id"] == record), None)
            if found is None:
                raise StoreError(f"{self.path} holds no image {record!r}.")
            record = found
        if "image" not in record:
            raise StoreError(f"The index of {self.path} names no image file for {record.get('id')!r}.")
        folder = Path(root) if root is not None else self.root
        return folder / path_below(record["image"], folder)

    @property
    def root(self) -> Path:
        """Folder of the data, as the store says."""
        return Path(self.header["data"].get("root") or ".")

    def _lines(self) -> Iterator[Record]:
        return read_lines(self.path / INDEX, len(self.classes))

    def _tell_of_repeats(self, repeats: int) -> None:
        if repeats and not self._has_told_of_repeats:
            self._has_told_of_repeats = True
            logger.info(
                "%s: %s followed by another one about the same image, which was made again or by two runs at once; the "
                "last line counts.",
                self.path / INDEX,
                count(repeats, "line is", "lines are"),
            )
