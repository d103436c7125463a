"""The arena: peers on a tiny model, and its figures against slow ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.classes import VOC
from data.demo.world import split_scenes
from data.scoring import score
from data.store.softmaps import SoftMaps
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.calibrate.recordings import record
from pseudolabel.masks.config import CrfConfig, FuseConfig, MaskConfig, SamConfig
from pseudolabel.masks.labelmap import label_map
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.unet import list_layers
from pseudolabel.softmaps.passes import Reader

ROOT = Path(__file__).parents[2]
PEERS = ("daam", "dataset_diffusion", "diffsegmenter", "iseg", "goca", "cda")
SCENE = next(split_scenes("calibration", 1, seed=4))


@pytest.fixture(autouse=True)
def _import_from_root(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def arena_parts(tiny_config):
    from benchmarks.peers.common import Model

    parts = load_parts(tiny_config.model, torch.device("cpu"), torch.float32)
    layers = list_layers(parts.denoiser)
    [spreading] = [layer for layer in layers if layer.name == "up_blocks.1.attentions.1"]
    return parts, Model(layers, spreading)


@pytest.fixture
def reads(tiny_config, arena_parts):
    """Return a function that gives a peer's soft maps of an image, recording what this peer asks for."""
    from benchmarks.arena_read import PEERS, peer_maps

    parts, model = arena_parts
    reader = Reader(parts, VOC, tiny_config.prompt, tiny_config.diffusion, tiny_config.resize, tiny_config.run)

    def read(name: str) -> SoftMaps:
        [sentences] = record(reader, [Picture("one", SCENE.rgb, (8, 15))], PEERS[name].wanted(model))
        return peer_maps(PEERS[name], sentences, model)

    return read


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_makes_maps_of_its_own(reads, name):
    soft = reads(name)
    assert soft.labels == (8, 15)
    assert soft.maps.shape[0] == 2
    assert soft.maps.min() >= 0
    assert 0.5 < soft.maps.max() <= 1
    others = [reads(other).maps for other in PEERS if other != name]
    assert not any(other.shape == soft.maps.shape and np.array_equal(other, soft.maps) for other in others)


@pytest.mark.parametrize(
    ("name", "attention", "affinity"),
    [
        ("goca", {"weights": "both", "token_rescaling": True, "rescaled_tokens": "words", "blur": 5}, {"boxes": False}),
        ("cda", {}, {"kind": "cda", "iterations": 1, "temperature": 0.1}),
        ("iseg", {"cross_layers": ("1/4",)}, {"kind": "iseg"}),
    ],
)
def test_a_peer_that_is_a_setting_of_the_pipeline_gives_its_maps(
    reads, tiny_config, with_settings, name, attention, affinity
):
    config = with_settings(tiny_config, "attention", **({"cross_layers": ("all",)} | attention))
    config = with_settings(config, "affinity", **affinity)
    [expected] = Pipeline.load(config, VOC).soft_maps([SCENE.rgb], [(8, 15)], ["one"])
    soft = reads(name)
    assert soft.maps.shape == expected.maps.shape
    np.testing.assert_allclose(soft.maps.astype(float), expected.maps.astype(float), atol=4e-3)


