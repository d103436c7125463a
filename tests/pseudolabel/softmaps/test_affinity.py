"""Spreading by self-attention: every kind against its formula, and laws that hold for all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudolabel.softmaps import affinity
from pseudolabel.softmaps.affinity import (
    SelfAttention,
    alike_classes,
    balanced,
    iterate_normalised,
    sharpened,
    spread,
    spread_between_alike,
    told_apart,
)
from pseudolabel.softmaps.config import AffinityConfig
from pseudolabel.softmaps.grids import min_max


def random_attention(grid_hw=(5, 6), batch=2, heads=3, dim=4, seed=0, sharpness=2.0) -> SelfAttention:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, grid_hw[0] * grid_hw[1], dim)
    draws = [torch.randn(shape, generator=generator) * sharpness for _ in range(2)]
    return SelfAttention(draws[0], draws[1], grid_hw)


def identity_attention(grid_hw=(4, 4)) -> SelfAttention:
    cells = grid_hw[0] * grid_hw[1]
    eye = torch.eye(cells)[None, None]
    return SelfAttention(1000 * eye, eye, grid_hw)


ALL_VALID = torch.ones(2, 1, 5, 6, dtype=torch.bool)


@pytest.mark.parametrize("columns", [1, 3, 4, 11])
def test_fused_and_dense_ways_agree(columns):
    attention = random_attention()
    values = torch.rand(2, 30, columns)
    matrix = attention.matrix()
    torch.testing.assert_close(attention.apply(values), matrix @ values)
    torch.testing.assert_close(attention.power(values, 2), matrix @ (matrix @ values))


def test_the_fused_way_is_taken_above_the_crossover(monkeypatch):
    attention = random_attention()
    values = torch.rand(2, 30, 3)
    dense = attention.power(values, 2)
    monkeypatch.setattr(affinity, "DENSE_CELLS", 29)
    monkeypatch.setattr(SelfAttention, "matrix", None)
    torch.testing.assert_close(attention.power(values, 2), dense)


def test_half_precision_queries_are_summed_in_single_precision():
    attention = random_attention()
    half = SelfAttention(attention.queries.half(), attention.keys.half(), attention.grid_hw)
    assert half.matrix().dtype == half.apply(torch.rand(2, 30, 1)).dtype == torch.float32
    torch.testing.assert_close(half.matrix().sum(dim=-1), torch.ones(2, 30))


@settings(max_examples=40)
@given(st.integers(0, 1000), st.floats(0.1, 20))
def test_a_row_stochastic_affinity_keeps_a_map_in_its_range(seed, sharpness):
    attention = random_attention(seed=seed, sharpness=sharpness)
    values = torch.rand(2, 30, 2, generator=torch.Generator().manual_seed(seed))
    for times in (1, 2):
        spread_out = attention.power(values, times)
        assert spread_out.min() >= values.min() - 1e-5
        assert spread_out.max() <= values.max() + 1e-5


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("kind", ["none", "caa", "iterated", "cda"])
def test_an_identity_affinity_changes_nothing(kind, balance):
    maps = min_max(torch.rand(1, 2, 4, 4))
    valid = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    same = spread(maps, [identity_attention()], None, valid, AffinityConfig(kind=kind, balance=balance))
    torch.testing.assert_close(same, maps, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["none", "caa", "iterated", "iseg", "clipes", "cda"])
def test_every_kind_gives_maps_from_zero_to_one(kind):
    maps = min_max(torch.rand(2, 3, 5, 6))
    result = spread(maps, [random_attention()], None, ALL_VALID, AffinityConfig(kind=kind))
    assert result.shape == maps.shape
    torch.testing.assert_close(result.amin(dim=(2, 3)), torch.zeros(2, 3))
    torch.testing.assert_close(result.amax(dim=(2, 3)), torch.ones(2, 3))


def _balanced_once_slowly(attention: SelfAttention, element: int) -> np.ndarray:
    """Return S of one element, each column and then each row divided by its sum, entry by entry."""
    queries, keys = attention.queries[element].double().numpy(), attention.keys[element].double().numpy()
    heads, cells, dim = queries.shape
    matrix = np.zeros((cells, cells))
    for head in range(heads):
        for row in range(cells):
            powers = [np.exp(queries[head, row] @ keys[head, column] / dim**0.5) for column in range(cells)]
            matrix[row] += np.array(powers) / sum(powers) / heads
    for column in range(cells):
        matrix[:, column] /= sum(matrix[row, column] for row in range(cells))
    for row in range(cells):
        matrix[row] /= sum(matrix[row])
    return matrix


@pytest.mark.parametrize(("dense_cells", "slice_elements"), [(800, 1 << 24), (29, 1 << 24), (29, 70)])
@pytest.mark.parametrize(("kind", "times"), [("caa", 2), ("iterated", 1)])
def test_balance_is_the_formula_with_and_without_a_matrix(monkeypatch, dense_cells, slice_elements, kind, times):
    attention = random_attention()
    maps = min_max(torch.rand(2, 3, 5, 6))
    expected = []
    for element in range(2):
        matrix = np.linalg.matrix_power(_balanced_once_slowly(attention, element), times)
        expected.append(maps[element].flatten(1).double().numpy() @ matrix.T)
    monkeypatch.setattr(affinity, "DENSE_CELLS", dense_cells)
    monkeypatch.setattr(affinity, "SLICE_ELEMENTS", slice_elements)
    if dense_cells < 30:
        monkeypatch.setattr(SelfAttention, "matrix", None)
    config = AffinityConfig(kind=kind, iterations=1, boxes=False, balance=True)
    found = spread(maps, [attention], None, ALL_VALID, config)
    wanted = torch.from_numpy(np.stack(expected)).float().unflatten(-1, (5, 6))
    torch.testing.assert_close(found, min_max(wanted), atol=1e-5, rtol=0)


@settings(max_examples=40)
@given(st.integers(0, 1000), st.floats(0.1, 20))
def test_a_balanced_affinity_keeps_a_map_in_its_range(seed, sharpness):
    attention = random_attention(seed=seed, sharpness=sharpness)
    values = torch.rand(2, 30, 2, generator=torch.Generator().manual_seed(seed))
    for times in (1, 2):
        spread_out = attention.power(values, times, balance=True)
        assert torch.isfinite(spread_out).all()
        assert spread_out.min() >= values.min() - 1e-5
        assert spread_out.max() <= values.max() + 1e-5


def test_a_cell_that_all_look_at_does_not_decide_for_them_when_balanced():
    """Two halves look at themselves, and at cell 0 nine times as much."""
    inside = torch.block_diag(torch.ones(8, 8), torch.ones(8, 8)) / 8
    everyone = torch.zeros(16, 16)
    everyone[:, 0] = 1
    attention = SelfAttention(
        (0.1 * inside + 0.9 * everyone + 1e-9).log()[None, None] * 4, torch.eye(16)[None, None], (4, 4)
    )
    own = torch.zeros(1, 16, 1)
    own[:, 8:] = 1  # the half that cell 0 is not in
    plain, even = (attention.power(own, 1, balance=balance)[0, :, 0] for balance in (False, True))
    torch.testing.assert_close(plain[8:], torch.full((8,), 0.1))
    assert even[8:].min() > 0.9
    assert even[:8].max() < 1e-6


def test_the_boxes_act_on_the_sources():
    maps = min_max(torch.rand(2, 1, 5, 6))
    masks = torch.zeros(2, 1, 5, 6)
    masks[:, :, :2] = 1
    attention = random_attention()
    result = spread(maps, [attention], masks, ALL_VALID, AffinityConfig(kind="caa"))
    matrix = attention.matrix()
    expected = (matrix @ matrix @ (maps * masks).flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(-1, (5, 6))
    torch.testing.assert_close(result, min_max(expected))


def test_several_layers_are_averaged_each_at_its_own_grid():
    maps = min_max(torch.rand(1, 1, 4, 4))
    valid = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    fine, coarse = identity_attention(), identity_attention((2, 2))
    both = spread(maps, [fine, coarse], None, valid, AffinityConfig(kind="caa"))
    pooled = torch.nn.functional.interpolate(maps, size=(2, 2), mode="bilinear")
    expected = (maps + torch.nn.functional.interpolate(pooled, size=(4, 4), mode="bilinear")) / 2
    torch.testing.assert_close(both, min_max(expected), atol=1e-5, rtol=0)


def test_iterating_is_repeating():
    maps = min_max(torch.rand(2, 1, 5, 6))
    layers = [random_attention()]
    once = spread(maps, layers, None, ALL_VALID, AffinityConfig(kind="iterated", iterations=1))
    twice = spread(once, layers, None, ALL_VALID, AffinityConfig(kind="iterated", iterations=1))
    both = spread(maps, layers, None, ALL_VALID, AffinityConfig(kind="iterated", iterations=2))
    torch.testing.assert_close(twice, both)


def test_sharpening_drops_what_is_small_beside_the_largest():
    matrix = torch.tensor([[[0.9, 0.099, 0.001], [0.4, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3]]])
    result = sharpened(matrix, 0.1)
    torch.testing.assert_close(result.sum(dim=-1), torch.ones(1, 3))
    assert result[0, 0, 2] == 0
    torch.testing.assert_close(result[0, 2], torch.full((3,), 1 / 3))
    torch.testing.assert_close(sharpened(matrix, 0.0), matrix)


def test_normalised_iteration_ends_between_zero_and_one():
    columns = iterate_normalised(random_attention().matrix(), torch.rand(2, 30, 2))
    torch.testing.assert_close(columns.sum(dim=1), torch.ones(2, 2))
    assert columns.min() >= 0


def test_balancing_gives_a_symmetric_matrix_with_rows_near_one():
    result = balanced(random_attention(sharpness=0.5).matrix())
    torch.testing.assert_close(result, result.transpose(1, 2))
    torch.testing.assert_close(result.sum(dim=-1), torch.ones(2, 30), atol=0.05, rtol=0)


def _reference_cda(maps: np.ndarray, matrix: np.ndarray, temperature: float, times: int) -> np.ndarray:
    """Class distribution-induced affinity, cell by cell and class by class, with natural logarithms turned to bits."""
    channels = np.concatenate([1 - maps.max(axis=0, keepdims=True), maps])
    shares = np.exp(channels) / np.exp(channels).sum(axis=0)

    def apart(p: np.ndarray, q: np.ndarray) -> float:
        return sum(float(a * np.log(a / b)) for a, b in zip(p, q, strict=True)) / np.log(2)

    cells = maps.shape[1]
    weighted = np.zeros((cells, cells))
    for i in range(cells):
        alike = np.zeros(cells)
        for j in range(cells):
            middle = (shares[:, i] + shares[:, j]) / 2
            alike[j] = 1 - (apart(shares[:, i], middle) + apart(shares[:, j], middle)) / 2
        softened = np.exp(alike / temperature)
        weighted[i] = softened / softened.sum() * matrix[i]
        weighted[i] /= weighted[i].sum()
    for _ in range(times):
        maps = np.array([[sum(weighted[i, j] * row[j] for j in range(cells)) for i in range(cells)] for row in maps])
    return maps


@pytest.mark.parametrize(("temperature", "times"), [(0.3, 1), (0.05, 3)])
def test_cda_is_the_published_affinity(temperature, times, monkeypatch):
    monkeypatch.setattr(affinity, "DIVERGENCE_ELEMENTS", 100)  # several slices
    attention = random_attention(batch=1)
    maps = torch.rand(1, 3, 30, generator=torch.Generator().manual_seed(1))
    config = AffinityConfig(kind="cda", temperature=temperature, iterations=times)
    found = spread_between_alike(attention.matrix(), maps.transpose(1, 2), config)[0].T
    expected = _reference_cda(maps[0].double().numpy(), attention.matrix()[0].double().numpy(), temperature, times)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@settings(max_examples=40)
@given(st.integers(0, 1000), st.floats(0.02, 5))
def test_cda_rows_sum_to_one_and_cells_of_one_class_are_the_most_alike(seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    side = (torch.arange(12) % 2).float()
    maps = torch.stack([side, 1 - side]) * (0.2 + 0.8 * torch.rand(1, generator=generator))
    alike = alike_classes(maps, temperature)
    torch.testing.assert_close(alike.sum(dim=1), torch.ones(12))
    same = side[:, None] == side[None]
    assert alike[same].min() > alike[~same].max()
    everywhere = torch.full((1, 12, 12), 1 / 12)
    kept = spread_between_alike(everywhere, maps.T[None], AffinityConfig(kind="cda", temperature=temperature))
    assert kept.min() >= maps.min() - 1e-5
    assert kept.max() <= maps.max() + 1e-5


def test_maps_of_classes_of_other_sentences_take_no_part_in_cda():
    """A batch is filled up with maps of zeros; the result of an image must not depend on its neighbours."""
    maps = torch.rand(3, 30)
    filled = torch.cat([maps, torch.zeros(2, 30)])
    torch.testing.assert_close(alike_classes(maps, 0.3), alike_classes(filled, 0.3))
    assert torch.isfinite(alike_classes(torch.zeros(2, 30), 0.3)).all()


def _named_slowly(maps, naming, matrices, n_classes):
    """Return `told_apart` of one element whose naming maps lie on the same grid, cell by cell."""
    names = np.mean([each / each.mean(axis=(1, 2), keepdims=True) for each in naming], axis=0)
    classes, height, width = names.shape
    flat = names.reshape(classes, -1)
    spread_out = np.mean([[matrix @ row for row in flat] for matrix in matrices], axis=0).reshape(names.shape)
    found = maps.copy()
    for row in range(height):
        for column in range(width):
            reach = max(maps[label, row, column] for label in range(n_classes))
            strongest = max(spread_out[label, row, column] for label in range(n_classes))
            for label in range(n_classes):
                found[label, row, column] = reach * spread_out[label, row, column] / strongest
    return found


@pytest.mark.parametrize("balance", [False, True])
def test_naming_layers_are_the_formula(balance):
    generator = torch.Generator().manual_seed(3)
    maps, *naming = torch.rand(3, 2, 4, 5, 6, generator=generator)
    attention = random_attention()
    found = told_apart(maps, naming, [attention], ALL_VALID, [4, 2], balance)
    for element, n_classes in enumerate((4, 2)):
        expected = _named_slowly(
            maps[element].double().numpy(),
            [each[element].double().numpy() for each in naming],
            [_balanced_once_slowly(attention, element) if balance else attention.matrix()[element].double().numpy()],
            n_classes,
        )
        np.testing.assert_allclose(found[element].numpy(), expected, atol=1e-5)


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_naming_layers_leave_the_reach_and_what_is_no_class_alone(seed, n_classes):
    generator = torch.Generator().manual_seed(seed)
    maps, naming = torch.rand(2, 2, 4, 5, 6, generator=generator)
    found = told_apart(maps, [naming], [random_attention(seed=seed)], ALL_VALID, [n_classes] * 2)
    torch.testing.assert_close(found[:, :n_classes].amax(dim=1), maps[:, :n_classes].amax(dim=1))
    assert torch.equal(found[:, n_classes:], maps[:, n_classes:])
    if n_classes == 1:
        torch.testing.assert_close(found, maps)


def test_a_cell_that_nobody_has_a_name_for_keeps_its_maps():
    """A rescaled map is zero where it is lowest: of one class alone nothing may change there either."""
    maps = min_max(torch.rand(2, 1, 5, 6)) * 0.5 + 0.5
    naming = min_max(torch.rand(2, 1, 5, 6))
    assert (naming == 0).any()
    torch.testing.assert_close(told_apart(maps, [naming], [], ALL_VALID, [1, 1]), maps)


def test_the_padding_has_no_say_in_names():
    generator = torch.Generator().manual_seed(5)
    maps, naming = torch.rand(2, 2, 2, 5, 6, generator=generator)
    valid = ALL_VALID.clone()
    valid[:, :, 3:] = False
    other = torch.where(valid, naming, naming * 7)
    first, second = (told_apart(maps, [each], [], valid, [2, 2]) for each in (naming, other))
    torch.testing.assert_close(first[..., :3, :], second[..., :3, :])
