"""Which phrase data set a folder holds, and its targets."""

from pathlib import Path
from typing import Literal

from data.errors import ConfigError
from data.readers.personal import PERMIS_MASKS, open_permis, open_perseg, open_personal
from data.readers.phrases import REFER_SPLITS, open_png, open_refcoco
from data.readers.targets import TargetSet

TargetFormat = Literal["personal", "perseg", "permis", "refcoco", "png"]


def open_targets(root: Path, layout: Literal["auto"] | TargetFormat = "auto", split: str | None = None) -> TargetSet:
    """List what is to be found in the images of a phrase data set.

    Args:
        root: its folder.
        layout: auto looks for the files that only one of them has, and else takes our own layout.
        split: of RefCOCO ("val" if not given) and PNG ("val2017"); the others have none.

    Raises:
        ConfigError: no such folder, split or images.
        LabelError: annotations that are not of the layout's form.
        ImageError: an image without a mask.

    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"There is no folder {root}; --root must name the folder of the data set.")
    found = detect_targets(root) if layout == "auto" else layout
    if split is not None and found not in ("refcoco", "png"):
        raise ConfigError(
            f"--split is {split!r}, but {root} is laid out as {found}, which has no splits; leave it out."
        )
    match found:
        case "personal":
            return open_personal(root)
        case "perseg":
            return open_perseg(root)
        case "permis":
            return open_permis(root)
        case "refcoco":
            return open_refcoco(root, split or "val")
        case "png":
            return open_png(root, split or "val2017")


def detect_targets(root: Path) -> TargetFormat:
    """Return the layout of a folder."""
    refs = (root / f"refs({kind}).{suffix}" for kind in REFER_SPLITS for suffix in ("p", "json"))
    if (root / "instances.json").is_file() and any(path.is_file() for path in refs):
        return "refcoco"
    if any((root / "annotations").glob("png_coco_*.json")):
        return "png"
    if (root / "Images").is_dir() and (root / "Annotations").is_dir():
        return "perseg"
    if any(any(root.glob(f"*/{name}")) for name in PERMIS_MASKS):
        return "permis"
    return "personal"
