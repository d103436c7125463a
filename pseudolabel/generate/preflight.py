"""What a run would meet, before it: the model is loaded and the mask of one image made."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from data.console import idle_lines
from data.errors import ImageError, ModelError, UserError
from data.machine import available_cpus, peak_memory_bytes
from data.wording import count
from pseudolabel.config import GenerateConfig

if TYPE_CHECKING:
    from data.readers.checks import DataReport
    from data.samples import Sample
    from pseudolabel.generate.jobs import Loaded
    from pseudolabel.pipeline import Pipeline

QUICK_S = 20.0  # an image that takes less is timed a second time
WORKER_START_S = 2.0  # until a worker process has imported what it needs
WORKER_BYTES = 72_000_000  # of a worker process at rest


@dataclass
class ModelReport:
    """What is known of the model before a run; None where it was not found out.

    `memory_gb` is the GPU's if there is one, else that of the process with the model; the worker processes need
    `workers_memory_gb` of main memory beside it.
    """

    id: str
    seconds_per_image: float | None = None
    startup_seconds: float | None = None
    memory_gb: float | None = None
    workers: int | None = None
    workers_memory_gb: float | None = None
    weights_gb: float | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_model(config: GenerateConfig, data: "DataReport", measure: bool = False) -> ModelReport:
    """Load the model and make the mask of one image of the data set, to see that it works and how long it takes.

    Args:
        config: all settings.
        data: the data set's report; without labelled images there is nothing to time.
        measure: fetch a model that is not in a local folder.

    Returns:
        The report; its problems would stop a run.

    """
    report = ModelReport(config.model.id, warnings=idle_lines(config.idle()))
    try:
        folder = config.model.folder
    except ModelError as error:
        report.problems.append(str(error))
        return report
    if folder is not None and not (folder / "model_index.json").is_file():
        report.problems.append(
            f"The folder {folder} is no diffusers model (no model_index.json); --model.id must name one."
        )
        return report
    if folder is None and not measure:
        report.warnings.append(
            f"There is no folder {config.model.id}, so it is taken for a model on the hub, which was not tried; "
            "--measure fetches and times it."
        )
        return report
    try:
        _weigh(report, config)
    except UserError as error:
        report.problems.append(str(error))
        return report
    if data.labelled and not data.problems:
        try:
            _fill_in(report, config, measure_model(config))
        except UserError as error:
            report.problems.append(str(error))
    return report


def _weigh(report: ModelReport, config: GenerateConfig) -> None:
    """Put into the report how much the weights need on the device, and whether a GPU has that much."""
    import torch

    from pseudolabel.softmaps.diffusion.fetch import find_model, read_family
    from pseudolabel.softmaps.diffusion.parts import pick_device, pick_dtype
    from pseudolabel.softmaps.diffusion.sizes import weight_bytes

    device, family = pick_device(config.run.device), read_family(config.model)
    found = weight_bytes(config, find_model(config.model), pick_dtype(config.run.dtype, device, family))
    leaving = device.type != "cpu" and family != "unet" and not config.model.keep_text_encoders
    needed = found.on_device(leaving, config.model.offload)
    report.weights_gb = round(needed / 1e9, 1)
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
        if needed > 0.9 * there:
            report.warnings.append(
                f"The weights need about {report.weights_gb:g} GB, the GPU has {there / 1e9:.0f}: use --model.offload "
                "true, or read an earlier layer."
            )


def _fill_in(report: ModelReport, config: GenerateConfig, found: "Measured") -> None:
    """Put what was measured into the report."""
    from pseudolabel.config import mask_config
    from pseudolabel.generate.workers import default_workers
    from pseudolabel.masks.labelmap import runs_here
    from pseudolabel.softmaps.diffusion.parts import pick_device

    device = str(pick_device(config.run.device))
    on_cpu = device == "cpu"
    workers = default_workers(config.run.workers)
    in_this_process = runs_here(mask_config(config), device)
    workers = 0 if in_this_process else workers
    report.seconds_per_image = seconds_per_image(found.denoiser, found.masks, workers, available_cpus(), on_cpu)
    report.startup_seconds = found.startup
    report.memory_gb = None if found.memory_bytes is None else round(found.memory_bytes / 1e9, 1)
    report.workers, report.workers_memory_gb = workers, round(workers * found.worker_bytes / 1e9, 2)


@dataclass(frozen=True)
class Measured:
    """What one image took, in seconds and bytes.

    Attributes:
        denoiser: from the decoded image to soft maps, on all cores or the GPU.
        masks: from soft maps to the bytes of the mask files, on one core.
        startup: loading the model, and starting a worker process.
        memory_bytes: peak of the GPU if there is one, else of this process; None where the system does not say.
        worker_bytes: what a worker process takes at most with an image of that size.

    """

    denoiser: float
    masks: float
    startup: float
    memory_bytes: int | None
    worker_bytes: int = 0


def seconds_per_image(denoiser: float, masks: float, workers: int, cores: int, on_cpu: bool) -> float:
    """Return what an image takes in a long run, from what its two halves take by themselves.

    The halves run at the same time, the masks in worker processes of one thread each. On a CPU both need the same
    cores: a run cannot be quicker than the work of both divided by the cores. On a GPU the slower half counts.

    Args:
        denoiser: seconds up to the soft maps; on the CPU they take all cores.
        masks: seconds of the CRF and of writing, on one core.
        workers: worker processes; 0: none, one half waits for the other.
        cores: processor cores of this process.
        on_cpu: the denoiser runs on the CPU.

    >>> seconds_per_image(1.0, 0.5, workers=1, cores=2, on_cpu=True)
    1.25
    >>> seconds_per_image(1.0, 0.5, workers=1, cores=2, on_cpu=False)
    1.0

    """
    if workers == 0:
        return denoiser + masks
    beside = masks / min(workers, cores)
    return max(denoiser + masks / cores if on_cpu else denoiser, beside)


def measure_model(config: GenerateConfig) -> Measured:
    """Make the mask of one image, the middle one of the data set, and take the time.

    A quick one is made a second time and the shorter times count: the first pays for what is set up once, and either
    may have waited for another program.

    Raises:
        UserError: what would stop a run: the image, the model, or NaN or infinite values.

    """
    import torch

    from data.readers.layout import open_samples
    from pseudolabel.generate.workers import refining_bytes
    from pseudolabel.pipeline import Pipeline
    from pseudolabel.softmaps.prompt import check_phrases

    samples = open_samples(config.data, need_truth=False)
    sample, loaded = middle_image(samples.samples, config)
    torch.set_num_threads(available_cpus())  # as a run does
    start = time.perf_counter()
    pipeline = Pipeline.load(config, samples.classes)
    startup = time.perf_counter() - start
    present = sorted({label for each in samples.samples for label in each.labels})
    check_phrases(present, samples.classes, config.prompt, pipeline.parts.tokenizer, pipeline.parts.window)
    denoiser, masks = _timed_halves(pipeline, config, sample, loaded)
    if denoiser + masks < QUICK_S:
        again = _timed_halves(pipeline, config, sample, loaded)
        denoiser, masks = min(denoiser, again[0]), min(masks, again[1])
    memory = peak_memory_bytes()
    if pipeline.parts.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    assert loaded.rgb_u8 is not None
    height, width = loaded.rgb_u8.shape[:2]
    return Measured(
        denoiser, masks, startup + WORKER_START_S, memory, WORKER_BYTES + refining_bytes((height, width), config.crf)
    )


def _timed_halves(
    pipeline: "Pipeline", config: GenerateConfig, sample: "Sample", loaded: "Loaded"
) -> tuple[float, float]:
    """Return the seconds to soft maps and from there to the bytes of the files."""
    from data.masks import encode_mask
    from data.store.softmaps import encode_soft
    from pseudolabel.config import mask_config
    from pseudolabel.masks.labelmap import label_map

    assert loaded.rgb_u8 is not None
    start = time.perf_counter()
    soft = replace(pipeline.soft_maps([loaded.rgb_u8], [sample.labels], [sample.id])[0], image_hw=loaded.image_hw)
    read = time.perf_counter()
    for mask in label_map(loaded.rgb_u8, soft, mask_config(config), str(pipeline.parts.device)):
        encode_mask(mask)
    encode_soft(soft)
    return read - start, time.perf_counter() - read


def middle_image(samples: "Sequence[Sample]", config: GenerateConfig) -> "tuple[Sample, Loaded]":
    """Return the sample in the middle and its image; where a run skips unreadable images, the next readable one.

    Raises:
        ImageError: the image cannot be read, or, where a run skips such images, none can.

    """
    from pseudolabel.generate.jobs import load

    middle = len(samples) // 2
    for position in (*range(middle, len(samples)), *range(middle)):
        loaded = load(samples[position], config.crf)
        if loaded.error is None:
            return samples[position], loaded
        if config.run.on_error != "skip":
            raise ImageError(loaded.error)
    raise ImageError(f"None of the {count(len(samples), 'image')} can be read; replace them.")
