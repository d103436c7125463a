"""review.jsonl: appended to and never rewritten; what the last lines mean for the masks that count."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.classes import make_classes
from data.errors import StoreError
from data.exporters.export import export_store
from data.exporters.items import ExportOptions
from data.masks import read_mask
from data.store.folder import REVIEW
from data.store.review import (
    Change,
    Review,
    ReviewLog,
    corrected_path,
    hand_on,
    mask_hash,
    read_corrected,
    read_reviews,
    with_line,
    write_corrected,
    write_decision,
)
from data.store.reviewed import apply_reviews, is_accepted
from data.store.store import MaskStore

CLASSES = make_classes(["disc", "box"], {}, {})
HEADER = {"config": {}, "model": {}, "data": {"root": "."}}
IDS = ("a", "b", "c")


def mask_of(value: int) -> np.ndarray:
    mask = np.zeros((6, 8), np.uint8)
    mask[:3] = value
    return mask


def fill(store: MaskStore, value: int = 1, ids=IDS) -> None:
    for sample_id in ids:
        record = {"image": f"{sample_id}.png", "labels": [1, 2]}
        store.write(sample_id, mask_of(value), argmax=mask_of(value), soft=None, record=record)


@pytest.fixture
def store(tmp_path) -> MaskStore:
    made = MaskStore.create(tmp_path / "s", classes=CLASSES, **HEADER)
    fill(made)
    return made


def decide(store: MaskStore, sample_id: str, who: str = "ada", looked_at: str = "", **change) -> dict:
    machine = mask_hash(store.read_mask(sample_id))
    return write_decision(store, sample_id, Change(**change), mask=looked_at or machine, machine=machine, who=who)


def correct(store: MaskStore, sample_id: str, mask: np.ndarray, **change) -> str:
    found = write_corrected(store, sample_id, mask)
    decide(store, sample_id, looked_at=found, correction=found, **change)
    return found


def kept(store: MaskStore, use: str = "use", wrong: str = "undecided") -> dict:
    found = apply_reviews(store, list(store.records()), use, wrong)
    return {one.record["id"]: one for one in found.counted}


def test_a_line_says_who_what_when_and_about_which_mask(store):
    decide(store, "a", "Ada \N{GRINNING FACE}", decision="reject", wrong=("box",))
    [line] = [json.loads(line) for line in (store.path / REVIEW).read_text("utf-8").splitlines()]
    assert line["id"] == "a"
    assert line["decision"] == "reject"
    assert line["wrong"] == ["box"]
    assert line["who"] == "Ada \N{GRINNING FACE}"
    assert line["when"].endswith("+00:00")
    assert line["program"].startswith("pseudolabel ")
    assert line["mask"] == line["machine"] == mask_hash(mask_of(1))
    assert set(line) == {"format_version", "id", "decision", "wrong", "who", "when", "program", "mask", "machine"}


def test_what_a_line_does_not_name_stays(store):
    decide(store, "a", wrong=("box",))
    decide(store, "a", "bob", decision="accept")
    review = read_reviews(store)["a"]
    assert (review.decision, review.wrong, review.who, review.lines) == ("accept", ("box",), "bob", 2)
    decide(store, "a", decision="none", wrong=())
    assert not read_reviews(store)["a"].says_something


def write_many(path: str, who: str) -> None:
    opened = MaskStore.open(Path(path))
    for number in range(40):
        decide(opened, IDS[number % 3], who, decision="accept" if number % 2 else "reject")


def test_two_writers_lose_nothing(store):
    writers = [
        multiprocessing.get_context("spawn").Process(target=write_many, args=(str(store.path), who))
        for who in ("ada", "bob")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    lines = [json.loads(line) for line in (store.path / REVIEW).read_text().splitlines()]
    assert len(lines) == 80
    assert {sum(line["who"] == who for line in lines) for who in ("ada", "bob")} == {40}
    last = {line["id"]: line["decision"] for line in lines}
    assert {sample_id: review.decision for sample_id, review in read_reviews(store).items()} == last


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "decision": st.sampled_from(["accept", "reject", "skip", "none"]),
                "wrong": st.lists(st.sampled_from(["box", "disc"]), unique=True),
                "correction": st.sampled_from(["", "c" * 64, "d" * 64]),
            },
        ),
        max_size=8,
    )
)
def test_the_last_line_that_names_a_thing_decides_it(lines):
    review = Review()
    for number, line in enumerate(lines):
        review = with_line(review, line | {"who": str(number), "when": "", "mask": "a" * 64, "machine": "b" * 64})
    for name in ("decision", "wrong", "correction"):
        named = [line[name] for line in lines if name in line]
        expected = named[-1] if named else getattr(Review(), name)
        assert getattr(review, name) == (tuple(expected) if name == "wrong" else expected)


def test_a_log_reads_what_was_appended_and_no_half_line(store):
    log = ReviewLog(store.path / REVIEW)
    assert not log.refresh()
    decide(store, "a", decision="accept")
    assert log.refresh()
    assert not log.refresh()
    with (store.path / REVIEW).open("ab") as file:
        file.write(b'{"format_version":1,"id":"b"')
    log.refresh()
    assert set(log.reviews) == {"a"}
    decide(store, "b", decision="reject")  # begins a line of its own
    assert log.refresh()
    assert log.reviews["b"].decision == "reject"
    (store.path / REVIEW).unlink()
    assert log.refresh()
    assert log.reviews == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "install a newer text2mask-wsss"),
        ({"decision": "maybe"}, "decision is 'maybe'"),
        ({"wrong": "box"}, "wrong is not a list"),
        ({"mask": "../../etc/passwd"}, "64 hexadecimal digits"),
        ({"correction": "../x"}, "correction is not a hash"),
        ({"who": 3}, "not every one of"),
        ({"settings": 3}, "settings are no object"),
    ],
)
def test_a_line_that_cannot_be_is_an_error(store, change, message):
    line = decide(store, "a", decision="accept")
    with (store.path / REVIEW).open("a") as file:
        file.write(json.dumps(line | change) + "\n")
    with pytest.raises(StoreError, match=rf"Line 2 of .*{message}"):
        read_reviews(store)


def test_rejected_images_leave_and_corrected_masks_count(store):
    drawn = mask_of(2)
    decide(store, "a", decision="reject")
    correct(store, "b", drawn, decision="accept")
    found = apply_reviews(store, list(store.records()), "use")
    assert [one.record["id"] for one in found.counted] == ["b", "c"]
    assert (read_mask(kept(store)["b"].corrected) == drawn).all()
    assert found.notes() == (
        "review.jsonl: 1 image rejected, left out: a.",
        "review.jsonl: corrected masks of 1 image: b.",
    )
    assert set(kept(store, "accepted_only")) == {"b"}
    assert set(kept(store, "ignore")) == set(IDS)
    assert kept(store, "ignore")["b"].corrected is None


def test_a_label_that_is_wrong_is_undecided_or_its_image_leaves(store):
    decide(store, "a", wrong=("disc", "no class of this store"))
    assert kept(store)["a"].wrong == (1,)
    assert set(kept(store, wrong="leave_out")) == {"b", "c"}


def test_a_decision_about_a_mask_that_has_changed_is_stale_and_only_keeps_out(store):
    decide(store, "a", decision="reject")
    decide(store, "b", decision="accept")
    correct(store, "c", mask_of(0), decision="accept")
    fill(store, value=2)  # the machine makes other masks
    machine = mask_hash(mask_of(2))
    reviews = read_reviews(store)
    assert [reviews[sample_id].is_stale(machine) for sample_id in IDS] == [True, True, False]
    assert [is_accepted(reviews[sample_id], machine) for sample_id in IDS] == [False, False, True]
    assert set(kept(store)) == {"b", "c"}
    assert set(kept(store, "accepted_only")) == {"c"}
    notes = apply_reviews(store, list(store.records()), "use").notes()
    assert "review.jsonl: decisions about masks that have changed since, in 2 images: a, b." in notes
    fill(store, value=1)  # the same masks as before: nothing is stale
    assert not any(review.is_stale(mask_hash(mask_of(1))) for review in read_reviews(store).values())


def test_a_correction_that_was_taken_back_stays_on_the_disk(store):
    first, second = correct(store, "a", mask_of(2)), correct(store, "a", mask_of(0))
    decide(store, "a", correction="")
    assert kept(store)["a"].corrected is None
    assert (read_corrected(store, "a", first) == mask_of(2)).all()
    assert (read_corrected(store, "a", second) == mask_of(0)).all()


def test_a_corrected_mask_that_cannot_be_used_leaves_and_is_named(store):
    found = correct(store, "a", mask_of(2))
    corrected_path(store, "a", found).unlink()
    wrong_size = np.zeros((3, 3), np.uint8)
    correct(store, "b", wrong_size)
    notes = apply_reviews(store, list(store.records()), "use").notes()
    assert set(kept(store)) == {"c"}
    assert any("2 images whose corrected mask cannot be used, left out: a (" in note for note in notes)


def test_starting_over_keeps_what_people_decided(store):
    decide(store, "a", decision="reject")
    correct(store, "b", mask_of(2))
    before = (store.path / REVIEW).read_bytes()
    other = MaskStore.start_over(store.path, classes=CLASSES, **(HEADER | {"config": {"x": 1}}))
    assert (store.path / REVIEW).read_bytes() == before
    assert not other.finished()
    fill(other)
    assert set(kept(other)) == {"b", "c"}
    assert kept(other)["b"].corrected is not None
    (store.path / "store.json").unlink()  # a headless store with corrections is one still
    fill(MaskStore.start_over(store.path, classes=CLASSES, **HEADER))
    assert set(kept(MaskStore.open(store.path))) == {"b", "c"}


def test_decisions_are_handed_on_once_and_never_over_newer_ones(store, tmp_path):
    decide(store, "a", decision="reject")
    found = correct(store, "b", mask_of(2))
    target = MaskStore.create(tmp_path / "t", classes=CLASSES, **HEADER)
    fill(target, value=2)
    assert hand_on(store, target) == 2
    assert (read_corrected(target, "b", found) == mask_of(2)).all()
    decide(target, "a", decision="accept")
    decide(store, "c", decision="reject")
    assert hand_on(store, target) == 1
    assert {name: review.decision for name, review in read_reviews(target).items()} == {
        "a": "accept", "b": "none", "c": "reject"
    }  # fmt: skip
    assert hand_on(store, target) == 0


def test_exports_take_the_masks_that_count(store, tmp_path):
    decide(store, "a", decision="reject")
    correct(store, "b", mask_of(2))
    decide(store, "c", wrong=("disc",))
    done = export_store(store, "voc", tmp_path / "voc", ExportOptions(images="none"))
    masks = {path.stem: read_mask(path) for path in (tmp_path / "voc" / "SegmentationClass").iterdir()}
    assert set(masks) == {"b", "c"}
    assert (masks["b"] == mask_of(2)).all()
    assert set(np.unique(masks["c"])) == {0, 255}
    assert '"c.png","box"' in (tmp_path / "voc" / "labels.csv").read_text()
    assert any("1 image rejected, left out: a" in note for note in done.notes)
    every = export_store(store, "voc", tmp_path / "all", ExportOptions(images="none", review="ignore"))
    assert every.n_images == 3
    decide(store, "b", decision="reject")
    decide(store, "c", decision="reject")
    with pytest.raises(StoreError, match="--review use"):
        export_store(store, "voc", tmp_path / "none", ExportOptions(images="none"))
