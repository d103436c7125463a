import ast
import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import yaml

from data.config import DataConfig
from data.errors import ConfigError, StoreError
from pseudolabel import config
from pseudolabel.config import GenerateConfig, RunConfig, differences, mask_settings, stored_settings
from pseudolabel.masks import config as masks_config
from pseudolabel.masks.config import CrfConfig, FuseConfig, MaskConfig
from pseudolabel.softmaps import config as softmaps_config
from pseudolabel.softmaps.config import AffinityConfig, DiffusionConfig, PromptConfig

MODULES = (config, softmaps_config, masks_config)
CONFIGS = Path(__file__).parents[2] / "configs" / "pseudolabel"
# The quirks of the published code, and their values in the preset `paper`.
QUIRKS = {
    "resize": {"valid_only": False},
    "diffusion": {"posterior": "sample"},
    "affinity": {"clamp_box_edge": True},
    "fuse": {"clamp": False},
    "crf": {"wrapped_image": True},
}


def defaults() -> GenerateConfig:
    return GenerateConfig(data=DataConfig(root=Path()))


@pytest.mark.parametrize("name", ["voc12_paper", "coco14_paper"])
def test_the_paper_presets_turn_on_every_quirk(name):
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for group, values in QUIRKS.items():
        for key, value in values.items():
            assert settings[group][key] == value
            assert getattr(getattr(defaults(), group), key) != value
    assert settings["diffusion"]["draws"] == (10 if name.startswith("voc") else 1)


@pytest.mark.parametrize("name", ["voc12", "coco14"])
def test_the_other_presets_turn_on_none(name):
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert not any(key in settings.get(group, {}) for group, values in QUIRKS.items() for key in values)


TRANSFORMERS = ["sd3_voc12", "sd35_medium_voc12", "flux_schnell_voc12", "pixart_sigma_voc12", "flux2_klein_voc12"]


@pytest.mark.parametrize("name", ["voc12", "voc12_paper", "coco14", "coco14_paper", *TRANSFORMERS])
def test_configs_state_differences_alone(name):
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for group, values in settings.items():
        if group == "data":
            continue
        for key, value in values.items():
            assert getattr(getattr(defaults(), group), key) != value, f"{group}.{key} is the default already"


def test_every_switch_marked_as_the_papers_is_in_the_presets():
    lines = [line for each in MODULES for line in inspect.getsource(each).splitlines()]
    marked = set()
    for number, line in enumerate(lines):
        if "(Paper)" in line and line.startswith("    "):
            marked.add(lines[number - 1].split(":")[0].strip())
    assert marked == {key for values in QUIRKS.values() for key in values}


@pytest.mark.parametrize("each", MODULES, ids=lambda each: each.__name__)
def test_every_field_has_a_help_text(each):
    tree = ast.parse(inspect.getsource(each))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for item, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(item, ast.AnnAssign):
                    assert isinstance(after, ast.Expr), f"{node.name}.{ast.unparse(item.target)}"


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: FuseConfig(threshold=0.0), "fuse.threshold"),
        (lambda: CrfConfig(scale=2.0), "crf.scale"),
        (lambda: CrfConfig(iterations=-1), "crf.iterations"),
        (lambda: CrfConfig(srgb_bilateral=0.0), "crf.srgb_bilateral"),
        (lambda: CrfConfig(sxy_gaussian=0.0), "crf.sxy_gaussian"),
        (lambda: DiffusionConfig(draws=0), "diffusion.draws"),
        (lambda: DiffusionConfig(timesteps=(1000,)), "diffusion.timesteps"),
        (lambda: DiffusionConfig(scales=()), "diffusion.scales"),
        (lambda: PromptConfig(template="no place"), "prompt.template"),
        (lambda: RunConfig(shard="0/3"), "run.shard"),
        (lambda: RunConfig(shard="3"), "run.shard"),
        (lambda: RunConfig(batch_size=0), "run.batch_size"),
        (lambda: MaskConfig(ignore_below=1.5), "ignore_below"),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_its_flag(make, flag):
    with pytest.raises(ConfigError, match=f"--{flag} is .*: it must be "):
        make()


def test_the_store_keeps_what_changes_masks_and_nothing_else():
    stored = stored_settings(defaults())
    assert json.loads(json.dumps(stored)) == stored
    assert not {"data", "run"} & stored.keys()
    assert stored.keys() | {"data", "run", "sam"} == {field.name for field in dataclasses.fields(GenerateConfig)}
    assert "sam" not in stored  # as in stores that were made before there was one
    assert mask_settings(stored) == MaskConfig()
    changed = dataclasses.replace(defaults(), fuse=FuseConfig(threshold=0.3), ignore_below=0.5)
    assert mask_settings(stored_settings(changed)) == MaskConfig(fuse=FuseConfig(threshold=0.3), ignore_below=0.5)
    assert mask_settings({}) == MaskConfig()


@pytest.mark.parametrize(
    "stored",
    [
        {"fuse": 3},
        {"fuse": {"thresh": 1}},
        {"fuse": {"threshold": "x"}},
        {"fuse": {"threshold": 7}},
        {"fuse": {"threshold": None}},
        {"crf": None},
        {"crf": {"kind": "new"}},
        {"crf": {"iterations": 2.5}},
        {"ignore_below": None},
    ],
)
def test_settings_of_a_store_that_are_none_of_ours_are_an_error(stored):
    with pytest.raises(StoreError, match="settings in the store cannot be read"):
        mask_settings(stored)


def test_a_background_that_is_there_needs_no_fusing():
    config = MaskConfig(FuseConfig(threshold=0.3, clamp=False), CrfConfig(kind="none", scale=0.5))
    assert config.idle() == ("crf.scale",)
    assert config.idle(background=True) == ("fuse.threshold", "fuse.clamp", "crf.scale")
    assert MaskConfig().idle(background=True) == ()


@pytest.mark.parametrize(
    ("groups", "idle"),
    [
        ({}, ()),
        ({"affinity": AffinityConfig(sharpening=0.1)}, ("affinity.sharpening",)),
        ({"affinity": AffinityConfig(kind="iseg", sharpening=0.1, theta=0.4)}, ("affinity.theta",)),
        ({"affinity": AffinityConfig(boxes=False, theta=0.4)}, ("affinity.theta",)),
        ({"affinity": AffinityConfig(balance=True, saturate=0.1)}, ()),
        ({"affinity": AffinityConfig(kind="none", saturate=0.1)}, ()),
        ({"affinity": AffinityConfig(kind="clipes", balance=True)}, ("affinity.balance",)),
        ({"affinity": AffinityConfig(kind="none", iterations=3)}, ("affinity.iterations",)),
        ({"crf": CrfConfig(kind="pamr", sxy_bilateral=30.0, scale=0.5)}, ("crf.sxy_bilateral",)),
        ({"crf": CrfConfig(kind="none", iterations=3)}, ("crf.iterations",)),
    ],
)
def test_settings_without_effect_are_named(groups, idle):
    config = GenerateConfig(data=DataConfig(root=Path()), **groups)
    assert config.idle() == idle
    flags = {f"{group}.{name}" for group, values in differences(config).items() for name in values}
    assert not flags & set(idle)  # a calibration writes no setting that nothing reads
