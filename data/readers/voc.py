"""Pascal VOC 2012, and what is laid out like it: the demo world, for example.

Layout:
    JPEGImages/<id>.jpg; lists of ids in ImageSets/Segmentation/<split>.txt, or, where that file is missing, the lists
    shipped in data/splits/voc12 (train 1,464, val 1,449, train_aug 10,582 ids, test 1,456). train_aug is VOC's train
    with the extra images of Hariharan et al., without the images of val.

    Of a .jpg and another image of one name the .jpg is taken and the other counted as left out; of two others neither
    is. Ids of a list that have neither an image nor an annotation are counted as not on disk.

Labels:
    The objects in Annotations/<id>.xml, never the masks; or a label file.

Truth:
    SegmentationClass; for train_aug SegmentationClassAug where that folder exists, because the extra images have masks
    there alone. Figures on train_aug and on train are different figures: published ones are on train.

Source:
    Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010; Hariharan et al., "Semantic
    Contours from Inverse Detectors", ICCV 2011.
"""

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.class_file import load_classes
from data.classes import VOC
from data.config import DataConfig
from data.errors import ConfigError, LabelError
from data.images import IMAGE_SUFFIXES
from data.readers.ids import make_ids
from data.readers.labels import read_label_table
from data.readers.listing import Listing, interned, to_samples
from data.readers.rows import match_rows
from data.samples import SampleSet, check_id
from data.texts import FileKind, read_bytes, read_text
from data.wording import count, some

LIST_FILE = FileKind("the list", 64 * 1024 * 1024, "write one image id a line", ConfigError)
ANNOTATION = FileKind("the annotation", 16 * 1024 * 1024, "restore the file", LabelError)
SHIPPED_SPLITS = Path(__file__).parents[1] / "splits" / "voc12"


def found(root: Path) -> bool:
    """Return whether a folder has this layout, or holds one that has."""
    return any((root / part / "JPEGImages").is_dir() for part in (".", "VOC2012", "VOCdevkit/VOC2012"))


def open_samples(config: DataConfig, need_labels: bool = True, need_truth: bool = True) -> SampleSet:
    """List the samples of a split of a VOC folder; see `data.readers.layout.open_samples`."""
    return to_samples(list_voc(config, need_labels), config, need_labels, need_truth)


def list_data(config: DataConfig, own_classes: bool = True) -> Listing:
    """List images and labels, where there are any; see `data.readers.layout.list_data`."""
    return list_voc(config, need_labels=False)


def list_voc(config: DataConfig, need_labels: bool = True) -> Listing:
    """List images and the class names of their annotations.

    Raises:
        ConfigError: no JPEGImages folder, no such split.
        LabelError: no annotations though labels are needed, or one that is not XML.

    """
    root = voc_root(Path(config.root))
    stems = read_split(root, config.split)
    suffixes, beside = image_suffixes(root / "JPEGImages", stems)
    if not any(stem in suffixes for stem in stems):
        raise ConfigError(
            f"{root / 'JPEGImages'} holds none of the {count(len(stems), 'image')} of the split {config.split!r}; "
            f"choose another --data.split: {_known_splits(root)}."
        )
    files = [f"{stem}{suffixes.get(stem, '.jpg')}" for stem in stems]
    table = _label_table(root, config)
    classes = load_classes(config.classes) if config.classes else VOC
    orphans: tuple[str, ...] = ()
    if table is not None:
        names, orphans = match_rows(read_label_table(table, classes), files, root / "JPEGImages")
        there = {stem.casefold() for stem in suffixes} if orphans else set()  # rows of another split have an image
        orphans = tuple(row for row in orphans if Path(row).stem.casefold() not in there or "/" in row)
        source = table.name
    else:
        names = _annotated_names(root, stems, config.difficult, need_labels)
        source = "Annotations"
    images = [f"JPEGImages/{file}" for file in files]
    ids = make_ids(files, stems)
    missing = tuple(sample_id for sample_id, stem in zip(ids, stems, strict=True) if stem not in suffixes)
    others = count(len(beside), "file beside a .jpg of its name was", "files beside a .jpg of the same name were")
    notes = (f"{others} left out ({some(beside)}).",) if beside else ()
    truth = _truth_folders(root, config)
    return Listing(
        root, ids, images, names, classes, truth, orphans=orphans, missing=missing, notes=notes, source=source
    )


def voc_root(root: Path) -> Path:
    """Return the folder that holds JPEGImages: the root, its VOC2012, or its VOCdevkit/VOC2012.

    Raises:
        ConfigError: none of them.

    """
    for candidate in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (candidate / "JPEGImages").is_dir():
            return candidate
    raise ConfigError(
        f"{root} holds no JPEGImages folder; --root must name VOCdevkit, VOC2012 or a folder laid out alike."
    )


