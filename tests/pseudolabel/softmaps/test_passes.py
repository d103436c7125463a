"""Batches of passes: what they hold in memory, and sizes that no image can be read at."""

import weakref
from dataclasses import replace

import pytest
import torch

from data.errors import ConfigError, ModelError
from data.store.softmaps import Frame
from pseudolabel.softmaps.config import ModelConfig, ResizeConfig
from pseudolabel.softmaps.diffusion.parts import Parts, TextEmbedding
from pseudolabel.softmaps.means import mean_maps
from pseudolabel.softmaps.passes import Pass, Reader
from pseudolabel.softmaps.prompt import Prompt
from pseudolabel.softmaps.reading import Reading

FRAME = Frame((64, 64), (64, 64), (64, 64))
PROMPT = Prompt("", (0,), ((1,),), (1,))


@pytest.fixture
def reader(bare_unet, tiny_config) -> Reader:
    config = tiny_config
    return Reader(Parts(bare_unet), None, config.prompt, config.diffusion, config.resize, config.run)


def passes(count: int) -> list[Pass]:
    text = TextEmbedding(torch.zeros(1, 77, 16))
    return [Pass(index, PROMPT, text, FRAME, torch.zeros(4, 8, 12), 150) for index in range(count)]


def test_what_a_batch_showed_is_gone_when_the_next_one_runs(reader):
    """Queries and keys of two batches at once would take twice a GPU's memory."""
    shown: list[weakref.ref] = []

    def read(batch):
        assert all(ref() is None for ref in shown)
        reading = Reading({}, torch.zeros(1, 1, 4, 6), (), [], torch.full((1, 1, 4, 6), 0.5))
        shown.append(weakref.ref(reading))
        return reading

    batches = reader.batches(passes(3), read)  # on a CPU images share no batch
    found = mean_maps(batches, [1] * 3, [{}] * 3, [FRAME] * 3, [(4, 6)] * 3, torch.device("cpu"))
    assert len(shown) == 3
    torch.testing.assert_close(torch.stack(found), torch.full((3, 1, 4, 6), 0.5))


def test_a_pass_knows_its_latents_size():
    assert passes(1)[0].latent_hw == (8, 12)


@pytest.mark.parametrize("side_px", [0, -64])
def test_a_long_side_below_one_pixel_is_refused(side_px):
    with pytest.raises(ConfigError, match=rf"--resize\.long_side_px is {side_px}: it must be at least 1, or none"):
        ResizeConfig(long_side_px=side_px)


def test_a_long_side_of_one_pixel_is_a_cell(reader):
    reader.resize = replace(reader.resize, long_side_px=1)
    assert reader.frame((48, 64)).padded_hw == (32, 32)


@pytest.mark.parametrize("name", ["", "~nobody-has-this-name/model", "a/b/c", "./none"])
def test_a_model_that_is_neither_a_folder_nor_of_the_hub_is_one_line(name):
    with pytest.raises(ModelError, match=r"no model folder .*--model\.id"):
        assert ModelConfig(id=name).folder
