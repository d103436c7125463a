"""Smoothness between alike neighbours on a coarse grid: a refinement without a CRF, in numpy, for any machine.

Source: text-aware Laplacian propagation of PEARL, CVPR 2026: the minimum over F of

    1/2 sum_i rho_i |F_i - Z_i|^2 + tau/2 sum_ij a_ij |F_i - F_j|^2,

Z the scores, the second sum over pairs of the 8 neighbours, a_ij = g_ij p_i^T G p_j: an edge gate times how alike the
classes of two cells are. Its solution satisfies (diag(rho) + tau L) F = diag(rho) Z, L the graph's Laplacian: a
symmetric positive definite system, the same for all classes, solved by conjugate gradients. Where we differ: an image's
labels are few and different things, so G is the identity; p is Z; rho_i is the largest score at i, the gate
exp(-|c_i - c_j|^2 / (2 edge^2)) on the mean colours of cells. After `MOST_STEPS` steps it is taken as it is.
"""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from data.store.softmaps import resize_scores
from pseudolabel.masks.working import shrunk_to

TOLERANCE = 1e-5  # of the residual, relative to the right-hand side
MOST_STEPS = 500
# Half of the 8 neighbours, as steps down and right; the other half is the way back.
STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))

Maps = Float32[np.ndarray, "classes height width"]
Links = list[Float32[np.ndarray, "_ _"]]  # a step leads out of the grid at one border, and a row or column is missing


def text_guided_smoothing(
    rgb_u8: UInt8[np.ndarray, "height width 3"], scores: Maps, smoothness: float, edge: float, grid: int
) -> Maps:
    """Return the scores after smoothing, at the image's size.

    Args:
        rgb_u8: the image.
        scores: of each class, summing to 1 at each pixel; so does the result, up to the tolerance.
        smoothness: tau.
        edge: range of a difference of colours, in grey levels; three times as much hardly holds together.
        grid: cells of the longer side; an image that is smaller is worked on as it is.

    """
    height, width = rgb_u8.shape[:2]
    shrink = min(1.0, grid / max(height, width))
    small_hw = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    colours = shrunk_to(rgb_u8, small_hw)
    wanted = _area_means(scores, small_hw)
    solved = smoothed(wanted, neighbour_links(colours, wanted, edge), smoothness)
    return solved if small_hw == (height, width) else resize_scores(solved, (height, width))


def _area_means(scores: Maps, size_hw: tuple[int, int]) -> Float32[np.ndarray, "classes new_height new_width"]:
    if scores.shape[1:] == size_hw:
        return scores
    return np.stack([cv2.resize(each, size_hw[::-1], interpolation=cv2.INTER_AREA).reshape(size_hw) for each in scores])


def neighbour_links(colours: UInt8[np.ndarray, "height width 3"], shares: Maps, edge: float) -> Links:
    """Return a_ij between each cell and its neighbour in each of `STEPS`."""
    picture = colours.astype(np.float32)
    links = []
    for step in STEPS:
        here, there = _pair(step)
        gate = np.exp(-((picture[here] - picture[there]) ** 2).sum(axis=-1) / (2 * edge**2))
        links.append((gate * (shares[:, *here] * shares[:, *there]).sum(axis=0)).astype(np.float32))
    return links


def _pair(step: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return where cells that have a neighbour at this step are, and where the neighbours are."""
    down, right = step
    rows = (slice(None, -down or None), slice(down, None))
    columns = (slice(None, -right or None), slice(right, None))
    if right < 0:
        columns = (slice(-right, None), slice(None, right))
    return (rows[0], columns[0]), (rows[1], columns[1])


def smoothed(wanted: Maps, links: Links, smoothness: float) -> Maps:
    """Return the minimum for given links, by conjugate gradients over all classes at once.

    Args:
        wanted: Z.
        links: a_ij for each of `STEPS`; not negative.
        smoothness: tau.

    """
    trust = wanted.max(axis=0)
    goal = (trust * wanted).astype(np.float64)
    found = wanted.astype(np.float64)
    rest = goal - _system(found, trust, links, smoothness)
    direction, energy = rest.copy(), _energies(rest)
    enough = TOLERANCE**2 * _energies(goal)
    for _ in range(MOST_STEPS):
        if (energy <= enough).all():
            break
        applied = _system(direction, trust, links, smoothness)
        length = energy / np.maximum((direction * applied).sum(axis=(1, 2)), 1e-30)
        found += length[:, None, None] * direction
        rest -= length[:, None, None] * applied
        former, energy = energy, _energies(rest)
        direction = rest + (energy / np.maximum(former, 1e-30))[:, None, None] * direction
    return found.astype(np.float32)


def _energies(maps: np.ndarray) -> np.ndarray:
    return (maps**2).sum(axis=(1, 2))


def _system(maps: np.ndarray, trust: np.ndarray, links: Links, smoothness: float) -> np.ndarray:
    """Return (diag(rho) + tau L) maps."""
    result = trust * maps
    for step, link in zip(STEPS, links, strict=True):
        here, there = _pair(step)
        flow = smoothness * link * (maps[:, *here] - maps[:, *there])
        result[:, *here] += flow
        result[:, *there] -= flow
    return result
