"""Pascal VOC: JPEGImages, SegmentationClass and lists of ids, as other trainers read them."""

from collections.abc import Iterable
from pathlib import Path

from data.class_file import save_classes
from data.exporters.items import Exported, ExportOptions, Item, classes_in, place_image, split_of, suffix_of
from data.exporters.labels import write_labels
from data.files import write_atomically
from data.masks import write_mask
from data.store.store import MaskStore


def write_voc(store: MaskStore, items: Iterable[Item], folder: Path, options: ExportOptions) -> Exported:
    """Write JPEGImages, SegmentationClass, ImageSets/Segmentation, labels.csv and classes.yaml."""
    split = split_of(store)
    for name in ("SegmentationClass", "ImageSets/Segmentation", "ImageSets/SegmentationAug"):
        (folder / name).mkdir(parents=True)
    ids, pairs, rows, suffixes = [], [], [], set()
    for item in items:
        sample_id, suffix = item.record["id"], suffix_of(item.image)
        write_mask(folder / "SegmentationClass" / f"{sample_id}.png", item.mask)
        place_image(item, folder / "JPEGImages" / f"{sample_id}{suffix}", options.images)
        names = [store.classes.name(label) for label in item.record.get("labels", classes_in(item.mask, store.classes))]
        ids.append(sample_id)
        suffixes.add(suffix)
        pairs.append(f"/JPEGImages/{sample_id}{suffix} /SegmentationClass/{sample_id}.png")
        rows.append((f"{sample_id}{suffix}", names))
    write_atomically(folder / "ImageSets" / "Segmentation" / f"{split}.txt", _lines(ids))
    write_atomically(folder / "ImageSets" / "SegmentationAug" / f"{split}.txt", _lines(pairs))
    write_labels(folder, rows)
    save_classes(store.classes, folder / "classes.yaml")
    return Exported(len(ids), folder / "SegmentationClass", _voc_notes(ids, suffixes))


def _voc_notes(ids: list[str], suffixes: set[str]) -> tuple[str, ...]:
    """Say what other trainers cannot read of a VOC folder."""
    notes = []
    if suffixes - {".jpg"}:
        kinds = ", ".join(sorted(suffixes))
        notes.append(f"The images are {kinds}; mmsegmentation reads one img_suffix a data set, .jpg if not told.")
    if any(len(sample_id.split()) > 1 for sample_id in ids):
        notes.append("Some ids hold spaces, which deeplab-pytorch's vocaug takes for separators; its voc reads them.")
    return tuple(notes)


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
