import json
import subprocess
import sys
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.classes import VOC
from data.config import DataConfig
from data.demo import world
from data.demo.glyphs import find_glyph
from data.demo.grounds import GROUNDS, draw_ground
from data.demo.scene import (
    NOISE,
    VISIBLE_PX,
    compose,
    draw_personal_scene,
    draw_portrait,
    draw_scene,
    drawing_mask,
)
from data.demo.world import PERSONAL_DRAWING, calibration_scenes, split_scenes, write_world
from data.errors import ConfigError
from data.images import read_image
from data.masks import read_mask
from data.readers.layout import open_samples

# What the scenes of version 1 look like: (pixels, mask) of draw_scene(seed). Whoever changes the pixels on purpose
# raises world.WORLD_VERSION and puts the new numbers here; whoever sees other numbers on another machine found a bug.
CHECKSUMS = {
    0: (3524636963, 507245163),
    1: (1156655255, 3571248655),
    2: (1104281466, 785951162),
    12345: (2663341342, 4028211850),
}


@pytest.mark.parametrize("seed", CHECKSUMS)
def test_same_seed_same_pixels_on_any_machine(seed):
    scene = draw_scene(seed)
    assert (zlib.crc32(scene.rgb.tobytes()), zlib.crc32(scene.mask.tobytes())) == CHECKSUMS[seed]


def test_checksums_belong_to_this_version():
    assert world.WORLD_VERSION == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63), st.sampled_from(["train", "all", "held_out"]), st.sampled_from([32, 64, 128, 160]))
def test_laws_of_a_scene(seed, drawings, size_px):
    scene = draw_scene(seed, drawings=drawings, size_px=size_px)
    assert scene.rgb.shape == (size_px, size_px, 3)
    assert scene.mask.shape == scene.owners.shape == (size_px, size_px)
    assert scene.rgb.dtype == scene.mask.dtype == np.uint8
    assert scene.labels == tuple(np.unique(scene.mask[scene.mask > 0]))
    assert 1 <= len(scene.labels) <= 3
    assert 1 <= len(scene.instances) <= 3
    assert 1 <= len(scene.grounds) <= 2
    assert set(scene.grounds) <= set(GROUNDS)
    for index, instance in enumerate(scene.instances):
        shown = scene.owners == index + 1
        assert (scene.mask[shown] == instance.class_id).all()
        assert VOC.name(instance.class_id) == instance.class_name == instance.drawing.split("/")[0]
        left, top, right, bottom = instance.box
        assert shown[top:bottom, left:right].sum() == shown.sum()
        assert shown[top].any()
        assert shown[bottom - 1].any()
        assert shown[:, left].any()
        assert shown[:, right - 1].any()
        if drawings != "all":
            assert find_glyph(instance.drawing).held_out == (drawings == "held_out")
        if size_px == 128:
            assert shown.sum() > VISIBLE_PX


def test_statistics_are_the_documented_ones():
    scenes = list(split_scenes("train", 400, seed=5))
    classes = np.bincount([len(scene.labels) for scene in scenes], minlength=4) / len(scenes)
    assert classes[1:] == pytest.approx([0.4, 0.4, 0.2], abs=0.07)
    doubled = np.mean([len(scene.instances) > len(scene.labels) for scene in scenes])
    assert doubled == pytest.approx(0.2, abs=0.07)
    assert {label for scene in scenes for label in scene.labels} == set(range(1, 21))
    assert {ground for scene in scenes for ground in scene.grounds} == set(GROUNDS)
    assert np.mean([scene.rgb.mean() for scene in scenes]) == pytest.approx(125, abs=20)


