"""The size that a model reads an image at, and where the image lies in it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.store.softmaps import Frame
from pseudolabel.softmaps.frame import FILL_RGB, frame_image, frame_latent, long_side, resize_and_pad


@pytest.mark.parametrize(
    ("image_hw", "expected"),
    [
        ((375, 500), 768),
        ((500, 500), 704),
        ((300, 500), 832),
        ((280, 500), 896),
        ((500, 260), 960),
        ((100, 600), 1024),
        ((400, 480), 704),
    ],
)
def test_long_side_follows_the_published_rule(image_hw, expected):
    assert long_side(image_hw, 512, 64) == expected


def test_the_published_example():
    assert frame_image((375, 500), 64, 768).padded_hw == (576, 768)
    assert frame_image((500, 375), 64, 768).padded_hw == (768, 576)


def test_long_side_scales_with_the_native_size():
    assert long_side((375, 500), 1024, 32) == 1536
    assert long_side((128, 128), 128, 32) == 160  # 176 px, down to whole cells
    assert long_side((10, 10), 16, 64) == 64  # never below one cell


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([(512, 64), (128, 32), (1024, 32)]))
def test_frames_are_whole_cells_and_hold_the_image(height, width, model):
    native, cell = model
    frame = frame_image((height, width), cell, long_side((height, width), native, cell))
    assert all(side % cell == 0 for side in frame.padded_hw)
    assert all(0 < part <= whole for part, whole in zip(frame.resized_hw, frame.padded_hw, strict=True))
    assert all(whole - part < cell for part, whole in zip(frame.resized_hw, frame.padded_hw, strict=True))
    rows, columns = frame.valid_cells((frame.padded_hw[0] // 16, frame.padded_hw[1] // 16))
    assert rows >= 1
    assert columns >= 1


def test_padding_is_at_the_bottom_of_a_landscape_and_the_right_of_a_portrait():
    image = np.full((40, 100, 3), 7, np.uint8)
    frame = frame_image((40, 100), 32, 128)
    padded = resize_and_pad(image, frame)
    assert padded.shape == (64, 128, 3)
    assert (padded[:51] == 7).all()
    assert (padded[51:] == FILL_RGB).all()
    upright = resize_and_pad(image.transpose(1, 0, 2).copy(), frame_image((100, 40), 32, 128))
    np.testing.assert_array_equal(upright, padded.transpose(1, 0, 2))


def test_a_latent_shows_the_whole_image():
    assert frame_latent((6, 8), 8, None) == Frame((48, 64), (48, 64), (48, 64))
    assert frame_latent((6, 8), 8, (100, 99)).image_hw == (100, 99)
