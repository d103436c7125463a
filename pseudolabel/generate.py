"""The loop of stage one: images and labels in, a mask store out; resumable at any moment.

The pipeline computes; everything about files, order, failures and speed is here. An image's mask depends on the image,
its id, its labels and the settings alone, so neither the order nor the batch size, shard or worker that made it shows.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from data.config import DataConfig
from data.console import available_cpus
from data.errors import LabelError, StoreError, UserError
from data.images import read_image
from data.readers.layout import detect_format, open_samples
from data.samples import Sample, SampleSet
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from pseudolabel.batches import grouped, in_shard, loaded_ahead
from pseudolabel.config import GenerateConfig, MaskConfig, stored_settings
from pseudolabel.workers import MaskJob, Outcome, default_workers, run_jobs

if TYPE_CHECKING:
    from pseudolabel.pipeline import Pipeline

logger = logging.getLogger(__name__)

WINDOW_GROUPS = 4  # how far to look ahead for images of equal size, in groups of `images_together`
PASSES, AUTO_CPU, AUTO_GPU = 2, 16, 64  # noised images to collect under batch_size=auto; the pipeline cuts them to fit
SKIPPED = "skipped.txt"
SHOWN = 20  # skipped images named at the end; all of them are in skipped.txt


@dataclass(frozen=True)
class Loaded:
    """A sample with its decoded image, or with the reason why it has none."""

    sample: Sample
    rgb_u8: UInt8[np.ndarray, "height width 3"] | None
    error: str | None = None


@dataclass
class Tally:
    """What a run has done so far."""

    written: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    warned: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started


def generate(store: Path, **settings: Any) -> None:
    """Turn images and their labels into masks; run again to resume.

    With --on_error skip the exit status is 0 even if some images were skipped: they are counted and named at the end
    and in skipped.txt, and tried again by the next run.

    Args:
        store: Folder of the mask store; started if it does not exist, resumed if it does.
        **settings: The fields of GenerateConfig.

    """
    config = GenerateConfig(**settings)
    samples = open_samples(config.data, need_labels=True, need_truth=False)
    tally = generate_masks(Path(store), samples, config)
    print_summary(Path(store), samples, tally)
    if tally.skipped and not tally.written:
        raise UserError(f"not one of {len(tally.skipped)} images could be processed; the reasons are above")


def generate_masks(store_path: Path, samples: SampleSet, config: GenerateConfig) -> Tally:
    """Make the masks of the samples that the store does not have yet.

    Args:
        store_path: folder of the store; it appears with the first finished image.
        samples: the images and labels.
        config: all settings.

    Returns:
        How many masks were written, and which images were skipped and why.

    Raises:
        UserError: an input is wrong (under `on_error="stop"` a single image is enough); what is finished stays.

    """
    finished = _finished(store_path, samples, config)
    wanted = sum(1 for _ in pending_samples(samples, config, finished))
    tally = Tally()
    if not wanted:
        return tally
    if config.run.engine == "ray":
        from pseudolabel.ray_engine import ray_outcomes

        outcomes = ray_outcomes(store_path, samples, config, finished)
    else:
        outcomes = _local_outcomes(store_path, samples, config, finished)
    with contextlib.closing(outcomes), progress_bar(wanted) as bar:
        for outcome in outcomes:
            count_outcome(outcome, tally, config.run.on_error)
            bar.set_postfix(skipped=len(tally.skipped), refresh=False)
            bar.update()
    return tally


def pending_samples(samples: SampleSet, config: GenerateConfig, finished: set[str]) -> Iterator[Sample]:
    """Yield the samples of this run's shard that are not finished, without holding more than one."""
    every = (samples.samples[position] for position in range(len(samples.samples)))
    unfinished = (sample for sample in in_shard(every, config.run.shard) if sample.id not in finished)
    for position, sample in enumerate(unfinished):
        if config.run.limit is not None and position >= config.run.limit:
            return
        yield sample


