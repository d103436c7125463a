"""The data of a training run: a store of masks to learn from, ground truth to validate on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import pytorch_lightning as pl
from torch.utils.data import BatchSampler, DataLoader, Subset

from data.classes import ClassSet
from data.config import DataConfig, require
from data.errors import ConfigError, StoreError
from data.machine import available_cpus
from data.samples import evenly_spaced
from data.store.store import MaskStore
from data.wording import count
from train.dataset import TrainingSet, TruthSet
from train.order import EpochOrder, ResumableLoader
from train.samples import TrainingSample, list_supervised, list_training, list_truth
from train.transforms import Augmentation, AugmentConfig


class SegmentationData(pl.LightningDataModule):
    """Images with masks from a store, and a data set with ground truth.

    Args:
        store: mask store to learn from (written by `pseudolabel generate` or `segtrain relabel`).
        root: folder of the store's images, if they are not where the store says; without a store, the data set whose
            true masks are learnt from.
        split: without a store: which images of that data set; "train" if not given.
        classes: without a store: class file of that data set, as for `pseudolabel`.
        masks: the store's masks, the same without their ignore band (argmax), or the true masks: for comparison, or,
            without a store, to train in the usual way.
        truth: folder of true masks named <id>.png for masks=truth; where the data set keeps them if not given.
        review: what people decided in `pseudolabel review`: use leaves out rejected images, accepted_only all that are
            not accepted as they are now; corrected masks replace the machine's. ignore: the machine's masks, all.
        wrong_labels: a label marked wrong in the review: its region is undecided (255), or its image is left out.
        min_presence: labels that a store says are less present (`pseudolabel doubt` lists them) are not learnt: their
            pixels are ignored, and an image of which no label is left is left out; 0 keeps all.
        weights: confidence weighs each pixel by what the store's soft maps say for its label.
        augment: crops, scales, flips and colours.
        val: data set with ground truth that is measured on (fit may go without, test may not).
        val_limit: largest number of images to measure on; they are spread evenly over the data set, always the same.
        batch_size: images per step and process.
        workers: loader processes; 0 loads in the training process; one for each core but one, at most 4, if not given.
        cache: keep decoded images in memory; for small data sets.
        seed: of order and augmentation; on the command line --seed_everything.
        need_truth: refuse images to test on that have no ground truth; on the command line, if not for the VOC server.

    """

    def __init__(
        self,
        store: Path | None = None,
        root: Path | None = None,
        split: str | None = None,
        classes: Path | None = None,
        masks: Literal["store", "argmax", "truth"] = "store",
        truth: Path | None = None,
        review: Literal["use", "ignore", "accepted_only"] = "use",
        wrong_labels: Literal["undecided", "leave_out"] = "undecided",
        min_presence: float = 0.0,
        weights: Literal["none", "confidence"] = "none",
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008 - frozen
        val: DataConfig | None = None,
        val_limit: int | None = None,
        batch_size: int = 10,
        workers: int | None = None,
        cache: bool = False,
        seed: int = 0,
        need_truth: bool = True,
    ) -> None:
        super().__init__()
        require("data.batch_size", batch_size, batch_size >= 1, "at least 1")
        require("data.workers", workers, workers is None or workers >= 0, "at least 0")
        require("data.min_presence", min_presence, 0 <= min_presence <= 1, "from 0 to 1")
        require("data.val_limit", val_limit, val_limit is None or val_limit >= 1, "at least 1")
        self.store_path, self.root, self.masks, self.truth, self.weights = store, root, masks, truth, weights
        self.review, self.wrong_labels = review, wrong_labels
        self.split, self.class_file = split, classes
        self.augment, self.val, self.val_limit = augment, val, val_limit
        self.min_presence = min_presence
        self.batch_size, self.cache = batch_size, cache
        self.workers = min(4, available_cpus() - 1) if workers is None else workers
        self.seed, self.need_truth = seed, need_truth
        self.classes: ClassSet | None = None
        self.training: TrainingSet | None = None
        self.measured: TruthSet | Subset[Any] | None = None

    def keep_to(self, classes: ClassSet) -> None:
        """Take the classes of a checkpoint; data with others is refused."""
        self.classes = classes

    def pad_with(self, fill_rgb: Sequence[float]) -> None:
        """Choose what training images are padded with, RGB in 0..255: the mean that the network takes off."""
        assert self.training is not None
        self.training.draw_with(Augmentation(self.augment, tuple(round(value) for value in fill_rgb)))

    def setup(self, stage: str) -> None:
        """Open the store and the validation data, and check that they fit together."""
        if stage == "fit" and self.training is None:
            self.training = self._open_training()
        if self.val is not None and self.measured is None:
            samples, classes = list_truth(self.val, self.classes, self.need_truth or stage == "fit")
            self.classes = self.classes or classes
            measured = TruthSet(samples)
            self.measured = Subset(measured, evenly_spaced(len(measured), self.val_limit))
        if stage in {"validate", "test"} and self.measured is None:
            raise ConfigError("There is nothing to measure on; name a data set with --data.val.root.")

    def _open_training(self) -> TrainingSet:
        store = None if self.store_path is None else MaskStore.open(self.store_path)
        samples, classes = self._list_supervised() if store is None else self._list_store(store)
        self.classes = classes
        return TrainingSet(
            samples,
            len(classes) + 1,
            Augmentation(self.augment),
            self.seed,
            soft_from=store if self.weights == "confidence" else None,
            cache=self.cache,
        )

    def _list_store(self, store: MaskStore) -> tuple[list[TrainingSample], ClassSet]:
        idle = [name for name, value in (("split", self.split), ("classes", self.class_file)) if value is not None]
        if idle:
            raise ConfigError(f"--data.{idle[0]} goes without --data.store alone: the store says which data it is of.")
        if self.classes is not None and self.classes.names != store.classes.names:
            raise StoreError(
                f"{self.store_path} has the classes {', '.join(store.classes.names[:4])}, ..., the checkpoint "
                f"{', '.join(self.classes.names[:4])}, ...: they must be the same; see --data.store and --ckpt_path."
            )
        samples = list_training(
            store, self.masks, self.truth, self.root, self.review, self.wrong_labels, self.min_presence
        )
        return samples, store.classes

    def _list_supervised(self) -> tuple[list[TrainingSample], ClassSet]:
        if self.root is None or self.masks != "truth":
            raise ConfigError(
                "There is nothing to learn from; name a mask store with --data.store, or a data set that has true "
                "masks with --data.root and --data.masks truth."
            )
        if self.weights == "confidence":
            raise ConfigError("--data.weights confidence needs the soft maps of a store; name one with --data.store.")
        if self.review == "accepted_only" or self.wrong_labels != "undecided" or self.min_presence:
            raise ConfigError(
                "--data.review, --data.wrong_labels and --data.min_presence are of a store; name one with --data.store."
            )
        truth = None if self.truth is None else str(self.truth.absolute() if self.truth.is_dir() else self.truth)
        config = DataConfig(self.root, split=self.split or "train", classes=self.class_file, truth=truth)
        return list_supervised(config, self.classes)

    def training_order(self) -> BatchSampler:
        """Return the batches of an epoch as keys of the training set, for this process."""
        assert self.training is not None
        rank, world_size = self._place()
        order = EpochOrder(len(self.training), self.seed, rank, world_size)
        if len(order) < self.batch_size:
            raise ConfigError(
                f"{count(len(self.training), 'image')} for {count(world_size, 'process')} cannot fill one batch of "
                f"{self.batch_size}; the last, smaller batch is always dropped: lower --data.batch_size."
            )
        return BatchSampler(cast(Any, order), self.batch_size, drop_last=True)

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of training batches; its order goes on where a checkpoint stopped."""
        assert self.training is not None
        batches = self.training_order()
        loader = ResumableLoader(
            self.training,
            batch_sampler=batches,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self._on_gpu(),
        )
        loader.order = cast(EpochOrder, batches.sampler)
        return loader

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the loader of validation images, one at a time, or nothing."""
        return self._measure_loader() if self.measured is not None else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the loader of test images, one at a time."""
        return self._measure_loader()

    def _measure_loader(self) -> DataLoader[Any]:
        assert self.measured is not None
        rank, world_size = self._place()
        # Each image is measured by one process and once: no padding of the last round, as DistributedSampler does.
        mine = range(rank, len(self.measured), world_size)
        return DataLoader(
            Subset(self.measured, mine), batch_size=None, num_workers=self.workers, pin_memory=self._on_gpu()
        )

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
