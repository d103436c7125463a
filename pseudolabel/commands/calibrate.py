"""The command `calibrate`: layers, timestep, refinement and thresholds for a model and data."""

import os
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
    refinement: bool = True,
    use_truth: bool = True,
    budget_minutes: float | None = None,
    replace_output: bool = False,
    **settings: Any,
) -> None:
    """Choose layers, timestep, refinement and thresholds for a model and data; run again to resume.

    Takes images evenly from the data set. With ground truth the highest mIoU wins (before the CRF; for the threshold
    and the refinement, after it); without it, the maps that best tell present classes from absent ones, and heads,
    affinity, image size and refinement stay as configured. Score the result on other images than these.

    Args:
        output: YAML file to write: what differs from the defaults. What has been read and judged is kept beside it, in
            .NAME.checkpoint, until the search is over.
        images: How many images to look at.
        timesteps: Timesteps tried; by default 30 to 400, of models of flow matching (SD3, Flux) 100 to 700.
        long_sides: Values of resize.long_side_px tried beside the configured one.
        draws: Noise draws while searching; the configured number is used for the final figures.
        heads: Try to leave out attention heads.
        refinement: Try other refinements along edges, and their numbers; none if crf.kind is none.
        use_truth: Use ground truth where there is some; false: image-level labels alone.
        budget_minutes: Search for about so long, what usually gains most first, then write the best so far; the same
            command again goes on for as long. None: until everything has been tried.
        replace_output: Replace the output file if it exists.
        **settings: The fields of GenerateConfig.

    """
    from data.files import check_writable
    from data.readers.layout import open_samples
    from pseudolabel.calibrate.budget import Budget
    from pseudolabel.calibrate.kept import kept_beside, wrote
    from pseudolabel.calibrate.search import Options, evenly, prepare, run_search

    config, output, budget = GenerateConfig(**settings), Path(output), Budget(budget_minutes)
    if os.path.lexists(output) and not replace_output and not wrote(output):
        raise StoreError(f"{output} exists already: choose another --output, or give --replace_output.")
    if images < 1 or draws < 1:
        raise ConfigError(f"--images is {images}, --draws {draws}: each must be at least one.")
    if budget_minutes is not None and not budget_minutes > 0:
        raise ConfigError(f"--budget_minutes is {budget_minutes}: it must be above 0, or left out for no limit.")
    output.parent.mkdir(parents=True, exist_ok=True)
    check_writable(output)
    samples = open_samples(config.data, need_labels=True, need_truth=use_truth)
    options = Options(timesteps, long_sides, draws, heads, refinement, use_truth)
    task = prepare(config, samples, evenly(samples.samples, images), options)
    with kept_beside(output, task.content, budget) as kept:
        found = run_search(task, kept)
        _write(output, found, config, kept)
    for step, seconds in zip(found.search.steps, found.search.seconds, strict=True):
        print(f"{step} [{seconds:.0f} s]")
    if found.before is not None and found.after is not None:
        print(f"mIoU on these images, before / after the CRF: {found.before} as configured, {found.after} calibrated.")
    print(f"Wrote {output} after {budget.spent_s:.0f} s.")
    if found.untried:
        aside = f"{found.aside_s:.0f} s of it were set aside to measure the result"
        print(f"The time was up before: {', '.join(found.untried)} ({aside}). The same command goes on from here.")
    print(f"Next: pseudolabel generate --config {output} --root {config.data.root} --store STORE")


def _write(output: Path, found: Any, config: GenerateConfig, kept: Any) -> None:
    """Write the settings found; on a full disk print them, since hours may have gone into them."""
    import yaml

    from data.files import write_atomically
    from pseudolabel.calibrate.search import report_of

    plain = yaml.safe_dump(differences(found.search.config), sort_keys=False, width=120)
    text = report_of(found, config.data.split) + plain
    try:
        if found.untried:
            kept.note_output(text.encode())
        write_atomically(output, text.encode())
    except OSError:
        print(f"{output} could not be written; it would hold:\n{text}")
        raise
    kept.over = not found.untried
