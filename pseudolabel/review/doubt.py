"""How much there is to doubt about a mask: what the queue of the review page is sorted by.

From the index alone, so that a store of 80,000 images is sorted in a second; only the disagreement of a network, where
its predictions are named, takes reading both masks. Presence, which says whether a label's thing is there at all, has
the scale of the model that made the masks, so it is compared with what is usual in the store; masks of networks and of
other programs have none, and there a class whose mask is small or missing stands in for it.
"""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.classes import IGNORE, ClassSet
from data.console import progress_bar
from data.errors import StoreError, UserError
from data.machine import available_cpus
from data.store.store import MaskStore
from data.wording import count
from pseudolabel.review.doubtful import FLAGGED

FAINT = 0.02  # a class with a smaller share of the image is the fainter the smaller it is
FAINT_WEIGHT = 0.5
ABSENT_WEIGHT = 0.8  # of a label without any presence at all
AHEAD = 256  # masks read at a time, so that memory does not grow with the store


@dataclass(frozen=True)
class Doubt:
    """Doubt about one mask.

    Attributes:
        value: 0 to 1.
        reasons: what it comes from, for people.

    """

    value: float
    reasons: tuple[str, ...]


def usual_presence(records: Iterable[dict[str, Any]]) -> float | None:
    """Return the median presence of a store's labels; None where it has none."""
    found = [value for record in records for value in (record.get("presence") or {}).values()]
    return float(np.median(found)) if found else None


def doubt_of(
    record: dict[str, Any], classes: ClassSet, disagreement: float | None = None, usual: float | None = None
) -> Doubt:
    """Return the doubt about an image's mask: each part raises it, and none alone takes it to 1 but a full one.

    Ours: 1 - (1 - w)(1 - u)(1 - f)(1 - p)(1 - d) with w = 1 - 2^-warnings, u the undecided share of the pixels, f for
    the faintest class (up to a half, at no pixels), p for the least present label (up to 0.8, at no presence; 0 from
    `FLAGGED` of the usual one on, below which reports flag a label) and d the share of pixels on which a network
    disagrees.

    Args:
        record: the image's line in the index.
        classes: names of the classes.
        disagreement: share of pixels on which a network disagrees; None where there is no prediction.
        usual: `usual_presence` of the store; None where it has none.

    """
    warned, undecided = len(record.get("warnings", ())), float(record.get("ignore_share", 0.0))
    reasons = [count(warned, "warning")] if warned else []
    if undecided:
        reasons.append(f"{_percent(undecided)} undecided")
    shares = record.get("class_share", {})
    known = [(shares[classes.name(i)], classes.name(i)) for i in record.get("labels", ()) if classes.name(i) in shares]
    share, name = min(known, default=(1.0, ""))
    faint = FAINT_WEIGHT * max(0.0, 1 - share / FAINT)
    if faint:
        reasons.append(f"{name}: {_percent(share)} of the image")
    absent = 0.0
    if usual and record.get("presence"):
        least, which = min((value, name) for name, value in record["presence"].items())
        absent = ABSENT_WEIGHT * max(0.0, 1 - least / (FLAGGED * usual))
        if absent:
            reasons.append(f"{which}: presence {least:.2f}, usual is {usual:.2f}")
    if disagreement:
        reasons.append(f"the network disagrees on {_percent(disagreement)}")
    parts = (1 - 0.5**warned, min(undecided, 1.0), faint, absent, disagreement or 0.0)
    return Doubt(1 - math.prod(1 - part for part in parts), tuple(reasons))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def disagreements(store: MaskStore, predictions: MaskStore) -> dict[str, float]:
    """Return the share of each image's decided pixels on which a network's prediction says another class.

    Images that the network has not predicted, or at another size, are left out.

    Raises:
        StoreError: the predictions are of other classes.

    """
    if predictions.classes.names != store.classes.names:
        raise StoreError(f"The classes of {predictions.path} are not those of {store.path}; see --predictions.")
    predicted = predictions.finished()
    records = [record for record in store.records() if record["id"] in predicted]
    found: dict[str, float] = {}
    with (
        ThreadPoolExecutor(available_cpus()) as pool,
        progress_bar(total=len(records), unit="image", desc="compare") as bar,
    ):
        for part in (records[at : at + AHEAD] for at in range(0, len(records), AHEAD)):
            for record, share in zip(part, pool.map(lambda one: _compared(store, predictions, one), part), strict=True):
                found |= {} if share is None else {record["id"]: share}
            bar.update(len(part))
    return found


def _compared(store: MaskStore, predictions: MaskStore, record: dict[str, Any]) -> float | None:
    try:
        mask, predicted = store.read_mask(record), predictions.read_argmax(record["id"])
    except UserError:  # the page says so when the image is looked at
        return None
    return differing(mask, predicted) if mask.shape == predicted.shape else None


def differing(mask: UInt8[np.ndarray, "height width"], predicted: UInt8[np.ndarray, "height width"]) -> float:
    """Return the share of a mask's decided pixels that another one gives another class; 0 where none is decided."""
    decided = mask != IGNORE
    return float(np.mean(mask[decided] != predicted[decided])) if decided.any() else 0.0


def warning_kinds(warnings: Sequence[str]) -> set[str]:
    """Return what warnings are about, without the classes they name: "cat: no pixels" is "no pixels"."""
    return {warning.rpartition(": ")[2] for warning in warnings}
