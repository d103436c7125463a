"""The loop of stage one: images and labels in, a mask store out; resumable at any moment.

The pipeline computes; everything about files, order, failures and speed is here. An image's mask depends on the image,
its id, its labels and the settings alone, so neither the order nor the batch size, shard or worker that made it shows.
That holds on one machine: with another number of cores torch adds up in another order, and last bits may differ.
"""

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

from data.console import available_cpus
from data.samples import SampleSet
from data.store.store import MaskStore
from pseudolabel.config import GenerateConfig, mask_config
from pseudolabel.generate.jobs import mask_jobs, pending_samples, prepare_store
from pseudolabel.generate.tally import Tally, count_outcome, progress_bar
from pseudolabel.generate.workers import MaskJob, Outcome, default_workers, run_jobs


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
    wanted = sum(1 for _ in pending_samples(samples, config.run, finished))
    tally = Tally()
    if not wanted:
        return tally
    if config.run.engine == "ray":
        from pseudolabel.generate.ray_engine import ray_outcomes

        outcomes = ray_outcomes(store_path, samples, config, finished)
    else:
        outcomes = _local_outcomes(store_path, samples, config, finished)
    with contextlib.closing(outcomes), progress_bar(wanted) as bar:
        for outcome in outcomes:
            count_outcome(outcome, tally, config.run.on_error)
            bar.set_postfix(skipped=len(tally.skipped), refresh=False)
            bar.update()
    return tally


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
        pending = pending_samples(samples, config.run, finished)
        for found in mask_jobs(pipeline, pending, store_path, Path(config.data.root)):
            if isinstance(found, Outcome):
                faults.append(found)
                continue
            if not prepared:
                prepare_store(store_path, samples, config, pipeline.parts.identity())
                prepared = True
            yield found

    workers, device = default_workers(config.run.workers), str(pipeline.parts.device)
    with contextlib.closing(run_jobs(jobs(), mask_config(config), workers, device)) as outcomes:
        for outcome in outcomes:
            while faults:
                yield faults.pop()
            yield outcome
    yield from faults


def _finished(store_path: Path, samples: SampleSet, config: GenerateConfig) -> set[str]:
    """Return the ids to leave alone; a store of other settings is an error here, before a model is loaded."""
    if not (store_path / "store.json").exists():
        return set()
    existing = MaskStore.open(store_path)
    if config.run.overwrite:
        return set()
    return prepare_store(store_path, samples, config, existing.header["model"]).finished()
