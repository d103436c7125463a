"""The dense CRF over a network's probabilities: two engines, one result, and a store that says which."""

import json

import numpy as np
import pytest

from data import densecrf
from data.densecrf import has_pydensecrf
from data.store.store import MaskStore
from train.cli import main
from train.inference import CrfConfig, InferenceConfig, sharpen, with_engine

from .conftest import draw


@pytest.mark.skipif(not has_pydensecrf(), reason="needs pydensecrf: pip install '.[crf]'")
def test_both_engines_sharpen_alike():
    rgb, mask = draw(0)
    probability = np.stack([0.2 + 0.4 * (mask == label) for label in range(3)]).astype(np.float32)
    probability /= probability.sum(axis=0)
    one, other = (sharpen(rgb, probability, CrfConfig(enabled=True, engine=name)) for name in ("pydensecrf", "torch"))
    np.testing.assert_allclose(one, other, atol=1e-3)
    assert np.abs(one - probability).max() > 0.1


def test_auto_is_settled_only_where_the_crf_runs(monkeypatch):
    monkeypatch.setattr(densecrf, "has_pydensecrf", lambda: False)
    assert with_engine(InferenceConfig(crf=CrfConfig(enabled=True)), "cpu").crf.engine == "torch"
    assert with_engine(InferenceConfig(), "cpu").crf.engine == "auto"


def test_predictions_name_the_engine_and_older_ones_are_resumed(checkpoint, world, tmp_path, monkeypatch):
    monkeypatch.setattr(densecrf, "has_pydensecrf", lambda: False)
    command = ["predict", "--ckpt_path", str(checkpoint), "--device", "cpu", "--inference.crf.enabled", "true"]
    command += ["--images", str(world.root / "JPEGImages"), "--output", str(tmp_path / "P")]
    assert main(command) == 0
    header = MaskStore.open(tmp_path / "P").header
    assert header["config"]["inference"]["crf"]["engine"] == "torch"
    del header["config"]["inference"]["crf"]["engine"]  # as versions without the setting wrote it
    (tmp_path / "P" / "store.json").write_text(json.dumps(header))
    assert main(command) == 0
