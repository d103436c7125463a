"""Choosing layers, heads, timestep, affinity and threshold for a model and data set, from a small set of images.

Fixed lists of layers do not transfer between diffusion models. Each image is read once a timestep, all layers at once,
and candidates are compared offline on the small maps (see `recordings`). With ground truth the mIoU before the CRF
decides; without it `criteria.label_score`, which knows image-level labels alone.

The search, each step starting from the best settings so far:

1. timestep, cross-attention layers (forward selection from the best single layer) and token rescaling, no affinity;
2. with ground truth: prompts with and without background words, and the image sizes asked for;
3. with ground truth: self-attention layer and kind of affinity, then rounds of small changes to everything chosen;
4. with ground truth: heads, where leaving some out helps;
5. the threshold; without ground truth by Otsu's method. The rest stays as configured.

What is chosen must win by more than MIN_GAIN, so that the simpler of two equal settings stays.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from tqdm import tqdm

from data.errors import ConfigError, ModelError, StoreError
from data.masks import write_atomically
from data.samples import DataConfig, Sample, SampleSet, open_samples, read_truth
from data.scoring import confusion_matrix, score
from pseudolabel.config import AffinityConfig, GenerateConfig

if TYPE_CHECKING:
    from pseudolabel.attention import Layer
    from pseudolabel.pipeline import Pipeline
    from pseudolabel.recordings import Picture, Recorded

logger = logging.getLogger(__name__)

TIMESTEPS = (50, 100, 150, 200, 250, 300, 350, 400)
THETAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SHARPENINGS = (0.005, 0.015, 0.05, 0.1)
MIN_GAIN = 0.002
DECOYS = 3  # absent classes put into the sentence where there is no ground truth
ROUNDS = 3  # of small changes
SKIPPED_DATA_FIELDS = ("root", "split", "labels", "truth", "cache")  # they describe this machine or the small set


@dataclass(frozen=True)
class Verdict:
    """How good some settings are: the score, and the threshold that goes with it."""

    score: float
    threshold: float


@dataclass
class Search:
    """Everything a calibration works on, and the best it has found.

    Attributes:
        pipeline: the whole model; its settings are not used, only its parts.
        pictures: the images.
        layers: all layers of the model.
        n_classes: number of classes, the background included.
        by_truth: whether ground truth decides.
        config: best settings so far.
        verdict: what they reached.
        steps: what was tried and chosen, one line each.
        latents: of the images, encoded once.

    """

    pipeline: "Pipeline"
    pictures: "Sequence[Picture]"
    layers: "tuple[Layer, ...]"
    n_classes: int
    by_truth: bool
    config: GenerateConfig
    verdict: Verdict = field(default_factory=lambda: Verdict(-1.0, 0.5))
    steps: list[str] = field(default_factory=list)
    latents: dict[Any, Any] = field(default_factory=dict)

    def take(self, step: str, found: Iterable[tuple[GenerateConfig, Verdict]], least: float = MIN_GAIN) -> bool:
        """Take over the best of some settings if it beats what there is; return whether it did."""
        config, verdict = max(found, key=lambda entry: entry[1].score)
        better = verdict.score > self.verdict.score + least
        if better:
            self.config, self.verdict = config, verdict
        text = describe(self.config) if better else "nothing better"
        self.steps.append(f"{self.verdict.score:.4f} {step}: {text}")
        logger.info("%s", self.steps[-1])
        return better


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

    Takes images evenly from the data set. With ground truth the highest mIoU before the CRF wins; without it, the maps
    that best tell present classes from absent ones, and heads, affinity and image size stay as configured. Score the
    result on other images than these.

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
    if after is not None:
        print(f"mIoU before CRF on these {len(chosen)} images: {before:.4f} as configured, {after:.4f} calibrated.")
    print(f"Wrote {output} after {time.perf_counter() - started:.0f} s.")
    print(f"Next: pseudolabel generate --config {output} --root {config.data.root} --store STORE")


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
) -> tuple[Search, float | None, float | None]:
    """Search on some samples; also returns the mIoU before the CRF of the given and the found settings.

    These two are measured through the pipeline itself, at full size and with all draws; None without ground truth.
    """
    import torch

    from pseudolabel.diffusion import load_models, pick_device, pick_dtype
    from pseudolabel.pipeline import Pipeline
    from pseudolabel.recordings import every_layer, load_picture
    from pseudolabel.workers import available_cpus

    torch.set_num_threads(available_cpus())
    device = pick_device(config.run.device)
    models = load_models(config.model, device, pick_dtype(config.run.dtype, device))
    pipeline = Pipeline(models, _any_layers(config), samples.classes, cut=False)
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
    around = [search.verdict.threshold + step * 0.0125 for step in range(-6, 7)]
    after = measured(pipeline, search.config, chosen, pictures, n_classes, [tau for tau in around if 0 < tau <= 1])
    set_threshold(search, after.threshold)
    return search, before.score, after.score


def describe(config: GenerateConfig) -> str:
    """Return what a search changes, in one line."""
    attention, affinity = config.attention, config.affinity
    parts = [f"t={'+'.join(map(str, config.diffusion.timesteps))}", f"cross {' '.join(attention.cross_layers)}"]
    parts += ["rescaled"] if attention.token_rescaling else []
    parts += [] if config.prompt.background_words else ["no background words"]
    parts += [f"{config.resize.long_side_px} px"] if config.resize.long_side_px else []
    if affinity.kind != "none":
        boxes = f"boxes {affinity.theta}" if affinity.boxes and affinity.kind != "iseg" else ""
        count = f"x{affinity.iterations}" if affinity.kind == "iterated" else ""
        parts += [" ".join(filter(None, [affinity.kind + count, boxes, "on", *attention.self_layers]))]
    return ", ".join(parts)


def with_existing_layers(config: GenerateConfig, layers: "tuple[Layer, ...]") -> GenerateConfig:
    """Return settings to start from on this model: layers it does not have are replaced by the mean of all.

    A new model rarely has the layers of the configuration for another one. Self-attention that is not there is left
    out.
    """
    from pseudolabel.attention import resolve_layers

    try:
        resolve_layers(layers, config.attention.cross_layers, "attention.cross_layers")
    except ModelError as error:
        logger.info("starting from the mean of all cross layers: %s", error)
        config = with_attention(config, cross_layers=("all",))
    try:
        resolve_layers(layers, config.attention.self_layers, "attention.self_layers")
    except ModelError as error:
        if config.affinity.kind != "none":
            logger.info("starting without affinity: %s", error)
        config = with_affinity(config, kind="none")
    return config


def set_threshold(search: Search, threshold: float) -> None:
    """Put the threshold into the settings."""
    search.config = replace(search.config, fuse=replace(search.config.fuse, threshold=round(threshold, 4)))


def with_attention(config: GenerateConfig, **values: Any) -> GenerateConfig:
    """Return settings with other attention settings."""
    return replace(config, attention=replace(config.attention, **values))


def with_affinity(config: GenerateConfig, **values: Any) -> GenerateConfig:
    """Return settings with other affinity settings."""
    return replace(config, affinity=replace(config.affinity, **values))


def with_timesteps(config: GenerateConfig, timesteps: Sequence[int]) -> GenerateConfig:
    """Return settings with other timesteps."""
    return replace(config, diffusion=replace(config.diffusion, timesteps=tuple(timesteps)))


# ------------------------------------------------------------------------------------------------ reading and judging


def read(
    search: Search,
    config: GenerateConfig,
    *,
    cross: "Sequence[Layer] | None" = None,
    self_layers: "Sequence[Layer]" = (),
    title: str,
) -> "Iterable[Recorded]":
    """Read all pictures once with some settings; every cross layer unless `cross` names fewer."""
    from pseudolabel.pipeline import Pipeline
    from pseudolabel.recordings import record

    pipeline = Pipeline(search.pipeline.models, _any_layers(config), search.pipeline.classes, cut=False)
    found = record(pipeline, search.pictures, search.layers if cross is None else cross, self_layers, search.latents)
    total = len(search.pictures) * len(config.diffusion.timesteps)
    return tqdm(found, title, total=total, unit="map", leave=False, mininterval=1.0)


def _any_layers(config: GenerateConfig) -> GenerateConfig:
    """Return settings whose layers every model has; what is recorded is named elsewhere."""
    return with_affinity(with_attention(config, cross_layers=("all",)), kind="none")


def judge(
    search: Search, recorded: "Iterable[Recorded]", candidates: Sequence[GenerateConfig]
) -> list[tuple[GenerateConfig, Verdict]]:
    """Return how good each candidate is on what was recorded at its timestep."""
    if search.by_truth:
        verdicts = judge_by_truth(recorded, candidates, search.layers, search.n_classes)
    else:
        verdicts = judge_by_labels(recorded, candidates, search.layers)
    return list(zip(candidates, verdicts, strict=True))


def judge_by_truth(
    recorded: "Iterable[Recorded]", candidates: Sequence[GenerateConfig], layers: "tuple[Layer, ...]", n_classes: int
) -> list[Verdict]:
    """Return the highest mIoU over thresholds of each candidate (one confusion matrix over all pictures)."""
    from pseudolabel.criteria import best_threshold, count_pixels
    from pseudolabel.recordings import refined_maps, view

    counts: list[Any] = [0] * len(candidates)
    for item in recorded:
        assert item.picture.truth is not None
        for index, candidate in enumerate(candidates):
            if candidate.diffusion.timesteps != (item.timestep,):
                continue
            maps = view(refined_maps(item, candidate, layers), item)
            counts[index] = counts[index] + count_pixels(maps, item.picture.prompted, item.picture.truth, n_classes)
    return [Verdict(*best_threshold(count)) for count in counts]


def judge_by_labels(
    recorded: "Iterable[Recorded]", candidates: Sequence[GenerateConfig], layers: "tuple[Layer, ...]"
) -> list[Verdict]:
    """Return `criteria.label_score` of each candidate's raw maps; the affinity of the candidates plays no part."""
    from pseudolabel.criteria import label_score

    present: list[list[Any]] = [[] for _ in candidates]
    absent: list[list[Any]] = [[] for _ in candidates]
    for item in recorded:
        for index, candidate in enumerate(candidates):
            if candidate.diffusion.timesteps != (item.timestep,):
                continue
            first, second = present_and_absent(item, candidate, layers)
            present[index].append(first)
            absent[index].append(second)
    pairs = zip(candidates, present, absent, strict=True)
    return [Verdict(label_score(first, second), candidate.fuse.threshold) for candidate, first, second in pairs]


