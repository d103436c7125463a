"""Labels that may be wrong: every (image, label) pair of a store by presence, the most doubtful first.

Presence (`pseudolabel.ground.presence`) is how much attention a label's words draw against tokens that are no words;
its scale is the model's own. To divide it by the median of its class brought nothing on the demo's calibration
scenes. Nothing is deleted: the list is for a person, or for `segtrain fit --data.min_presence`.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

from data.errors import StoreError
from data.store.store import MaskStore

FLAGGED = 0.6  # share of the median over a store, below which a report names a label (benchmarks/doubt.md)


@dataclass(frozen=True)
class DoubtfulLabel:
    """A line of the list: a label of an image.

    Attributes:
        id: the image.
        label: name of the class.
        presence: 0 to 1; the lower, the more doubtful.
        share: share of the image's pixels that the mask gives the class.
        image: file of the image, as the store names it.

    """

    id: str
    label: str
    presence: float
    share: float
    image: str


def doubtful_labels(store: MaskStore) -> list[DoubtfulLabel]:
    """Return the labels of a store's images, the most doubtful first.

    Raises:
        StoreError: the store holds no image, or its index no presence.

    """
    records = [record for record in store.records() if record.get("presence")]
    if not records:
        raise StoreError(
            f"{store.path} says of no label how likely it is: masks of networks and of older versions have no "
            "presence. Make them again with `pseudolabel generate --overwrite`."
        )
    found = [
        DoubtfulLabel(record["id"], name, score, record.get("class_share", {}).get(name, 0.0), record.get("image", ""))
        for record in records
        for name, score in record["presence"].items()
    ]
    return sorted(found, key=lambda each: (each.presence, each.id, each.label))


def is_flagged(presences: Sequence[float]) -> list[bool]:
    """Return which of a store's labels a report flags: those far below the median.

    >>> is_flagged([0.3, 0.6, 0.7])
    [True, False, False]
    """
    limit = FLAGGED * median(presences)
    return [each < limit for each in presences]


def flagged_labels(store: MaskStore) -> dict[str, list[str]]:
    """Return the names of each image's labels that a report flags; empty where the store has no presence."""
    found: dict[str, list[str]] = defaultdict(list)
    if any(record.get("presence") for record in store.records()):
        doubts = doubtful_labels(store)
        for each, flagged in zip(doubts, is_flagged([doubt.presence for doubt in doubts]), strict=True):
            if flagged:
                found[each.id].append(each.label)
    return found


def as_csv(doubts: Sequence[DoubtfulLabel]) -> str:
    """Return the list as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(DoubtfulLabel.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(each) for each in doubts)
    return text.getvalue()