def load(sample: Sample) -> Loaded:
    """Read a sample's image; a fault comes back in the result."""
    try:
        if not sample.labels:
            raise LabelError(f"{sample.id} has no labels; give it some, or leave it out with --on_error skip.")
        return Loaded(sample, read_image(sample.image_path))
    except UserError as error:
        return Loaded(sample, None, str(error))


def soft_maps_of(
    pipeline: "Pipeline", samples: Iterable[Sample], config: GenerateConfig
) -> Iterator[tuple[Loaded, SoftMaps | None, float]]:
    """Yield each sample with its soft maps and the seconds they took; None where the image cannot be read.

    Images of one padded size go to the pipeline together, so that they share passes of the U-Net; the order of the
    samples is not kept.
    """
    together = images_together(config, pipeline.models.device.type)
    for group in grouped(
        loaded_ahead(samples, load, ahead=together),
        key=lambda item: None if item.rgb_u8 is None else pipeline.frame(item.rgb_u8.shape[:2]).padded_hw,
        size=lambda key: 1 if key is None else together,
        window=WINDOW_GROUPS * together,
    ):
        images = [item.rgb_u8 for item in group if item.rgb_u8 is not None]
        if not images:
            yield from ((item, None, 0.0) for item in group)
            continue
        start = time.perf_counter()
        maps = pipeline.soft_maps(images, [item.sample.labels for item in group], [item.sample.id for item in group])
        seconds = (time.perf_counter() - start) / len(group)
        yield from ((item, soft, seconds) for item, soft in zip(group, maps, strict=True))