def present_and_absent(
    item: "Recorded", config: GenerateConfig, layers: "tuple[Layer, ...]"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the raw maps (mean over draws) of the classes a picture holds, and of its decoys, without the padding."""
    import torch

    from pseudolabel.reading import common_grid
    from pseudolabel.recordings import raw_maps

    names = {spec.partition("@")[0] for spec in config.attention.cross_layers}
    grid_hw = common_grid([layer for layer in layers if layer.name in names], (), item.latent_hw)
    maps = torch.zeros(len(item.picture.prompted), *grid_hw)
    for part in item.parts:
        maps[list(part.rows)] = raw_maps(part, config, grid_hw).mean(dim=0)
    rows, columns = item.frame.valid_cells(grid_hw)
    cells = maps[:, :rows, :columns].numpy()
    holds = np.array([label in item.picture.labels for label in item.picture.prompted])
    return cells[holds], cells[~holds]


# ------------------------------------------------------------------------------------------------ the steps


def choose_layers(search: Search, timesteps: Sequence[int]) -> None:
    """Step 1: the best timestep, layers and token rescaling, without affinity."""
    base = with_affinity(with_timesteps(search.config, timesteps), kind="none")
    recordings: dict[int, list[Recorded]] = {timestep: [] for timestep in timesteps}
    for item in read(search, base, title="read all layers"):
        recordings[item.timestep].append(item)
    found = [
        forward_selection(
            search, recordings[timestep], with_attention(with_timesteps(base, (timestep,)), token_rescaling=on)
        )
        for timestep in tqdm(timesteps, "choose layers", unit="timestep", leave=False)
        for on in (False, True)
    ]
    search.take("timestep and cross layers, no affinity", found)


def forward_selection(
    search: Search, recorded: "Sequence[Recorded]", base: GenerateConfig
) -> tuple[GenerateConfig, Verdict]:
    """Start from the best single layer and add the layer that helps most, while one helps."""
    names = [layer.name for layer in search.layers]
    best: tuple[GenerateConfig, Verdict] | None = None
    chosen: tuple[str, ...] = ()
    while len(chosen) < len(names):
        grown = [sorted({*chosen, name}, key=names.index) for name in names if name not in chosen]
        candidates = [with_attention(base, cross_layers=tuple(layers)) for layers in grown]
        winner = max(judge(search, recorded, candidates), key=lambda entry: entry[1].score)
        if best is not None and winner[1].score <= best[1].score + MIN_GAIN:
            break
        best, chosen = winner, winner[0].attention.cross_layers
    assert best is not None
    return best


def choose_reading(search: Search, long_sides: Sequence[int]) -> None:
    """Step 2: background words or none, and image sizes; layers are chosen anew for each."""
    words = search.config.prompt.background_words
    variants = [replace(search.config, prompt=replace(search.config.prompt, background_words=not words))]
    _try_readings(search, "background words", variants)
    current = search.config.resize.long_side_px
    variants = [
        replace(search.config, resize=replace(search.config.resize, long_side_px=side))
        for side in long_sides
        if side != current
    ]
    if variants:
        _try_readings(search, "image size", variants)


def _try_readings(search: Search, title: str, variants: Sequence[GenerateConfig]) -> None:
    found = []
    for variant in variants:
        recorded = list(read(search, variant, title=title))
        found.append(forward_selection(search, recorded, variant))
    search.take(title, found)


def choose_affinity(search: Search) -> None:
    """Step 3: self-attention layer and kind of affinity, then rounds of small changes."""
    kinds: tuple[dict[str, Any], ...] = (
        {"kind": "caa", "boxes": True, "theta": 0.2},
        {"kind": "caa", "boxes": True, "theta": 0.5},
        {"kind": "caa", "boxes": False},
        {"kind": "iterated", "boxes": False, "iterations": 1},
        {"kind": "iterated", "boxes": False, "iterations": 4},
        {"kind": "iseg"},
        {"kind": "clipes", "boxes": True, "theta": 0.4},
    )
    candidates = [
        with_affinity(with_attention(search.config, self_layers=(layer.name,)), **kind)
        for layer in search.layers
        for kind in kinds
    ]
    search.take("affinity", judge(search, _read_both(search, "affinity"), candidates), 2 * MIN_GAIN)
    for _ in range(ROUNDS):
        candidates = small_changes(search.config, [layer.name for layer in search.layers])
        if not search.take("small changes", judge(search, _read_both(search, "small changes"), candidates)):
            break


def _read_both(search: Search, title: str) -> "Iterable[Recorded]":
    return read(search, search.config, self_layers=search.layers, title=title)


def small_changes(config: GenerateConfig, names: Sequence[str]) -> list[GenerateConfig]:
    """Return settings that differ in one thing: a layer more or less, rescaling, or one number of the affinity."""
    attention, affinity = config.attention, config.affinity
    found = [with_attention(config, token_rescaling=not attention.token_rescaling)]
    found += [with_attention(config, cross_layers=other) for other in one_more_or_less(attention.cross_layers, names)]
    if affinity.kind == "none":
        return found
    found += [with_attention(config, self_layers=other) for other in one_more_or_less(attention.self_layers, names)]
    found += [with_affinity(config, **change) for change in _affinity_changes(affinity)]
    return found


def _affinity_changes(affinity: AffinityConfig) -> list[dict[str, Any]]:
    """List changes to the numbers that the kind of affinity reads."""
    changes: list[dict[str, Any]] = []
    if affinity.kind in ("caa", "iterated", "clipes"):
        changes.append({"boxes": not affinity.boxes})
        changes += [{"boxes": True, "theta": theta} for theta in THETAS]
    if affinity.kind == "iterated":
        changes += [{"iterations": count} for count in (1, 2, 3, 4, 6, 8)]
    if affinity.kind == "iseg":
        changes += [{"sharpening": value} for value in SHARPENINGS]
    return changes


def one_more_or_less(chosen: Sequence[str], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the sets of layers that have one more or one less, in the model's order; never an empty one.

    >>> one_more_or_less(("a",), ("a", "b"))
    [('a', 'b')]
    """
    less = [tuple(name for name in chosen if name != left_out) for left_out in chosen if len(chosen) > 1]
    more = [tuple(sorted({*chosen, name}, key=names.index)) for name in names if name not in chosen]
    return less + more


def choose_timestep(search: Search, timesteps: Sequence[int]) -> None:
    """Try the neighbouring timesteps again with everything else chosen."""
    [current] = search.config.diffusion.timesteps
    lower, higher = [t for t in timesteps if t < current][-1:], [t for t in timesteps if t > current][:1]
    candidates = [with_timesteps(search.config, (timestep,)) for timestep in lower + higher]
    if candidates:
        config = with_timesteps(search.config, lower + higher)
        cross, self_layers = chosen_layers(search)
        recorded = read(search, config, cross=cross, self_layers=self_layers, title="timestep again")
        search.take("timestep again", judge(search, recorded, candidates))


def chosen_layers(search: Search) -> "tuple[list[Layer], list[Layer]]":
    """Return the cross layers and self layers of the best settings so far."""
    by_name, attention = {layer.name: layer for layer in search.layers}, search.config.attention
    self_names = attention.self_layers if search.config.affinity.kind != "none" else ()
    return [by_name[name] for name in attention.cross_layers], [by_name[name] for name in self_names]


def choose_heads(search: Search) -> None:
    """Step 4: leave out one head of one chosen layer after the other, while that helps."""
    from pseudolabel.recordings import per_head

    if search.config.attention.token_rescaling:
        return  # rescaling is not linear in the heads, so heads recorded one by one say nothing
    cross, self_layers = chosen_layers(search)
    n_heads = {layer.name: head_count(search.pipeline.models.unet, layer) for layer in cross}
    runs = []
    for layers in per_head(cross, max(n_heads.values())):
        head = layers[0].heads[0] if layers[0].heads else 0
        there = [layer for layer in layers if head < n_heads[layer.name]]
        runs.append(read(search, search.config, cross=there, self_layers=self_layers, title=f"head {head}"))
    recorded = [merge_heads(items) for items in zip(*runs, strict=True)]
    for _ in range(ROUNDS):
        candidates = fewer_heads(search.config, n_heads)
        if not candidates or not search.take("heads", judge(search, recorded, candidates), 2 * MIN_GAIN):
            break


def head_count(unet: Any, layer: "Layer") -> int:
    """Return the number of heads of a layer's cross-attention."""
    return int(unet.get_submodule(f"{layer.blocks[0]}.attn2").heads)


def merge_heads(items: "Sequence[Recorded]") -> "Recorded":
    """Put recordings of the same passes, through one head each, into one; self-attention is taken from the first."""
    parts = [
        replace(same[0], plain={name: maps for part in same for name, maps in part.plain.items()})
        for same in zip(*(item.parts for item in items), strict=True)
    ]
    return replace(items[0], parts=tuple(parts))


def fewer_heads(config: GenerateConfig, n_heads: dict[str, int]) -> list[GenerateConfig]:
    """Return settings with one head less in one layer."""
    specs = config.attention.cross_layers
    found = []
    for position, spec in enumerate(specs):
        name, _, text = spec.partition("@")
        heads = text.split("+") if text else [str(head) for head in range(n_heads[name])]
        for left_out in heads:
            rest = [head for head in heads if head != left_out]
            if rest:
                changed = (*specs[:position], f"{name}@{'+'.join(rest)}", *specs[position + 1 :])
                found.append(with_attention(config, cross_layers=changed))
    return found


# ------------------------------------------------------------------------------------------------ the result


def otsu(search: Search) -> float:
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
) -> Verdict:
    """Return the mIoU before the CRF through the pipeline itself, at the best of some thresholds."""
    from pseudolabel.fuse import before_crf
    from pseudolabel.pipeline import Pipeline

    exact = Pipeline(pipeline.models, config, pipeline.classes, cut=False)
    counts = np.zeros((len(thresholds), n_classes, n_classes), np.int64)
    fuses = [replace(config, fuse=replace(config.fuse, threshold=tau)) for tau in thresholds]
    for sample, picture in tqdm(list(zip(samples, pictures, strict=True)), "measure", unit="image", leave=False):
        assert sample.truth_path is not None
        truth = read_truth(sample.truth_path, picture.rgb_u8.shape[:2], sample.image_path)
        [soft] = exact.soft_maps([picture.rgb_u8], [picture.labels], [picture.id])
        for count, fuse in zip(counts, fuses, strict=True):
            count += confusion_matrix(truth, before_crf(soft, fuse), n_classes)
    scores = [score(count).miou for count in counts]
    best = int(np.argmax(scores))
    return Verdict(scores[best], float(thresholds[best]))


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
    search: Search, samples: SampleSet, config: GenerateConfig, before: float | None, after: float | None
) -> str:
    """Return the header comment of the config: what was measured on what."""
    count, model = len(search.pictures), search.pipeline.fingerprint()
    lines = [f"Chosen by `pseudolabel calibrate` on {count} images, split {config.data.split!r}; only differences from"]
    lines += ["the defaults are stated.", f"Model {model['id']}, fingerprint {model['fingerprint']}."]
    if before is not None and after is not None:
        lines.append(
            f"mIoU before the CRF on these images: {before:.4f} with the settings given, {after:.4f} with these."
        )
        lines.append("Steps, with the mIoU each reached (fewer draws, ground truth at reduced size, best threshold):")
    else:
        lines.append("No ground truth was used. Steps, with the label-only score each reached (0 to 1):")
    lines += [f"  {step}" for step in search.steps]
    return "".join(f"# {line}\n" for line in lines)
