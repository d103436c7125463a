"""Networks, augmentation, order, inference, averaging, warnings, relabelling: the parts, each by its laws."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError, ImageError, ModelError, StoreError
from data.store.softmaps import upsample
from data.store.store import MaskStore
from train.callbacks import mask_warnings
from train.cli import main
from train.dataset import TrainingSet, confidence
from train.inference import InferenceConfig, padded_scores, probabilities, sharpen, window_starts
from train.losses import LossConfig
from train.module import SegmentationModule
from train.network import NetworkConfig, build_network
from train.optimizer import OptimizerConfig, parameter_groups, poly_factor
from train.order import EpochOrder, sample_seed
from train.predict import shrink
from train.predict import soft_maps as prediction_maps
from train.relabel import allow, corrected
from train.samples import list_training
from train.transforms import Augmentation, AugmentConfig

from .conftest import CLASSES, draw, soft_maps

FILL = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
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


def test_augmentation_depends_on_the_seed_alone_and_moves_mask_with_image():
    rgb, mask = draw(5)
    augment = Augmentation(AugmentConfig(crop=48, scale=(0.5, 1.5), rotate_degrees=10.0, colour=0.2))
    first = augment(rgb, mask, mask * 20, 7)
    augment(rgb, mask, None, 8)
    again = augment(rgb, mask, mask * 20, 7)
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one, two)
    for seed in range(12):
        image, drawn, weight = Augmentation(AugmentConfig(crop=96))(rgb, mask, np.full_like(mask, 77), seed)
        assert image.shape == (96, 96, 3)
        assert set(np.unique(drawn)) <= {0, 1, 2, 255}
        assert set(np.unique(weight)) <= {77, 255}
        red = (image[..., 0] > 180) & (image[..., 1] < 80)
        assert ((drawn == 1) & ~red).sum() <= 0.15 * max(1, (drawn == 1).sum())  # bilinear edges differ


def test_order_is_a_permutation_dealt_out_evenly():
    parts = [list(EpochOrder(11, seed=3, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(part) for part in parts] == [5, 5]
    assert len({index for part in parts for _, index in part}) == 10
    order = EpochOrder(11, seed=3)
    first = list(order)
    assert sorted(index for _, index in first) == list(range(11))
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    order.first = 4
    assert list(order) == first[4:]
    assert list(order) == first
    assert len({sample_seed(0, epoch, index) for epoch in range(20) for index in range(50)}) == 1000


def test_confidence_is_the_support_of_the_label():
    _, mask = draw(2)
    soft = soft_maps(mask, (1, 2))
    weight = confidence(soft, mask)
    assert weight[21, 23] == pytest.approx(255 * 0.9, abs=2)
    assert weight[2, 2] == pytest.approx(255 * 0.9, abs=2)
    assert upsample(soft.maps.astype(np.float32), soft).shape == (2, 64, 64)


def test_missing_and_mismatched_files_are_named(world, tmp_path):
    store = MaskStore.open(world.store)
    with pytest.raises(StoreError, match=r"16 of 16 images are missing.*--data.root"):
        list_training(store, "store", None, tmp_path)
    with pytest.raises(ConfigError, match=r"no folder .*/empty; --data.truth"):
        list_training(store, "truth", tmp_path / "empty", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"no true mask of 16 of 16 images, the first .*--data.truth"):
        list_training(store, "truth", tmp_path / "empty", None)
    without = shutil.copytree(world.root, tmp_path / "W", ignore=shutil.ignore_patterns("SegmentationClass"))
    with pytest.raises(StoreError, match=r"no true mask of 16 of 16 images, the first .*--data.truth"):
        list_training(store, "truth", None, without)
    empty = MaskStore.create(tmp_path / "E", classes=store.classes, config={}, model={}, data={"root": "."})
    with pytest.raises(StoreError, match="no finished image"):
        list_training(empty, "store", None, None)


def test_a_class_that_does_not_exist_is_named_before_the_first_step(world):
    """The look at the masks before a run tells what the training itself would only meet later."""
    store = MaskStore.open(world.store)
    with pytest.raises(ImageError, match="class"):
        TrainingSet(list_training(store, "store", None, None), 2, Augmentation(AugmentConfig()), 0).histogram(9)


@settings(max_examples=60)
@given(st.integers(1, 400), st.integers(32, 128), st.floats(0, 0.9))
def test_windows_cover_everything_and_overlap_enough(length, window, overlap):
    starts = window_starts(length, window, overlap)
    covered = np.zeros(max(length, window), bool)
    for start in starts:
        covered[start : start + window] = True
    assert covered[:length].all()
    assert starts[-1] + window <= max(length, window)
    assert all(b - a <= max(1, window * (1 - overlap)) + 1 for a, b in pairwise(starts))


def _pointwise(images: torch.Tensor) -> torch.Tensor:
    return torch.stack([images[:, 0], 255 - images[:, 0], images[:, 1]], dim=1) / 50


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(window=64),
        InferenceConfig(flip=True),
        InferenceConfig(window=40, overlap=0.6, flip=True, merge="max"),
    ],
)
def test_windows_and_flips_change_nothing_for_a_pointwise_network(config):
    images = 255 * torch.rand(1, 3, 70, 101)
    plain = probabilities(_pointwise, images, InferenceConfig(), FILL)
    assert torch.allclose(plain.sum(1), torch.ones(1, 70, 101), atol=1e-5)
    assert torch.allclose(probabilities(_pointwise, images, config, FILL), plain, atol=1e-5)


def test_scales_merge_to_probabilities():
    images = 255 * torch.rand(1, 3, 33, 41)
    merged = probabilities(_pointwise, images, InferenceConfig(scales=(0.5, 1.5), merge="max"), FILL)
    assert merged.shape == (1, 3, 33, 41)
    assert torch.allclose(merged.sum(1), torch.ones(1, 33, 41), atol=1e-5)
    with pytest.raises(ConfigError, match=r"--inference\.scales"):
        probabilities(_pointwise, images, InferenceConfig(scales=(0.0,)), FILL)


def test_padding_reaches_the_network_as_its_mean_colour():
    seen = []

    def network(images):
        seen.append(images)
        return images

    padded_scores(network, torch.rand(1, 3, 33, 64), FILL)
    assert seen[0].shape == (1, 3, 64, 64)
    assert seen[0][0, :, 40, 0].tolist() == pytest.approx([255 * 0.485, 255 * 0.456, 255 * 0.406], rel=1e-5)


def test_crf_switched_off_returns_its_input():
    probability = np.random.default_rng(0).random((3, 20, 30), np.float32)
    assert sharpen(np.zeros((20, 30, 3), np.uint8), probability, InferenceConfig().crf) is probability


def test_warnings_name_what_is_wrong_with_the_masks():
    histogram = np.zeros(256, np.int64)
    histogram[[0, 1, 255]] = 980, 10, 10
    texts = mask_warnings(histogram, ("cat", "dog"), 5, 9)
    assert any("1 of 2 classes" in text and "5 masks" in text and "of 9" in text and "dog" in text for text in texts)
    assert any("background" in text for text in texts)
    histogram[[0, 1, 2, 255]] = 100, 100, 100, 700
    assert [text for text in mask_warnings(histogram, ("cat", "dog"), 5, 9) if "70 %" in text]
    histogram[255] = 10
    assert mask_warnings(histogram, ("cat", "dog"), 5, 9) == []


def test_relabelling_follows_labels_agreement_and_certainty():
    old = np.array([[0, 1, 255, 1, 255]], np.uint8)
    probability = np.zeros((4, 1, 5), np.float32)
    probability[:, 0, 0] = 0.1, 0.2, 0.1, 0.6  # class 3 is absent: of the rest 1 leads, against the mask, not sure
    probability[:, 0, 1] = 0.4, 0.5, 0.1, 0.0  # agreement, though not sure
    probability[:, 0, 2] = 0.1, 0.8, 0.1, 0.0  # no decision before, sure enough now
    probability[:, 0, 3] = 0.97, 0.01, 0.02, 0  # contradiction, sure
    probability[:, 0, 4] = 0.34, 0.33, 0.33, 0  # no decision before, none now
    allowed = allow(probability, (1, 2))
    assert np.allclose(allowed.sum(0), 1)
    assert (allowed[3] == 0).all()
    mask, decided = corrected(old, allowed, sure=0.9, ignore_below=0.5)
    assert mask.tolist() == [[255, 1, 1, 0, 255]]
    assert decided.tolist() == [[1, 1, 1, 0, 0]]
    mask, _ = corrected(old, allowed, disagreement="network", ignore_below=0.45)
    assert mask.tolist() == [[1, 1, 1, 0, 255]]
    with pytest.raises(ConfigError, match="--sure"):
        corrected(old, allowed, sure=2.0)


def test_soft_maps_of_a_prediction_keep_sizes_and_range():
    probability = np.random.default_rng(1).dirichlet([1, 1, 1], (21, 30)).transpose(2, 0, 1).astype(np.float32)
    soft = prediction_maps(shrink(probability), (2,), (21, 30))
    assert soft.maps.shape == (2, 3, 4)
    assert soft.padded_hw == (24, 32)
    assert upsample(soft.maps.astype(np.float32), soft).shape == (2, 21, 30)
    assert 0 <= soft.maps.min() <= soft.maps.max() <= 1


def test_relabel_writes_a_store_that_trains(checkpoint, world, tmp_path):
    arguments = ["relabel", "--ckpt_path", str(checkpoint), "--data.store", str(world.store), "--device", "cpu"]
    assert main([*arguments, "--output", str(tmp_path / "S2")]) == 0
    old, new = MaskStore.open(world.store), MaskStore.open(tmp_path / "S2")
    assert new.ids() == old.ids()
    for record in new.records():
        assert set(np.unique(new.read_mask(record["id"]))) <= {0, 255, *record["labels"]}
    assert new.image_path("train_000").is_file()
    share = {name: [np.mean(store.read_mask(i) == 255) for i in old.ids()] for name, store in (("o", old), ("n", new))}
    assert np.mean(share["n"]) < np.mean(share["o"])
    more = ["--data.store", str(tmp_path / "S2"), "--trainer.max_steps", "1"]
    assert main(world.fit(tmp_path / "r", *more)) == 0
    assert main([*arguments, "--output", str(world.store)]) == 2


def test_val_limit_takes_an_even_sample_and_always_the_same(world):
    from data.config import DataConfig
    from train.datamodule import SegmentationData

    def measured(limit: int | None) -> list[str]:
        data = SegmentationData(val=DataConfig(world.root, classes=world.root / "classes.yaml"), val_limit=limit)
        data.setup("validate")
        return [data.measured[index]["id"] for index in range(len(data.measured))]

    every = measured(None)
    assert measured(4) == [every[position * len(every) // 4] for position in range(4)] == measured(4)
    assert measured(10_000) == every
    with pytest.raises(ConfigError, match=r"--data\.val_limit is 0"):
        SegmentationData(val_limit=0)


def test_an_error_inside_a_data_set_never_ends_a_loop_quietly(world, monkeypatch):
    from data.config import DataConfig
    from train.dataset import TruthSet
    from train.samples import list_truth

    samples, _ = list_truth(DataConfig(world.root, classes=world.root / "classes.yaml"), None, need_truth=True)
    monkeypatch.setattr("train.dataset.read_image", lambda _: [][0])
    with pytest.raises(IndexError):
        list(TruthSet(samples))


def test_images_without_ground_truth_are_counted(world, tmp_path, caplog):
    from data.config import DataConfig
    from train.samples import list_truth

    root = shutil.copytree(world.root, tmp_path / "part")
    gone = sorted((root / "SegmentationClass").iterdir())[:2]
    for path in gone:
        path.unlink()
    samples, _ = list_truth(DataConfig(root, classes=root / "classes.yaml"), None, need_truth=True)
    assert {path.stem for path in gone}.isdisjoint(sample.id for sample in samples)
    assert f"2 of {len(samples) + 2} images of split 'train'" in caplog.text
