"""The networks, what is frozen, enlarged or weighed in them, and how their weights are moved."""

import numpy as np
import pytest
import torch

from data.errors import ConfigError, ModelError
from train.losses import LossConfig
from train.module import SegmentationModule
from train.network import NetworkConfig, build_network
from train.optimizer import OptimizerConfig, parameter_groups, poly_factor

from .conftest import CLASSES

SMALL = {"encoder": "tu-test_resnet", "weights": None, "decoder_channels": 8, "atrous_rates": (1, 2, 3)}


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "deeplabv3", "deeplabv2"])
def test_networks_give_scores_of_the_image_size(architecture):
    network = build_network(NetworkConfig(architecture=architecture, **SMALL), 5).eval()
    with torch.no_grad():
        scores = network(torch.zeros(2, 3, 64, 96))
    assert scores.shape == (2, 5, 64, 96)


@pytest.mark.parametrize(("architecture", "stride"), [("deeplabv3plus", 16), ("deeplabv3", 8), ("deeplabv2", 8)])
def test_coarsest_map_has_the_papers_stride(architecture, stride):
    network = build_network(NetworkConfig(architecture=architecture, **SMALL), 3).eval()
    with torch.no_grad():
        assert network.encoder(torch.zeros(1, 3, 64, 96))[-1].shape[-2:] == (64 // stride, 96 // stride)


def test_deeplabv2_sums_four_branches_of_the_papers_rates():
    network = build_network(NetworkConfig(architecture="deeplabv2", **(SMALL | {"atrous_rates": None})), 3)
    assert [branch.dilation[0] for branch in network.decoder.branches] == [6, 12, 18, 24]
    features = [torch.randn(1, network.encoder.out_channels[-1], 4, 5)]
    expected = sum(branch(features[-1]) for branch in network.decoder.branches)
    assert torch.allclose(network.decoder(features), expected, atol=1e-6)


def test_frozen_batch_norm_keeps_what_it_has_while_the_rest_trains():
    module = SegmentationModule(NetworkConfig(**SMALL), batch_norm="frozen")
    module.classes = CLASSES
    module.configure_model()
    module.train()
    norms = [layer for layer in module.network.encoder.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    before = [layer.running_mean.clone() for layer in norms]
    module(255 * torch.rand(2, 3, 64, 64)).mean().backward()
    assert norms
    assert all(torch.equal(layer.running_mean, mean) for layer, mean in zip(norms, before, strict=True))
    assert all(not layer.training and layer.weight.grad is None for layer in norms)
    assert module.network.decoder.training


def test_loss_over_scales_sees_three_sizes_and_their_maximum():
    loss = LossConfig(scales=(1.0, 0.75, 0.5), max_over_scales=True)
    module = SegmentationModule(NetworkConfig(**SMALL), loss)
    module.classes = CLASSES
    module.configure_model()
    seen = []
    module.network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    with torch.no_grad():
        scores = module.eval()._scores_at_scales(255 * torch.rand(2, 3, 128, 128))
    assert seen == [(128, 128), (96, 96), (64, 64)]
    assert [tuple(each.shape) for each in scores] == [(2, 3, 128, 128)] * 4
    assert torch.equal(scores[3], torch.stack(scores[:3]).amax(0))


def test_normalisation_is_inside_the_network():
    network = build_network(NetworkConfig(**SMALL), 2)
    seen = []
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.eval()(torch.full((1, 3, 32, 32), 255.0))
    expected = [1.0, 1.0, 1.0]  # (1 - 0.5) / 0.5, as timm says of this encoder
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "deeplabv2"])
def test_an_enlarged_image_is_what_the_encoder_sees_and_scores_have_the_images_size(architecture):
    torch.manual_seed(0)
    plain = build_network(NetworkConfig(architecture=architecture, **SMALL), 3).eval()
    enlarged = build_network(NetworkConfig(architecture=architecture, **SMALL, enlarge=2), 3).eval()
    enlarged.load_state_dict(plain.state_dict())
    images = 255 * torch.rand(1, 3, 64, 96)
    twice = torch.nn.functional.interpolate(images, scale_factor=2.0, mode="bilinear")
    with torch.no_grad():
        scores, expected = enlarged(images), plain(twice)
    assert scores.shape == (1, 3, 64, 96)
    expected = torch.nn.functional.interpolate(expected, size=(64, 96), mode="bilinear")
    assert torch.allclose(scores, expected, atol=0.2 * float(expected.std()))  # V2 has no size in between
    assert np.corrcoef(scores.ravel(), expected.ravel())[0, 1] > 0.99
    with pytest.raises(ConfigError, match=r"--model\.network\.enlarge is 0"):
        NetworkConfig(enlarge=0)


def test_local_weights_are_loaded_and_foreign_ones_refused(tmp_path):
    first = build_network(NetworkConfig(**SMALL), 2)
    path = tmp_path / "encoder.pth"
    torch.save({"state_dict": {f"encoder.{key}": value for key, value in first.encoder.state_dict().items()}}, path)
    second = build_network(NetworkConfig(**(SMALL | {"weights": str(path)})), 4)
    for name, value in first.encoder.state_dict().items():
        assert torch.equal(value, second.encoder.state_dict()[name])
    with pytest.raises(ModelError, match="does not hold the weights of this encoder"):
        build_network(NetworkConfig(**(SMALL | {"encoder": "resnet18", "weights": str(path)})), 4)


@pytest.mark.parametrize(
    ("encoder", "source"), [("resnet18", r"smp-hub/resnet18\.imagenet"), ("tu-resnet18", "timm/resnet18")]
)
def test_hub_that_cannot_be_reached_is_one_sentence_that_says_where(encoder, source, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    expected = rf"ImageNet weights of '{encoder}' cannot be fetched.*{source}.*weights FILE.*weights null"
    with pytest.raises(ModelError, match=expected):
        build_network(NetworkConfig(encoder=encoder), 3)


def test_encoder_arguments_are_for_timm_alone():
    with pytest.raises(ConfigError, match="tu-"):
        build_network(NetworkConfig(encoder="resnet18", weights=None, encoder_args={"stem_width": 8}), 3)


def test_head_learns_faster_and_biases_do_not_decay():
    config = OptimizerConfig(lr=0.1, head_lr_factor=10.0, bias_lr_factor=2.0, weight_decay=0.5)
    network = build_network(NetworkConfig(architecture="deeplabv2", **SMALL), 3)
    groups = parameter_groups(network, config)
    assert sum(value.numel() for group in groups for value in group["params"]) == sum(
        value.numel() for value in network.parameters()
    )
    by_id = {id(value): group for group in groups for value in group["params"]}
    branch = network.decoder.branches[0]
    assert by_id[id(branch.weight)]["lr"] == pytest.approx(1.0)
    assert by_id[id(branch.bias)]["lr"] == pytest.approx(2.0)
    assert by_id[id(branch.bias)]["weight_decay"] == 0


def test_poly_schedule_falls_to_zero_after_warm_up():
    config = OptimizerConfig(warmup_steps=9, poly_power=0.9)
    factors = [poly_factor(step, 100, config) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[100] == 0
    assert factors[50] == pytest.approx(0.5**0.9)
    assert factors[20:] == sorted(factors[20:], reverse=True)


def test_an_encoder_that_cannot_be_dilated_is_told_so_though_its_weights_would_be_fetched(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"encoder 'vgg11' does not go with deeplabv3plus .* dilat"):
        build_network(NetworkConfig(encoder="vgg11"), 3)
