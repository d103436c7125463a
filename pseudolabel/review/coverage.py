"""Sums over a store's index: how much of each class the masks show, and what a person should look at."""

from collections import Counter
from dataclasses import dataclass, field

from data.store.store import MaskStore


@dataclass
class Coverage:
    """Sums over a store's index.

    Attributes:
        images: number of images.
        seconds: time they took.
        ignore: sum of their shares of undecided pixels.
        with_label: number of images that carry each class.
        pixels: by class, the sum over these images of the class's share of pixels.
        empty: number of images that carry the class but show no pixel of it.
        warnings: ids of images by warning.
        background: sum of the images' shares of background pixels.

    """

    images: int = 0
    seconds: float = 0.0
    ignore: float = 0.0
    with_label: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    empty: Counter[int] = field(default_factory=Counter)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    background: float = 0.0

    @property
    def warned(self) -> int:
        """Number of images with at least one warning."""
        return len({sample_id for ids in self.warnings.values() for sample_id in ids})


def measure_coverage(store: MaskStore) -> Coverage:
    """Add up the index of a store, in the order of the ids: the figures do not depend on which image was done first."""
    coverage = Coverage()
    for record in sorted(store.records(), key=lambda line: line["id"]):
        coverage.images += 1
        coverage.seconds += record.get("seconds", 0.0)
        coverage.ignore += record.get("ignore_share", 0.0)
        shares = record.get("class_share", {})
        coverage.background += shares.get("background", 0.0)
        for label in record.get("labels", []):
            share = shares.get(store.classes.name(label), 0.0)
            coverage.with_label[label] += 1
            coverage.pixels[label] += share
            coverage.empty[label] += share == 0
        for warning in record.get("warnings", []):
            coverage.warnings.setdefault(warning, []).append(record["id"])
    return coverage
