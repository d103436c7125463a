"""Normalisation is the encoder's own, and the same wherever a network is used."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import get_encoder

from data.errors import ConfigError, ModelError
from train.checkpoint import CARD_KEY, load_network, read_checkpoint
from train.cli import main
from train.dataset import TrainingSet
from train.inference import InferenceConfig
from train.network import NetworkConfig, build_network
from train.predict import predict_image
from train.predictor import Predictor

from .conftest import QUICK, draw

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
CLIP = ([0.4814547, 0.4578275, 0.4082107], [0.2686295, 0.2613026, 0.2757771])
EFFICIENT = {"encoder": "tu-test_efficientnet", "weights": None, "decoder_channels": 8}


@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("tu-resnet18", IMAGENET),
        ("tu-tf_efficientnet_lite0", HALF),
        ("timm-tf_efficientnet_lite0", HALF),
        ("tu-resnet50_clip.openai", CLIP),
        ("tu-mobilevitv2_050", ([0.0] * 3, [1.0] * 3)),
        ("resnet18", IMAGENET),
        ("dpn68", ([0.4862745, 0.4588235, 0.4078431], [0.2348245] * 3)),
    ],
)
def test_normalisation_is_the_encoders_own(encoder, expected):
    config = NetworkConfig(architecture="deeplabv2", encoder=encoder, weights=None)
    try:
        network = build_network(config, 2)
    except ModelError as error:  # such as one that cannot be dilated
        pytest.fail(str(error))
    assert network.normalisation() == expected


def test_normalisation_can_be_given_and_half_of_it_is_refused():
    network = build_network(NetworkConfig(**EFFICIENT, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)), 2)
    assert network.normalisation() == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    with pytest.raises(ConfigError, match=r"given together with --model\.network\.std"):
        NetworkConfig(mean=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match=r"--model\.network\.std is .*above 0"):
        NetworkConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.0, 0.5))


def test_normalisation_of_fetched_weights_lies_beside_them(monkeypatch, tmp_path):
    """A cache of the hub with one model in it: smp's settings say 0.1, which no table of ours does."""
    from huggingface_hub import constants
    from segmentation_models_pytorch.encoders import encoders

    source = encoders["mobileone_s0"]["pretrained_settings"]["imagenet"]
    folder = tmp_path / f"models--{source['repo_id'].replace('/', '--')}" / "snapshots" / source["revision"]
    folder.mkdir(parents=True)
    save_file(get_encoder("mobileone_s0", weights=None).state_dict(), folder / "model.safetensors")
    settings = {"mean": [0.1, 0.1, 0.1], "std": [0.3, 0.3, 0.3], "input_space": "RGB", "input_range": [0, 1]}
    (folder / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config = NetworkConfig(architecture="deeplabv2", encoder="mobileone_s0")
    network = build_network(config, 2)
    assert network.normalisation() == ([0.1] * 3, [0.3] * 3)
    assert "smp-hub/mobileone_s0" in network.origin
    (folder / "config.json").write_text(json.dumps(settings | {"input_space": "BGR"}))
    with pytest.raises(ModelError, match="expect BGR"):
        build_network(config, 2)


def test_checkpoint_predict_and_onnx_predictor_normalise_alike(checkpoint, exported):
    """The run's encoder, tu-test_resnet, expects (x - 0.5) / 0.5."""
    assert read_checkpoint(checkpoint)[CARD_KEY]["input"]["mean"] == HALF[0]
    network, _, _ = load_network(checkpoint)
    assert network.normalisation() == HALF
    predictor = Predictor(exported)
    assert predictor.card["input"]["mean"] == HALF[0]
    rgb, _ = draw(7, 50, 70)  # padded by both, with the same colour
    expected, _ = predict_image(network, rgb, InferenceConfig())
    scores = predictor.scores(rgb)
    found = np.exp(scores - scores.max(0)) / np.exp(scores - scores.max(0)).sum(0)
    assert np.abs(found - expected).max() < 1e-4


def test_padding_is_what_the_network_takes_for_nothing(checkpoint):
    network, _, _ = load_network(checkpoint)
    seen = []
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    predict_image(network, np.full((40, 64, 3), 255, np.uint8), InferenceConfig())
    assert seen[0].shape[-2:] == (64, 64)
    assert seen[0][0, :, 40:].abs().max() < 1e-6


def test_training_images_are_padded_with_the_networks_mean(world, tmp_path, monkeypatch):
    fills = []
    monkeypatch.setattr(TrainingSet, "draw_with", lambda self, augmentation: fills.append(augmentation._fill_rgb))
    for encoder in ("tu-test_resnet", "tu-test_efficientnet"):
        more = ["--model.network.encoder", encoder, "--trainer.max_steps", "1"]
        assert main(world.fit(tmp_path / encoder, *more)) == 0
    assert fills == [(128, 128, 128), (124, 116, 104)]


def test_an_old_checkpoint_keeps_the_normalisation_it_was_trained_with(checkpoint, world, tmp_path):
    """Older programs normalised all encoders with ImageNet's figures; so do their checkpoints, resumed ones too."""
    old = torch.load(checkpoint, weights_only=True)
    for name, values in zip(("mean", "std"), IMAGENET, strict=True):
        for weights in ("state_dict", "raw_state_dict"):
            old[weights][f"network.{name}"] = 255 * torch.tensor(values).view(1, 3, 1, 1)
        old["segtrain"]["input"][name] = values
    del old["segtrain"]["settings"]["network"]["mean"], old["segtrain"]["settings"]["network"]["std"]
    path = tmp_path / "old.ckpt"
    torch.save(old, path)
    network, _, card = load_network(path)
    assert network.normalisation() == IMAGENET
    assert (card["input"]["mean"], card["input"]["std"]) == IMAGENET
    resumed = ["fit", "--data.store", str(world.store), *world.val, "--output", str(tmp_path / "r"), *QUICK[:-2]]
    assert main([*resumed, "--ckpt_path", str(path), "--trainer.max_epochs", "16"]) == 0
    again = read_checkpoint(tmp_path / "r" / "checkpoints" / "last.ckpt")[CARD_KEY]
    assert (again["input"]["mean"], again["input"]["std"]) == IMAGENET
