"""First weights of encoders: of every program's files, strict, and the shipped ones."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from segmentation_models_pytorch import Unet
from segmentation_models_pytorch.encoders import get_encoder

from data.errors import ModelError
from train.checkpoint import CARD_KEY, read_checkpoint
from train.cli import main
from train.encoder_weights import common_names, load_encoder_weights
from train.make_demo_encoder import FOLDER, drawn_scenes
from train.network import NetworkConfig, build_network

LITE0 = FOLDER / "tf_efficientnet_lite0.safetensors"
HALF = ([0.5] * 3, [0.5] * 3)


def randomised(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return its state dict with every tensor drawn, statistics of batch norm too, and give it to the network."""
    generator = torch.Generator().manual_seed(3)
    state = {
        key: torch.rand(value.shape, generator=generator) * 0.2 + 0.9 if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    state = {
        key: torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5 if value.ndim > 1 else value
        for key, value in state.items()
    }
    network.load_state_dict(state)
    network.eval()
    return state


def saved(state, path):
    torch.save(state, path)
    return path


@torch.inference_mode()
def last_features(encoder_name: str, path, whole=()) -> torch.Tensor:
    """Return the coarsest features of a picture from an encoder that was loaded from a file."""
    encoder = get_encoder(encoder_name, weights=None).eval()
    load_encoder_weights(encoder, path, whole)
    return encoder(picture())[-1]


def picture() -> torch.Tensor:
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_resnet"])
def test_timms_classifiers_give_their_features(name, tmp_path):
    whole = timm.create_model(name)
    state = randomised(whole)
    with torch.inference_mode():
        expected = timm.create_model(name, features_only=True).eval()
        expected.load_state_dict({key: state[source] for key, source in joined(state, expected.state_dict())})
        expected = expected(picture())[-1]
    save_file(state, tmp_path / "w.safetensors")
    found = last_features(f"tu-{name}", tmp_path / "w.safetensors", state)
    assert torch.equal(found, expected)


def joined(names, wanted):
    """Pair timm's names of features alone, where nested names are joined, with those of the whole, by hand."""
    spelt = {name.replace(".", "_"): name for name in names}
    return [(key, spelt[key.replace(".", "_")]) for key in wanted]


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": prefixed(state, "module.")}])
def test_torchvisions_classifier_gives_its_features(encoder, wrap, tmp_path):
    whole = torchvision.models.resnet18()
    state = randomised(whole)
    path = saved(wrap(state), tmp_path / "w.pth")
    with torch.inference_mode():
        expected = torch.nn.Sequential(*list(whole.children())[:-2])(picture())
    assert torch.allclose(last_features(encoder, path), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


TINY_CONVNEXT = [
    torchvision.models.convnext.CNBlockConfig(*size, 1) for size in ((8, 16), (16, 24), (24, 32), (32, None))
]
NUMBERED = {  # networks of torchvision whose names are numbers: the encoder of timm, its arguments, the network
    "efficientnet_b0": ("tu-efficientnet_b0", {}, torchvision.models.efficientnet_b0),
    "mobilenet_v3_small": ("tu-mobilenetv3_small_100", {"bn_eps": 1e-3}, torchvision.models.mobilenet_v3_small),
    "mobilenet_v3_large": ("tu-mobilenetv3_large_100", {"bn_eps": 1e-3}, torchvision.models.mobilenet_v3_large),
    "convnext": (
        "tu-convnext_tiny",
        {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
        lambda: torchvision.models.ConvNeXt(TINY_CONVNEXT),
    ),
}


@pytest.mark.parametrize("wrap", ["", "module."])
@pytest.mark.parametrize("name", NUMBERED)
def test_torchvisions_numbers_become_timms_names(name, wrap, tmp_path):
    encoder_name, more, make = NUMBERED[name]
    whole = make()
    path = saved(prefixed(randomised(whole), wrap), tmp_path / "w.pth")
    timms = timm.create_model(encoder_name.removeprefix("tu-"), **more)
    encoder = get_encoder(encoder_name, weights=None, **more).eval()
    said = load_encoder_weights(encoder, path, timms.state_dict())
    assert said.names == "names of torchvision"
    with torch.inference_mode():
        found = encoder(picture())[-1]
        layers = whole.features[:-1] if name == "efficientnet_b0" else whole.features  # the last widens for the head
        expected = layers(picture())
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


def test_torchvisions_weights_go_into_no_encoder_that_computes_something_else(tmp_path):
    small = saved(torchvision.models.mobilenet_v3_small().state_dict(), tmp_path / "m.pth")
    whole = timm.create_model("mobilenetv3_small_100").state_dict()
    encoder = get_encoder("tu-mobilenetv3_small_100", weights=None)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(ModelError, match=r"epsilon 0\.001, this encoder has 1e-05; .*bn_eps: 0\.001"):
        load_encoder_weights(encoder, small, whole)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    encoder = get_encoder("tu-tf_mobilenetv3_small_100", weights=None)
    with pytest.raises(ModelError, match="symmetric padding, this encoder pads as TensorFlow does"):
        load_encoder_weights(encoder, small, whole)
    large = get_encoder("tu-mobilenetv3_large_100", weights=None, bn_eps=1e-3)
    with pytest.raises(ModelError, match=r"\(names of torchvision\).*nothing was loaded"):
        load_encoder_weights(large, small, whole)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def test_efficientnet_pytorchs_names_and_timms_are_turned_into_each_other(tmp_path):
    there = get_encoder("efficientnet-b0", weights=None)  # smp keeps the names of EfficientNet-PyTorch
    path = saved(randomised(there), tmp_path / "w.pth")
    with torch.inference_mode():
        expected = there(picture())[-1]
    found = last_features("tu-tf_efficientnet_b0", path)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())
    whole = saved(randomised(timm.create_model("tf_efficientnet_b0")), tmp_path / "t.pth")
    expected, found = (last_features(name, whole) for name in ("tu-tf_efficientnet_b0", "efficientnet-b0"))
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "resnet18"])
def test_a_network_of_smp_gives_its_encoder(encoder, tmp_path):
    there = Unet(encoder, encoder_weights=None)
    path = saved({"model": randomised(there)}, tmp_path / "w.pth")
    network = build_network(NetworkConfig(encoder=encoder, weights=str(path), decoder_channels=8), 3)
    assert "a network of segmentation-models-pytorch" in network.origin
    assert "2 of segmentation_head" in network.origin
    assert same(network.encoder, there.encoder)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_fit_says_where_the_weights_come_from_and_takes_a_runs_encoder_with_its_normalisation(
    world, checkpoint, tmp_path, capsys
):
    capsys.readouterr()
    steps = ["--trainer.max_steps", "1", "--model.network.weights"]
    assert main(world.fit(tmp_path / "a", *steps, "null")) == 0
    assert "First weights: all tensors are random." in capsys.readouterr().out
    old = torch.load(checkpoint, weights_only=True)
    old["state_dict"]["network.mean"] = 255 * torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    assert main(world.fit(tmp_path / "b", *steps, str(saved(old, tmp_path / "old.ckpt")))) == 0
    taken = sum(key.startswith("network.encoder.") for key in old["state_dict"])
    printed = capsys.readouterr().out
    assert f"First weights: {taken} tensors of the encoder from {tmp_path / 'old.ckpt'} (a checkpoint of" in printed
    assert "of network.decoder" in printed
    card = read_checkpoint(tmp_path / "b" / "checkpoints" / "last.ckpt")[CARD_KEY]
    assert card["input"]["mean"] == pytest.approx([0.1, 0.2, 0.3])
    assert card["input"]["std"] == HALF[1]


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(encoder, tmp_path):
    small, large = torchvision.models.resnet18().state_dict(), torchvision.models.resnet34().state_dict()
    cases = {
        r"of 120 tensors 1 missing \((model\.)?layer4\.1\.bn2\.bias\)": small | {"layer4.1.bn2.bias": None},
        r"1 of another shape \((model\.)?conv1\.weight 64 x 1 x 7 x 7 instead of 64 x 3 x 7 x 7\)": small
        | {"conv1.weight": small["conv1.weight"][:, :1]},
        r"80 tensors too many \(layer1\.2\.conv1\.weight, .* and 76 more\)": large,
        "NaN or infinite": small | {"bn1.bias": small["bn1.bias"] * float("nan")},
        "more than once, below student. and teacher.": prefixed(small, "student.") | prefixed(small, "teacher."),
        "holds no tensors by name": {"epoch": 3},
    }
    network = build_network(NetworkConfig(encoder=encoder, weights=None, decoder_channels=8), 3)
    before = {key: value.clone() for key, value in network.encoder.state_dict().items()}
    for expected, state in cases.items():
        path = saved({key: value for key, value in state.items() if value is not None}, tmp_path / "w.pth")
        with pytest.raises(ModelError, match=expected):
            load_encoder_weights(network.encoder, path)
        assert all(torch.equal(value, before[key]) for key, value in network.encoder.state_dict().items())


