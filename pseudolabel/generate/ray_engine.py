"""The same pipeline as Ray Data stages: actors with the denoiser (on GPUs where there are some), tasks for the masks.

One machine or a cluster whose nodes see the images and the store under the same paths. Stages hand each other pickled
jobs, since their arrays have as many sizes as there are images; nothing pickled is ever written to disk.
"""

import logging
import pickle
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.classes import ClassSet
from data.errors import ConfigError, UserError
from data.machine import available_cpus
from data.samples import Sample, SampleSet
from data.wording import system_fault
from pseudolabel.config import GenerateConfig, mask_config
from pseudolabel.generate.jobs import Finished, images_together, mask_jobs, pending_samples, prepare_store
from pseudolabel.generate.workers import MaskJob, Outcome, finish_image
from pseudolabel.masks.config import MaskConfig

GROUPS_A_BATCH = 4  # groups of images handed to an actor at once, so that it can sort them by size

Batch = dict[str, np.ndarray]


def ray_outcomes(
    store_path: Path, samples: SampleSet, config: GenerateConfig, finished: Finished
) -> Generator[Outcome]:
    """Yield the outcome of each image as Ray finishes it, in no particular order.

    Joins the Ray instance this process has started, or the one RAY_ADDRESS names, or starts one on this machine.

    Raises:
        ConfigError: Ray is not installed.
        UserError: the model cannot be loaded, or the store cannot be written.

    """
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        for row in _dataset(ray, store_path.absolute(), samples, config, finished).iter_rows():
            outcome = pickle.loads(row["outcome"])
            if isinstance(outcome, str):
                raise UserError(outcome)
            yield outcome
    finally:
        if started:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray.data
    except ImportError as error:
        raise ConfigError(
            "--run.engine=ray needs Ray: pip install 'text2mask-wsss[ray]', or leave --run.engine at local"
        ) from error
    return ray


def _dataset(ray: Any, store_path: Path, samples: SampleSet, config: GenerateConfig, finished: Finished) -> Any:
    """Return the stages, not yet running."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the bar over images is generate's
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
    on_gpu = gpus > 0 and config.run.device != "cpu"
    actors = gpus if on_gpu else max(1, cpus // 2)
    rows = [{"sample": pickle.dumps(sample)} for sample in pending_samples(samples, config.run, finished)]
    batch = GROUPS_A_BATCH * images_together(config.diffusion, config.run, "cuda" if on_gpu else "cpu")
    mapped = ray.data.from_items(rows, override_num_blocks=max(1, min(len(rows), -(-len(rows) // batch)))).map_batches(
        SoftMapper,
        fn_constructor_args=(str(store_path), config, samples.classes),
        batch_size=batch,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if on_gpu else 0,
        num_cpus=1,
    )
    return mapped.map_batches(
        _finish, fn_args=(mask_config(config),), batch_size=1, batch_format="numpy", num_cpus=1, zero_copy_batch=True
    )


class SoftMapper:
    """An actor that holds the pipeline and turns batches of samples into jobs."""

    def __init__(self, store_path: str, config: GenerateConfig, classes: ClassSet) -> None:
        self.store_path, self.config, self.classes = Path(store_path), config, classes
        self.pipeline: Any = None

    def __call__(self, batch: Batch) -> Batch:
        """Return a job for each sample, or why there is none; an error that concerns all images is a plain text."""
        samples: list[Sample] = [pickle.loads(item) for item in batch["sample"]]
        try:
            self._load()
            jobs: list[MaskJob | Outcome | str] = list(self._jobs(samples))
        except UserError as error:
            jobs = [str(error)]
        except OSError as error:
            jobs = [system_fault(error)]
        return {"job": _column(jobs)}

    def _load(self) -> None:
        if self.pipeline is not None:
            return
        import torch

        from pseudolabel.masks.crf import with_engine
        from pseudolabel.pipeline import Pipeline

        torch.set_num_threads(available_cpus())
        self.pipeline = Pipeline.load(self.config, self.classes)
        config = replace(self.config, crf=with_engine(self.config.crf, str(self.pipeline.parts.device)))
        prepare_store(self.store_path, SampleSet(self.classes, ()), config, self.pipeline.parts.identity())

    def _jobs(self, samples: list[Sample]) -> Iterator[MaskJob | Outcome]:
        from pseudolabel.masks.labelmap import runs_here

        masks, device = mask_config(self.config), str(self.pipeline.parts.device)
        for found in mask_jobs(self.pipeline, samples, self.store_path, Path(self.config.data.root)):
            if isinstance(found, MaskJob) and runs_here(masks, device):
                yield finish_image(found, masks, device)  # here, where the GPU is
            else:
                yield found


def _finish(batch: Batch, config: MaskConfig) -> Batch:
    """Finish the jobs of a batch; outcomes and plain texts are handed on as they are."""
    jobs = [pickle.loads(item) for item in batch["job"]]
    return {"outcome": _column([_finished(job, config) for job in jobs])}


def _finished(job: MaskJob | Outcome | str, config: MaskConfig) -> Outcome | str:
    if isinstance(job, str | Outcome):
        return job
    try:
        return finish_image(job, config)
    except OSError as error:  # a full disk, for example: it concerns all images
        return system_fault(error)


def _column(values: list[Any]) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = [pickle.dumps(value) for value in values]
    return column
