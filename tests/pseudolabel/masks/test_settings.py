"""Settings of the refinement: what is no number is refused, and what is called idle changes nothing."""

from dataclasses import fields, replace

import numpy as np
import pytest

from data.errors import ConfigError
from pseudolabel.cli import main
from pseudolabel.config import mask_settings, stored_mask_settings
from pseudolabel.masks.config import CrfConfig, MaskConfig
from pseudolabel.masks.crf import refine_scores
from pseudolabel.softmaps.config import AffinityConfig

OTHER = {
    "iterations": 3, "scale": 0.5, "sxy_gaussian": 3.0, "compat_gaussian": 1.0, "sxy_bilateral": 9.0,
    "srgb_bilateral": 30.0, "compat_bilateral": 9.0, "smoothness": 9.0, "grid": 12, "edge": 60.0, "guide": 3.0,
    "guide_edge": 90.0, "wrapped_image": True,
}  # fmt: skip


def numbers(config_class) -> list[str]:
    return [field.name for field in fields(config_class) if field.type is float]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(value):
    for group, config_class in (("crf", CrfConfig), ("affinity", AffinityConfig)):
        assert len(numbers(config_class)) > 3
        for name in numbers(config_class):
            with pytest.raises(ConfigError, match=rf"--{group}\.{name} is -?(nan|inf)"):
                config_class(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("compat_gaussian", -1.0), ("compat_bilateral", -0.1), ("guide_edge", 0.4)]
)
def test_weights_below_zero_and_edges_finer_than_bytes_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"--crf\.{name} is {value}"):
        CrfConfig(**{name: value})


def test_refine_says_so_and_writes_nothing(made_store, tmp_path, capsys):
    command = ["refine", f"--store={made_store}", f"--output={tmp_path / 's'}", "--crf.compat_bilateral=.nan"]
    assert main(command) == 2
    assert "--crf.compat_bilateral is nan: it must be a finite number" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("iterations", [0, 2])
@pytest.mark.parametrize("guide", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["densecrf", "pamr", "tlp", "none"])
def test_settings_called_idle_change_nothing_and_all_others_something(kind, guide, iterations):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (20, 26, 3), np.uint8)
    scores = rng.random((3, 20, 26)).astype(np.float32)
    base = CrfConfig(kind=kind, guide=guide, iterations=iterations)
    for name, value in OTHER.items():
        config, default = (replace(base, **{name: each}) for each in (value, getattr(CrfConfig, name)))
        same = np.array_equal(refine_scores(rgb, scores, config), refine_scores(rgb, scores, default))
        assert (name in config.idle()) == same, name


def test_settings_that_are_stored_can_be_read_back():
    config = MaskConfig(crf=CrfConfig(**OTHER, max_megapixels=1e9))
    assert mask_settings(stored_mask_settings(config)) == config
