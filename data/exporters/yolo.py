"""YOLO segmentation: a text file of outlines per image, images/ beside labels/, and data.yaml."""

from collections.abc import Iterable
from pathlib import Path

from data.exporters.items import Exported, ExportOptions, Item, classes_in, place_image, split_of, suffix_of
from data.exporters.polygons import outlines, yolo_line
from data.files import write_atomically
from data.store.store import MaskStore
from data.wording import count, printable


def write_yolo(store: MaskStore, items: Iterable[Item], folder: Path, options: ExportOptions, output: Path) -> Exported:
    """Write labels/<split>/<id>.txt, images/<split>/ and data.yaml; class indices begin with 0, without background."""
    split = split_of(store)
    labels = folder / "labels" / split
    labels.mkdir(parents=True)
    written, passed_over = 0, []
    for item in items:
        rows = [
            yolo_line(outline, class_id - 1, item.mask.shape)
            for class_id in classes_in(item.mask, store.classes)
            for outline in outlines(item.mask == class_id, options.min_area_px)
        ]
        sample_id = item.record["id"]
        write_atomically(labels / f"{sample_id}.txt", "".join(f"{row}\n" for row in rows).encode())
        place_image(item, folder / "images" / split / f"{sample_id}{suffix_of(item.image)}", options.images)
        if min(item.mask.shape) < 10 or suffix_of(item.image) == ".gif":
            passed_over.append(sample_id)
        written += 1
    names = "".join(f"  {number}: {_quoted(name)}\n" for number, name in enumerate(store.classes.names))
    text = f"path: {_quoted(str(output.resolve()))}\ntrain: images/{split}\nval: images/{split}\nnames:\n{names}"
    write_atomically(folder / "data.yaml", text.encode())
    note = "data.yaml names the same images for train and val, as Ultralytics wants both; point val to your own."
    notes = [note]
    if passed_over:
        there = f"{count(len(passed_over), 'image')}, first {printable(passed_over[0])}"
        notes.append(f"Ultralytics passes over GIF and sides under 10 pixels: {there}.")
    if options.images == "none":
        notes.append(f"Put the images into images/{split}, each under the name of its text file in labels/{split}.")
    return Exported(written, folder / "data.yaml", tuple(notes))


def _quoted(text: str) -> str:
    """Return a text as YAML in double quotes, on one line."""
    import yaml

    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=1_000_000).strip()
