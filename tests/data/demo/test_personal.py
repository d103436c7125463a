"""The personal scenes: what each subset promises, and what is written."""

import zlib

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.demo.glyphs import find_glyph, load_glyphs
from data.demo.personal import (
    CONCEPTS,
    REFERENCES,
    SUBSETS,
    main,
    reference_scenes,
    subset_scenes,
    turn_hue,
    write_personal,
)
from data.demo.scene import drawing_mask
from data.errors import ConfigError
from data.images import read_image
from data.masks import read_mask

# Pixels of the first scene of each subset of the first concept, on every machine.
CHECKSUMS = {"all": 2721891603, "semantic_distractor": 1755558927, "variant": 212353192}


@pytest.mark.parametrize("subset", SUBSETS)
def test_same_pixels_on_any_machine(subset):
    [scene] = subset_scenes(CONCEPTS[0], subset, 1)
    assert zlib.crc32(scene.rgb.tobytes() + scene.mask.tobytes()) == CHECKSUMS[subset]


def test_there_are_four_to_tune_on_and_four_for_the_table():
    assert [concept.tuning for concept in CONCEPTS] == [True] * 4 + [False] * 4
    for half in (True, False):
        held_out = [find_glyph(concept.drawing).held_out for concept in CONCEPTS if concept.tuning == half]
        assert sum(held_out) == 2
    assert len({concept.class_word for concept in CONCEPTS}) == 8
    assert CONCEPTS[1].token == "<bottle-pump-violet>"


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_what_each_subset_promises(concept):
    kind = concept.drawing.split("/")[0]
    for scene in reference_scenes(concept):
        assert [instance.drawing for instance in scene.instances] == [concept.drawing]
    for subset in SUBSETS:
        for index, scene in enumerate(subset_scenes(concept, subset, 6)):
            drawn = [instance.drawing for instance in scene.instances]
            others = [name for name in drawn if name != concept.drawing and name.startswith(f"{kind}/")]
            absent = subset == "semantic_distractor" and index % 3 == 2
            assert drawn.count(concept.drawing) == (not absent)
            assert drawing_mask(scene, concept.drawing).any() == (not absent)
            if subset == "semantic_distractor":
                assert others
            if subset == "variant":
                assert not others


@settings(max_examples=30, deadline=None)
@given(st.integers(-180, 180), st.sampled_from(range(0, 100, 7)))
def test_turning_the_hue_keeps_shape_and_greys(degrees, index):
    glyph = load_glyphs()[index]
    turned = turn_hue(glyph, degrees)
    for before, after in zip(glyph.levels, turned.levels, strict=True):
        assert np.array_equal(before[..., 3], after[..., 3])
        assert (after[..., :3] <= after[..., 3:]).all()
        grey = (before[..., 0] == before[..., 1]) & (before[..., 1] == before[..., 2])
        assert np.abs(before[grey].astype(int) - after[grey]).max(initial=0) <= 1


def test_turning_by_nothing_changes_nothing_and_by_a_third_swaps_channels():
    glyph = find_glyph("car/taxi")
    assert np.array_equal(turn_hue(glyph, 0).levels[0], glyph.levels[0])
    turned, level = turn_hue(glyph, 120).levels[0], glyph.levels[0]
    assert np.array_equal(turned[..., :3], np.roll(level[..., :3], 1, axis=-1))  # red to green, green to blue


def test_the_layout(tmp_path, capsys):
    root = tmp_path / "set"
    main(["--output", str(root), "--scenes", "3"])
    assert "Wrote" in capsys.readouterr().out
    for concept in CONCEPTS:
        folder = root / concept.name
        assert yaml.safe_load((folder / "concept.yaml").read_text()) == {
            "token": concept.token, "class_word": concept.class_word,
        }  # fmt: skip
        assert len(list((folder / "references").glob("*.png"))) == REFERENCES
        for subset in SUBSETS:
            images, masks = (sorted((folder / subset / kind).iterdir()) for kind in ("images", "masks"))
            assert [path.name for path in images] == [path.name for path in masks] == ["000.png", "001.png", "002.png"]
            assert read_image(images[0]).shape == (128, 128, 3)
            assert set(np.unique(read_mask(masks[0]))) == {0, 1}
        assert not read_mask(folder / "semantic_distractor" / "masks" / "002.png").any()
    assert not write_personal(root, 3)
    with pytest.raises(ConfigError, match="not empty and holds no such set"):
        write_personal(root, 4)
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(root), "--scenes", "0"])
    assert stopped.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