def image_suffixes(folder: Path, stems: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return the suffix of each image of a folder by stem, and which of the wanted images lie beside their .jpg.

    Args:
        folder: the folder of the images.
        stems: the images that are wanted.

    Raises:
        LabelError: two images of one wanted name, neither of them a .jpg.

    """
    found: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for stem, suffix in sorted(os.path.splitext(entry.name) for entry in entries):
            if suffix.lower() in IMAGE_SUFFIXES:
                found.setdefault(stem, []).append(suffix)
    wanted, beside = set(stems), []
    for stem, suffixes in found.items():
        if stem in wanted and len(suffixes) > 1:
            if ".jpg" not in suffixes:
                raise LabelError(
                    f"{folder} holds {stem}{suffixes[0]} and {stem}{suffixes[1]}, which would share the id {stem!r} "
                    "and one mask; keep one of them there."
                )
            beside += [f"{stem}{suffix}" for suffix in suffixes if suffix != ".jpg"]
    return {stem: ".jpg" if ".jpg" in suffixes else suffixes[-1] for stem, suffixes in found.items()}, beside


def read_split(root: Path, split: str) -> list[str]:
    """Return the ids of a split: from ImageSets/Segmentation, or from the shipped lists; "all" is every image.

    Raises:
        ConfigError: no such list, or an empty one.
        LabelError: an id that cannot be a file name.

    """
    if split == "all":
        folder = root / "JPEGImages"
        return sorted({check_id(path.stem) for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES})
    own = root / "ImageSets" / "Segmentation"
    for path in (own / f"{split}.txt", SHIPPED_SPLITS / f"{split}.txt"):
        if path.exists():
            return _read_ids(path, root / "JPEGImages")
    if split == "trainval":
        return sorted({*read_split(root, "train"), *read_split(root, "val")})
    raise ConfigError(f"There is no split {split!r} in {own}; --data.split may be {_known_splits(root)}.")


def _known_splits(root: Path) -> str:
    folders = (root / "ImageSets" / "Segmentation", SHIPPED_SPLITS)
    return ", ".join(sorted({"trainval", "all", *(path.stem for folder in folders for path in folder.glob("*.txt"))}))


def _read_ids(path: Path, images: Path) -> list[str]:
    """Return the ids of a list; a line is an id, with spaces where an image is called so, or an id and more words."""
    lines = [line.strip() for line in read_text(path, LIST_FILE).splitlines() if line.strip()]
    spaced = any(len(line.split()) > 1 for line in lines)
    known = image_suffixes(images, ())[0] if spaced else {}
    ids = [check_id(line if line in known else line.split()[0]) for line in lines]
    if not ids:
        raise ConfigError(f"The list {path} is empty; write one image id per line, or choose another --data.split.")
    return list(dict.fromkeys(ids))


def _truth_folders(root: Path, config: DataConfig) -> tuple[str, ...]:
    if config.truth:
        if not os.path.isdir(root / config.truth):
            raise ConfigError(f"There is no folder {root / config.truth}; --data.truth must name a folder of masks.")
        return (config.truth,)
    both = ("SegmentationClass", "SegmentationClassAug")
    return both[::-1] if config.split == "train_aug" else both


def _label_table(root: Path, config: DataConfig) -> Path | None:
    """Return the label file that stands in for Annotations: the configured one, or else the root's own."""
    if config.labels:
        return Path(config.labels)
    if (root / "Annotations").is_dir():
        return None
    return next((root / name for name in ("labels.csv", "labels.jsonl") if (root / name).exists()), None)


def _annotated_names(root: Path, ids: Sequence[str], difficult: bool, need_labels: bool) -> list[tuple[str, ...]]:
    annotations = root / "Annotations"
    if annotations.is_dir():
        return [read_object_names(annotations / f"{sample_id}.xml", difficult) for sample_id in ids]
    if need_labels:
        raise LabelError(f"{root} has neither Annotations/*.xml nor labels.csv; name a label file with --data.labels.")
    return [()] * len(ids)


def read_object_names(path: Path, difficult: bool = True) -> tuple[str, ...]:
    """Return the class names in an annotation file, sorted; none if there is no such file.

    Args:
        path: Annotations/<id>.xml. Only <object> elements count; their <part> elements (head, hand) do not.
        difficult: count objects with <difficult>1</difficult> too.

    Raises:
        LabelError: not XML.

    """
    if not path.exists():
        return ()
    try:
        objects = ElementTree.fromstring(read_bytes(path, ANNOTATION)).iterfind("object")
        return interned(sorted(_object_names(objects, difficult, path)))
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: an unknown encoding
        raise ANNOTATION.fault(path, f"it is not XML ({error})") from error


def _object_names(objects: Iterable[ElementTree.Element], difficult: bool, path: Path) -> set[str]:
    names = set()
    for element in objects:
        name, mark = (element.findtext("name") or "").strip(), (element.findtext("difficult") or "0").strip()
        if not name:
            raise LabelError(f"{path}: an object has no name; give it one, or remove it.")
        if mark not in {"0", "1"} and not difficult:
            raise LabelError(f"{path}: <difficult> of {name[:60]!r} is {mark[:60]!r}; write 0 or 1.")
        if difficult or mark == "0":
            names.add(name)
    return names
