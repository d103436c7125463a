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

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from data.classes import ClassSet, load_classes
from data.config import DataConfig
from data.errors import ConfigError, ImageError, LabelError
from data.images import IMAGE_SUFFIXES
from data.readers.labels import read_label_table
from data.readers.listing import Listing, interned, to_samples
from data.samples import MAX_ID_BYTES, Sample, SampleSet, check_id, is_portable

TRUTH_FOLDERS = ("masks", "SegmentationClass")
_UNREAD_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".raw", ".cr2", ".nef", ".arw", ".dng", ".svg", ".psd", ".jp2"}
)


def open_folder(config: DataConfig, need_labels: bool = True, need_truth: bool = True) -> SampleSet:
    """List the samples of a folder; see `data.readers.layout.open_samples`."""
    return to_samples(list_folder(config), config, need_labels, need_truth)


def list_folder(config: DataConfig, own_classes: bool = True) -> Listing:
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
    images, unsupported = scan_images(base, truth)
    if not images:
        more = f" ({len(unsupported)} files such as {unsupported[0]} are not read: convert them)" if unsupported else ""
        raise ConfigError(f"{base} holds no images{more}; --root must name a folder of JPEG, PNG, WebP or TIFF files.")
    classes = find_classes(config) if own_classes else None
    table = label_file(config, base)
    if table is not None:
        names, orphans = match_rows(read_label_table(table, classes), images)
    else:
        names, orphans = [_class_folder(image) for image in images], ()
    source = table.name if table else "the class folders"
    return Listing(base, make_ids(images), images, names, classes, truth, orphans, tuple(unsupported), source)


def image_samples(images: Path) -> list[Sample]:
    """Return the images below a folder, or the one image, without labels; ids as everywhere else.

    Raises:
        ImageError: there is nothing, or nothing that can be read.

    """
    if images.is_file():
        folder, names = images.parent, [images.name]
    elif images.is_dir():
        folder, (names, _) = images, scan_images(images, TRUTH_FOLDERS)
    else:
        raise ImageError(f"There is no file or folder {images}; --images takes an image or a folder of images.")
    if not names:
        raise ImageError(f"{images} holds no image; known kinds are {', '.join(sorted(IMAGE_SUFFIXES))}.")
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


