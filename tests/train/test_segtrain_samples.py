"""What is learnt from and what is measured on: files, masks, weights, augmentation and order."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data.classes import make_classes
from data.config import DataConfig
from data.errors import ConfigError, ImageError, StoreError
from data.masks import write_mask
from data.store.softmaps import encode_soft, upsample
from data.store.store import MaskStore
from train.cli import main
from train.datamodule import SegmentationData
from train.dataset import TrainingSet, TruthSet, confidence
from train.module import SegmentationModule
from train.order import EpochOrder, sample_seed
from train.samples import TrainingSample, check_classes, list_training, list_truth
from train.transforms import Augmentation, AugmentConfig

from .conftest import draw, soft_maps


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


def test_soft_maps_of_another_image_are_named(world, tmp_path):
    store = MaskStore.open(shutil.copytree(world.store, tmp_path / "S"))
    sample = next(one for one in list_training(store, "store", None, None) if one.id == "train_002")
    path = store.path / "scores" / "train_002.npz"
    path.write_bytes(encode_soft(soft_maps(draw(2, 48, 64)[1], (1, 2))))
    items = TrainingSet([sample], 3, Augmentation(AugmentConfig()), 0, soft_from=store)
    with pytest.raises(StoreError, match=r"soft maps of 'train_002' .* an image of 48 x 64 pixels .* not of 64 x 64"):
        items[0, 0]


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


def test_val_limit_takes_an_even_sample_and_always_the_same(world):
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
    samples, _ = list_truth(DataConfig(world.root, classes=world.root / "classes.yaml"), None, need_truth=True)
    monkeypatch.setattr("train.dataset.read_image", lambda _: [][0])
    with pytest.raises(IndexError):
        list(TruthSet(samples))


def test_images_without_ground_truth_are_counted(world, tmp_path, caplog):
    root = shutil.copytree(world.root, tmp_path / "part")
    gone = sorted((root / "SegmentationClass").iterdir())[:2]
    for path in gone:
        path.unlink()
    samples, _ = list_truth(DataConfig(root, classes=root / "classes.yaml"), None, need_truth=True)
    assert {path.stem for path in gone}.isdisjoint(sample.id for sample in samples)
    assert f"2 of {len(samples) + 2} images of split 'train'" in caplog.text


def test_no_more_masks_are_looked_at_than_asked_for(world):
    samples = list_training(MaskStore.open(world.store), "store", None, None)
    histogram, looked_at = TrainingSet(samples, 3, Augmentation(AugmentConfig()), 0).histogram(9)
    assert looked_at == 9
    assert histogram.sum() == 9 * 64 * 64
    assert histogram[255] == 9 * 64 * 4


def test_true_masks_on_raw_rows_are_turned_with_their_images(tmp_path):
    """A camera held upright writes its picture lying, with a note; many programs draw masks on the raw rows."""
    rgb, mask = draw(5, 40, 64)
    note = Image.Exif()
    note[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=note)
    write_mask(tmp_path / "mask.png", mask)
    augmentation = Augmentation(AugmentConfig(crop=64, scale=(1.0, 1.0), flip=False))
    sample = TrainingSample("a", tmp_path / "a.png", tmp_path / "mask.png", truth=True)
    item = TrainingSet([sample], 3, augmentation, 0)[0, 0]
    found = item["mask"].numpy()
    assert np.array_equal(found[found != 255], np.rot90(mask, -1).ravel())  # what was padded aside
    with pytest.raises(ImageError, match="must be equal"):
        TrainingSet([replace(sample, truth=False)], 3, augmentation, 0)[0, 0]


def test_batches_of_one_accumulated_step_draw_their_own_dropout(world, tmp_path, monkeypatch):
    seeds, step = [], SegmentationModule.training_step

    def spy(self, batch, batch_idx):
        seeds.append(torch.initial_seed())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "training_step", spy)
    more = ["--trainer.max_epochs", "1", "--trainer.accumulate_grad_batches", "2", "--seed_everything", "3"]
    assert main(world.fit(tmp_path / "r", *more)) == 0
    assert len(set(seeds)) == len(seeds) == 4
    assert seeds[::2] == [(3 * 1_000_003 + number) * 1024 for number in (0, 1)]  # as always, without accumulation


def test_classes_that_differ_are_named():
    here = make_classes(["disc", "box", "cone"], {}, {})
    with pytest.raises(StoreError, match=r"S has 3 classes, N 2: class 3 is 'cone' in the first and is not there in"):
        check_classes(here, "S", make_classes(["disc", "box"], {}, {}), "N", "--a")
    with pytest.raises(StoreError, match=r"class 2 is 'box' in the first and is 'rod' in the second; .* see --a\."):
        check_classes(here, "S", make_classes(["disc", "rod", "cone"], {}, {}), "N", "--a")
    check_classes(here, "S", here, "N", "--a")
