"""A guided filter: scores of a coarse grid, enlarged, move onto the image's edges; a first step of any refinement.

Source: He, Sun and Tang, "Guided Image Filtering", IEEE TPAMI 35 (2013), section 3 with a colour guide (equation 19).
In each window of side 2 r + 1 a score is fitted as a linear function of the colour, a ridge regression whose weight eps
says which changes of colour count as edges; a pixel takes the mean over the windows that it is in. Windows end at the
image's border. Where we differ: a score stays between its smallest and largest value. O(pixels), whatever the radius.
"""

from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

Maps = Float32[np.ndarray, "rows height width"]
# Of a symmetric 3 x 3 matrix, row and column of its entries above and on the diagonal.
UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
# Edges finer than this, in grey levels, are looked for in double precision. Where a window holds two colours, rounding
# outgrows eps^2 in the determinant: in single precision scores were off by up to 0.003 at 2 and 0.7 at 1, 0.0001 at 5.
FINE_EDGE = 5.0


def guided(rgb_u8: UInt8[np.ndarray, "height width 3"], scores: Maps, radius_px: int, edge: float) -> Maps:
    """Return the scores fitted to the image.

    Args:
        rgb_u8: the image.
        scores: at its size; each row by itself.
        radius_px: r; 0 changes nothing, and a window larger than the image is all of it.
        edge: square root of eps, in grey levels: smaller changes of colour are no edge.

    """
    if radius_px == 0:
        return scores
    radius_px = min(radius_px, max(rgb_u8.shape[:2]))
    precise: np.dtype[Any] = np.dtype(np.float32 if edge >= FINE_EDGE else np.float64)
    guide = rgb_u8.astype(precise) / 255
    means = _window_means(guide, radius_px)
    inverse = _inverse_covariance(guide, means, radius_px, (edge / 255) ** 2)
    fitted = [_fitted(guide, means, inverse, row.astype(precise, copy=False), radius_px) for row in scores]
    return np.stack(fitted).astype(np.float32, copy=False)


def _window_means(values: np.ndarray, radius_px: int) -> np.ndarray:
    """Return the mean over each window; what lies outside the image does not count."""
    side = (2 * radius_px + 1, 2 * radius_px + 1)
    total = cv2.boxFilter(values, -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT)
    height, width = values.shape[:2]
    rows, columns = (_window_lengths(length, radius_px) for length in (height, width))
    return total / (rows[:, None] * columns[None]).reshape(height, width, *[1] * (values.ndim - 2))


def _window_lengths(length: int, radius_px: int) -> np.ndarray:
    places = np.arange(length)
    inside = np.minimum(places + radius_px, length - 1) - np.maximum(places - radius_px, 0) + 1
    return inside.astype(np.float32)


def _inverse_covariance(guide: np.ndarray, means: np.ndarray, radius_px: int, eps: float) -> np.ndarray:
    """Return the inverse of each window's covariance of colours plus eps, as (3, 3, height, width); by its adjugate."""
    covariance = np.empty((3, 3, *guide.shape[:2]), guide.dtype)
    for i, j in UPPER:
        own = _window_means(guide[..., i] * guide[..., j], radius_px) - means[..., i] * means[..., j]
        covariance[i, j] = covariance[j, i] = own + (eps if i == j else 0)
    inverse = np.empty_like(covariance)
    for i, j in UPPER:
        a, b = [k for k in range(3) if k != i], [k for k in range(3) if k != j]
        minor = covariance[a[0], b[0]] * covariance[a[1], b[1]] - covariance[a[0], b[1]] * covariance[a[1], b[0]]
        inverse[i, j] = inverse[j, i] = minor if (i + j) % 2 == 0 else -minor
    return inverse / (covariance[0] * inverse[0]).sum(axis=0)


def _fitted(guide: np.ndarray, means: np.ndarray, inverse: np.ndarray, row: np.ndarray, radius_px: int) -> np.ndarray:
    """Return one row of scores: its linear function of each window, averaged over the windows of each pixel."""
    mean = _window_means(row, radius_px)
    together = [_window_means(guide[..., k] * row, radius_px) - means[..., k] * mean for k in range(3)]
    slopes = np.stack([sum(inverse[k, j] * together[j] for j in range(3)) for k in range(3)], axis=-1)
    offset = mean - (slopes * means).sum(axis=-1)
    found = (_window_means(slopes, radius_px) * guide).sum(axis=-1) + _window_means(offset, radius_px)
    return np.clip(found, row.min(), row.max())
