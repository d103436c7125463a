"""The benchmarks at tiny size: they run, and what the naive implementation computes is what ours computes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.config import DataConfig
from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.config import AffinityConfig, AttentionConfig, ModelConfig
from pseudolabel.softmaps.diffusion.load import load_parts

ROOT = Path(__file__).parents[2]
TINY_SETTINGS = GenerateConfig(
    data=DataConfig(root=Path()),
    attention=AttentionConfig(cross_layers=("1/2", "mid"), self_layers=("up_blocks.2.attentions.1",)),
    affinity=AffinityConfig(boxes=False),
)


@pytest.fixture(autouse=True)
def _import_from_root(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


ON_CPU = {"device": "cpu", "threads": None, "dtype": "float32", "channels_last": False}


def tiny_models(folder: Path):
    return load_parts(ModelConfig(id=str(folder)), torch.device("cpu"), torch.float32)


def test_the_naive_implementation_computes_the_same_maps(sd_folder):
    from benchmarks.stage_one_cases import prepare
    from pseudolabel.softmaps.grids import min_max

    with torch.inference_mode():
        ours = prepare("ours", tiny_models(sd_folder), TINY_SETTINGS, (128, 96), 2)()
        columns = prepare("naive", tiny_models(sd_folder), TINY_SETTINGS, (128, 96), 2)()
    naive = min_max(columns.transpose(1, 2).unflatten(-1, ours.shape[-2:]))
    assert torch.allclose(ours, naive, atol=1e-4)


@pytest.mark.parametrize("method", ["plain", "published", "encoder"])
def test_a_case_is_measured(sd_folder, method, monkeypatch):
    from benchmarks import stage_one_cases
    from benchmarks.stage_one_cases import run_case

    monkeypatch.setattr(stage_one_cases, "settings", lambda name: TINY_SETTINGS)
    case = {"model": "demo", "size_hw": (64, 64), "method": method, "repeats": 1, "batch": 1} | ON_CPU
    found = run_case({**case, "demo_model": str(sd_folder)})
    assert found["seconds"] > 0
    assert found["peak_mib"] >= found["loaded_mib"] > 0


NARROW = {  # the same shapes, narrow
    "pixart_sigma": {"num_attention_heads": 3, "attention_head_dim": 8, "cross_attention_dim": 24, "num_layers": 20,
                     "caption_channels": 16},
    "sd3": {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 11, "joint_attention_dim": 16,
            "caption_projection_dim": 16, "pooled_projection_dim": 8, "pos_embed_max_size": 16},
    "flux_part": {"num_layers": 2, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
                  "axes_dims_rope": (4, 4, 8), "joint_attention_dim": 16, "pooled_projection_dim": 8},
    "flux2_klein": {"num_layers": 5, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
                    "axes_dims_rope": (4, 4, 4, 4), "joint_attention_dim": 24},
}  # fmt: skip


@pytest.mark.parametrize("name", list(NARROW))
def test_transformers_are_measured_too(name, monkeypatch):
    from benchmarks import stage_one_cases

    backbone, _, layer = stage_one_cases.TRANSFORMERS[name]
    monkeypatch.setitem(stage_one_cases.TRANSFORMERS, name, (backbone, NARROW[name], layer))
    case = {"model": name, "size_hw": (64, 96), "repeats": 1, "batch": 2, "demo_model": ""} | ON_CPU
    for method, dtype in (("ours", "float32"), ("plain", "bfloat16")):
        assert stage_one_cases.run_case({**case, "method": method, "dtype": dtype})["seconds"] > 0


def test_a_tiny_image_encoder_is_measured_too():
    from benchmarks.stage_one_cases import run_case

    case = {"model": "sd3", "size_hw": (64, 64), "repeats": 1, "batch": 1, "demo_model": ""} | ON_CPU
    assert run_case({**case, "method": "tiny", "channels_last": True})["seconds"] > 0


def test_the_table_of_cards_in_the_readme_is_the_scripts():
    from benchmarks.backbones import HEADER, rows
    from benchmarks.common import table

    assert table(HEADER, rows()) in (ROOT / "pseudolabel" / "README.md").read_text(encoding="utf-8")


def test_the_table_of_times_and_what_check_knows_are_the_scripts():
    from benchmarks import costs
    from benchmarks.backbones import BACKBONES

    models = json.loads(costs.SHIPPED.read_text(encoding="utf-8"))["models"]
    assert costs.short_table(models) in (ROOT / "pseudolabel" / "README.md").read_text(encoding="utf-8")
    assert [model["title"] for model in models] == [backbone.title for backbone in BACKBONES.values()]
    found = costs.operations("sd15")
    assert (list(found.size_hw), round(found.encoder / 1e12, 2), round(found.draw / 1e12, 2)) == tuple(
        models[0][key] for key in ("read_at", "encoder_tflop", "draw_tflop")
    )
    assert 0.5 < found.draw / found.whole < 1  # up_blocks.2.attentions.1 is the last layer read


def test_the_report_of_stage_one_names_what_did_not_fit():
    from benchmarks.stage_one import report

    case = {"model": "sd15", "size_hw": [512, 512], "batch": 1, "torch": "2", "hardware": "a machine", "commit": "abc"}
    case |= ON_CPU | {"threads": 1}
    measured = {"seconds": 2.0, "peak_mib": 300.0, "loaded_mib": 100.0}
    rows = [case | measured | {"method": "ours"}, case | {"method": "naive", "error": "out of memory"}]
    rows += [case | measured | {"method": "plain"}, case | measured | {"method": "encoder", "seconds": 3.0}]
    text = report(rows)
    assert "out of memory" in text
    assert "| ours | 2 | 1.00 |" in text
    assert "of a plain pass: 2.50 with the model's own encoder." in text
    assert "| abc |" in text
    assert "Number formats" not in text
    other = case | measured | {"method": "encoder", "dtype": "bfloat16", "seconds": 1.5}
    assert "| sd15 512 x 512, encoder | bfloat16 | first | 1.5 | 0.50 |" in report([*rows, other])


def test_a_row_of_stage_one_that_is_measured_again_replaces_the_one_of_before():
    from benchmarks.stage_one import merged

    case = {"model": "sd15", "size_hw": [512, 512], "method": "plain", "seconds": 1.0} | ON_CPU
    case["threads"] = 1
    others = [case | {"method": "ours"}, case | {"dtype": "bfloat16"}, case | {"model": "demo"}]
    found = merged([*others, case], case | {"size_hw": (512, 512), "seconds": 2.0})
    assert [(row["model"], row["method"], row["dtype"], row["seconds"]) for row in found] == [
        ("sd15", "ours", "float32", 1.0),
        ("sd15", "plain", "bfloat16", 1.0),
        ("sd15", "plain", "float32", 2.0),
        ("demo", "plain", "float32", 1.0),
    ]


def test_refinements_resume(sd_folder, tmp_path, capsys, monkeypatch):
    from benchmarks import refinements

    config = tmp_path / "config.yaml"
    config.write_text(
        "attention: {cross_layers: [mid], self_layers: [up_blocks.2.attentions.1]}\ndiffusion: {draws: 1}\n"
        "resize: {long_side_px: 64}\nrun: {dtype: float32}\ncrf: {iterations: 1}\n"
    )
    output = tmp_path / "refinements.md"
    arguments = ["--scenes", "2", "--calibration", "1", "--config", str(config), "--model", str(sd_folder)]
    arguments += ["--output", str(output), "--only", "crf", "--device", "cpu"]
    refinements.main(arguments)
    first = output.read_text()
    assert "PAMR, 10 rounds" in first

    def measured_again(*_):
        raise AssertionError("a finished row was measured again")

    monkeypatch.setattr(refinements.Bench, "measure", measured_again)
    refinements.main(arguments)
    assert output.read_text() == first


def test_calibration_correlates_criteria_with_miou(sd_folder, tmp_path, capsys):
    from benchmarks import calibration

    output = tmp_path / "calibration.md"
    missing = str(tmp_path / "none.yaml")
    arguments = ["--scenes", "3", "--timesteps", "100", "--model", str(sd_folder), "--config", missing]
    calibration.main([*arguments, "--output", str(output), "--draws", "1", "--device", "cpu"])
    assert "| label_score (used) |" in output.read_text()


def test_calibration_is_searched_and_compared_on_other_scenes(sd_folder, tmp_path, capsys):
    from benchmarks import calibration_search

    config = tmp_path / "config.yaml"
    config.write_text(
        f"data: {{classes: {ROOT / 'data/demo/classes.yaml'}}}\nresize: {{long_side_px: 64}}\ndiffusion: {{draws: 1}}\n"
        "attention: {cross_layers: [mid], self_layers: [mid]}\ncrf: {kind: none}\nrun: {dtype: float32}\n"
    )
    output = tmp_path / "search.md"
    arguments = ["--scenes", "1", "--others", "6", "--timesteps", "100", "--config", str(config)]
    calibration_search.main([*arguments, "--model", str(sd_folder), "--output", str(output)])
    text = output.read_text()
    figures = json.loads(output.with_suffix(".json").read_text())
    assert [entry["scenes"] for entry in figures["compared"]] == ["chosen on (seed 5)", "others (seed 6)"]
    assert f"| others (seed 6) | {figures['compared'][1]['given']} | {figures['compared'][1]['found']} |" in text
    assert all(entry["seconds"] >= 0 for entry in figures["steps"])
    assert any("affinity (" in entry["step"] for entry in figures["steps"])


def test_rank_correlation_is_spearmans():
    from benchmarks.calibration import rank_correlation

    assert rank_correlation([3.0, 1.0, 2.0], [30.0, 10.0, 20.0]) == pytest.approx(1)
    assert rank_correlation([3.0, 1.0, 2.0], [1.0, 3.0, 2.0]) == pytest.approx(-1)


def test_settings_files_are_read_as_the_command_line_reads_them(tmp_path):
    from benchmarks.common import load_config

    path = tmp_path / "config.yaml"
    path.write_text("affinity: {theta: 0.4}\nattention: {cross_layers: [mid, 1/2]}\n")
    config = load_config(path, tmp_path)
    assert config.attention.cross_layers == ("mid", "1/2")
    assert config == replace(config, data=DataConfig(root=tmp_path), affinity=AffinityConfig(theta=0.4))


def test_smoothness_tells_blobs_from_noise():
    from benchmarks.calibration import smoothness

    blob = np.zeros((2, 12, 12), np.float32)
    blob[:, 3:8, 3:8] = 1
    assert smoothness(blob) > 0.6
    assert abs(smoothness(np.random.default_rng(0).random((1, 64, 64)))) < 0.1


def test_phrases_are_measured(sd_folder, tmp_path, capsys):
    from benchmarks import phrases

    config = tmp_path / "config.yaml"
    config.write_text(
        "attention: {cross_layers: [mid], self_layers: [up_blocks.2.attentions.1]}\ndiffusion: {draws: 2}\n"
        "resize: {long_side_px: 64}\ncrf: {iterations: 1}\n"
    )
    output = tmp_path / "phrases.md"
    phrases.main(["--scenes", "1", "--calibration", "1", "--config", str(config), "--model", str(sd_folder),
                  "--device", "cpu", "--output", str(output)])  # fmt: skip
    text = output.read_text()
    assert "(chosen) |" in text
    assert "| classes and an absent one | mean | yes | 0.5 |" in text


def test_stores_are_joined_for_training(made_store, tmp_path):
    from benchmarks.synthesize import join
    from data.store.store import MaskStore
    from train.samples import list_training

    joined = MaskStore.open(join(tmp_path / "both", [(made_store, 2)]))
    assert len(list_training(joined, "store", None, None)) == 2
    first = next(iter(joined.records()))
    assert Path(first["image"]).is_absolute()


def test_a_personal_rule_is_chosen_on_one_half_and_measured_on_the_other(tmp_path):
    """Maps that are the truth at some distance from it: the token's rules find it, the class word's own cannot."""
    from benchmarks import personal_page, personal_read, personal_rules
    from data.demo.personal import CONCEPTS

    random = np.random.default_rng(0)
    scenes = 3
    maps, truths = {}, {}
    for concept in CONCEPTS:
        kind = np.zeros((3 * scenes, 32, 32), bool)
        kind[:, 4:28, 4:28] = True
        mine = kind & (np.arange(32) < 16)
        mine[scenes + 2] = False  # where it is not
        truths[concept.name] = mine

        def layered(*rows):
            stacked = np.stack([row[:, ::2, ::2] for row in rows], axis=1).astype(np.float32)
            noisy = np.clip(0.02 + 0.9 * stacked + random.normal(0, 0.01, stacked.shape), 0, 1)
            return np.tile(noisy[:, None, None], (1, 2, len(personal_read.LAYERS), 1, 1, 1)).astype(np.float32)

        token = mine.astype(float)
        found = {"class": layered(kind), "token": layered(token), "both": layered(token, kind & ~mine)}
        maps["taught", concept.name] = found
    rows = {row["rule"]: row for row in personal_rules.compare(maps, truths, "taught")}
    assert rows["class word"]["final"]["iou"][1] < 55
    assert rows["class word"]["final"]["false_alarms"] == 100
    for rule in personal_rules.RULES[1:]:
        assert rows[rule]["final"]["iou"][1] > 80, rule
        assert rows[rule]["final"]["found"] == 100
    assert rows["token"]["final"]["false_alarms"] == 0
    content = {"scenes": scenes, "seed": 0, "rows": {kind: list(rows.values()) for kind in ("taught", "plain")}}
    content["machine"] = {"hardware": "a machine", "torch": "2", "commit": "abc"}
    text = personal_page.report(content)
    assert "points" in text
    assert all(concept.name in text for concept in CONCEPTS)


def test_scenes_are_read_with_the_class_word(tmp_path):
    from types import SimpleNamespace

    from benchmarks import personal_read
    from data.demo.personal import CONCEPTS, write_personal

    write_personal(tmp_path / "scenes", 1)
    options, cache = SimpleNamespace(seed=0), tmp_path / "class.npz"
    found = personal_read.read_scenes(options, tmp_path / "scenes", CONCEPTS[0], (), ("class",), cache)["class"]
    assert found.shape == (3, 2, len(personal_read.LAYERS), 1, 22, 22)
    assert 0 <= found.min() < 0.1 < found.max() <= 1  # shares of attention
    assert not np.allclose(found[:, 0], found[:, 1])  # as read, and spread
    truths = personal_read.read_truths(tmp_path / "scenes" / CONCEPTS[0].name)
    assert truths.shape == (3, 128, 128)
    assert truths[0].any()


def test_iou_at_every_cut_is_that_of_the_masks():
    from benchmarks import personal_rules

    random = np.random.default_rng(1)
    scores, truths = random.random((6, 8, 8)), random.random((6, 8, 8)) > 0.6
    found = personal_rules.overlaps(scores, truths, 2)
    for subset, cut in ((0, 5), (2, 60)):
        part = slice(2 * subset, 2 * subset + 2)
        marked = scores[part] >= personal_rules.CUTS[cut]
        expected = (marked & truths[part]).sum() / (marked | truths[part]).sum()
        assert found[subset, cut] == pytest.approx(expected)


def test_a_step_is_that_of_training_at_crops_that_are_no_whole_cells():
    from benchmarks.stage_two import make_step
    from train.network import NetworkConfig, build_network

    network = build_network(NetworkConfig(encoder="resnet18", weights=None, decoder_channels=8), 3)
    step = make_step(network, torch.device("cpu"), {"model": {}, "trainer": {}})
    before = network.head[0].weight.clone()
    step({"image": torch.randint(0, 256, (2, 3, 41, 33), dtype=torch.uint8), "mask": torch.zeros(2, 41, 33)})
    assert not torch.equal(network.head[0].weight, before)