@pytest.mark.parametrize("size_px", [32, 128, 200])
def test_a_portrait_shows_one_large_object_in_the_middle(size_px):
    scenes = [draw_portrait(seed, size_px=size_px) for seed in range(40)]
    assert all(len(scene.instances) == 1 for scene in scenes)
    assert len({scene.labels for scene in scenes}) > 10
    boxes = np.array([scene.instances[0].box for scene in scenes]) / size_px
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert (sides > 0.75 - 4 / size_px).all()  # edges are soft
    assert (sides <= 0.9).all()
    assert np.abs((boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5).max() < 1 / 32 + 4 / size_px


def test_portraits_are_of_few_drawings():
    drawings = {draw_portrait(seed).instances[0].drawing for seed in range(200)}
    assert {name for name in drawings if name.startswith("cow/")} == {"cow/dairy", "cow/dairy-brown"}


def test_portraits_are_too_large_for_a_tiny_scene():
    with pytest.raises(ValueError, match="size_px is 31"):
        draw_portrait(0, size_px=31)


def test_later_objects_cover_earlier_ones():
    plate, bird = find_glyph("diningtable/round-wood"), find_glyph("bird/owl")
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = compose([plate, bird], rng)
        if len(scene.instances) == 2:
            (_, top, _, bottom), box = scene.instances[1].box, scene.instances[0].box
            assert bottom > top
            left, upper, right, lower = box
            inside = scene.mask[upper:lower, left:right] == VOC.index("bird")
            if inside.any():
                return
    pytest.fail("no two objects met in 100 scenes")


def test_the_camera_noise_has_the_documented_strength():
    assert NOISE.size == 256
    assert NOISE.mean() == 0
    assert NOISE.std() == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("name", GROUNDS)
def test_grounds_fill_their_square_with_texture(name):
    ground = draw_ground(name, np.random.default_rng(1), 96)
    assert ground.shape == (96, 96, 3)
    assert ground.std(axis=(0, 1)).max() > 1


def test_unknown_ground_and_too_small_a_scene_are_errors():
    with pytest.raises(ValueError, match="brick wall"):
        draw_ground("lava", np.random.default_rng(0), 64)
    with pytest.raises(ValueError, match="at least 32"):
        draw_scene(0, size_px=16)


def test_splits_are_disjoint_and_do_not_depend_on_their_length():
    pixels = {}
    for split in ("train", "val", "calibration", "shifted", "personal"):
        for scene in split_scenes(split, 20):
            pixels.setdefault(scene.rgb.tobytes(), []).append(split)
    assert all(len(splits) == 1 for splits in pixels.values())
    assert len(pixels) == 100
    longer = [scene.rgb.tobytes() for scene in split_scenes("val", 5)]
    assert [scene.rgb.tobytes() for scene in split_scenes("val", 3)] == longer[:3]
    assert next(calibration_scenes(1)).rgb.tobytes() in pixels
    assert [scene.rgb.tobytes() for scene in split_scenes("val", 3, seed=1)] != longer[:3]


def test_a_generator_moves_on():
    rng = np.random.default_rng(0)
    one, other = draw_scene(rng), draw_scene(rng)
    assert not np.array_equal(one.rgb, other.rgb)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_a_personal_scene_shows_the_particular_drawing_once(seed, alone):
    scene = draw_personal_scene(seed, PERSONAL_DRAWING, alone=alone)
    assert [instance.drawing for instance in scene.instances].count(PERSONAL_DRAWING) == 1
    particular = drawing_mask(scene, PERSONAL_DRAWING)
    assert particular.sum() > VISIBLE_PX
    assert set(scene.mask[particular == 1]) == {VOC.index("dog")}
    dogs = scene.mask == VOC.index("dog")
    assert (dogs.sum() == particular.sum()) == alone


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "world"
    assert write_world(root, train=6, val=4, personal=7, shifted=2, calibration=1, seed=3)
    return root


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("val", 4), ("personal", 7), ("shifted", 2)])
def test_the_voc_reader_reads_what_was_written(written, split, count):
    samples = open_samples(DataConfig(root=written, format="voc", split=split)).samples
    scenes = list(split_scenes(split, count, seed=3))
    assert len(samples) == count
    for sample, scene in zip(samples, scenes, strict=True):
        assert sample.labels == scene.labels
        assert np.array_equal(read_image(sample.image_path), scene.rgb)
        if split == "train":
            assert sample.truth_path is None
        else:
            assert np.array_equal(read_mask(sample.truth_path), scene.mask)


def test_truth_of_train_lies_apart(written):
    config = DataConfig(root=written, format="voc", split="train", truth=world.TRAIN_TRUTH_FOLDER)
    samples = open_samples(config).samples
    masks = [read_mask(sample.truth_path) for sample in samples]
    assert all(np.array_equal(mask, scene.mask) for mask, scene in zip(masks, split_scenes("train", 6, 3), strict=True))


def test_personal_split_says_which_scenes_to_learn_from(written):
    content = json.loads((written / "personal.json").read_text())
    assert content["class"] == "dog"
    assert len(content["learn"]) == 5
    assert len(content["find"]) == 2
    for scene_id in content["learn"] + content["find"]:
        mask = read_mask(written / "SegmentationClass" / f"{scene_id}.png")
        particular = read_mask(written / "PersonalMask" / f"{scene_id}.png")
        alone = np.array_equal(particular == 1, mask == VOC.index("dog"))
        assert alone == (scene_id in content["learn"])


def test_boxes_of_the_annotation_count_from_one():
    scene = draw_scene(7)
    entry = world.annotation("x", scene).find("object")
    values = [int(entry.findtext(f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = scene.instances[0].box
    assert values == [left + 1, top + 1, right, bottom]
    assert all(1 <= value <= 128 for value in values)


def test_the_same_world_is_not_drawn_again(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    assert not write_world(written, train=6, val=4, personal=7, shifted=2, calibration=1, seed=3)
    assert before == {path: path.stat().st_mtime_ns for path in written.rglob("*")}


def test_another_world_or_other_files_are_not_overwritten(written, tmp_path):
    with pytest.raises(ConfigError, match="other seed"):
        write_world(written, train=6, val=4, personal=7, shifted=2, calibration=1, seed=4)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no demo world"):
        write_world(tmp_path, train=1, val=0, personal=0)
    with pytest.raises(ConfigError, match="train is -1"):
        write_world(tmp_path / "new", train=-1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "README", None)  # Writing it fails, after everything else was written.
    with pytest.raises(TypeError):
        write_world(tmp_path / "world", train=1, val=0, personal=0)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled(tmp_path):
    assert write_world(tmp_path, train=0, val=1, personal=0)
    assert (tmp_path / "world.json").is_file()


def test_the_command_writes_world_and_sheet(tmp_path, capsys):
    counts = ["--train=2", "--val=1", "--personal=0"]
    world.main([f"--output={tmp_path / 'w'}", f"--sheet={tmp_path / 'sheet.png'}", *counts])
    assert "Wrote the demo world" in capsys.readouterr().out
    assert read_image(tmp_path / "sheet.png").shape[1] > 1000
    world.main([f"--output={tmp_path / 'w'}", *counts])
    assert "already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        world.main([f"--output={tmp_path / 'w'}", *counts, "--seed=9"])
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit, match="2"):
        world.main([])


def test_drawing_needs_no_torch():
    code = "import sys, data.demo.world as w; w.draw_scene(0); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_seed_streams_are_numbered_apart():
    numbers = sorted(world.STREAMS.values())
    assert all(low < high for low, high in pairwise(numbers))
