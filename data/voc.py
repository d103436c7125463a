"""The PASCAL VOC 2012 layout, which the demo world uses too.

Image-level labels come from Annotations/<id>.xml, never from masks. Lists of ids come from
ImageSets/Segmentation/<split>.txt, or, where that file is missing, from the lists shipped in data/splits/voc12
(train 1,464, val 1,449, train_aug 10,582 ids, test 1,456). train_aug is VOC's train with the extra images of Hariharan
et al., "Semantic Contours from Inverse Detectors", ICCV 2011, without the images of val.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from data.classes import VOC, ClassSet, load_classes
from data.errors import ConfigError, LabelError
from data.samples import DataConfig, Sample, SampleSet, check_id

SHIPPED_SPLITS = Path(__file__).parent / "splits" / "voc12"


@dataclass(frozen=True)
class VocSamples(Sequence[Sample]):
    """Samples of a VOC folder, each made when it is asked for."""

    root: Path
    ids: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    suffixes: dict[str, str]
    truth_folders: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        sample_id = self.ids[index]
        image = self.root / "JPEGImages" / (sample_id + self.suffixes.get(sample_id, ".jpg"))
        candidates = (self.root / folder / f"{sample_id}.png" for folder in self.truth_folders)
        truth = next((path for path in candidates if path.is_file()), None)
        return Sample(sample_id, image, self.labels[index], truth)


def open_voc(config: DataConfig, need_labels: bool = True, need_truth: bool = True) -> SampleSet:
    """List the samples of a split of a VOC folder; see `data.samples.open_samples`."""
    root = voc_root(Path(config.root))
    classes = load_classes(config.classes) if config.classes else VOC
    ids = read_split(root, config.split)
    labels = _all_labels(root, ids, classes, config, need_labels)
    kept = [position for position, found in enumerate(labels) if found or not need_labels]
    notes = []
    if len(kept) < len(ids):
        left_out = [ids[position] for position, found in enumerate(labels) if not found]
        note = f"{len(left_out)} of {len(ids)} images have no labels (the first is {left_out[0]})"
        if config.unlabelled == "stop" or not kept:
            raise LabelError(f"{note}; add labels, or leave such images out with --data.unlabelled=skip.")
        notes.append(f"{note}; they were left out.")
    folders = _truth_folders(config) if need_truth else ()
    samples = VocSamples(
        root,
        tuple(ids[position] for position in kept),
        tuple(labels[position] for position in kept),
        image_suffixes(root / "JPEGImages"),
        folders,
    )
    return SampleSet(classes, samples, tuple(notes))


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


def image_suffixes(folder: Path) -> dict[str, str]:
    """Return the suffix of each image of a folder that is not ".jpg", by stem."""
    found = ((path.stem, path.suffix) for path in folder.iterdir() if path.suffix != ".jpg")
    return {stem: suffix for stem, suffix in found if suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"}}


def read_split(root: Path, split: str) -> list[str]:
    """Return the ids of a split: from ImageSets/Segmentation, or from the shipped lists; "all" is every image.

    Raises:
        ConfigError: no such list.
        LabelError: an id that cannot be a file name.

    """
    if split == "all":
        return sorted({path.stem for path in (root / "JPEGImages").iterdir() if not path.name.startswith(".")})
    own = root / "ImageSets" / "Segmentation"
    for path in (own / f"{split}.txt", SHIPPED_SPLITS / f"{split}.txt"):
        if path.is_file():
            return _read_ids(path)
    if split == "trainval":
        return sorted({*read_split(root, "train"), *read_split(root, "val")})
    names = {path.stem for folder in (own, SHIPPED_SPLITS) for path in folder.glob("*.txt")}
    raise ConfigError(
        f"No split {split!r} in {own}; --data.split may be {', '.join(sorted({*names, 'trainval', 'all'}))}."
    )


def _read_ids(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    ids = [check_id(line.split()[0]) for line in lines if line.strip()]
    return list(dict.fromkeys(ids))


def _truth_folders(config: DataConfig) -> tuple[str, ...]:
    if config.truth:
        return (config.truth,)
    both = ("SegmentationClass", "SegmentationClassAug")
    return both[::-1] if config.split == "train_aug" else both


def _all_labels(
    root: Path, ids: Sequence[str], classes: ClassSet, config: DataConfig, need_labels: bool
) -> list[tuple[int, ...]]:
    table = label_table(root, config)
    if table is not None:
        from data.folder import read_label_table

        rows = read_label_table(table)
        by_stem = {Path(name.replace("\\", "/")).stem: names for name, names in rows.items()}
        return [tuple(sorted({classes.index(name) for name in by_stem.get(sample_id, ())})) for sample_id in ids]
    annotations = root / "Annotations"
    if not annotations.is_dir():
        if need_labels:
            raise LabelError(
                f"{root} has neither Annotations/*.xml nor labels.csv; name a label file with --data.labels."
            )
        return [()] * len(ids)
    return [read_labels(annotations / f"{sample_id}.xml", classes, config.difficult) for sample_id in ids]


def label_table(root: Path, config: DataConfig) -> Path | None:
    """Return the label file that stands in for Annotations: the configured one, or else the root's own."""
    if config.labels:
        return Path(config.labels)
    if (root / "Annotations").is_dir():
        return None
    return next((root / name for name in ("labels.csv", "labels.jsonl") if (root / name).is_file()), None)


def read_labels(path: Path, classes: ClassSet, difficult: bool = True) -> tuple[int, ...]:
    """Return the class ids named in an annotation file, ascending; none if there is no such file.

    Args:
        path: Annotations/<id>.xml. Only <object> elements count; their <part> elements (head, hand) do not.
        classes: what the names mean.
        difficult: count objects with <difficult>1</difficult> too.

    Raises:
        LabelError: not XML, or a class that does not exist.

    """
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except FileNotFoundError:
        return ()
    except (ElementTree.ParseError, OSError) as error:
        raise LabelError(f"Cannot read the annotation {path}: {error}; restore the file.") from error
    names = _object_names(objects, difficult)
    try:
        return tuple(sorted({classes.index(name) for name in names}))
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from error


def _object_names(objects: Iterable[ElementTree.Element], difficult: bool) -> set[str]:
    return {
        (element.findtext("name") or "").strip()
        for element in objects
        if difficult or (element.findtext("difficult") or "0").strip() != "1"
    }
