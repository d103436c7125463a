"""Laws of the doubt that the queue is sorted by, and the masks that are drawn on at the size they are shown at."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.classes import make_classes
from pseudolabel.review.doubt import differing, doubt_of, usual_presence, warning_kinds
from pseudolabel.review.retuning import displayed, drawn_over

CLASSES = make_classes(["disc", "box"], {}, {})
SHARES = st.floats(0, 1)


def record(warnings: int = 0, undecided: float = 0.0, disc: float = 0.5, box: float = 0.5) -> dict:
    return {
        "labels": [1, 2],
        "warnings": ["disc: no pixels"] * warnings,
        "ignore_share": undecided,
        "class_share": {"disc": disc, "box": box},
    }


def value(disagreement: float | None = None, **parts) -> float:
    return doubt_of(record(**parts), CLASSES, disagreement).value


@given(st.integers(0, 5), SHARES, SHARES, SHARES, st.none() | SHARES)
def test_doubt_lies_between_0_and_1_and_each_part_raises_it(warnings, undecided, disc, box, disagreement):
    parts = {"warnings": warnings, "undecided": undecided, "disc": disc, "box": box}
    found = value(disagreement, **parts)
    assert 0 <= found <= 1
    assert value(disagreement, **(parts | {"warnings": warnings + 1})) >= found
    assert value(disagreement, **(parts | {"undecided": min(1.0, undecided + 0.1)})) >= found - 1e-12
    assert value(disagreement, **(parts | {"disc": disc / 2})) >= found - 1e-12
    assert value(1.0, **parts) == pytest.approx(1)


def test_nothing_to_doubt_is_no_doubt():
    assert doubt_of(record(), CLASSES).value == 0
    assert doubt_of(record(), CLASSES).reasons == ()
    assert doubt_of({"id": "a"}, CLASSES).value == 0  # a line that says next to nothing


def test_the_reasons_name_what_is_doubted():
    said = doubt_of(record(2, 0.31, box=0.004), CLASSES, 0.12).reasons
    assert said == ("2 warnings", "31 % undecided", "box: 0.4 % of the image", "the network disagrees on 12 %")


def test_undecided_pixels_are_no_disagreement():
    mask = np.array([[0, 1, 255, 255]], np.uint8)
    assert differing(mask, np.array([[0, 1, 1, 2]], np.uint8)) == 0
    assert differing(mask, np.array([[1, 1, 1, 2]], np.uint8)) == 0.5
    assert differing(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8)) == 0


def test_kinds_of_warnings_go_without_the_class():
    assert warning_kinds(["cat: no pixels", "dog: no pixels", "all background"]) == {"no pixels", "all background"}


def test_on_a_large_image_what_was_not_drawn_on_stays_to_the_pixel():
    under = (np.random.default_rng(0).random((1600, 2400)) < 0.5).astype(np.uint8)  # finer than what is shown
    shown = displayed(under)
    assert shown.shape != under.shape
    drawn = shown.copy()
    drawn[:20, :30] = 255
    found = drawn_over(under, drawn)
    changed = found != under
    assert (found[:10, :15] == 255).all()
    assert not changed[40:].any()
    assert not changed[:, 60:].any()
    assert (displayed(found) == drawn).all()
    assert (drawn_over(under, shown) == under).all()


def test_a_label_that_is_hardly_there_is_doubt():
    """Compared with what is usual in the store; a mask without presence is judged by the rest alone."""

    classes = make_classes(["disc", "box"], {}, {})
    records = [
        {"id": str(n), "labels": [1], "presence": {"disc": value}} for n, value in enumerate((0.8, 0.8, 0.4, 0.0))
    ]
    usual = usual_presence(records)
    assert usual == pytest.approx(0.6)
    doubts = [doubt_of(record, classes, usual=usual) for record in records]
    assert [doubt.value for doubt in doubts[:3]] == [0, 0, 0]
    assert doubts[3].value == pytest.approx(0.8)
    assert doubts[3].reasons == ("disc: presence 0.00, usual is 0.60",)
    assert usual_presence([{"id": "a"}]) is None
    assert doubt_of({"id": "a", "labels": []}, classes).value == 0
