"""Maps on grids: min-max and saturation over the cells that hold image, and from one grid to another."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.store.softmaps import Frame
from pseudolabel.softmaps.frame import frame_image
from pseudolabel.softmaps.grids import min_max, regrid, saturated, valid_mask

ALL_VALID = torch.ones(2, 1, 5, 6, dtype=torch.bool)


@given(hnp.arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-100, 100, width=32)))
def test_min_max_fills_zero_to_one_or_is_zero(values):
    scaled = min_max(torch.from_numpy(values))
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    for before, after in zip(values.reshape(6, 20), scaled.reshape(6, 20), strict=True):
        if before.max() > before.min():
            assert after.max() == 1
            assert after.min() == 0
        else:
            assert (after == 0).all()


def test_min_max_looks_at_the_image_alone():
    maps = torch.tensor([[[[2.0, 4.0, 90.0], [3.0, 2.5, -90.0]]]])
    valid = torch.tensor([[[[True, True, False], [True, True, False]]]])
    scaled = min_max(maps, valid)
    torch.testing.assert_close(scaled[0, 0, :, :2], torch.tensor([[0.0, 1.0], [0.5, 0.25]]))
    assert scaled[0, 0, 0, 2] == 1
    assert scaled[0, 0, 1, 2] == 0


def _saturated_slowly(maps: np.ndarray, inside: np.ndarray, n_classes: int, share: float) -> np.ndarray:
    """Return `saturated` of one element: the strongest values of its cells, sorted, and a line between two."""
    cells = zip(*np.nonzero(inside), strict=True)
    values = sorted(max(maps[label, row, column] for label in range(n_classes)) for row, column in cells)
    place = (1 - share) * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    divisor = max(0.2, values[below] + (place - below) * (values[above] - values[below]))
    return np.minimum(1, maps / divisor)


@given(st.integers(0, 1000), st.floats(0, 0.99), st.integers(1, 3), st.floats(0, 1))
def test_the_strongest_cells_are_cut_at_one(seed, share, n_classes, height):
    maps = height * torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(seed))
    valid = ALL_VALID.clone()
    valid[1, :, 3:] = False
    found = saturated(maps, valid, [n_classes, 4], share)
    for element, count in enumerate((n_classes, 4)):
        expected = _saturated_slowly(maps[element].double().numpy(), valid[element, 0].numpy(), count, share)
        np.testing.assert_allclose(found[element].numpy(), expected, atol=1e-4)


def test_saturation_keeps_the_order_of_classes_and_what_is_full_already():
    maps = torch.rand(1, 3, 5, 6)
    valid = torch.ones(1, 1, 5, 6, dtype=torch.bool)
    found = saturated(maps, valid, [3], 0.1)
    below = found.amax(dim=1) < 1
    assert torch.equal(found.argmax(dim=1)[below], maps.argmax(dim=1)[below])
    assert (found.amax(dim=1) == 1).sum() == 3  # a tenth of 30 cells
    full = maps / maps.amax()
    torch.testing.assert_close(saturated(full, valid, [3], 0.0), full)
    assert torch.equal(saturated(torch.zeros_like(maps), valid, [3], 0.1), torch.zeros_like(maps))


def test_regrid_keeps_a_place_in_the_image_where_it_is():
    target = frame_image((96, 128), 16, 128)
    source = frame_image((96, 128), 16, 256)
    ramp = torch.linspace(0, 1, 32)[None, None, :].expand(1, 24, 32)
    moved = regrid(ramp, source, False, target, (12, 16))
    expected = (torch.arange(16) + 0.5) / 16
    torch.testing.assert_close(moved[0, 3], (expected * 32 - 0.5) / 31, atol=1e-5, rtol=0)
    mirrored = regrid(ramp, source, True, target, (12, 16))
    torch.testing.assert_close(mirrored, moved.flip(-1), atol=1e-5, rtol=0)


def test_mirroring_turns_about_the_middle_of_the_image_not_of_the_padding():
    frame = Frame(padded_hw=(64, 64), resized_hw=(64, 40), image_hw=(64, 40))
    maps = torch.zeros(1, 8, 8)
    maps[0, :, 0] = 1  # the leftmost 8 of 40 px
    mirrored = regrid(maps, frame, True, frame, (8, 8))
    assert mirrored[0, 0].argmax() == 4  # now px 32 to 40


def test_valid_cells_count_every_cell_with_image_in_it():
    frame = Frame(padded_hw=(64, 64), resized_hw=(33, 64), image_hw=(33, 64))
    mask = valid_mask([frame], (8, 8), valid_only=True)
    assert mask[0, 0].sum() == 5 * 8
    assert valid_mask([frame], (8, 8), valid_only=False).all()
