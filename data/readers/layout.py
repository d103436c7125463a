"""The door to the readers: which layout a folder has, and its samples or its listing."""

from pathlib import Path, PurePath

from data.config import DataConfig, DataFormat
from data.errors import ConfigError
from data.readers.listing import Listing
from data.samples import SampleSet


def open_samples(config: DataConfig, need_labels: bool = True, need_truth: bool = True) -> SampleSet:
    """List the samples of a data set.

    Args:
        config: which data set and split.
        need_labels: leave images without labels out (they are counted in `notes`); False keeps them, with no labels.
        need_truth: set `truth_path` where there is ground truth. COCO's is rendered when a sample is asked for the
            first time; say False where it is not read.

    Raises:
        ConfigError: no such folder, or a split it does not have.
        LabelError: an unknown class, a malformed label file, or an image without labels under `unlabelled="stop"`.

    """
    _check_settings(config)
    match detect_format(config):
        case "voc":
            from data.readers.voc import open_voc

            return open_voc(config, need_labels, need_truth)
        case "coco":
            from data.readers.coco import open_coco

            return open_coco(config, need_labels, need_truth)
        case "folder":
            from data.readers.folder import open_folder

            return open_folder(config, need_labels, need_truth)


def detect_format(config: DataConfig) -> DataFormat:
    """Return the layout of the root folder, or what the configuration says it is."""
    if config.format != "auto":
        return config.format
    root = Path(config.root)
    if any((root / part / "JPEGImages").is_dir() for part in (".", "VOC2012", "VOCdevkit/VOC2012")):
        return "voc"
    if any((root / "annotations").glob("instances_*.json")):
        return "coco"
    return "folder"


def list_data(config: DataConfig, own_classes: bool = True) -> Listing:
    """List a data set of any layout with labels as they are spelt; writes nothing (COCO's index neither).

    Args:
        config: which data set.
        own_classes: for a folder, read its class file; False finds the classes afresh.

    """
    _check_settings(config)
    match detect_format(config):
        case "voc":
            from data.readers.voc import list_voc

            return list_voc(config, need_labels=False)
        case "coco":
            from data.readers.coco import list_coco

            return list_coco(config)
        case "folder":
            from data.readers.folder import list_folder

            return list_folder(config, own_classes)


def _check_settings(config: DataConfig) -> None:
    """Raise ConfigError unless the root is a folder and the split stays inside it (a store may come from anybody)."""
    root, split = Path(config.root), config.split
    if not root.is_dir():
        raise ConfigError(f"There is no folder {root}; --root must name the folder of the data set.")
    parts = PurePath(split.replace("\\", "/")) if isinstance(split, str) else PurePath("..")
    if not split or parts.is_absolute() or ".." in parts.parts or "\0" in split or ":" in split[1:2]:
        raise ConfigError(f"--data.split is {split!r}; it must be the name of a split, inside {root}.")
