"""A person's own folder of images.

Layout:
    photos/labels.csv                   images anywhere below photos/ (or photos/images/)
    photos/cat/1.jpg                    one folder per class, no label file
    photos/train/..., photos/val/...    either of these, once for each split
    photos/classes.yaml                 what `pseudolabel init` writes; read where it exists

    An image's id is its path below the folder without suffix, `/` as `__`: cat/1.jpg is cat__1. Names that cannot be
    ids on every system (`data.samples.is_portable`: Windows knows no `:` and no file con.png), and images that differ
    in suffix alone, get eight hexadecimal digits of the path's hash, so that an id never depends on which other images
    there are beyond its namesakes.

Labels:
    The label file (`data.readers.labels`) or the class folders.

Truth:
    photos/masks/1.png or photos/SegmentationClass/1.png, palette PNGs of class ids, where there are any.

Source:
    Our own layout, as users of other tools asked for it.
"""

import logging
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.class_file import load_classes
from data.classes import ClassSet
from data.config import DataConfig
from data.errors import ConfigError, ImageError
from data.images import IMAGE_SUFFIXES
from data.readers.ids import make_ids
from data.readers.labels import read_label_table
from data.readers.listing import Listing, interned, to_samples
from data.readers.rows import UNREAD_SUFFIXES, match_rows
from data.samples import Sample, SampleSet
from data.wording import count, some

TRUTH_FOLDERS = ("masks", "SegmentationClass")
logger = logging.getLogger(__name__)


def found(root: Path) -> bool:
    """Return that any folder may be one of images: the layout that is looked for last."""
    return True


def open_samples(config: DataConfig, need_labels: bool = True, need_truth: bool = True) -> SampleSet:
    """List the samples of a folder; see `data.readers.layout.open_samples`."""
    return to_samples(list_data(config), config, need_labels, need_truth)


def list_data(config: DataConfig, own_classes: bool = True) -> Listing:
    """List the images of a folder and the class names their labels give.

    Args:
        config: which folder.
        own_classes: read the configured class file or the folder's classes.yaml; False finds the classes afresh.

    Raises:
        ConfigError: no images, or no folder for the split.
        LabelError: a label file that cannot be read.

    """
    root = Path(config.root)
    base = split_folder(root, config.split)
    truth = (config.truth,) if config.truth else TRUTH_FOLDERS
    found = scan_images(base, truth)
    images = found.images
    if not images:
        raise ConfigError(_no_images(base, found))
    classes = find_classes(config) if own_classes else None
    table = label_file(config, base)
    if table is not None:
        names, orphans = match_rows(read_label_table(table, classes), images, base)
        orphans = tuple(row for row in orphans if base == root or not os.path.isfile(root / row))  # another split's
    else:
        names, orphans = [_class_folder(image) for image in images], ()
    source = table.name if table else "the class folders"
    return Listing(
        base, make_ids(images), images, names, classes, truth, orphans, found.unsupported, source, notes=found.notes()
    )


def _no_images(base: Path, found: "Scan") -> str:
    more = ""
    if found.locked:
        more = f" (the folder {found.locked[0]} cannot be read: check its permissions)"
    elif found.unsupported:
        unread = count(len(found.unsupported), "file")
        more = f" ({unread} of an unread kind, such as {found.unsupported[0]}: convert)"
    return f"{base} holds no images{more}; --root must name a folder of JPEG, PNG, WebP or TIFF files."


def image_samples(images: Path, flag: str = "images") -> list[Sample]:
    """Return the images below a folder, or the one image, without labels; ids as everywhere else.

    Args:
        images: a folder or a file.
        flag: what named it, for the message.

    Raises:
        ImageError: there is nothing, or nothing that can be read.

    """
    names: Sequence[str]
    if images.is_file():
        folder, names = images.parent, [images.name]
    elif images.is_dir():
        found = scan_images(images, TRUTH_FOLDERS)
        folder, names = images, found.images
        for note in found.notes():
            logger.warning("%s", note)
    else:
        raise ImageError(f"There is no file or folder {images}; --{flag} takes an image or a folder of images.")
    if not names:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ImageError(f"{images} holds no image; --{flag} takes a folder with images in it, of the kinds {kinds}.")
    root = folder.absolute()
    return [Sample(sample_id, root / name, ()) for sample_id, name in zip(make_ids(names), names, strict=True)]


