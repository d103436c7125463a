import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pseudolabel.ground.presence import presence

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Attention and idle shares of two passes; no two cells are equally sure, so that it is said which are taken."""
    attention, idle = np.random.default_rng(seed).uniform(0.001, 0.5, (2, 2, 5, 6)).astype(np.float32)
    assume(len(np.unique(attention.mean(axis=0))) == attention[0].size)
    return attention, idle


def _reference(attention, idle, share: float) -> float:
    """Cell by cell, in plain Python."""
    passes, cells = len(attention), attention[0].size
    own = [sum(float(one.ravel()[cell]) for one in attention) / passes for cell in range(cells)]
    rest = [sum(float(one.ravel()[cell]) for one in idle) / passes for cell in range(cells)]
    surest = sorted(range(cells), key=lambda cell: own[cell])[-max(1, round(share * cells)) :]
    found = sum(own[cell] for cell in surest)
    return found / (found + sum(rest[cell] for cell in surest))


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.sampled_from([0.005, 0.1, 1.0]))
def test_it_is_the_share_at_the_surest_cells(seed, share):
    attention, idle = drawn(seed)
    assert presence(attention, idle, share) == pytest.approx(_reference(attention, idle, share), rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_laws(seed):
    attention, idle = drawn(seed)
    score = presence(attention, idle)
    assert 0 <= score <= 1
    assert presence(attention[::-1], idle[::-1]) == pytest.approx(score)  # the order of passes is nothing
    assert presence(attention[..., ::-1], idle[..., ::-1]) == pytest.approx(score)  # nor where cells lie
    assert presence(attention / 2, idle / 2) == pytest.approx(score, rel=1e-5)


def test_it_does_not_come_from_the_shape_of_the_map():
    """Two maps that are equal after min-max: one of a thing that draws attention, one of a thing that does not."""
    shape = np.zeros((1, 10, 10))
    shape[0, 4:6, 4:6] = 1
    assert presence(0.6 * shape, 1 - 0.6 * shape) > 0.55
    assert presence(0.01 * shape, 1 - 0.01 * shape) < 0.02


def test_a_peak_at_another_place_in_every_pass_counts_for_little():
    steady, wandering = np.zeros((2, 10, 10)), np.zeros((2, 10, 10))
    steady[:, 2, 2] = 0.8
    wandering[0, 2, 2], wandering[1, 7, 7] = 0.8, 0.8
    idle = np.full((2, 10, 10), 0.2)
    assert presence(wandering, idle) < presence(steady, idle)


def test_nothing_at_all_is_absent():
    assert presence(np.zeros((1, 2, 2)), np.zeros((1, 2, 2))) == 0.0
