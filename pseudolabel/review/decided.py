"""What people have decided about a store, in figures and words, for the report and the score."""

from data.store.review import Review, read_reviews
from data.store.reviewed import machine_hashes
from data.store.store import MaskStore

WORDS = {"accept": "accepted", "reject": "rejected", "skip": "skipped"}


def decisions(store: MaskStore) -> tuple[dict[str, Review], dict[str, int]]:
    """Return what holds of each image that was decided on, and how many there are of each kind.

    Images that the store does not hold are left out; where nobody has decided anything, both are empty.
    """
    found = read_reviews(store)
    if not found:
        return {}, {}
    records = [record for record in store.records() if record["id"] in found]
    reviews = {record["id"]: found[record["id"]] for record in records}
    reviews = {sample_id: review for sample_id, review in reviews.items() if review.says_something}
    machine = machine_hashes(store, (record for record in records if record["id"] in reviews))
    counts = {word: sum(one.decision == name for one in reviews.values()) for name, word in WORDS.items()}
    counts["corrected"] = sum(bool(one.correction) for one in reviews.values())
    counts["with a label marked wrong"] = sum(bool(one.wrong) for one in reviews.values())
    counts["stale"] = sum(one.is_stale(machine[sample_id]) for sample_id, one in reviews.items())
    return reviews, {word: number for word, number in counts.items() if number}


def in_words(review: Review | None) -> str:
    """Return what was decided about an image: "rejected, label box wrong"."""
    if review is None:
        return ""
    parts = [WORDS[review.decision]] if review.decision in WORDS else []
    parts += ["corrected"] if review.correction else []
    parts += [f"label {name} wrong" for name in review.wrong]
    return ", ".join(parts)