def images_together(config: GenerateConfig, device_type: str) -> int:
    """Return how many images are handed to the pipeline at once: enough noised images for a few full passes."""
    diffusion = config.diffusion
    noised_images = diffusion.draws * len(diffusion.timesteps) * len(diffusion.scales) * (2 if diffusion.flip else 1)
    batch_size = config.run.batch_size
    if batch_size == "auto":
        batch_size = AUTO_GPU if device_type == "cuda" else AUTO_CPU
    return max(1, PASSES * batch_size // noised_images)


def _local_outcomes(
    store_path: Path, samples: SampleSet, config: GenerateConfig, finished: set[str]
) -> Generator[Outcome]:
    """Yield the outcome of each image: the U-Net in this process, the masks in the worker processes."""
    import torch

    from pseudolabel.pipeline import Pipeline

    torch.set_num_threads(available_cpus())
    pipeline = Pipeline.load(config, samples.classes)
    faults: list[Outcome] = []

    def jobs() -> Iterator[MaskJob]:
        prepared = False
        for item, soft, seconds in soft_maps_of(pipeline, pending_samples(samples, config, finished), config):
            if soft is None:
                faults.append(Outcome(item.sample.id, None, item.error))
                continue
            if not prepared:
                prepare_store(store_path, samples, config, pipeline.fingerprint())
                prepared = True
            yield mask_job(store_path, item, soft, config, seconds)

    workers = default_workers(config.run.workers)
    with contextlib.closing(run_jobs(jobs(), mask_config(config), workers)) as outcomes:
        for outcome in outcomes:
            while faults:
                yield faults.pop()
            yield outcome
    yield from faults


def mask_config(config: GenerateConfig) -> MaskConfig:
    """Return the part of the settings that turns soft maps into a mask."""
    return MaskConfig(fuse=config.fuse, crf=config.crf, ignore_below=config.ignore_below)


def mask_job(store_path: Path, item: Loaded, soft: SoftMaps, config: GenerateConfig, seconds: float) -> MaskJob:
    """Return the work that is left for an image once its soft maps are there."""
    path, root = Path(item.sample.image_path).absolute(), Path(config.data.root).absolute()
    image = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    return MaskJob(store_path, item.sample.id, image, path, item.rgb_u8, soft, seconds=seconds)


def stored_data(config: DataConfig) -> dict[str, Any]:
    """Return what a store's header says about the data: the fields that decide which images and labels these are."""
    fields = asdict(config) | {"format": detect_format(config), "root": Path(config.root).absolute()}
    del fields["cache"]
    return {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}


def prepare_store(store_path: Path, samples: SampleSet, config: GenerateConfig, model: dict[str, Any]) -> MaskStore:
    """Start the store or check that it was made with these settings; `overwrite` clears one that was not.

    Raises:
        StoreError: a store of other settings or of a newer version, or a folder that is something else.

    """
    made_with = {"config": stored_settings(config), "model": model, "data": stored_data(config.data)}
    try:
        return MaskStore.open_or_create(store_path, classes=samples.classes, **made_with)
    except StoreError:
        if not (store_path / "store.json").exists():
            raise
        existing = MaskStore.open(store_path)
        if config.run.overwrite and config.run.shard == "1/1":
            logger.warning("%s was made with other settings; its masks are deleted (--overwrite)", store_path)
            _clear(existing)
        # Otherwise perhaps another process has started the store meanwhile; if not, this raises again.
        return MaskStore.open_or_create(store_path, classes=samples.classes, **made_with)


def _clear(store: MaskStore) -> None:
    """Delete what a store consists of, the header first, and nothing else."""
    for name in ("store.json", "index.jsonl", SKIPPED):
        (store.path / name).unlink(missing_ok=True)
    for folder, suffix in (("masks", "png"), ("argmax", "png"), ("scores", "npz")):
        for path in (store.path / folder).glob(f"*.{suffix}"):
            path.unlink()
        with contextlib.suppress(OSError):
            (store.path / folder).rmdir()


def _finished(store_path: Path, samples: SampleSet, config: GenerateConfig) -> set[str]:
    """Return the ids to leave alone; a store of other settings is an error here, before a model is loaded."""
    if not (store_path / "store.json").exists():
        return set()
    existing = MaskStore.open(store_path)
    if config.run.overwrite:
        return set()
    return prepare_store(store_path, samples, config, existing.header["model"]).finished()


def progress_bar(total: int) -> "tqdm[Any]":
    """Return the one bar over images; where stderr is no terminal it says a line every half minute."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, unit="image", dynamic_ncols=True, mininterval=interval, smoothing=0.05)


def count_outcome(outcome: Outcome, tally: Tally, on_error: str) -> None:
    """Add an outcome to the tally; an error stops the run unless `on_error` is "skip"."""
    if outcome.error is not None:
        if on_error == "stop":
            raise UserError(outcome.error)
        tally.skipped.append((outcome.id, outcome.error))
    else:
        tally.written += 1
        tally.warned += bool(outcome.record and outcome.record["warnings"])


def print_summary(store_path: Path, samples: SampleSet, tally: Tally) -> None:
    """Print what was written where, what was left out and why, and what to run next."""
    there = len(MaskStore.open(store_path).finished()) if (store_path / "store.json").exists() else 0
    rate = f", {tally.written / tally.seconds:.1f} images/s" if tally.written else ""
    print(f"{there} masks in {store_path / 'masks'}: {tally.written} made now in {tally.seconds:.0f} s{rate}.")
    if tally.warned:
        print(f"{tally.warned} of them have warnings (nothing found for a class, for example); the report lists them.")
    print_skipped(store_path, tally.skipped)
    for note in samples.notes:
        print(f"Note: {note}")
    if there:
        print(f"Next: pseudolabel report --store {store_path}    a page of overlays, coverage and warnings")
        print(f"      pseudolabel score --store {store_path}     mIoU, where there is ground truth")
        print(f"      segtrain fit --data.store {store_path}     train a network on the masks")


def print_skipped(store_path: Path, skipped: list[tuple[str, str]]) -> None:
    """Name the images that were skipped, the first ones here and all of them in skipped.txt."""
    listing = store_path / SKIPPED
    if not skipped:
        return
    print(f"{len(skipped)} IMAGES WERE SKIPPED:")
    for sample_id, reason in sorted(skipped)[:SHOWN]:
        print(f"  {sample_id}: {reason}")
    if store_path.is_dir():
        listing.write_text("".join(f"{sample_id}\t{reason}\n" for sample_id, reason in sorted(skipped)))
        print(f"  All of them: {listing}")
