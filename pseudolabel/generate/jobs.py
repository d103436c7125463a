"""From samples to mask jobs: which are left to do, their soft maps in groups of one size, and their store."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from jaxtyping import UInt8

from data.errors import LabelError, StoreError, UserError
from data.images import read_image
from data.samples import Sample, SampleSet
from data.store.folder import check_can_be_emptied, check_free, is_headless
from data.store.records import is_up_to_date
from data.store.source import stored_data, stored_path
from data.store.store import MaskStore
from pseudolabel.config import GenerateConfig, RunConfig, stored_settings
from pseudolabel.generate.batches import grouped, in_shard, loaded_ahead
from pseudolabel.generate.workers import MaskJob, Outcome
from pseudolabel.ground.presence import presence
from pseudolabel.masks.config import CrfConfig
from pseudolabel.masks.working import shrunk_to, working_size
from pseudolabel.softmaps.config import DiffusionConfig

if TYPE_CHECKING:
    from pseudolabel.pipeline import Pipeline

logger = logging.getLogger(__name__)

WINDOW_GROUPS = 4  # how far to look ahead for images of equal size, in groups of `images_together`
PASSES, AUTO_CPU, AUTO_GPU = 2, 16, 64  # noised images to collect under batch_size=auto; the pipeline cuts them to fit

Finished = dict[str, tuple[int, ...] | None]  # the labels that each mask was made with; None where nobody knows


@dataclass(frozen=True)
class Loaded:
    """A sample with its decoded image at its working size, and the file's size; or the reason why it has none."""

    sample: Sample
    rgb_u8: UInt8[np.ndarray, "height width 3"] | None
    image_hw: tuple[int, int] = (0, 0)
    error: str | None = None


def load(sample: Sample, crf: CrfConfig) -> Loaded:
    """Read a sample's image and make a large one smaller at once; a fault comes back in the result."""
    try:
        if not sample.labels:
            raise LabelError(f"{sample.id} has no labels; give it some, or leave it out with --on_error skip.")
        rgb_u8 = read_image(sample.image_path)
    except UserError as error:
        return Loaded(sample, None, error=str(error))
    image_hw = (rgb_u8.shape[0], rgb_u8.shape[1])
    return Loaded(sample, shrunk_to(rgb_u8, working_size(image_hw, crf)), image_hw)


def pending_samples(samples: SampleSet, run: RunConfig, finished: Finished) -> Iterator[Sample]:
    """Yield the samples of this run's shard that have no mask, or one of other labels, without holding more than one.

    Args:
        samples: the images, with the labels they have now.
        run: says which shard and how many.
        finished: the masks that are there, as `MaskStore.finished_labels` gives them.

    """
    mine = in_shard(samples.samples, run.shard)
    unfinished = (sample for sample in mine if not is_up_to_date(finished, sample.id, sample.labels))
    for position, sample in enumerate(unfinished):
        if run.limit is not None and position >= run.limit:
            return
        yield sample


def mask_jobs(
    pipeline: "Pipeline", samples: Iterable[Sample], store_path: Path, root: Path
) -> Iterator[MaskJob | Outcome]:
    """Yield what is left to do for each sample once its soft maps are there, or why its image cannot be used.

    Images of one padded size go to the pipeline together, so that they share passes of the denoiser; the order of the
    samples is not kept.

    Args:
        pipeline: makes the soft maps.
        samples: images with labels.
        store_path: the store that the masks are for.
        root: folder of the data set, which the index's paths are relative to.

    """
    reader = pipeline.reader
    together = images_together(reader.diffusion, reader.run, pipeline.parts.device.type)
    for group in grouped(
        loaded_ahead(samples, lambda sample: load(sample, pipeline.config.crf), ahead=together),
        key=lambda item: None if item.rgb_u8 is None else reader.frame(item.rgb_u8.shape[:2]).padded_hw,
        size=lambda key: 1 if key is None else together,
        window=WINDOW_GROUPS * together,
    ):
        images = [item.rgb_u8 for item in group if item.rgb_u8 is not None]
        if not images:
            yield from (Outcome(item.sample.id, None, item.error) for item in group)
            continue
        start = time.perf_counter()
        labels, ids = [item.sample.labels for item in group], [item.sample.id for item in group]
        found = pipeline.maps_and_shares_or_faults(images, labels, ids)
        seconds = (time.perf_counter() - start) / len(group)
        for item, maps in zip(group, found, strict=True):
            sample, path = item.sample, Path(item.sample.image_path).absolute()
            if isinstance(maps, UserError):
                yield Outcome(sample.id, None, str(maps))
                continue
            dropped = reader.dropped_words(sample.labels)
            soft = replace(maps.soft, image_hw=item.image_hw)
            scores = tuple(presence(*shares) for shares in zip(maps.attention, maps.idle, strict=True))
            job = MaskJob(store_path, sample.id, stored_path(path, root), path, item.rgb_u8, soft)
            yield replace(job, seconds=seconds, dropped_words=dropped, presence=scores)


def images_together(diffusion: DiffusionConfig, run: RunConfig, device_type: str) -> int:
    """Return how many images are handed to the pipeline at once: enough noised images for a few full passes."""
    noised_images = diffusion.draws * len(diffusion.timesteps) * len(diffusion.scales) * (2 if diffusion.flip else 1)
    batch_size = run.batch_size
    if batch_size == "auto":
        batch_size = AUTO_GPU if device_type == "cuda" else AUTO_CPU
    return max(1, PASSES * batch_size // noised_images)


def finished_masks(store_path: Path, samples: SampleSet, config: GenerateConfig) -> Finished:
    """Return the masks that need not be made again, with the labels they were made with; none under `overwrite`.

    Called before a model is loaded, so that a store of other settings, or a folder that is something else, is an error
    at once.

    Raises:
        StoreError: as `prepare_store`.
        OSError: the masks are to be deleted (`overwrite`), and would be so through a link.

    """
    if not (store_path / "store.json").exists():
        if not (config.run.overwrite and is_headless(store_path)):
            check_free(store_path)
        return {}
    existing = MaskStore.open(store_path)
    if config.run.overwrite:
        check_can_be_emptied(store_path)
        return {}
    return prepare_store(store_path, samples, config, existing.header["model"]).finished_labels()


def prepare_store(store_path: Path, samples: SampleSet, config: GenerateConfig, model: dict[str, Any]) -> MaskStore:
    """Start the store or check that it was made with these settings; `overwrite` empties one that was not.

    Raises:
        StoreError: a store of other settings or of a newer version, or a folder that is something else.
        OSError: a part of the store is a link, or the disk does not take it.

    """
    header: dict[str, Any] = {"config": stored_settings(config), "model": model, "data": stored_data(config.data)}
    try:
        return MaskStore.open_or_create(store_path, classes=samples.classes, **header)
    except StoreError:
        may_empty = config.run.overwrite and config.run.shard == "1/1"
        if not may_empty or not ((store_path / "store.json").exists() or is_headless(store_path)):
            # Perhaps another process has started the store meanwhile; if not, this raises again.
            return MaskStore.open_or_create(store_path, classes=samples.classes, **header)
    lock = store_path / ".store.json.lock"
    check_can_be_emptied(store_path)
    with FileLock(lock):  # of two processes that would empty the store, the second finds what the first has begun
        try:
            return MaskStore.open_or_create(store_path, classes=samples.classes, **header)
        except StoreError:
            logger.warning("%s was made with other settings; its masks are deleted (--overwrite)", store_path)
            return MaskStore.start_over(store_path, classes=samples.classes, **header)
