"""Shapes and number formats in signatures are checked while the tests run."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from pseudolabel.masks.guided import guided


def test_a_wrong_shape_and_a_wrong_format_are_refused():
    scores, rgb_u8 = np.zeros((2, 4, 5), np.float32), np.zeros((4, 5, 3), np.uint8)
    assert guided(rgb_u8, scores, 1, 5.0).shape == (2, 4, 5)
    with pytest.raises(TypeCheckError):
        guided(rgb_u8, scores[:, :3], 1, 5.0)
    with pytest.raises(TypeCheckError):
        guided(rgb_u8.astype(np.float32), scores, 1, 5.0)