def test_grad_cam_is_high_where_the_class_is_and_nowhere_else():
    from benchmarks.peers import gradcam

    torch.manual_seed(0)
    network = gradcam.train([SCENE], epochs=1)
    first, second = gradcam.soft_maps(network, SCENE.rgb, (1, 2)), gradcam.soft_maps(network, SCENE.rgb, (2, 1))
    assert first.shape[0] == 2
    assert first.shape[-1] == -(-gradcam.SIDE_PX // 16)
    assert first.min() >= 0
    torch.testing.assert_close(first, second.flip(0))


def judged_scene(share: float, seed: int):
    """Return a scene and soft maps that are its truth, blended with noise."""
    [scene] = list(split_scenes("calibration", 1, seed=seed))
    noise = np.random.default_rng(seed).random((len(scene.labels), *scene.mask.shape))
    truth = np.stack([scene.mask == label for label in scene.labels])
    maps = ((1 - share) * truth + share * noise).astype(np.float16)
    size = (scene.mask.shape[0], scene.mask.shape[1])
    return scene, SoftMaps(maps, scene.labels, False, size, size, size)


def test_thresholds_are_the_best_and_figures_are_those_of_the_masks():
    from benchmarks.arena_judge import fitted, judged, with_threshold
    from pseudolabel.masks.fuse import before_crf

    scenes, maps = zip(*(judged_scene(0.4, seed) for seed in range(3)), strict=True)
    masks = MaskConfig(crf=CrfConfig(iterations=2), fuse=FuseConfig(threshold=0.05))
    found = fitted(scenes, maps, masks)
    result = judged(scenes, maps, masks, found.threshold_before, found.threshold_after)
    assert result.after == pytest.approx(found.after)
    assert result.before > 0.9
    worse = judged(scenes, maps, masks, 0.1, 0.1)
    assert worse.before < result.before
    assert worse.after <= result.after
    chosen = with_threshold(masks, found.threshold_after)
    argmax = label_map(scenes[1].rgb, maps[1], chosen)[1]
    assert np.trace(result.counts_after[1]) == (argmax == scenes[1].mask).sum()
    raw = before_crf(maps[2], with_threshold(masks, found.threshold_before).fuse)
    assert np.trace(result.counts_before[2]) == (raw == scenes[2].mask).sum()


def test_bootstrap_intervals_are_those_of_scenes_drawn_one_by_one():
    from benchmarks.arena_judge import difference, drawn_mious, interval

    random = np.random.default_rng(0)
    counts = random.integers(0, 50, (12, 3, 3)) + 100 * np.eye(3, dtype=int)
    drawn = np.random.default_rng(0).multinomial(12, [1 / 12] * 12, 5)
    slowly = [score(sum(counts[i] * times for i, times in enumerate(row))).miou for row in drawn]
    np.testing.assert_allclose(drawn_mious(counts, 5), slowly)
    low, high = interval(counts)
    assert low < score(counts.sum(axis=0)).miou < high
    assert difference(counts, counts) == (0, 0, 0)
    gap, low, high = difference(counts + 100 * np.eye(3, dtype=int), counts)
    assert 0 < low < gap < high


def test_the_page_names_every_method_and_counts_the_looks():
    from benchmarks.arena import report
    from benchmarks.arena_read import titles

    names = titles()
    assert names["goca"] == "GoCA (CVPR 2026, arXiv 2603.06178)"
    row = {"before": 0.5, "before_interval": [0.4, 0.6], "after": 0.6, "after_interval": [0.5, 0.7], "boundary": 0.3}
    worlds = {name: {"goca": row | {"ahead": [0.1, 0.05, 0.2]}, "default": row | {"ahead": [0, 0, 0]}} for name in "vs"}
    found = {
        "scenes": {"calibration": 3, "val": 4, "shifted": 5},
        "chosen": {"goca": ["with background words", 0.5, 0.4], "default": ["its own", 0.5, 0.45]},
        "worlds": worlds,
        "costs": {"goca": {"seconds": 0.1, "peak_mib": 700.0}},
        "sam": None,
        "cpu_minutes": 12.4,
    }
    looks = [{"commit": "abc", "why": "the table"}, {"commit": "def", "why": "another default"}]
    machine = {"hardware": "2 cores", "torch": "2", "commit": "def"}
    text = report(found, looks, machine)
    assert (
        "| GoCA (CVPR 2026, arXiv 2603.06178) | 50.0 (40.0 to 60.0) | 60.0 (50.0 to 70.0) | 30.0 | +10.0 (+5.0 to"
        in text
    )
    assert "2. def: another default" in text
    assert "No row has a SAM" in text
    assert "took 12 minutes of one core" in text
    assert "The SAM is `facebook/sam-vit-base`." in report(found | {"sam": "facebook/sam-vit-base"}, looks, machine)


def test_the_shifted_world_shows_other_drawings_on_other_grounds():
    from benchmarks.arena import draw_worlds
    from data.demo.glyphs import load_glyphs
    from data.demo.grounds import OTHER_GROUNDS

    worlds = draw_worlds(3, 6, 2)
    held_out = {glyph.name for glyph in load_glyphs() if glyph.held_out}
    for scene in worlds["shifted"]:
        assert {instance.drawing for instance in scene.instances} <= held_out
        assert set(scene.grounds) <= set(OTHER_GROUNDS)
    assert [len(scenes) for scenes in worlds.values()] == [2, 3, 6]
    again = draw_worlds(0, 1, 0)["shifted"][0]
    assert np.array_equal(again.rgb, worlds["shifted"][0].rgb)


def test_the_row_with_a_sam_is_the_default_sharpened(tiny_sam_folder):
    from benchmarks.arena import add_sam
    from benchmarks.arena_judge import judged

    scene, maps = judged_scene(0.4, 0)
    masks = {"default": MaskConfig(crf=CrfConfig(iterations=2))}
    chosen, read = {"default": ("its own", 0.3, 0.4)}, {"val": {"default": {"its own": [maps]}}}
    add_sam(str(tiny_sam_folder), masks, chosen, read)
    assert chosen["default + SAM"] == chosen["default"]
    rows = {}
    for method, config in masks.items():
        reading, before, after = chosen[method]
        rows[method] = judged([scene], read["val"][method][reading], config, before, after)
    assert np.array_equal(rows["default"].counts_before, rows["default + SAM"].counts_before)
    with_sam = MaskConfig(FuseConfig(threshold=0.4), CrfConfig(iterations=2), sam=SamConfig(id=str(tiny_sam_folder)))
    labelled_as = label_map(scene.rgb, maps, with_sam)[1]
    assert np.trace(rows["default + SAM"].counts_after[0]) == (labelled_as == scene.mask).sum()


def test_one_more_look_at_val_says_what_it_is_for(tmp_path, capsys):
    from benchmarks.arena import main

    (tmp_path / "arena.json").write_text('{"looks": [{"commit": "abc", "why": "the table"}]}')
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(tmp_path / "arena.md")])
    assert "--why" in capsys.readouterr().err
