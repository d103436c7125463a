"""Choosing layers, heads, timestep, affinity and threshold for a model and data set, from a small set of images.

Fixed lists of layers do not transfer between diffusion models. Each image is read once a timestep, all layers at once,
and candidates are compared offline on the small maps (see `recordings`). With ground truth the mIoU decides (before the
CRF, but for the threshold); without it `criteria.label_score`, which knows image-level labels alone.

The search, each step starting from the best settings so far:

1. timestep, cross-attention layers (forward selection from the best single layer) and token rescaling, no affinity;
2. with ground truth: prompts with and without background words, and the image sizes asked for;
3. with ground truth: self-attention layer and kind of affinity, rounds of small changes to everything chosen, then the
   timestep again;
4. with ground truth: heads, where leaving some out helps;
5. the threshold: the best one after the CRF, at full size and with all draws, since that is what `generate` writes (the
   CRF prefers a lower one than the maps by themselves do); without ground truth by Otsu's method.

The rest, the CRF among it, stays as configured.

What is chosen must win by more than `search.MIN_GAIN`, so that the simpler of two equal settings stays.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from tqdm import tqdm

from data.config import DataConfig
from data.errors import ConfigError, StoreError
from data.files import write_atomically
from data.masks import read_truth
from data.readers.layout import open_samples
from data.samples import Sample, SampleSet
from data.scoring import confusion_matrix, score
from pseudolabel.candidates import any_layers, with_existing_layers
from pseudolabel.config import GenerateConfig

if TYPE_CHECKING:
    from pseudolabel.pipeline import Pipeline
    from pseudolabel.recordings import Picture
    from pseudolabel.search import Search

TIMESTEPS = (50, 100, 150, 200, 250, 300, 350, 400)
THRESHOLD_STEPS = tuple(0.025 * step for step in range(-4, 3))  # tried around the best one before the CRF
DECOYS = 3  # absent classes put into the sentence where there is no ground truth

SKIPPED_DATA_FIELDS = ("root", "split", "labels", "truth", "cache")  # they describe this machine or the small set


def calibrate(
    output: Path,
    images: int = 50,
    timesteps: tuple[int, ...] = TIMESTEPS,
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
        timesteps: Timesteps tried.
        long_sides: Values of resize.long_side_px tried beside the configured one.
        draws: Noise draws while searching; the configured number is used for the final figures.
        heads: Try to leave out attention heads.
        use_truth: Use ground truth where there is some; false: image-level labels alone.
        replace_output: Replace the output file if it exists.
        **settings: The fields of GenerateConfig.

    """
    config, output = GenerateConfig(**settings), Path(output)
    if output.exists() and not replace_output:
        raise StoreError(f"{output} exists already: choose another --output, or give --replace_output.")
    if images < 1 or draws < 1 or not timesteps:
        raise ConfigError(f"--images is {images}, --draws {draws}, --timesteps {timesteps}: each must be at least one.")
    started = time.perf_counter()
    samples = open_samples(config.data, need_labels=True, need_truth=use_truth)
    chosen = evenly(samples.samples, images)
    search, before, after = run_search(config, samples, chosen, timesteps, long_sides, draws, heads, use_truth)
    text = report_of(search, samples, config, before, after) + yaml.safe_dump(
        differences(search.config), sort_keys=False, width=120
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text.encode())
    print("\n".join(search.steps))
    if before is not None and after is not None:
        print(f"mIoU on these images, before / after the CRF: {before} as configured, {after} calibrated.")
    print(f"Wrote {output} after {time.perf_counter() - started:.0f} s.")
    print(f"Next: pseudolabel generate --config {output} --root {config.data.root} --store STORE")


@dataclass(frozen=True)
class Measured:
    """The mIoU of some settings through the pipeline itself, at full size and with all draws."""

    threshold: float
    before_crf: float
    after_crf: float

    def __str__(self) -> str:
        return f"{self.before_crf:.4f} / {self.after_crf:.4f}"


def evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return up to `count` samples, spread evenly over all of them.

    Raises:
        ConfigError: there are none.

    """
    if not len(samples):
        raise ConfigError("There are no labelled images to calibrate on; check --data.root and --data.split.")
    count = min(count, len(samples))
    return [samples[position * len(samples) // count] for position in range(count)]


def run_search(
    config: GenerateConfig,
    samples: SampleSet,
    chosen: Sequence[Sample],
    timesteps: Sequence[int],
    long_sides: Sequence[int],
    draws: int,
    heads: bool,
    use_truth: bool,
) -> "tuple[Search, Measured | None, Measured | None]":
    """Search on some samples; also measures the given and the found settings (None without ground truth)."""
    import torch

    from data.console import available_cpus
    from pseudolabel.diffusion import load_models, pick_device, pick_dtype
    from pseudolabel.pipeline import Pipeline
    from pseudolabel.recordings import every_layer, load_picture
    from pseudolabel.search import Search, choose_affinity, choose_heads, choose_layers, choose_reading, choose_timestep

    torch.set_num_threads(available_cpus())
    device = pick_device(config.run.device)
    models = load_models(config.model, device, pick_dtype(config.run.dtype, device))
    pipeline = Pipeline(models, any_layers(config), samples.classes, cut=False)
    layers, n_classes = every_layer(pipeline), len(samples.classes) + 1
    config = with_existing_layers(config, layers)
    by_truth = use_truth and any(sample.truth_path is not None for sample in chosen)
    if by_truth:
        chosen = [sample for sample in chosen if sample.truth_path is not None]
    n_decoys = 0 if by_truth else min(DECOYS, len(samples.classes) - 1)
    pictures = [load_picture(sample, len(samples.classes), n_decoys, by_truth) for sample in chosen]
    start = replace(config, diffusion=replace(config.diffusion, draws=draws))
    search = Search(pipeline, pictures, layers, n_classes, by_truth, start)
    timesteps = tuple(sorted({*timesteps}))
    choose_layers(search, timesteps)
    if by_truth:
        choose_reading(search, long_sides)
        choose_affinity(search)
        choose_timestep(search, timesteps)
        if heads:
            choose_heads(search)
    search.config = replace(search.config, diffusion=replace(search.config.diffusion, draws=config.diffusion.draws))
    if not by_truth:
        search.config = replace(search.config, affinity=config.affinity)
        set_threshold(search, otsu(search))
        return search, None, None
    set_threshold(search, search.verdict.threshold)
    before = measured(pipeline, config, chosen, pictures, n_classes, (config.fuse.threshold,))
    around = [search.verdict.threshold + step for step in THRESHOLD_STEPS]
    after = measured(pipeline, search.config, chosen, pictures, n_classes, [tau for tau in around if 0 < tau <= 1])
    set_threshold(search, after.threshold)
    return search, before, after


def set_threshold(search: "Search", threshold: float) -> None:
    """Put the threshold into the settings."""
    search.config = replace(search.config, fuse=replace(search.config.fuse, threshold=round(threshold, 4)))


def otsu(search: "Search") -> float:
    """Step 5 without ground truth: Otsu's threshold over the soft maps of the settings found, decoys left out."""
    from pseudolabel.criteria import otsu_threshold
    from pseudolabel.pipeline import Pipeline

    pipeline = Pipeline(search.pipeline.models, search.config, search.pipeline.classes, cut=False)
    soft = (pipeline.soft_maps([p.rgb_u8], [p.labels], [p.id])[0] for p in search.pictures)
    threshold = otsu_threshold([each.maps.astype(np.float32) for each in soft])
    search.steps.append(f"threshold by Otsu's method: {threshold}")
    return threshold


def measured(
    pipeline: "Pipeline",
    config: GenerateConfig,
    samples: Sequence[Sample],
    pictures: "Sequence[Picture]",
    n_classes: int,
    thresholds: Sequence[float],
) -> Measured:
    """Return what some settings reach at the threshold that is best after the CRF."""
    from pseudolabel.fuse import before_crf
    from pseudolabel.labelmap import label_map
    from pseudolabel.pipeline import Pipeline

    exact = Pipeline(pipeline.models, config, pipeline.classes, cut=False)
    counts = np.zeros((len(thresholds), 2, n_classes, n_classes), np.int64)
    variants = [replace(config, fuse=replace(config.fuse, threshold=tau)) for tau in thresholds]
    for sample, picture in tqdm(list(zip(samples, pictures, strict=True)), "measure", unit="image", leave=False):
        assert sample.truth_path is not None
        truth = read_truth(sample.truth_path, picture.rgb_u8.shape[:2], sample.image_path)
        [soft] = exact.soft_maps([picture.rgb_u8], [picture.labels], [picture.id])
        for (raw, refined), variant in zip(counts, variants, strict=True):
            raw += confusion_matrix(truth, before_crf(soft, variant), n_classes)
            refined += confusion_matrix(truth, label_map(picture.rgb_u8, soft, variant)[1], n_classes)
    best = int(np.argmax([score(refined).miou for _, refined in counts]))
    raw, refined = counts[best]
    return Measured(float(thresholds[best]), score(raw).miou, score(refined).miou)


def differences(config: GenerateConfig) -> dict[str, Any]:
    """Return what differs from the defaults, as YAML values; data folders and run settings stay out."""
    defaults = GenerateConfig(data=DataConfig(root=Path()))
    found: dict[str, Any] = {}
    for group in fields(GenerateConfig):
        if group.name == "run":
            continue
        value, default = getattr(config, group.name), getattr(defaults, group.name)
        if not hasattr(value, "__dataclass_fields__"):
            if value != default:
                found[group.name] = value
            continue
        changed = {
            name: _yaml_value(entry)
            for name, entry in asdict(value).items()
            if entry != getattr(default, name) and not (group.name == "data" and name in SKIPPED_DATA_FIELDS)
        }
        if changed:
            found[group.name] = changed
    return found


def _yaml_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def report_of(
    search: "Search", samples: SampleSet, config: GenerateConfig, before: Measured | None, after: Measured | None
) -> str:
    """Return the header comment of the config: what was measured on what."""
    count, model = len(search.pictures), search.pipeline.fingerprint()
    lines = [f"Chosen by `pseudolabel calibrate` on {count} images, split {config.data.split!r}; only differences from"]
    lines += ["the defaults are stated.", f"Model {model['id']}, fingerprint {model['fingerprint']}."]
    if before is not None and after is not None:
        lines.append("mIoU on these images, before / after the CRF:")
        lines.append(f"{before} with the settings given, {after} with these.")
        lines.append("Steps, with the mIoU each reached (fewer draws, ground truth at reduced size, best threshold):")
    else:
        lines.append("No ground truth was used. Steps, with the label-only score each reached (0 to 1):")
    lines += [f"  {step}" for step in search.steps]
    return "".join(f"# {line}\n" for line in lines)