def split_folder(root: Path, split: str) -> Path:
    """Return the folder of a split: root/<split> where the root is divided so, else the root for "train" and "all".

    A folder train/ counts as a split, not as the class "train", if it holds folders or a label file itself or stands
    beside val/, valid/, validation/ or test/.

    Raises:
        ConfigError: another split than "train" or "all", and no folder of its name.

    """
    folder = root / split
    others = any((root / name).is_dir() for name in {"val", "valid", "validation", "test", "train"} - {split})
    if folder.is_dir() and split != "all":
        inner = any(path.is_dir() or path.name in _table_names(split) for path in folder.iterdir())
        if inner or others:
            return folder
    if split in {"train", "all"}:
        return root
    if any((root / name).is_file() for name in _table_names(split) if split in name):
        return root
    raise ConfigError(f"{root} has no folder {split!r} and no labels_{split}.csv; use --data.split=all for all images.")


@dataclass(frozen=True)
class Scan:
    """What lies below a folder: paths relative to it, with forward slashes, sorted.

    Attributes:
        images: files of kinds that are read.
        unsupported: pictures of kinds that are not.
        locked: folders that cannot be looked into.

    """

    images: tuple[str, ...]
    unsupported: tuple[str, ...]
    locked: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for the folders that cannot be looked into, or none."""
        there = count(
            len(self.locked),
            "folder cannot be read, and its images are",
            "folders cannot be read, and their images are",
        )
        return (f"{there} left out ({some(self.locked)}).",) if self.locked else ()


def scan_images(base: Path, skipped: Sequence[str] = ()) -> Scan:
    """Return the images below a folder, and what is not read there.

    Args:
        base: where to look; hidden files and folders are passed over, links to folders are followed once.
        skipped: names of folders directly below `base` that hold masks, not images.

    """
    images, unsupported, seen = [], [], set()
    locked: list[OSError] = []
    for folder, folders, files in os.walk(base, followlinks=True, onerror=locked.append):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        top = folder == str(base)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not (top and name in skipped))
        prefix = "" if top else _below(folder, base) + "/"
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES:
                images.append(prefix + name)
            elif suffix in UNREAD_SUFFIXES:
                unsupported.append(prefix + name)
    closed = sorted(_below(error.filename, base) for error in locked)
    return Scan(tuple(sorted(images)), tuple(sorted(unsupported)), tuple(closed))


def _below(folder: str, base: Path) -> str:
    return PurePosixPath(*Path(folder).relative_to(base).parts).as_posix()


def find_classes(config: DataConfig) -> ClassSet | None:
    """Return the configured class file, or root/classes.yaml, or None if there is neither."""
    own = Path(config.root) / "classes.yaml"
    path = config.classes or (own if own.exists() else None)
    return load_classes(path) if path else None


def label_file(config: DataConfig, base: Path) -> Path | None:
    """Return the label file: the configured one, or labels.csv, labels.jsonl and the like in the folder; else None."""
    if config.labels:
        return Path(config.labels)
    folders = dict.fromkeys([base, Path(config.root)])
    found = [folder / name for folder in folders for name in _table_names(config.split) if (folder / name).exists()]
    return found[0] if found else None


def _table_names(split: str) -> list[str]:
    return [f"{stem}.{suffix}" for stem in (f"labels_{split}", "labels") for suffix in ("csv", "tsv", "jsonl")]


def _class_folder(image: str) -> tuple[str, ...]:
    parts = PurePosixPath(image).parts
    if parts[0] == "images" and len(parts) > 1:
        parts = parts[1:]
    return interned([unicodedata.normalize("NFC", parts[0])]) if len(parts) > 1 else ()
