"""The tab for phrases: what it finds is what `pseudolabel ground` finds; it says how far it is, and can be stopped."""

import base64
import io
import json
import shlex
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data.errors import ConfigError
from pseudolabel.cli import main
from pseudolabel.ground.config import ground_config

pytest.importorskip("starlette", reason="the extra [review] is not installed")


@pytest.fixture(scope="module")
def settings_file(sd_folder, tmp_path_factory) -> Path:
    settings = {
        "model": {"id": str(sd_folder)},
        "resize": {"long_side_px": 64},
        "diffusion": {"draws": 2},
        "attention": {"cross_layers": ["1/2", "mid"], "self_layers": ["up_blocks.1.attentions.1"]},
        "crf": {"iterations": 2},
        "data": {"split": "train"},
    }
    path = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def localizer(settings_file):
    from pseudolabel.ground.localizer import Localizer

    return Localizer.from_pretrained(config=ground_config(settings_file), device="cpu")


@pytest.fixture
def tab(localizer, settings_file, drawn, served):
    from pseudolabel.ground.tab import PhraseDesk, ground_routes

    desk = PhraseDesk(lambda: localizer, ("--config", str(settings_file), "--device", "cpu"))
    with served(drawn.path, more=ground_routes(desk), model="tiny") as visitor:
        yield visitor


def photo() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def asked(**changes) -> dict:
    image = base64.b64encode(photo()).decode()
    return {"image": image, "name": "my photo.png", "phrases": ["a dog", "cat"], "independent": False} | changes


def finished(visitor) -> dict:
    for _ in range(600):
        state = visitor.get("/api/ground/state").json
        if state["step"] not in ("loading", "working"):
            return state
        time.sleep(0.05)
    raise AssertionError(state)


def test_what_the_tab_finds_the_command_line_finds_too(tab, tmp_path, monkeypatch):
    page = tab.get("/").body.decode()
    assert 'id="phrases"' in page
    state = tab.post("/api/ground", asked()).json
    assert state["step"] in ("loading", "working")
    found = finished(tab)
    assert found["step"] == "done", found["error"]
    assert found["done"] == found["total"] > 0
    phrases = found["result"]["phrases"]
    assert [one["phrase"] for one in phrases] == ["a dog", "cat"]
    assert all(one["soft"]["address"].startswith("data:image/jpeg;base64,") for one in phrases)
    words = shlex.split(found["result"]["command"])
    assert words[:2] == ["pseudolabel", "ground"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photo.png").write_bytes(photo())
    assert main(words[1:]) == 0
    [entry] = json.loads((tmp_path / words[-1] / "results.json").read_text())["images"]
    for one, other in zip(phrases, entry["phrases"], strict=True):
        assert one["presence"] == pytest.approx(other["presence"], abs=1e-3)
        assert one["share"] == pytest.approx(other["share"], abs=1e-3)


def test_work_can_be_stopped_and_only_one_goes_on_at_a_time(tab, localizer, monkeypatch):
    reached, go_on = threading.Event(), threading.Event()
    plain = localizer.localize

    def slow(*given, watch, **named):
        reached.set()
        go_on.wait(20)
        return plain(*given, watch=watch, **named)

    monkeypatch.setattr(localizer, "localize", slow)
    tab.post("/api/ground", asked())
    assert reached.wait(20)
    assert tab.post("/api/ground", asked()).status == 422
    tab.post("/api/ground/stop", {})
    go_on.set()
    assert finished(tab)["step"] == "stopped"
    monkeypatch.setattr(localizer, "localize", plain)
    tab.post("/api/ground", asked(phrases=["dog"], independent=True))
    assert finished(tab)["step"] == "done"


@pytest.mark.parametrize(
    "changes",
    [{"phrases": []}, {"phrases": "dog"}, {"phrases": ["dog", "Dog"]}, {"image": "%%%"}, {"image": ""}, {"name": 3}],
)
def test_a_request_that_cannot_be_is_refused(tab, changes):
    answer = tab.post("/api/ground", asked(**changes))
    assert answer.status == 422
    assert answer.json["error"]
    assert tab.get("/api/ground/state").json["step"] == "idle"


def test_what_goes_wrong_is_told(tab):
    tab.post("/api/ground", asked(image=base64.b64encode(b"no picture").decode()))
    state = finished(tab)
    assert state["step"] == "failed"
    assert "picture" in state["error"]
    tab.post("/api/ground", asked(sentence="a bird in a tree"))
    assert finished(tab)["step"] == "failed"


def test_without_a_model_there_is_no_tab(visitor):
    assert "tab-phrases" not in visitor.get("/").body.decode()
    assert visitor.get("/api/ground/state").status == 404


def test_settings_are_read_as_the_command_reads_them(settings_file, tmp_path):
    found = ground_config(settings_file)
    assert found.resize.long_side_px == 64
    assert found.attention.cross_layers == ("1/2", "mid")
    (tmp_path / "bad.yaml").write_text("model: {identity: x}")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        ground_config(tmp_path / "bad.yaml")
    shipped = ground_config(Path(__file__).parents[3] / "configs/pseudolabel/demo.yaml")
    assert Path(shipped.model.id).is_dir()
