"""Where a relative path in a config file leads."""

import importlib
from pathlib import Path

import pytest

from data.config_files import find_beside, find_paths
from data.machine import REPOSITORY


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    (tmp_path / "here" / "a").mkdir(parents=True)
    (tmp_path / "configs" / "a").mkdir(parents=True)
    (tmp_path / "configs" / "b").mkdir()
    (tmp_path / "top").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Path("../configs/c.yaml")


def test_working_folder_then_config_then_project(config, tmp_path):
    assert find_beside("a", config) == "a"
    assert find_beside("b", config) == str(tmp_path / "configs" / "b")
    assert find_beside("../top", config) == "../top"
    assert find_beside("data/demo/classes.yaml", config) == str(REPOSITORY / "data" / "demo" / "classes.yaml")
    assert find_beside("nowhere", config) == "nowhere"
    assert find_beside(str(tmp_path / "nowhere"), config) == str(tmp_path / "nowhere")
    assert find_beside("", config) == ""


def test_what_is_written_and_what_is_no_path_stays(config, tmp_path):
    settings = {"data.root": Path("b"), "data.val.classes": "b", "store": "b", "output": "b", "data.split": "b"}
    settings |= {
        "model.network.weights": None,
        "fit.data.store": Path("a"),
        "report.output": Path("b"),
        "data.truth": "b",
        "data.val.init_args.labels": "b",
    }
    before = dict(settings)
    find_paths(settings, config, written=("store",))
    found = {key: value for key, value in settings.items() if value != before[key]}
    there = tmp_path / "configs" / "b"
    assert found == {"data.root": there, "data.val.classes": str(there), "data.val.init_args.labels": str(there)}


@pytest.mark.parametrize(
    ("program", "command", "group", "value"),
    [
        *(
            ("pseudolabel", ["generate", "--root=r", "--store=s"], "crf", value)
            for value in ("-1", "[]", "0.5", "false")
        ),
        ("train", ["fit"], "trainer", "false"),
        ("train", ["fit"], "model", "[]"),
        ("train", ["predict", "--ckpt_path=c", "--images=i", "--output=o"], "inference", "0.5"),
    ],
)
def test_a_single_value_for_a_group_of_settings_is_refused(tmp_path, capsys, program, command, group, value):
    config = tmp_path / "c.yaml"
    config.write_text(f"{group}: {value}\n")
    main = importlib.import_module(f"{program}.cli").main
    assert main([*command, f"--config={config}"]) == 2
    assert f"gives {group} the value" in capsys.readouterr().err
