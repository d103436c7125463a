"""The loop of stage one: images and labels in, a mask store out; resumable at any moment.

The pipeline computes; everything about files, order, failures and speed is here. An image's mask depends on the image,
its id, its labels and the settings alone, so neither the order nor the batch size, shard or worker that made it shows.
That holds on one machine: with another number of cores torch adds up in another order, and last bits may differ.
"""

import contextlib
import logging
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

from data.console import progress_bar
from data.files import check_place
from data.machine import available_cpus
from data.samples import SampleSet
from pseudolabel.config import GenerateConfig, mask_config
from pseudolabel.generate.jobs import Finished, finished_masks, mask_jobs, pending_samples, prepare_store
from pseudolabel.generate.tally import Tally, count_outcome
from pseudolabel.generate.workers import MaskJob, Outcome, default_workers, run_jobs

logger = logging.getLogger(__name__)


def generate_masks(store_path: Path, samples: SampleSet, config: GenerateConfig) -> Tally:
    """Make the masks of the samples that the store does not have yet, or has for other labels.

    Args:
        store_path: folder of the store; it appears with the first finished image.
        samples: the images and labels.
        config: all settings.

    Returns:
        How many masks were written, how many of them again because their labels have changed, and which images were
        skipped and why.

    Raises:
        UserError: an input is wrong (under `on_error="stop"` a single image is enough); what is finished stays.
        OSError: the store cannot be written; found before a model is loaded.

    """
    finished = finished_masks(store_path, samples, config)
    pending = [sample.id in finished for sample in pending_samples(samples, config.run, finished)]
    wanted, tally = len(pending), Tally(relabelled=sum(pending))
    if tally.relabelled:
        logger.info("Images whose labels have changed since their masks were made: %d; made again.", tally.relabelled)
    if not wanted:
        return tally
    check_place(store_path)
    if config.run.engine == "ray":
        from pseudolabel.generate.ray_engine import ray_outcomes

        outcomes = ray_outcomes(store_path, samples, config, finished)
    else:
        outcomes = _local_outcomes(store_path, samples, config, finished)
    with contextlib.closing(outcomes), progress_bar(total=wanted, unit="image", smoothing=0.05) as bar:
        for outcome in outcomes:
            count_outcome(outcome, tally, config.run.on_error)
            bar.set_postfix(skipped=len(tally.skipped), refresh=False)
            bar.update()
    return tally


def _local_outcomes(
    store_path: Path, samples: SampleSet, config: GenerateConfig, finished: Finished
) -> Generator[Outcome]:
    """Yield the outcome of each image: the denoiser in this process, the masks in the worker processes."""
    import torch

    from pseudolabel.masks.crf import with_engine
    from pseudolabel.pipeline import Pipeline

    torch.set_num_threads(available_cpus())
    pipeline = Pipeline.load(config, samples.classes)
    workers, device = default_workers(config.run.workers), str(pipeline.parts.device)
    config = replace(config, crf=with_engine(config.crf, device))
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

    with contextlib.closing(run_jobs(jobs(), mask_config(config), workers, device)) as outcomes:
        for outcome in outcomes:
            while faults:
                yield faults.pop()
            yield outcome
    yield from faults
