"""From soft maps to labels and the ignore band."""

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ImageError, StoreError
from data.store.softmaps import SoftMaps
from pseudolabel.masks.config import CrfConfig, FuseConfig, MaskConfig
from pseudolabel.masks.labelmap import label_map, mask_from_marginals

SOFT = SoftMaps(
    np.random.default_rng(0).random((2, 6, 8)).astype(np.float16), (3, 12), False, (48, 64), (48, 64), (24, 32)
)
RGB = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@given(st.floats(0, 1), st.integers(0, 100))
def test_the_ignore_band_is_where_the_best_marginal_is_low(ignore_below, seed):
    marginals = np.random.default_rng(seed).dirichlet((1, 1, 1), (6, 5)).transpose(2, 0, 1)
    mask, argmax = mask_from_marginals(marginals, (7, 9), ignore_below)
    assert set(np.unique(argmax)) <= {0, 7, 9}
    unsure = marginals.max(axis=0) < ignore_below
    np.testing.assert_array_equal(mask == 255, unsure)
    np.testing.assert_array_equal(mask[~unsure], argmax[~unsure])


@pytest.mark.parametrize("kind", ["densecrf", "pamr", "none"])
def test_a_mask_has_the_images_size_and_labels(kind):
    config = MaskConfig(fuse=FuseConfig(threshold=0.3), crf=CrfConfig(kind=kind), ignore_below=0.6)
    mask, argmax = label_map(RGB, SOFT, config)
    assert mask.shape == argmax.shape == (24, 32)
    assert mask.dtype == argmax.dtype == np.uint8
    assert set(np.unique(argmax)) <= {0, 3, 12}


def test_a_higher_threshold_means_more_background():
    shares = [
        (label_map(RGB, SOFT, MaskConfig(fuse=FuseConfig(threshold=tau), crf=CrfConfig(kind="none")))[1] == 0).mean()
        for tau in (0.2, 0.4, 0.6)
    ]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_an_image_of_another_size_is_an_error():
    with pytest.raises(ImageError, match=r"\(20, 32\) but its soft maps are for \(24, 32\)"):
        label_map(RGB[:20], SOFT, MaskConfig())


def test_words_of_bad_numbers_make_no_mask():
    """An argmax over them would be background everywhere, and sure of it."""
    words = np.zeros((6, 8), np.float16)
    words[2, 3] = np.nan
    for background in ("words", "rule"):
        config = MaskConfig(fuse=FuseConfig(background=background))
        with pytest.raises(StoreError, match=r"NaN.*--run\.dtype float32"):
            label_map(RGB, replace(SOFT, words=words), config)


def test_a_worker_process_needs_no_diffusion_model_and_no_torch():
    function, soft, config = pickle.loads(pickle.dumps((label_map, SOFT, MaskConfig())))
    np.testing.assert_array_equal(function(RGB, soft, config)[0], label_map(RGB, SOFT, MaskConfig())[0])
    code = "import sys, pseudolabel.masks.labelmap; sys.exit(any(m in sys.modules for m in ('torch', 'diffusers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
