"""Calibration: the offline arithmetic against the pipeline's own, the criteria against plain ones, the command."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.classes import VOC
from data.config import DataConfig
from data.errors import ConfigError
from data.readers.layout import open_samples
from data.samples import Sample
from data.scoring import confusion_matrix, score
from pseudolabel.calibrate import recordings
from pseudolabel.calibrate.candidates import (
    SATURATIONS,
    describe,
    fewer_heads,
    one_more_or_less,
    small_changes,
    weighings,
)
from pseudolabel.calibrate.criteria import (
    THRESHOLDS,
    best_threshold,
    count_pixels,
    cut_of,
    edge_alignment,
    image_edges,
    label_score,
    otsu_threshold,
    separation,
    threshold_of,
)
from pseudolabel.calibrate.judge import competed, judge_sizes
from pseudolabel.calibrate.offline import refined_maps
from pseudolabel.calibrate.pictures import Picture, load_picture
from pseudolabel.calibrate.recordings import PLAIN, TokenRule, Wanted, record
from pseudolabel.calibrate.search import usable
from pseudolabel.calibrate.steps import head_count, merge_heads
from pseudolabel.cli import main
from pseudolabel.config import GenerateConfig, differences
from pseudolabel.masks.config import FuseConfig
from pseudolabel.masks.fuse import background_score
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.config import DiffusionConfig
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.unet import list_layers
from pseudolabel.softmaps.layers import per_head
from pseudolabel.softmaps.passes import Reader

LABELS = (8, 15)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@given(st.floats(0.05, 1.0), st.floats(0, 1))
def test_the_cut_is_where_the_background_score_meets_the_map(tau, value):
    wins = float(background_score(np.float32([[[value]]]), FuseConfig(threshold=tau))[0, 0]) > value
    if abs(value - cut_of(tau)) > 1e-4:
        assert wins == (value < cut_of(tau))
    assert threshold_of(float(cut_of(tau))) == pytest.approx(tau, abs=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_all_thresholds_at_once_equal_one_threshold_after_the_other(seed):
    random = np.random.default_rng(seed)
    maps = random.random((2, 6, 7), dtype=np.float32)
    truth = random.choice(np.uint8([0, 2, 3, 255]), (6, 7))
    reached = []
    for tau in THRESHOLDS:
        background = background_score(maps, FuseConfig(threshold=float(tau)))[None]
        labels = np.uint8([0, 2, 3])[np.concatenate([background, maps]).argmax(axis=0)]
        reached.append(score(confusion_matrix(truth, labels, 5)).miou)
    if np.isnan(reached).all():
        return
    miou, threshold = best_threshold(count_pixels(maps, (2, 3), truth, 5))
    assert miou == pytest.approx(max(reached), abs=1e-9)
    assert reached[int(np.argmin(abs(THRESHOLDS - threshold)))] == pytest.approx(miou, abs=1e-9)


def test_label_score_prefers_maps_that_know_what_is_there():
    random = np.random.default_rng(0)
    blob = np.zeros((2, 12, 12), np.float32)
    blob[:, 3:8, 3:8] = 1
    noise = random.random((2, 12, 12)).astype(np.float32)
    assert separation(blob, np.ones((3, 12, 12), np.float32)) == 1
    assert separation(noise, noise) == 0.5
    edges = image_edges(np.uint8(200 * blob[0, ..., None].repeat(3, axis=2)))
    assert label_score([blob], [noise], [edges]) > label_score([noise], [noise[::-1]], [edges])


def test_edge_alignment_is_high_where_maps_change_with_the_image():
    image = np.zeros((128, 128, 3), np.uint8)
    image[32:96, 32:96] = (200, 40, 90)
    edges = image_edges(image)
    assert edges.shape == (64, 64)
    here, elsewhere = np.zeros((2, 1, 16, 16), np.float32)
    here[0, 4:12, 4:12] = 1
    elsewhere[0, 8:, 8:] = 1
    assert edge_alignment(here, edges) > 0.6 > 0.2 > edge_alignment(elsewhere, edges)
    assert edge_alignment(3 * here + 1, edges) == pytest.approx(edge_alignment(here, edges), abs=1e-5)
    assert edge_alignment(np.ones((1, 16, 16), np.float32), edges) == 0


def test_edges_are_the_gradient_of_all_colours():
    ramp = np.zeros((20, 30, 3), np.uint8)
    ramp[..., 0] = 2 * np.arange(30)
    ramp[..., 2] = 3 * np.arange(20)[:, None]
    np.testing.assert_allclose(image_edges(ramp)[1:-1, 1:-1], 8 * np.hypot(2, 3), rtol=1e-5)


def test_otsu_threshold_separates_two_groups():
    maps = np.concatenate([np.full((1, 4, 4), 0.1), np.full((1, 4, 4), 0.9)], axis=2)
    assert 0.1 <= cut_of(otsu_threshold([maps])) < 0.9


def reader_of(config) -> Reader:
    parts = load_parts(config.model, torch.device("cpu"), torch.float32)
    return Reader(parts, VOC, config.prompt, config.diffusion, config.resize, config.run)


@pytest.mark.parametrize(
    ("attention", "affinity"),
    [
        ({}, {}),
        ({"token_rescaling": True}, {"kind": "iterated", "iterations": 3, "boxes": False}),
        ({"cross_layers": ("down_blocks.1.attentions.0",)}, {"kind": "none"}),
        ({"cross_layers": ("mid_block.attentions.0@0",)}, {"kind": "iseg"}),
        ({}, {"kind": "cda", "temperature": 0.1}),
        ({"naming_layers": ("mid_block.attentions.0",)}, {"balance": True, "saturate": 0.1}),
        ({"weights": "heads"}, {}),
        ({"weights": "layers"}, {}),
        ({"weights": "both", "token_rescaling": True, "rescaled_tokens": "words", "blur": 5}, {"boxes": False}),
    ],
)
def test_offline_maps_equal_the_pipelines(tiny_config, with_settings, rgb, attention, affinity):
    attention = {"cross_layers": ("down_blocks.1.attentions.1", "mid_block.attentions.0")} | attention
    config = with_settings(with_settings(tiny_config, "attention", **attention), "affinity", **affinity)
    pipeline = Pipeline.load(config, VOC)
    [expected] = pipeline.soft_maps([rgb], [LABELS], ["one"])

    reader = reader_of(config)
    layers = list_layers(reader.parts.denoiser)
    [finest] = [layer for layer in layers if layer.name == config.attention.self_layers[-1]]
    rules, reference = [TokenRule.of(config.attention)], finest if config.attention.weighs_layers else None
    read = [replace(layer, heads=(0,)) for layer in layers] if "@" in config.attention.cross_layers[0] else layers
    [recorded] = record(reader, [Picture("one", rgb, LABELS)], Wanted(read, layers, rules, reference))
    found = refined_maps(recorded, config, layers)
    assert found.shape == expected.maps.shape
    assert torch.allclose(found, torch.from_numpy(expected.maps.astype(np.float32)), atol=2e-3)


def test_competing_words_are_recorded_as_the_pipeline_makes_them(tiny_config, with_settings, rgb):
    config = with_settings(tiny_config, "fuse", background="words")
    cross = ("down_blocks.1.attentions.1", "mid_block.attentions.0")
    config = with_settings(config, "attention", cross_layers=cross, naming_layers=cross[1:])
    [expected] = Pipeline.load(config, VOC).soft_maps([rgb], [LABELS], ["one"])
    reader = reader_of(config)
    layers = list_layers(reader.parts.denoiser)
    [recorded] = record(reader, [Picture("one", rgb, LABELS)], Wanted(layers, layers, words=True))
    *classes, words = refined_maps(recorded, config, layers).numpy()
    assert expected.words is not None
    np.testing.assert_allclose(classes, expected.maps.astype(np.float32), atol=2e-3)
    # The pipeline takes the mean over draws of each word first, as is done here; fp16 rounds.
    np.testing.assert_allclose(words, expected.words.astype(np.float32), atol=2e-3)


def test_where_words_win_no_class_is_left():
    config = GenerateConfig(data=DataConfig(root=Path()), fuse=FuseConfig(background="words"))
    maps = np.array([[[0.9, 0.2]], [[0.3, 0.1]], [[0.5, 0.4]]])
    np.testing.assert_array_equal(competed(maps, config), [[[0.9, 0]], [[0.3, 0]]])
    assert competed(maps, replace(config, fuse=FuseConfig())) is maps


def test_image_sizes_are_judged_by_the_mean_of_their_maps():
    truth = np.zeros((4, 4), np.uint8)
    truth[:2] = 3
    picture = Picture("one", np.zeros((4, 4, 3), np.uint8), (3,), truth=truth)
    right, wrong = (truth / 3)[None], 1 - (truth / 3)[None]
    by_scale = {0.75: [wrong], 1.0: [right], 1.25: [0.6 * right]}
    sets = [(0.75,), (1.0,), (1.0, 1.25), (0.75, 1.0)]
    found = [verdict.score for verdict in judge_sizes(by_scale, [picture], sets, 21)]
    assert found[1] == found[2] == 1
    assert found[0] == 0
    assert found[3] == pytest.approx(0.25)  # flat: all of one class, half of it right


def test_weighings_differ_from_what_there_is(tiny_config, with_settings):
    config = with_settings(tiny_config, "attention", cross_layers=("a",))
    found = weighings(config, ("a", "b"), can_weigh_layers=True)
    assert config not in found
    assert len(found) == len(set(found)) == 15  # two ways to share cells out, four of weighing, two sets of layers
    assert {other.attention.weights for other in weighings(config, ("a",), can_weigh_layers=False)} == {"mean", "heads"}


def test_all_heads_one_by_one_equal_the_whole_layer(tiny_config, with_settings, rgb):
    config = with_settings(tiny_config, "attention", cross_layers=("mid_block.attentions.0",))
    config = with_settings(config, "affinity", kind="none")
    reader = reader_of(config)
    layers = list_layers(reader.parts.denoiser)
    middle = [layer for layer in layers if layer.place == "mid"]
    count = head_count(reader.parts.denoiser, middle[0])
    picture = Picture("one", rgb, LABELS)
    [whole] = record(reader, [picture], Wanted(middle))
    merged = merge_heads([next(iter(record(reader, [picture], Wanted(each)))) for each in per_head(middle, count)])
    heads = "+".join(map(str, range(count)))
    by_heads = with_settings(config, "attention", cross_layers=(f"mid_block.attentions.0@{heads}",))
    expected, found = refined_maps(whole, config, layers), refined_maps(merged, by_heads, layers)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(refined_maps(merged, config, layers), expected, atol=1e-5)
    fewer = fewer_heads(config, {"mid_block.attentions.0": count})
    assert len(fewer) == count
    assert not torch.allclose(refined_maps(merged, fewer[0], layers), expected, atol=1e-3)


def test_small_changes_know_balance_and_saturation(tiny_config, with_settings):
    config = with_settings(tiny_config, "affinity", kind="iterated", balance=True)
    config = with_settings(config, "attention", cross_layers=("a",), self_layers=("b",))
    found = [each.affinity for each in small_changes(config, ("a", "b"), ("a", "b"))]
    assert {each.saturate for each in found} == {0, *SATURATIONS}
    assert {each.balance for each in found} == {True, False}
    assert "balanced iterated" in describe(config)
    config = with_settings(config, "affinity", kind="cda", balance=False)
    assert not any(each.affinity.balance for each in small_changes(config, ("a", "b"), ("a", "b")))


def test_neighbouring_sets_are_never_empty():
    assert one_more_or_less(("a", "c"), ("a", "b", "c")) == [("c",), ("a",), ("a", "b", "c")]


def test_only_differences_are_written(tmp_path):
    config = GenerateConfig(data=DataConfig(root=tmp_path, split="x"), diffusion=DiffusionConfig(timesteps=(300,)))
    assert differences(config) == {"diffusion": {"timesteps": [300]}}


def some_samples(*labels: tuple[int, ...]) -> list[Sample]:
    return [Sample(str(number), Path("a.png"), each) for number, each in enumerate(labels)]


def test_images_that_hold_every_class_are_left_out_without_truth(caplog):
    """No class could be absent from them; a folder of two classes has many such."""
    found = usable(some_samples((1, 2), (1,), (1, 2)), 2, by_truth=False)
    assert [one.id for one in found] == ["1"]
    assert "2 of 3 images hold all classes" in caplog.text
    with_truth = [replace(one, truth_path=Path("t.png")) for one in some_samples((1, 2), (1,))]
    assert usable([*with_truth, *some_samples((1,))], 2, by_truth=True) == with_truth


@pytest.mark.parametrize(("labels", "n_classes"), [(((1, 2), (1, 2)), 2), (((1,), (1,)), 1)])
def test_without_truth_some_class_must_be_absent(labels, n_classes):
    with pytest.raises(ConfigError, match=r"holds all of .*--data\.classes"):
        usable(some_samples(*labels), n_classes, by_truth=False)


def test_large_images_are_read_again_and_not_kept(small_world, monkeypatch):
    sample = open_samples(DataConfig(root=small_world), need_labels=True).samples[0]
    kept = load_picture(sample, 20, 0, False)
    monkeypatch.setattr("pseudolabel.calibrate.pictures.KEPT_PIXELS", 100)
    large = load_picture(sample, 20, 0, False)
    assert large.source == sample.image_path
    np.testing.assert_array_equal(large.rgb_u8, kept.source)


@pytest.mark.parametrize("use_truth", [True, False])
def test_the_command_writes_a_config_that_generate_reads(small_world, sd_folder, tmp_path, use_truth, capsys):
    output = tmp_path / "made" / "calibrated.yaml"
    start = tmp_path / "start.yaml"
    start.write_text(
        f"model: {{id: {sd_folder}}}\nresize: {{long_side_px: 64}}\ndiffusion: {{draws: 1}}\n"
        "run: {device: cpu, workers: 0}\ncrf: {kind: none}\n"
        + ("attention: {cross_layers: [mid], self_layers: [up_blocks.1.attentions.1]}\n" if use_truth else "")
    )  # Without the last line it names Stable Diffusion's layers, which this model does not have.
    base = ["calibrate", "--config", str(start), "--root", str(small_world), "--output", str(output)]
    base += ["--images", "2", "--draws", "1", "--timesteps", "[100, 300]"]
    arguments = [*base, "--use_truth", str(use_truth).lower()]
    assert main(arguments) == 0
    text = output.read_text()
    assert text.startswith("# Chosen by `pseudolabel calibrate` on 2 images")
    written = yaml.safe_load(text)
    assert written["diffusion"]["draws"] == 1
    assert written["diffusion"]["timesteps"] in ([100], [300])
    assert "timestep (of 100 300) and cross layers" in text
    assert ("timestep again" in text) == use_truth
    assert "weights of layers and heads (" in text
    assert ("image sizes (of 0.4 0.57 0.75 1 1.25), averaged (" in text) == use_truth
    assert not list(output.parent.glob(".*"))  # what was kept while it ran is gone
    assert "data" not in written
    assert "run" not in written
    assert "pseudolabel generate" in capsys.readouterr().out

    assert main(arguments) == 2  # it does not replace a file unasked
    assert "--replace_output" in capsys.readouterr().err

    store = str(tmp_path / "store")
    assert main(["generate", "--config", str(output), "--root", str(small_world), "--store", store, "--workers=0"]) == 0


def test_running_out_of_gpu_memory_halves_the_batches_here_too(tiny_config, rgb, monkeypatch):
    reader = reader_of(tiny_config)
    layers = list_layers(reader.parts.denoiser)
    picture = Picture("one", rgb, LABELS)
    [expected] = record(reader, [picture], Wanted(layers))
    run, tried = recordings.run_passes, []

    def short_of_memory(parts, cross, self_layers, passes, columns, **settings):
        tried.append(len(passes))
        if len(passes) > 1:
            raise torch.cuda.OutOfMemoryError("full")
        return run(parts, cross, self_layers, passes, columns, **settings)

    monkeypatch.setattr(recordings, "run_passes", short_of_memory)
    [found] = record(reader, [picture], Wanted(layers))
    assert tried[0] == 2
    assert tried[-2:] == [1, 1]
    for name, maps in expected[0].maps[PLAIN].items():
        torch.testing.assert_close(found[0].maps[PLAIN][name], maps, atol=1e-5, rtol=1e-4)
