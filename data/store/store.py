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
"""

import contextlib
import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.classes import IGNORE, ClassSet
from data.console import written_by
from data.errors import StoreError
from data.files import append_line, json_bytes, plain_json, write_atomically
from data.masks import read_mask, write_mask
from data.samples import check_id
from data.store.softmaps import SoftMaps, decode_soft, encode_soft

FORMAT = "pseudolabel-masks"
FORMAT_VERSION = 1
_FOLDERS = ("masks", "argmax", "scores")
_NO_MATTER = (
    "data.cache:",
    "data.truth:",
    "data.truth_255:",
    "data.crowd:",
)  # settings of the data that change no mask
logger = logging.getLogger(__name__)


class MaskStore:
    """A folder of masks, soft maps and an index; made by `create`, `open` or `open_or_create`.

    Attributes:
        path: the folder.
        header: content of store.json.
        classes: the classes of the masks.

    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header
        self.classes = ClassSet.from_json(header["classes"])

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        classes: ClassSet,
        config: dict[str, Any],
        model: dict[str, Any],
        data: dict[str, Any],
        program: str = "pseudolabel",
    ) -> "MaskStore":
        """Start an empty store.

        Args:
            path: a folder that does not exist yet, or is empty.
            classes: classes of the masks.
            config: the resolved settings that change the result (not the batch size or the device).
            model: id and fingerprint of the model.
            data: where the images are: format, root, split and so on, as `data.config.DataConfig` names them.
            program: name of the program that writes it.

        Raises:
            StoreError: there is a store or something else already.

        """
        path = Path(path)
        if (path / "store.json").exists():
            raise StoreError(
                f"{path} is a mask store already; resume it with the same settings or name another --store."
            )
        if path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise StoreError(f"{path} is not empty and not a mask store; name a new folder with --store.")
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file; name a new folder with --store.")
        header = _header(classes, config, model, data, program)
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "store.json", json_bytes(header, indent=1) + b"\n")
        return cls._prepared(path, header)

    @classmethod
    def open(cls, path: Path) -> "MaskStore":
        """Open a store.

        Raises:
            StoreError: no store, a damaged store.json, or one of a newer format version.

        """
        path = Path(path)
        try:
            header = json.loads((path / "store.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise StoreError(f"There is no mask store at {path} (no store.json); --store must name one.") from error
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path / 'store.json'} is damaged ({error}); restore it, or make the store again."
            ) from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise StoreError(f"{path / 'store.json'} is not of the format {FORMAT!r}; --store must name a mask store.")
        version = header.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise StoreError(
                f"{path} has store format version {version}, this program reads up to {FORMAT_VERSION}: install a "
                f"text2mask-wsss that reads version {version} (written by {header.get('written_by', 'another')})."
            )
        missing = [key for key in ("classes", "config", "model", "data") if key not in header]
        if missing:
            raise StoreError(f"{path / 'store.json'} lacks {', '.join(missing)}; restore it, or make the store again.")
        return cls._prepared(path, header)

    @classmethod
    def open_or_create(
        cls,
        path: Path,
        *,
        classes: ClassSet,
        config: dict[str, Any],
        model: dict[str, Any],
        data: dict[str, Any],
        program: str = "pseudolabel",
    ) -> "MaskStore":
        """Resume the store at `path` if it was made with these very settings, or start it; arguments as in `create`.

        The data's root may differ from the stored one if that no longer exists (the data set was moved); where ground
        truth and caches lie may differ always.

        Raises:
            StoreError: a store made with other settings; the message lists them key by key.

        """
        if not (Path(path) / "store.json").exists():
            with contextlib.suppress(FileExistsError):
                return cls.create(path, classes=classes, config=config, model=model, data=data, program=program)
        store = cls.open(path)
        wanted = _header(classes, config, model, data, program)
        stored_root = store.header["data"].get("root")
        differences = [
            line
            for key in ("classes", "config", "model", "data")
            for line in _differences(key, store.header[key], wanted[key])
            if not line.startswith(_NO_MATTER)
            and not (line.startswith("data.root:") and stored_root and not Path(stored_root).exists())
        ]
        if differences:
            shown = "; ".join(differences[:8]) + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")
            raise StoreError(f"{path} was made with other settings ({shown}); use those, or name another --store.")
        return store

    @classmethod
    def _prepared(cls, path: Path, header: dict[str, Any]) -> "MaskStore":
        store = cls(path, header)
        with contextlib.suppress(PermissionError, OSError):  # a store on a read-only disk can still be read
            for folder in _FOLDERS:
                (path / folder).mkdir(exist_ok=True)
        return store

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
        write_mask(self.path / "masks" / f"{sample_id}.png", mask)
        write_mask(self.path / "argmax" / f"{sample_id}.png", argmax)
        if soft is not None:
            write_atomically(self.path / "scores" / f"{sample_id}.npz", encode_soft(soft))
        line = {"id": sample_id, "height": mask.shape[0], "width": mask.shape[1]}
        append_line(self.path / "index.jsonl", {**record, **line})

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the record of each finished image in the order they were finished; the last one of an id wins."""
        found: dict[str, dict[str, Any]] = {}
        for record in self._lines():
            found.pop(record["id"], None)  # so that it stands where it was finished last
            found[record["id"]] = record
        yield from found.values()

    def finished(self) -> set[str]:
        """Return the ids of the images that need not be done again."""
        return {record["id"] for record in self._lines()}

    def ids(self) -> list[str]:
        """Return the ids of the finished images, sorted."""
        return sorted(self.finished())

    def read_mask(self, sample_id: str) -> UInt8[np.ndarray, "height width"]:
        """Return the mask of an image, 255 where there was no decision."""
        return read_mask(self.path / "masks" / f"{check_id(sample_id)}.png")

    def read_argmax(self, sample_id: str) -> UInt8[np.ndarray, "height width"]:
        """Return the mask of an image without the 255 band."""
        return read_mask(self.path / "argmax" / f"{check_id(sample_id)}.png")

    def read_soft(self, sample_id: str) -> SoftMaps | None:
        """Return the soft maps of an image, or None if none were kept.

        Raises:
            StoreError: the file is damaged.

        """
        path = self.path / "scores" / f"{check_id(sample_id)}.npz"
        try:
            return decode_soft(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise StoreError(
                f"The soft maps {path} are damaged ({error}); delete the file and generate again."
            ) from error

    def image_path(self, record: dict[str, Any] | str, root: Path | None = None) -> Path:
        """Return the image file of a record (or an id, which is looked up in the index).

        Args:
            record: a record of `records`, or an id.
            root: folder of the data set, if it is not where the store says.

        Raises:
            StoreError: no such id, or a record that names no image.

        """
        if isinstance(record, str):
            found = next((line for line in self.records() if line["id"] == record), None)
            if found is None:
                raise StoreError(f"{self.path} holds no image {record!r}.")
            record = found
        if "image" not in record:
            raise StoreError(f"The index of {self.path} names no image file for {record.get('id')!r}.")
        return Path(root if root is not None else self.header["data"].get("root", ".")) / record["image"]

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield the readable lines of the index; memory does not grow with the file."""
        try:
            file = (self.path / "index.jsonl").open("rb")
        except FileNotFoundError:
            return
        with file:
            for position, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                record = _parse(line)
                if record is None:
                    logger.warning("Line %d of %s is torn and was skipped.", position, self.path / "index.jsonl")
                else:
                    yield record


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None  # being written, or torn
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("id"), str) else None


def _header(
    classes: ClassSet, config: dict[str, Any], model: dict[str, Any], data: dict[str, Any], program: str
) -> dict[str, Any]:
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "written_by": written_by(program),
        "classes": classes.to_json(),
        "ignore_index": IGNORE,
        "config": config,
        "model": model,
        "data": data,
    }
    return json.loads(
        json.dumps(header, default=plain_json)
    )  # what reading it back would give, so that they compare equal


def _differences(key: str, stored: Any, wanted: Any) -> list[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = [*stored, *(name for name in wanted if name not in stored)]
        return [line for name in keys for line in _differences(f"{key}.{name}", stored.get(name), wanted.get(name))]
    return [] if stored == wanted else [f"{key}: {_short(stored)} there, {_short(wanted)} now"]


def _short(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 3] + "..."
