import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.layers import padding

from data.config import to_plain
from data.errors import ModelError
from train.checkpoint import load_network, make_card
from train.cli import main
from train.export import model_bytes
from train.inference import InferenceConfig
from train.network import NetworkConfig, build_network, padding_of_whole_cells
from train.predict import predict_image

from .conftest import CLASSES, draw

WITHOUT_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "pytorch_lightning", "timm", "data"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocker())
import numpy as np
from train.predictor import Predictor
predictor = Predictor(sys.argv[1])
predictor.predict_file(sys.argv[2], sys.argv[3])
np.save(sys.argv[4], predictor.scores(np.load(sys.argv[5])))
assert "torch" not in sys.modules
print(predictor.names)
"""


def test_onnx_card_states_the_parity(exported):
    card = json.loads((exported / "model.json").read_text())
    assert card["format_version"] == 1
    assert card["classes"]["names"] == ["disc", "box"]
    parity = card["parity"]
    assert set(parity["by_size"]) == {"128x128", "224x320", "384x512"}
    assert 0 <= parity["largest_difference_of_scores"] < 1e-3


def test_predictor_runs_without_torch_and_agrees_with_predict(exported, checkpoint, tmp_path):
    rgb, _ = draw(2, 50, 71)
    Image.fromarray(rgb).save(tmp_path / "image.png")
    np.save(tmp_path / "rgb.npy", rgb)
    files = [exported, tmp_path / "image.png", tmp_path / "mask.png", tmp_path / "scores.npy", tmp_path / "rgb.npy"]
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['background', 'disc', 'box']"
    network, _, _ = load_network(checkpoint)
    expected, _ = predict_image(network, rgb, InferenceConfig())
    scores = torch.from_numpy(np.load(tmp_path / "scores.npy"))
    assert np.allclose(scores.softmax(0).numpy(), expected, atol=1e-3)
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), expected.argmax(0))


def test_torchscript_agrees_exactly(checkpoint, tmp_path, capsys, caplog):
    arguments = ["--ckpt_path", str(checkpoint), "--output", str(tmp_path), "--format", "torchscript"]
    assert main(["export", *arguments, "--sizes", "[[96,64],[64,160]]", "--opset", "11"]) == 0
    assert "No effect with the other settings, and left aside: --opset." in capsys.readouterr().err + caplog.text
    assert json.loads((tmp_path / "model.json").read_text())["parity"]["largest_difference_of_scores"] < 1e-4


AS_TENSORFLOW = {"encoder": "tu-test_efficientnet", "encoder_args": {"pad_type": "same"}}


@pytest.mark.parametrize("chosen", [{"encoder": "tu-resnet18"}, {"encoder": "tu-test_resnet"}, AS_TENSORFLOW])
def test_torch_export_agrees_with_padding_of_either_kind(chosen, tmp_path):
    assert _largest_difference(chosen, "torch_export", tmp_path) < 1e-3


def test_onnx_agrees_with_tensorflows_padding_and_holds_no_arithmetic_on_shapes(tmp_path):
    """Such arithmetic made a file of a few hundred nodes take minutes to write."""
    assert _largest_difference(AS_TENSORFLOW, "onnx", tmp_path) < 1e-3
    nodes = onnx.load(tmp_path / "e" / "model.onnx").graph.node
    kinds = Counter(node.op_type for node in nodes)
    assert kinds["Conv"] > 20
    assert "Pad" not in kinds  # padding of a fixed width is a part of the convolution
    assert kinds.total() < 100


def _largest_difference(chosen, format: str, folder: Path) -> float:
    torch.manual_seed(0)
    network = NetworkConfig(**chosen, weights=None, decoder_channels=8)
    model = build_network(network, 3)
    state = {f"network.{key}": value for key, value in model.state_dict().items()}
    card = make_card(CLASSES, model.normalisation(), {"network": to_plain(network)})
    torch.save({"state_dict": state, "segtrain": card}, folder / "a.ckpt")
    arguments = ["--ckpt_path", str(folder / "a.ckpt"), "--output", str(folder / "e")]
    assert main(["export", *arguments, "--format", format, "--sizes", "[[96,64],[64,160]]"]) == 0
    card = json.loads((folder / "e" / "model.json").read_text())
    return card["parity"]["largest_difference_of_scores"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 999), st.integers(1, 7), st.integers(1, 4), st.integers(1, 4))
def test_padding_of_whole_cells_is_timms_and_is_put_back(cells, kernel, stride, dilation):
    size = cells * stride
    original = padding.get_same_padding

    def break_off() -> None:
        with padding_of_whole_cells():
            assert padding.get_same_padding is not original
            assert padding.get_same_padding(size, kernel, stride, dilation) == original(size, kernel, stride, dilation)
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert padding.get_same_padding is original


class Undecided(torch.nn.Module):
    """A network whose course depends on the values it sees, which no exported graph can follow."""

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        return rgb + 1 if float(rgb.mean()) > 100 else rgb


def test_network_that_cannot_be_written_names_the_other_formats():
    with pytest.raises(ModelError, match=r"cannot be written as torch_export \(.*try --format onnx or torchscript"):
        model_bytes(Undecided(), "torch_export", 18)


def test_wrong_sizes_and_opset_are_refused(checkpoint, tmp_path, capsys):
    common = ["export", "--ckpt_path", str(checkpoint), "--output", str(tmp_path / "e")]
    assert main([*common, "--opset", "11"]) == 2
    assert "--opset" in capsys.readouterr().err
    assert main([*common, "--format", "torchscript", "--sizes", "[[100,64]]"]) == 2
    assert "--sizes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "--output", "/proc/nowhere"],
        ["predict", "--images", "{image}", "--output", "/proc/nowhere", "--device", "cpu"],
        ["relabel", "--data.store", "{store}", "--output", "/proc/nowhere", "--device", "cpu"],
        ["test", "{val}", "--report.output", "/proc/nowhere", "--trainer.accelerator", "cpu"],
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line(world, checkpoint, tmp_path, capsys, arguments):
    Image.fromarray(draw(0)[0]).save(tmp_path / "image.png")
    places = {"{image}": [str(tmp_path / "image.png")], "{store}": [str(world.store)], "{val}": world.val}
    command, *rest = [part for argument in arguments for part in places.get(argument, [argument])]
    assert main([command, "--ckpt_path", str(checkpoint), *rest]) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "/proc/nowhere" in errors[0]
    assert "mIoU" not in printed.out  # it is known before anything is measured
    assert "Tracing" not in printed.out
    assert "free space" in errors[0]


def test_a_network_that_comes_out_different_leaves_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("train.export.check_parity", lambda *_: {"64x64": 9e9})
    arguments = ["--ckpt_path", str(checkpoint), "--output", str(tmp_path / "e"), "--format", "torchscript"]
    assert main(["export", *arguments]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
