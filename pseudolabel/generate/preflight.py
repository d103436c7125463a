"""What a run would meet, before it: the model is loaded and the mask of one image made."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from data.console import count, idle_lines
from data.errors import ImageError, ModelError, UserError
from pseudolabel.config import GenerateConfig

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

    from data.readers.checks import DataReport
    from data.samples import Sample


@dataclass
class ModelReport:
    """What is known of the model before a run; None where it was not found out."""

    id: str
    seconds_per_image: float | None = None
    memory_gb: float | None = None
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
    elif folder is None and not measure:
        report.warnings.append(
            f"There is no folder {config.model.id}, so it is taken for a model on the hub, which was not tried; "
            "--measure fetches and times it."
        )
    elif data.labelled and not data.problems:
        try:
            report.seconds_per_image, report.memory_gb = measure_model(config)
        except UserError as error:
            report.problems.append(str(error))
    return report


def measure_model(config: GenerateConfig) -> tuple[float, float]:
    """Time one image, the middle one of the data set, and read off the memory in use.

    Returns:
        Seconds an image: of the U-Net, or of the CRF shared among the worker processes, whichever takes longer; and
        peak memory in GB, of the GPU if there is one, else of this process.

    """
    import resource

    import torch

    from data.readers.layout import open_samples
    from pseudolabel.config import mask_config
    from pseudolabel.generate.workers import default_workers
    from pseudolabel.masks.labelmap import label_map
    from pseudolabel.pipeline import Pipeline
    from pseudolabel.softmaps.prompt import check_phrases

    samples = open_samples(config.data, need_truth=False)
    sample, rgb_u8 = middle_image(samples.samples, config.run.on_error == "skip")
    pipeline = Pipeline.load(config, samples.classes)
    present = sorted({label for sample in samples.samples for label in sample.labels})
    check_phrases(present, samples.classes, config.prompt, pipeline.parts.tokenizers[0], pipeline.parts.window)
    start = time.perf_counter()
    soft = pipeline.soft_maps([rgb_u8], [sample.labels], [sample.id])[0]
    read = time.perf_counter()
    label_map(rgb_u8, soft, mask_config(config), str(pipeline.parts.device))
    refined = time.perf_counter()
    workers = default_workers(config.run.workers)
    unet, crf = read - start, refined - read
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if pipeline.parts.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    return (max(unet, crf / workers) if workers > 0 else unet + crf), round(memory / 1e9, 1)


def middle_image(
    samples: "Sequence[Sample]", skip_unreadable: bool = False
) -> "tuple[Sample, UInt8[np.ndarray, 'height width 3']]":
    """Return the sample in the middle and its image; where a run skips unreadable images, the next readable one.

    Raises:
        ImageError: the image cannot be read, or, with `skip_unreadable`, none can.

    """
    from data.images import read_image

    middle = len(samples) // 2
    for position in (*range(middle, len(samples)), *range(middle)):
        try:
            return samples[position], read_image(samples[position].image_path)
        except ImageError:
            if not skip_unreadable:
                raise
    raise ImageError(f"None of the {count(len(samples), 'image')} can be read; replace them.")
