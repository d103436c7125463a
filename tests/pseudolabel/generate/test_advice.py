"""What `check` says of models that were not fetched: a rate that is measured, operations that are counted."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from pseudolabel.cli import main
from pseudolabel.generate import advice
from pseudolabel.generate.advice import REACHED, advice_lines, advise


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "cat" / "1.png")
    return tmp_path / "photos"


@pytest.mark.parametrize(("free_gb", "fits"), [(1.0, False), (6.1, True), (500.0, True)])
def test_time_and_memory_follow_from_counts_rate_and_room(monkeypatch, free_gb, fits):
    monkeypatch.setattr(advice, "product_rate", lambda device: 2e12)
    monkeypatch.setattr(advice, "available_memory_bytes", lambda: int(free_gb * 1e9))
    found = {one.title: one for one in advise("cpu")}
    known = {one["title"]: one for one in json.loads(advice.MODELS.read_text(encoding="utf-8"))["models"]}
    assert found.keys() == known.keys()
    for title, one in found.items():
        tflop = known[title]["encoder_tflop"] + known[title]["draws"] * known[title]["draw_tflop"]
        assert one.seconds == pytest.approx(tflop / (2 * REACHED))
    assert found["Stable Diffusion 1.5"].fits is fits
    assert all(one.fits for one in found.values()) is (free_gb == 500.0)
    text = "\n".join(advice_lines("cpu", tuple(found.values())))
    assert ("too large" in text) is (free_gb != 500.0)
    assert "configs/pseudolabel/sd3_voc12.yaml" in text


def test_the_rate_is_that_of_this_device():
    assert 1e8 < advice.product_rate("cpu") < 1e15


def test_check_advises_where_nothing_was_timed(photos, capsys):
    assert main(["check", "--root", str(photos)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Stable Diffusion 1.5 +4.0 GB .* stable-diffusion-v1-5/stable-diffusion-v1-5", said)
    assert "Flux.2 klein" in said
    assert main(["check", "--root", str(photos), "--json"]) == 0
    advised = json.loads(capsys.readouterr().out)["advice"]
    assert [one["seconds"] for one in advised] == sorted(one["seconds"] for one in advised)


def test_check_computes_nothing_where_the_model_was_timed(photos, tiny_options, capsys):
    assert main(["check", "--root", str(photos), *tiny_options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["advice"] == []
    assert report["model"]["seconds_per_image"] > 0
