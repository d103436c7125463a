import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from PIL import Image

from data.classes import VOC
from data.demo import make_glyphs
from data.demo.drawings import DRAWINGS
from data.demo.glyphs import GLYPHS_DIR, find_glyph, glyphs_of, load_glyphs, place


def test_every_class_has_drawings_for_training_and_some_held_out():
    for name in VOC.names:
        train, held_out = glyphs_of(name, "train"), glyphs_of(name, "held_out")
        assert len(train) >= 4
        assert len(held_out) >= 1
        assert set(train) | set(held_out) == set(glyphs_of(name, "all"))
        assert not set(train) & set(held_out)


def test_atlas_is_small_and_its_licence_lies_beside_it():
    assert (GLYPHS_DIR / "atlas.png").stat().st_size < 2_000_000
    assert "SIL OPEN FONT LICENSE Version 1.1" in (GLYPHS_DIR / "OFL.txt").read_text()


def test_atlas_holds_the_drawings_of_the_script_in_boxes_that_do_not_overlap():
    entries = json.loads((GLYPHS_DIR / "atlas.json").read_text(encoding="utf-8"))["drawings"]
    assert [(entry["class"], entry["name"], entry["emoji"], entry["held_out"]) for entry in entries] == [
        (drawing.class_name, f"{drawing.class_name}/{drawing.name}", drawing.emoji, drawing.held_out)
        for drawing in DRAWINGS
    ]
    assert len({entry["name"] for entry in entries}) == len(entries)
    with Image.open(GLYPHS_DIR / "atlas.png") as image:
        taken = np.zeros(image.size[::-1], dtype=np.uint8)
    for entry in entries:
        left, top, right, bottom = entry["box"]
        taken[top:bottom, left:right] += 1
        assert max(right - left, bottom - top) == make_glyphs.LONGEST_SIDE_PX
    assert taken.max() == 1


def test_colours_are_premultiplied_and_borders_transparent():
    for glyph in load_glyphs():
        for level in glyph.levels:
            assert (level[..., :3] <= level[..., 3:]).all()
            assert not level[[0, -1]].any()
            assert not level[:, [0, -1]].any()


def test_placed_upright_at_its_own_size_a_drawing_is_unchanged():
    glyph = find_glyph("cow/dairy")
    own = glyph.levels[0][1:-1, 1:-1]
    assert np.array_equal(place(glyph, glyph.longest_px, 0, flip=False), own)


def test_a_flip_mirrors_and_half_a_turn_reverses():
    glyph = find_glyph("horse/galloping")
    upright = place(glyph, 50, 0, flip=False).astype(int)
    mirrored = place(glyph, 50, 0, flip=True).astype(int)
    reversed_ = place(glyph, 50, 180, flip=False).astype(int)
    assert np.abs(upright[:, ::-1] - mirrored).max() <= 12
    assert np.abs(upright[::-1, ::-1] - reversed_).max() <= 12


@given(st.sampled_from(load_glyphs()), st.integers(8, 120), st.integers(-180, 180), st.booleans())
def test_a_placed_drawing_keeps_its_size_and_its_share_of_pixels(glyph, side_px, degrees, flip):
    rgba = place(glyph, side_px, degrees, flip)
    assert (rgba[..., :3].astype(int) <= rgba[..., 3:].astype(int) + 1).all()
    scale = side_px / glyph.longest_px
    wanted = glyph.levels[0][..., 3].sum() / 255 * scale**2
    # The box is cut at whole pixels, which at eight pixels is a good part of a drawing.
    assert rgba[..., 3].sum() / 255 == pytest.approx(wanted, rel=0.08, abs=2 * side_px * 0.5)


def test_an_unknown_drawing_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="dog/poodle"):
        find_glyph("dog/unknown")
    with pytest.raises((ValueError, TypeCheckError), match="held_out"):
        glyphs_of("dog", "valid")


def test_erasing_recolouring_and_bases_on_a_plain_square():
    square = Image.new("RGBA", (20, 20), (200, 100, 50, 255))
    assert make_glyphs.erase(square, ((0.0, 0.0, 1.0, 0.5),)).size == (20, 10)
    turned = make_glyphs.recolour(square, hue=120, saturation=1.0, tint=(255, 255, 255))
    red, green, blue, alpha = turned.getpixel((5, 5))
    assert green == max(red, green, blue)
    assert alpha == 255
    dark = make_glyphs.recolour(square, hue=0, saturation=1.0, tint=(128, 128, 128))
    assert dark.getpixel((5, 5))[0] == pytest.approx(100, abs=2)
    for base in ("pot", "round table", "square table"):
        assert make_glyphs.add_base(square, base, (190, 95, 55)).getchannel("A").getextrema()[1] == 255
    with pytest.raises(ValueError, match="unknown base"):
        make_glyphs.add_base(square, "rug", (0, 0, 0))


def test_pixels_of_a_placed_drawing_are_the_same_everywhere():
    assert zlib.crc32(place(find_glyph("bird/owl"), 61, 17, flip=True).tobytes()) == 3757797894
