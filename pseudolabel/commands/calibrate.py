"""The command `calibrate`: layers, timestep and thresholds for a model and data."""

import os
import time
from pathlib import Path
from typing import Any

from data.errors import ConfigError, StoreError
from pseudolabel.config import GenerateConfig, differences


def calibrate(
    output: Path,
    images: int = 50,
    timesteps: tuple[int, ...] = (),
    long_sides: tuple[int, ...] = (),
    draws: int = 2,
    heads: bool = True,
    use_truth: bool = True,
    replace_output: bool = False,
    **settings: Any,
) -> None:
    """Choose layers, timestep and thresholds for a model and data.

    Takes images evenly from the data set. With ground truth the highest mIoU wins (before the CRF, but for the
    threshold); without it, the maps that best tell present classes from absent ones, and heads, affinity and image size
    stay as configured. Score the result on other images than these.

    Args:
        output: YAML file to write: what differs from the defaults.
        images: How many images to look at.
        timesteps: Timesteps tried; by default 50 to 400, of models of flow matching (SD3, Flux) 100 to 700.
        long_sides: Values of resize.long_side_px tried beside the configured one.
        draws: Noise draws while searching; the configured number is used for the final figures.
        heads: Try to leave out attention heads.
        use_truth: Use ground truth where there is some; false: image-level labels alone.
        replace_output: Replace the output file if it exists.
        **settings: The fields of GenerateConfig.

    """
    import yaml

    from data.files import check_writable, write_atomically
    from data.readers.layout import open_samples
    from pseudolabel.calibrate.search import evenly, report_of, run_search

    config, output = GenerateConfig(**settings), Path(output)
    if os.path.lexists(output) and not replace_output:
        raise StoreError(f"{output} exists already: choose another --output, or give --replace_output.")
    if images < 1 or draws < 1:
        raise ConfigError(f"--images is {images}, --draws {draws}: each must be at least one.")
    output.parent.mkdir(parents=True, exist_ok=True)
    check_writable(output)
    started = time.perf_counter()
    samples = open_samples(config.data, need_labels=True, need_truth=use_truth)
    chosen = evenly(samples.samples, images)
    search, before, after = run_search(config, samples, chosen, timesteps, long_sides, draws, heads, use_truth)
    text = report_of(search, config.data.split, before, after) + yaml.safe_dump(
        differences(search.config), sort_keys=False, width=120
    )
    print("\n".join(search.steps))
    try:
        write_atomically(output, text.encode())
    except OSError:
        print(f"{output} could not be written; it would hold:\n{text}")
        raise
    if before is not None and after is not None:
        print(f"mIoU on these images, before / after the CRF: {before} as configured, {after} calibrated.")
    print(f"Wrote {output} after {time.perf_counter() - started:.0f} s.")
    print(f"Next: pseudolabel generate --config {output} --root {config.data.root} --store STORE")
