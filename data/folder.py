"""A person's own folder: images with labels.csv, with labels.jsonl, or in one folder a class."""

from pathlib import Path

from data.errors import ConfigError
from data.samples import DataConfig, SampleSet


def open_folder(config: DataConfig, need_labels: bool = True, need_truth: bool = True) -> SampleSet:
    """List the samples of a folder; see `data.samples.open_samples`."""
    raise ConfigError(f"{config.root} is not laid out as VOC; other folders cannot be read yet.")


def read_label_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the class names of each image of a label file, by the image's name as the file gives it."""
    raise ConfigError(f"{path}: label files cannot be read yet.")
