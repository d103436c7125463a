"""The queue of the review page: a store's images with the doubt about their masks, filtered, ordered and counted."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from data.store.review import Review
from data.store.store import MaskStore
from pseudolabel.review.doubt import Doubt, doubt_of, usual_presence, warning_kinds

Order = Literal["doubt", "id", "recent"]


@dataclass(frozen=True)
class Line:
    """One image in the queue: its line in the index, and the doubt about its mask."""

    record: dict[str, Any]
    doubt: Doubt


@dataclass(frozen=True)
class Query:
    """What is to be in the queue, and in which order.

    Attributes:
        label: class id that an image carries; None: any.
        warning: kind of warning; empty: any.
        decision: accept, reject, skip, none, corrected, wrong, stale; empty: any.
        text: part of the id.
        order: by doubt, by id, or by the time of the last decision.

    """

    label: int | None = None
    warning: str = ""
    decision: str = ""
    text: str = ""
    order: Order = "doubt"


def lines_of(store: MaskStore, disagreement: Mapping[str, float]) -> dict[str, Line]:
    """Return the lines of a store's images by id.

    Args:
        store: the store.
        disagreement: share of an image's pixels on which a network disagrees, by id, where there is a prediction.

    """
    records = list(store.records())
    usual = usual_presence(records)
    return {
        record["id"]: Line(record, doubt_of(record, store.classes, disagreement.get(record["id"]), usual))
        for record in records
    }


def select(
    lines: Iterable[Line], reviews: Mapping[str, Review], query: Query, is_stale: Callable[[Line, Review], bool]
) -> list[str]:
    """Return the ids of the images that a query asks for, in its order.

    Args:
        lines: all images.
        reviews: what holds of those that were decided on.
        query: what is asked for.
        is_stale: whether an image's mask has changed since it was decided on; asked of few, as it reads the mask.

    """
    text = query.text.casefold()

    def review_of(line: Line) -> Review:
        return reviews.get(line.record["id"], Review())

    found = [
        line
        for line in lines
        if (query.label is None or query.label in line.record.get("labels", ()))
        and (not query.warning or query.warning in warning_kinds(line.record.get("warnings", ())))
        and text in line.record["id"].casefold()
        and _is_decided(line, review_of(line), query.decision, is_stale)
    ]
    found.sort(key=lambda line: line.record["id"])
    match query.order:
        case "doubt":
            found.sort(key=lambda line: -line.doubt.value)
        case "recent":
            found.sort(key=lambda line: review_of(line).when, reverse=True)
        case "id":
            pass
    return [line.record["id"] for line in found]


def _is_decided(line: Line, review: Review, decision: str, is_stale: Callable[[Line, Review], bool]) -> bool:
    match decision:
        case "":
            return True
        case "corrected":
            return bool(review.correction)
        case "wrong":
            return bool(review.wrong)
        case "stale":
            return review.says_something and is_stale(line, review)
        case _:
            return review.decision == decision


def count_decisions(total: int, reviews: Iterable[Review]) -> dict[str, int]:
    """Return how many of `total` images there are of each decision, given the reviews of those that have one."""
    kept = list(reviews)
    decided = Counter(review.decision for review in kept if review.decision != "none")
    return {
        "total": total,
        **{name: decided[name] for name in ("accept", "reject", "skip")},
        "none": total - decided.total(),
        "corrected": sum(bool(review.correction) for review in kept),
        "wrong": sum(bool(review.wrong) for review in kept),
    }


def labels_in_use(lines: Iterable[Line]) -> Counter[int]:
    """Return how many images carry each class."""
    return Counter(label for line in lines for label in line.record.get("labels", ()))


def warnings_in_use(lines: Iterable[Line]) -> Counter[str]:
    """Return how many images have each kind of warning."""
    return Counter(kind for line in lines for kind in warning_kinds(line.record.get("warnings", ())))
