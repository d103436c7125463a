"""Damaged weights and scores that are no numbers: one line, never other masks without a word."""

import contextlib
import copy
import json
import random
import shutil
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.config import to_plain
from data.errors import ConfigError, ModelError
from train.checkpoint import CARD_KEY, check_resumable, load_network, make_card, read_checkpoint
from train.cli import main
from train.inference import InferenceConfig, probabilities
from train.network import NetworkConfig, build_network, load_encoder_weights
from train.predictor import Predictor

from .conftest import CLASSES, draw


def one_error(capsys) -> str:
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def every_use(world, checkpoint, tmp_path) -> dict[str, list[str]]:
    """Return the commands that read a checkpoint."""
    Image.fromarray(draw(0)[0]).save(tmp_path / "image.png")
    ckpt, device = ["--ckpt_path", str(checkpoint)], ["--device", "cpu"]
    measured = [*world.val, "--trainer.accelerator", "cpu", "--data.workers", "0"]
    return {
        "predict": [*ckpt, *device, "--images", str(tmp_path / "image.png"), "--output", str(tmp_path / "P")],
        "relabel": [*ckpt, *device, "--data.store", str(world.store), "--output", str(tmp_path / "R")],
        "test": [*ckpt, *measured, "--report.output", str(tmp_path / "T")],
        "validate": [*ckpt, *measured],
        "export": [*ckpt, "--output", str(tmp_path / "E"), "--format", "torchscript", "--sizes", "[[64,64]]"],
    }