def test_files_without_batch_norms_counters_do(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    path = saved({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "old.pth")
    network = build_network(NetworkConfig(encoder="resnet18", weights=str(path), decoder_channels=8), 3)
    assert torch.equal(network.encoder.state_dict()["layer4.1.bn2.weight"], state["layer4.1.bn2.weight"])
    assert network.origin.startswith("100 tensors")


def test_names_that_would_become_one_stay_apart():
    assert common_names(["a.b.weight", "a_b.weight"]) == {"a.b.weight": "a.b.weight", "a_b.weight": "a_b.weight"}
    assert common_names(["a.b.weight"]) == {"a.b.weight": "a_b_weight"}


def test_the_shipped_encoder_sees_what_the_original_network_saw():
    """Features of two drawn scenes, recorded from the network that the weights were published for."""
    expected = np.load(FOLDER / "reference.npz", allow_pickle=False)["features"]
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    network.load_state_dict({key: value.float() for key, value in load_file(LITE0).items()})
    with torch.inference_mode():
        found = network(drawn_scenes()).numpy()
    assert expected.shape == found.shape == (2, 1280)
    assert np.abs(found - expected).max() < 0.01 * expected.max()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9999


def test_the_shipped_encoder_is_whole_and_normalised_with_one_half():
    config = NetworkConfig(encoder="tu-tf_efficientnet_lite0", weights=str(LITE0), decoder_channels=8)
    network = build_network(config, 3)
    shipped = load_file(LITE0)
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, shipped[name.removeprefix("model.")].to(value.dtype))
    assert network.normalisation() == HALF
    assert network.origin.startswith("288 tensors of the encoder from")
    assert "4 of bn2, 1 of conv_head" in network.origin
