"""Training images with their masks, and images with ground truth: what the loaders draw from."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from data.errors import StoreError
from data.images import as_shown, read_image
from data.masks import read_truth, value_counts
from data.samples import Sample, evenly_spaced
from data.store.records import check_mask
from data.store.softmaps import SoftMaps, upsample
from data.store.store import MaskStore
from train.order import Key, sample_seed
from train.samples import TrainingSample
from train.transforms import Augmentation


class TrainingSet(Dataset[dict[str, Any]]):
    """Augmented images and masks; a sample is drawn from (seed, epoch, index), so its order and process do not matter.

    Items: `image` uint8 (3, crop, crop) RGB; `mask` uint8 (crop, crop) with `IGNORE`; `weight` float (crop, crop) in
    [0, 1] where confidence weights are used; `id`.
    """

    def __init__(
        self,
        samples: Sequence[TrainingSample],
        n_classes: int,
        augmentation: Augmentation,
        seed: int,
        *,
        soft_from: MaskStore | None = None,
        cache: bool = False,
    ) -> None:
        self._samples = samples
        self._n_classes = n_classes
        self._augmentation = augmentation
        self._seed = seed
        self._soft_from = soft_from
        self._cache: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray | None]] | None = {} if cache else None

    def draw_with(self, augmentation: Augmentation) -> None:
        """Choose another augmentation; before any loader's process starts."""
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield every sample as epoch 0 draws it."""
        return (self[0, index] for index in range(len(self)))

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index = key
        rgb, mask, weight = self._load(index)
        image, mask, weight = self._augmentation(rgb, mask, weight, sample_seed(self._seed, epoch, index))
        item: dict[str, Any] = {"image": to_tensor(image), "mask": torch.from_numpy(np.ascontiguousarray(mask))}
        if weight is not None:
            item["weight"] = torch.from_numpy(weight.astype(np.float32) / 255)
        return item | {"id": self._samples[index].id}

    def histogram(self, look_at: int) -> tuple[np.ndarray, int]:
        """Return the number of pixels of each mask value over evenly spaced masks, and how many were read."""
        picked = evenly_spaced(len(self), look_at)
        counts = (value_counts(self._mask(self._samples[index])) for index in picked)
        return sum(counts, np.zeros(256, np.int64)), len(picked)

    def _mask(self, sample: TrainingSample) -> UInt8[np.ndarray, "height width"]:
        """Return a mask after it was checked against the classes."""
        mask = sample.mask()
        check_mask(mask, None, self._n_classes, sample.mask_path)
        return mask

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self._samples[index]
        rgb, mask = read_image(sample.image_path), sample.mask()
        if sample.truth:
            mask = as_shown(mask, rgb.shape[:2], sample.image_path)
        check_mask(mask, rgb.shape[:2], self._n_classes, sample.mask_path)
        loaded = (rgb, mask, None if self._soft_from is None else self._weight(sample, mask, self._soft_from))
        if self._cache is not None:
            self._cache[index] = loaded
        return loaded

    def _weight(
        self, sample: TrainingSample, mask: UInt8[np.ndarray, "height width"], store: MaskStore
    ) -> UInt8[np.ndarray, "height width"]:
        """Return the weight of each pixel, 0 to 255 for 0 to 1."""
        soft = store.read_soft(sample.id)
        if soft is None:
            raise StoreError(f"{store.path} has no soft maps of {sample.id!r}; use --data.weights none.")
        if soft.image_hw != mask.shape:
            raise StoreError(
                f"The soft maps of {sample.id!r} in {store.path} are for an image of {soft.image_hw[0]} x "
                f"{soft.image_hw[1]} pixels (height x width), not of {mask.shape[0]} x {mask.shape[1]}; generate them "
                "again, or use --data.weights none."
            )
        if sample.corrected:
            return np.full_like(mask, 255)  # a person is sure of it
        return confidence(soft, mask)


def confidence(soft: SoftMaps, mask: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Return how much the soft maps support the mask, 0 to 255 for 0 to 1.

    A pixel of a class gets that class's score; a background pixel gets the background's probability, or 1 minus the
    largest class score where the maps hold no background. Ours; the paper trains on all kept pixels alike.
    """
    maps = upsample(soft.maps.astype(np.float32), soft)
    background = maps[0] if soft.background else 1 - maps.max(axis=0)
    support = np.where(mask == 0, background, 0).astype(np.float32)
    for row, label in enumerate(soft.labels, start=int(soft.background)):
        support = np.where(mask == label, maps[row], support)
    return np.round(255 * np.clip(support, 0, 1)).astype(np.uint8)


def to_tensor(rgb: UInt8[np.ndarray, "height width 3"]) -> Tensor:
    """Return an image as a uint8 tensor (3, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))


class TruthSet(Dataset[dict[str, Any]]):
    """Whole images with their ground truth: `image` uint8 (3, H, W), `truth` uint8 (H, W) or None, `id`."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield every image; without this a loop would take an IndexError inside for the end."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        rgb, truth = read_image(sample.image_path), None
        if sample.truth_path:
            truth = read_truth(sample.truth_path, rgb.shape[:2], sample.image_path, sample.white)
        return {"image": to_tensor(rgb), "truth": truth, "id": sample.id}
