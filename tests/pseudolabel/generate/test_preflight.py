"""The estimate of `check`: what a run takes, from what one image took."""

import pytest

from pseudolabel.generate.preflight import seconds_per_image


def test_the_halves_follow_each_other_without_workers_and_overlap_on_a_gpu():
    assert seconds_per_image(1.0, 0.5, 0, 8, on_cpu=True) == 1.5
    assert seconds_per_image(1.0, 0.5, 3, 4, on_cpu=False) == 1.0
    assert seconds_per_image(0.1, 0.8, 4, 4, on_cpu=False) == pytest.approx(0.2)
    assert seconds_per_image(0.1, 0.8, 40, 4, on_cpu=False) == pytest.approx(0.2)  # no more at once than cores
    # on a CPU the work of both is divided among the cores
    assert seconds_per_image(1.0, 0.5, 1, 2, on_cpu=True) == 1.25
    assert seconds_per_image(0.1, 1.0, 1, 2, on_cpu=True) == 1.0
    assert seconds_per_image(1.0, 1.0, 1, 2, on_cpu=True) > seconds_per_image(1.0, 1.0, 1, 2, on_cpu=False)