def test_flipped_bits_in_a_checkpoint_stop_every_command(world, checkpoint, tmp_path, capsys):
    content = bytearray(checkpoint.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0x40
    content[middle + 2000] ^= 0x40
    (tmp_path / "bad.ckpt").write_bytes(content)
    for command, arguments in every_use(world, tmp_path / "bad.ckpt", tmp_path).items():
        assert main([command, *arguments]) == 2, command
        assert "bad.ckpt: it is damaged" in one_error(capsys)
    assert main(world.fit(tmp_path / "r", "--ckpt_path", str(tmp_path / "bad.ckpt"))) == 2
    assert "it is damaged" in one_error(capsys)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad.ckpt", "image.png"]


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_checkpoint_that_lacks_bytes_is_named(checkpoint, tmp_path, place):
    """Its list of files then asks for places before its begin."""
    content = checkpoint.read_bytes()
    start = int(place * len(content))
    (tmp_path / "short.ckpt").write_bytes(content[: start // 2] + content[start:])
    with pytest.raises(ModelError, match=r"short.ckpt.*damaged"):
        read_checkpoint(tmp_path / "short.ckpt")


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@settings(max_examples=50)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans())
def test_wherever_a_bit_flips_nothing_else_is_read(checkpoint, tmp_path_factory, place, bit, in_list):
    content = bytearray(checkpoint.read_bytes())
    start = len(content) - 4000 if in_list else 0  # the list of the parts lies at the end
    content[start + int(place * (len(content) - start))] ^= 1 << bit
    bad = tmp_path_factory.getbasetemp() / "flipped.ckpt"
    bad.write_bytes(content)
    try:
        found = read_checkpoint(bad)
    except ModelError:
        return
    assert same(found, read_checkpoint(checkpoint))


def test_no_bit_of_the_list_of_parts_changes_what_is_read(tmp_path):
    """zipfile and torch heed different bits of it: a part marked as a folder has no bytes for torch."""
    card = make_card(CLASSES, ([0.5] * 3, [0.5] * 3), {"network": to_plain(NetworkConfig())})
    path, bad = tmp_path / "whole.ckpt", tmp_path / "bad.ckpt"
    torch.save({"state_dict": {"w": torch.arange(64.0)}, CARD_KEY: card}, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, first = archive.start_dir, next(one for one in archive.infolist() if one.filename.endswith("data/0"))
    start = content.index(b"PK\x01\x02", start)
    while first.filename.encode() not in content[start + 46 : start + 46 + len(first.filename)]:
        start = content.index(b"PK\x01\x02", start + 4)
    refused = 0
    for at in range(start, start + 46 + len(first.filename)):
        for bit in range(8):
            changed = bytearray(content)
            changed[at] ^= 1 << bit
            bad.unlink(missing_ok=True)
            bad.write_bytes(changed)
            try:
                assert same(read_checkpoint(bad), read_checkpoint(path)), (at - start, bit)
            except ModelError:
                refused += 1
    assert refused > 100


def test_damaged_weights_of_an_encoder_are_refused(tmp_path):
    config = NetworkConfig(encoder="tu-test_resnet", weights=None, decoder_channels=8, atrous_rates=(1, 2, 3))
    encoder = build_network(config, 3).encoder
    torch.save(encoder.state_dict(), tmp_path / "w.pth")
    load_encoder_weights(encoder, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"w.pth: it is damaged"):
        load_encoder_weights(encoder, tmp_path / "w.pth")


def changed(checkpoint, path, change) -> None:
    content = torch.load(checkpoint, weights_only=True)
    change(content["state_dict"]["network.head.0.weight"])
    torch.save(content, path)


def test_weights_that_are_no_numbers_stop_every_command(world, checkpoint, tmp_path, capsys):
    changed(checkpoint, tmp_path / "nan.ckpt", lambda weight: weight[0].fill_(torch.nan))
    for command, arguments in every_use(world, tmp_path / "nan.ckpt", tmp_path).items():
        assert main([command, *arguments]) == 2, command
        line = one_error(capsys)
        assert "nan.ckpt" in line
        assert "NaN or infinite, in float32" in line
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["image.png", "nan.ckpt"]


def test_scores_that_overflow_stop_every_command(world, checkpoint, tmp_path, capsys):
    changed(checkpoint, tmp_path / "huge.ckpt", lambda weight: weight[1].fill_(3e38))
    for command, arguments in every_use(world, tmp_path / "huge.ckpt", tmp_path).items():
        assert main([command, *arguments]) == 2, command
        line = one_error(capsys)
        assert "huge.ckpt gives scores that are NaN or infinite, in float32" in line
    assert not list((tmp_path / "P" / "masks").iterdir())
    assert not (tmp_path / "E").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_score_that_is_no_number_is_an_error_that_names_kind_and_model(value):
    def network(rgb: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(1, 3, *rgb.shape[-2:], dtype=torch.float16)
        scores[0, 1, 2, 3] = value
        return scores

    for config in (InferenceConfig(), InferenceConfig(flip=True, merge="max", window=32)):
        with pytest.raises(ModelError, match=r"^a.ckpt gives .* in float16: .* 32-true or bf16-mixed"):
            probabilities(network, torch.zeros(1, 3, 40, 50), config, torch.zeros(1, 3, 1, 1), "a.ckpt")


def test_the_predictor_refuses_a_damaged_model_and_scores_that_are_no_numbers(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "e")
    card = json.loads((folder / "model.json").read_text())
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 0x40
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.onnx is not the file that model.json was written for"):
        Predictor(folder)
    del card["sha256"]  # as a card of before
    (folder / "model.json").write_text(json.dumps(card))
    shutil.copy(exported / "model.onnx", folder / "model.onnx")
    predictor = Predictor(folder)
    rgb = draw(0)[0]
    assert predictor(rgb).shape == rgb.shape[:2]
    with pytest.raises(ValueError, match=r"model.onnx gave scores that are NaN or infinite in float32"):
        predictor(np.full(rgb.shape, np.nan, np.float32))


TENSORS = [torch.zeros(2), torch.zeros(3, 2)]
ODD_VALUES = [*TENSORS, None, True, -1, 0, 3, 1e300, "", "x", [], [1], ["a", "b"], {}, {"x": 1}, [[[[]]]]]


def places(content, path=()) -> list[tuple]:
    """Return where every value of nested dictionaries and lists lies, the long lists by their first values."""
    found = [path] if path else []
    if isinstance(content, dict):
        found += [place for key in content for place in places(content[key], (*path, key))]
    elif isinstance(content, list):
        found += [place for index in range(min(2, len(content))) for place in places(content[index], (*path, index))]
    return found


def mutant(content, place, value):
    """Return a copy with another value at a place, or with nothing there where the value is `KeyError`."""
    content = copy.copy(content)
    if len(place) > 1:
        content[place[0]] = mutant(content[place[0]], place[1:], value)
    elif value is KeyError:
        del content[place[0]]
    else:
        content[place[0]] = value
    return content


@pytest.fixture(scope="module")
def whole(checkpoint):
    return torch.load(checkpoint, weights_only=True)


def test_a_checkpoint_of_wrong_types_is_refused_where_it_is_read(whole, tmp_path):
    cards = [("segtrain", *place) for place in places(whole["segtrain"])]
    draw = random.Random(0)
    for found in draw.choices(cards, k=25) + draw.choices(places({"state_dict": whole["state_dict"]}), k=15):
        torch.save(mutant(whole, found, draw.choice([KeyError, *ODD_VALUES])), tmp_path / "mutant.ckpt")
        with contextlib.suppress(ModelError, ConfigError):
            load_network(tmp_path / "mutant.ckpt")


RUN_STATE = [
    *(("epoch",), ("global_step",), ("loops",), ("callbacks",), ("lr_schedulers",), ("lr_schedulers", 0)),
    *(("optimizer_states",), ("optimizer_states", 0), ("optimizer_states", 0, "param_groups")),
    *(("segtrain", "settings", "loss"), ("segtrain", "classes", "names"), ("segtrain",), ("state_dict",)),
]


@pytest.mark.parametrize("place", RUN_STATE, ids=lambda place: ".".join(map(str, place)))
def test_a_training_does_not_go_on_from_wrong_types(whole, tmp_path, place):
    for value in ("x", torch.zeros(2), [3], None):
        torch.save(mutant(whole, place, value), tmp_path / "bad.ckpt")
        with pytest.raises(ModelError):
            check_resumable(read_checkpoint(tmp_path / "bad.ckpt"), tmp_path / "bad.ckpt")


MISFITS = {
    "a weight that is missing": (("state_dict", "network.head.0.weight"), KeyError),
    "a weight of another shape": (("state_dict", "network.head.0.weight"), torch.zeros(2)),
    "groups that are missing": (("optimizer_states", 0, "param_groups"), []),
    "no optimizer": (("optimizer_states",), []),
    "no schedule": (("lr_schedulers",), []),
    "a setting of another type": (("segtrain", "settings", "optimizer", "lr"), "x"),
    "loops without state": (("loops",), {}),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_one_line(whole, world, tmp_path, capsys, case):
    torch.save(mutant(whole, *MISFITS[case]), tmp_path / "bad.ckpt")
    arguments = world.fit(tmp_path / "r", "--ckpt_path", str(tmp_path / "bad.ckpt"), "--ema_decay", "0.9")
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    one_error(capsys)
