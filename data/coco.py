"""The MS COCO 2014 layout."""

from data.errors import ConfigError
from data.samples import DataConfig, SampleSet


def open_coco(config: DataConfig, need_labels: bool = True, need_truth: bool = True) -> SampleSet:
    """List the samples of a folder; see `data.samples.open_samples`."""
    raise ConfigError(f"{config.root} is a COCO folder, which cannot be read yet.")
