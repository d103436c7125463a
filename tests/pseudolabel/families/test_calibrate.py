"""Calibration knows what only some families have: attention among cells alone (SD3.5), which it spreads maps by."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from data.classes import VOC
from data.config import DataConfig
from pseudolabel.calibrate import steps
from pseudolabel.calibrate.budget import Budget
from pseudolabel.calibrate.candidates import small_changes, with_affinity, with_attention
from pseudolabel.calibrate.kept import Kept
from pseudolabel.calibrate.offline import refined_maps
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.calibrate.recordings import PLAIN, Wanted, packed, record, unpacked
from pseudolabel.calibrate.state import Search, reader_of
from pseudolabel.cli import main
from pseudolabel.config import GenerateConfig, RunConfig
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.config import DiffusionConfig, ModelConfig, ResizeConfig
from pseudolabel.softmaps.diffusion.families import list_layers

BESIDE = "transformer_blocks.1.attn2"


@pytest.fixture
def sd35_search(sd35_folder, tmp_path) -> Search:
    """A calibration of SD3.5's shape on one picture, with its first block and block 1's attention among cells."""
    config = GenerateConfig(
        data=DataConfig(root=tmp_path),
        model=ModelConfig(id=str(sd35_folder)),
        resize=ResizeConfig(long_side_px=64),
        diffusion=DiffusionConfig(timesteps=(300,), draws=2),
        run=RunConfig(device="cpu", dtype="float32", workers=0),
    )
    config = with_attention(config, cross_layers=("transformer_blocks.0",), self_layers=(BESIDE,))
    config = with_affinity(config, kind="iterated", boxes=False, iterations=1)
    parts = Pipeline.load(config, VOC, cut=False).parts
    rgb_u8 = np.random.default_rng(4).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    picture = Picture("one", rgb_u8, (8, 15), truth=rgb_u8[:, :, 0] // 128 * 8)
    kept = Kept(tmp_path / "kept", Budget())
    return Search(parts, VOC, [picture], list_layers(parts), True, config, config, kept, {})


def test_attention_among_cells_alone_is_recorded_as_the_pipeline_reads_it(sd35_search):
    search = sd35_search
    assert [layer.name for layer in search.cell_layers if layer.cells == "attn2"] == [
        f"{layer.name}.attn2" for layer in search.layers if layer.beside
    ]
    [picture] = search.pictures
    [expected] = Pipeline(search.parts, search.config, VOC, cut=False).soft_maps([picture.rgb_u8], [(8, 15)], ["one"])
    reader = reader_of(search, search.config)
    [item] = record(reader, search.pictures, Wanted(search.cross_layers, search.cell_layers))
    found = refined_maps(item, search.config, search.cell_layers).numpy()
    np.testing.assert_allclose(found, expected.maps.astype(np.float32), atol=2e-3)
    joint = with_attention(search.config, self_layers=("transformer_blocks.1",))
    assert np.abs(refined_maps(item, joint, search.cell_layers).numpy() - found).max() > 0.01


def test_attention_among_cells_alone_is_tried_and_named_so_that_generate_reads_it(sd35_search, monkeypatch):
    search, tried = sd35_search, []

    def judge_read(_, config, candidates, wanted, title):
        tried.extend(candidates)
        return judge(_, config, candidates, wanted, title)

    judge = steps.judge_read
    monkeypatch.setattr(steps, "judge_read", judge_read)
    steps.choose_affinity(search)
    names = {each.attention.self_layers for each in tried}
    assert (BESIDE,) in names
    assert len(names) == len(search.cell_layers) > len(search.layers)
    for each in small_changes(search.config, ["transformer_blocks.0"], [layer.name for layer in search.cell_layers]):
        assert BESIDE not in each.attention.cross_layers  # it sees no text
        Pipeline(search.parts, each, VOC, cut=False)


def test_what_is_kept_of_a_recording_is_what_was_recorded(sd35_search):
    """Two timesteps, several draws; the self-attention, which is large, is left out."""
    search = sd35_search
    config = replace(search.config, diffusion=replace(search.config.diffusion, timesteps=(300, 600)))
    reader, wanted = reader_of(search, config), Wanted(search.cross_layers, words=True)
    items = list(record(reader, search.pictures, wanted))
    again = list(unpacked(reader, search.pictures[0], packed(items), wanted))
    assert [item[0].timestep for item in again] == [300, 600]
    for before, after in zip(items, again, strict=True):
        for one, other in zip(before, after, strict=True):
            assert replace(one, maps={}, attention={}) == replace(other, maps={}, attention={})
            assert one.maps.keys() == other.maps.keys()
            for name, maps in one.maps[PLAIN].items():
                assert torch.equal(maps, other.maps[PLAIN][name])


def test_calibrate_runs_on_sd35(world, sd35_folder, tmp_path):
    output = tmp_path / "found.yaml"
    command = ["calibrate", "--root", str(world), "--data.split=val", "--output", str(output), "--images=1"]
    command += [f"--model.id={sd35_folder}", "--resize.long_side_px=64", "--diffusion.draws=1", "--draws=1"]
    command += ["--timesteps=[300]", "--device=cpu", "--workers=0", "--crf.kind=none"]
    assert main([*command, "--attention.cross_layers=[block:0]", "--attention.self_layers=[block:1.attn2]"]) == 0
    assert yaml.safe_load(output.read_text())["attention"]["cross_layers"]