def scan_images(base: Path, skipped: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return the images below a folder and the files of unread kinds, sorted, relative, with forward slashes.

    Args:
        base: where to look; hidden files and folders are passed over, links to folders are followed once.
        skipped: names of folders directly below `base` that hold masks, not images.

    """
    images, unsupported, seen = [], [], set()
    for folder, folders, files in os.walk(base, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        top = folder == str(base)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not (top and name in skipped))
        prefix = "" if top else PurePosixPath(*Path(folder).relative_to(base).parts).as_posix() + "/"
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES:
                images.append(prefix + name)
            elif suffix in _UNREAD_SUFFIXES:
                unsupported.append(prefix + name)
    return sorted(images), sorted(unsupported)


def find_classes(config: DataConfig) -> ClassSet | None:
    """Return the configured class file, or root/classes.yaml, or None if there is neither."""
    own = Path(config.root) / "classes.yaml"
    path = config.classes or (own if own.is_file() else None)
    return load_classes(path) if path else None


def label_file(config: DataConfig, base: Path) -> Path | None:
    """Return the label file: the configured one, or labels.csv, labels.jsonl and the like in the folder; else None."""
    if config.labels:
        return Path(config.labels)
    folders = dict.fromkeys([base, Path(config.root)])
    found = [folder / name for folder in folders for name in _table_names(config.split) if (folder / name).is_file()]
    return found[0] if found else None


def _table_names(split: str) -> list[str]:
    return [f"{stem}.{suffix}" for stem in (f"labels_{split}", "labels") for suffix in ("csv", "tsv", "jsonl")]


def _class_folder(image: str) -> tuple[str, ...]:
    parts = PurePosixPath(image).parts
    if parts[0] == "images" and len(parts) > 1:
        parts = parts[1:]
    return interned([unicodedata.normalize("NFC", parts[0])]) if len(parts) > 1 else ()


def match_rows(
    rows: dict[str, tuple[str, ...]], images: Sequence[str]
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Give each image the names of its row.

    A row fits an image by its path below the folder, else by its file name, else by its name without suffix; accents
    composed or not (macOS) and capitals make no difference. Absolute and Windows paths fit by their ends.

    Returns:
        The names of each image (empty without a row), and the rows that fit no image.

    Raises:
        LabelError: a row whose file name fits several images equally well.

    """
    found: list[list[str]] = [[] for _ in images]
    orphans = []
    indexes = _indexes(images)
    for row, names in rows.items():
        position = _locate(row, images, indexes)
        if position is None:
            orphans.append(row)
        else:
            found[position].extend(name for name in names if name not in found[position])
    return [interned(names) for names in found], tuple(orphans)


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _indexes(images: Sequence[str]) -> tuple[dict[str, int], dict[str, list[int]], dict[str, list[int]]]:
    exact = {unicodedata.normalize("NFC", image): position for position, image in enumerate(images)}
    by_name: dict[str, list[int]] = {}
    by_stem: dict[str, list[int]] = {}
    for position, image in enumerate(images):
        name = _folded(image).rsplit("/", 1)[-1]
        by_name.setdefault(name, []).append(position)
        by_stem.setdefault(name.rsplit(".", 1)[0], []).append(position)
    return exact, by_name, by_stem


def _locate(
    row: str, images: Sequence[str], indexes: tuple[dict[str, int], dict[str, list[int]], dict[str, list[int]]]
) -> int | None:
    exact, by_name, by_stem = indexes
    path = unicodedata.normalize("NFC", row.removeprefix("./"))
    for candidate in (path, f"images/{path}"):
        if candidate in exact:
            return exact[candidate]
    name = _folded(path).rsplit("/", 1)[-1]
    stem = name.rsplit(".", 1)[0]
    positions = by_name.get(name) or by_stem.get(name) or by_stem.get(stem) or []
    if len(positions) > 1:
        folded = _folded(path)
        longer = [p for p in positions if _folded(images[p]) == folded or _agrees(folded, _folded(images[p]))]
        positions = longer or positions
    if len(positions) > 1:
        shown = ", ".join(images[position] for position in positions[:3])
        raise LabelError(f"The label row {row!r} fits several images ({shown}); write the path below the folder.")
    return positions[0] if positions else None


def _agrees(row: str, image: str) -> bool:
    """Return whether one path, without suffix, ends in the other."""
    row, image = row.rsplit(".", 1)[0], image.rsplit(".", 1)[0]
    return f"/{row}".endswith(f"/{image}") or f"/{image}".endswith(f"/{row}")


def make_ids(images: Sequence[str]) -> list[str]:
    """Return an id for each relative path; see this file's first lines. All differ, and `check_id` accepts each."""
    ids = [_plain_id(image) for image in images]
    taken = Counter(_folded(sample_id) for sample_id in ids)
    return [
        sample_id if taken[_folded(sample_id)] == 1 and _acceptable(sample_id) else _hashed_id(sample_id, image)
        for sample_id, image in zip(ids, images, strict=True)
    ]


def _plain_id(image: str) -> str:
    path = unicodedata.normalize("NFC", image).removeprefix("images/")
    return path.rsplit(".", 1)[0].replace("/", "__")


def _acceptable(sample_id: str) -> bool:
    try:
        check_id(sample_id)
    except LabelError:
        return False
    return is_portable(sample_id)


def _hashed_id(sample_id: str, image: str) -> str:
    digest = hashlib.sha1(image.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:8]
    safe = "".join(each if each.isprintable() and each not in '/\\<>:"|?*' else "_" for each in sample_id)
    safe = safe.replace("..", "_").lstrip(".")
    safe = safe if is_portable(f"{safe}-{digest}") else f"_{safe}"  # con.x is a device whatever follows the dot
    safe = safe.encode("utf-8", "replace")[: MAX_ID_BYTES - 9].decode("utf-8", "ignore")
    return f"{safe}-{digest}"
