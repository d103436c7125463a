"""The command `export`: the masks of a store for annotation tools and other trainers."""

from pathlib import Path
from typing import Literal

from data.config import require
from data.wording import count, printable


def export(
    store: Path,
    format: Literal["coco", "yolo", "voc", "labelstudio"],
    output: Path | None = None,
    source: Literal["masks", "argmax"] = "masks",
    images: Literal["auto", "none", "link", "copy"] = "auto",
    orientation: Literal["upright", "raw"] = "upright",
    components: bool = False,
    min_area_px: int = 1,
    root: Path | None = None,
    url_prefix: str = "/data/local-files/?d=",
    review: Literal["use", "ignore", "accepted_only"] = "use",
) -> None:
    """Write a store's masks in another format.

    Args:
        store: Folder of the mask store, of `pseudolabel generate` or of `segtrain predict`.
        format: coco: JSON with RLE. yolo: polygons. voc: folders of palette PNGs. labelstudio: brush masks.
        output: New folder to write to; the store's name and the format if not given.
        source: masks: undecided pixels (255) stay undecided. argmax: every pixel gets its best class.
        images: Put the images beside the labels: link, copy or none; auto links for yolo and voc.
        orientation: upright: as viewers show the image. raw: as the file stores it, for readers that pass EXIF over.
        components: coco: an object for each connected region, not for each class.
        min_area_px: Leave out regions of fewer pixels (yolo, and coco with components).
        root: Folder of the images, if it is not where the store says.
        url_prefix: labelstudio: what comes before an image's path, local file storage if not given.
        review: Decisions of `pseudolabel review`: use leaves out rejected images and takes corrected masks;
            accepted_only: all that are not accepted are left out; ignore: the machine's masks, all of them.

    """
    from data.exporters.export import export_store
    from data.exporters.items import ExportOptions
    from data.store.store import MaskStore

    require("min_area_px", min_area_px, min_area_px >= 0, "at least 0")
    opened = MaskStore.open(store)
    target = output or opened.path.with_name(f"{opened.path.resolve().name}_{format}")
    options = ExportOptions(source, images, orientation, components, min_area_px, root, url_prefix, review)
    exported = export_store(opened, format, target, options)
    print(f"Wrote the masks of {count(exported.n_images, 'image')} to {target}; open {exported.opens}.")
    for note in exported.notes:
        print(printable(note))
