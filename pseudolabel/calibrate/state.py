"""What a calibration works on, the best it has found, and reading and judging for its steps."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data.classes import ClassSet
from data.console import progress_bar
from data.samples import Sample
from data.wording import count
from pseudolabel.calibrate.candidates import describe
from pseudolabel.calibrate.judge import (
    Sheet,
    Verdict,
    sheet_by_labels,
    sheet_by_truth,
    verdicts_by_labels,
    verdicts_by_truth,
)
from pseudolabel.calibrate.kept import Kept, digest
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.calibrate.recordings import Sentences, Wanted, in_reading_order, packed, record, unpacked
from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.passes import Reader

logger = logging.getLogger(__name__)

MIN_GAIN = 0.002  # what is chosen must win by more, so that the simpler of two equal settings stays

Judged = list[tuple[GenerateConfig, Verdict]]


@dataclass
class Search:
    """Everything a calibration works on, and the best it has found.

    Attributes:
        parts: the whole model.
        classes: phrases and background words.
        pictures: the images.
        layers: all layers of the model.
        by_truth: whether ground truth decides.
        given: the settings to start from, as far as this model has their layers.
        config: best settings so far, at one image size.
        kept: what an interrupted run has found already.
        samples: the images' files, by id.
        verdict: what the best settings reached; below 0 before any did.
        sizes: the image sizes chosen, whose maps are averaged.
        sized: what the best settings reached with these.
        steps: what was tried and chosen, one line each.
        seconds: how long each of these took in this run.
        place: which step of how many this is, for progress bars.
        tried: number of settings judged since the last line.
        latents: of the images, encoded once.

    """

    parts: Parts
    classes: ClassSet
    pictures: Sequence[Picture]
    layers: tuple[Layer, ...]
    by_truth: bool
    given: GenerateConfig
    config: GenerateConfig
    kept: Kept
    samples: Mapping[str, Sample]
    verdict: Verdict = field(default_factory=lambda: Verdict(-1.0, 0.5))
    sizes: tuple[float, ...] = (1.0,)
    sized: Verdict | None = None
    steps: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    place: str = ""
    tried: int = 0
    latents: dict[Any, Any] = field(default_factory=dict)

    @property
    def cross_layers(self) -> tuple[Layer, ...]:
        """Layers that see the text."""
        return tuple(layer for layer in self.layers if layer.sees_text)

    @property
    def cell_layers(self) -> tuple[Layer, ...]:
        """Layers whose self-attention can spread maps: all, and the attention among cells alone beside a joint one."""
        beside = {layer.name: (layer.image_part(),) for layer in self.layers if layer.beside is not None}
        return tuple(each for layer in self.layers for each in (layer, *beside.get(layer.name, ())))

    @property
    def n_classes(self) -> int:
        """Number of classes, the background included."""
        return len(self.classes) + 1

    def take(self, step: str, found: Iterable[tuple[GenerateConfig, Verdict]], least: float = MIN_GAIN) -> bool:
        """Take over the best of some settings if it beats what there is; return whether it did."""
        config, verdict = max(found, key=lambda entry: entry[1].score)
        better = verdict.score > self.verdict.score + least
        if better:
            self.config, self.verdict = config, verdict
        self.note(step, self.verdict.score, describe(self.config) if better else "nothing better")
        return better

    def note(self, step: str, score: float, text: str) -> None:
        """Write down what a step has come to."""
        self.steps.append(f"{score:.4f} {step} ({count(self.tried, 'candidate')}): {text}")
        self.seconds.append(self.kept.budget.spent_s - sum(self.seconds))
        self.tried = 0
        logger.info("%s [%.0f s]", self.steps[-1], self.seconds[-1])


def reader_of(search: Search, config: GenerateConfig, scale: float = 1.0) -> Reader:
    """Return what reads the pictures with some settings, at one size relative to theirs, without mirror images."""
    diffusion = replace(config.diffusion, scales=(scale,), flip=False)
    shared = (config.prompt, diffusion, config.resize, config.run)
    return Reader(search.parts, search.classes, *shared, latents=search.latents)


def read(
    search: Search, reader: Reader, wanted: Wanted, title: str, pictures: Sequence[Picture]
) -> Iterator[Sentences]:
    """Read pictures once; nothing is kept.

    Args:
        search: the model and the pictures.
        reader: with some settings.
        wanted: what is recorded.
        title: what the progress bar says.
        pictures: those that are left of the search's.

    """
    each, done = len(reader.diffusion.timesteps), len(search.pictures) - len(pictures)
    bar: dict[str, Any] = {"total": len(search.pictures) * each, "initial": done * each}
    found = record(reader, pictures, wanted)
    yield from progress_bar(found, often=1.0, desc=f"{search.place} {title}", unit="map", leave=False, **bar)


def recordings(search: Search, config: GenerateConfig, wanted: Wanted, title: str) -> list[Sentences]:
    """Return what was recorded of all pictures, without self-attention."""
    reader = reader_of(search, config)
    key = digest("recordings", reader.prompt, reader.diffusion, reader.resize, wanted)

    def make(rest: Sequence[Picture]) -> Iterator[dict[str, Any]]:
        for items in _together(read(search, reader, wanted, title, rest), len(reader.diffusion.timesteps)):
            yield packed(items)

    kept = search.kept.by_picture(key, in_reading_order(reader, search.pictures), make)
    return [item for picture, tensors in kept for item in unpacked(reader, picture, tensors, wanted)]


def _together(items: Iterable[Sentences], number: int) -> Iterator[tuple[Sentences, ...]]:
    """Yield as many items at once as there are timesteps: those of one picture."""
    return zip(*[iter(items)] * number, strict=True)


def judge(search: Search, recorded: Callable[[], Iterable[Sentences]], candidates: Sequence[GenerateConfig]) -> Judged:
    """Return how good each candidate is on what was recorded at its timestep; it is asked for only if need be."""

    def verdicts(missing: Sequence[GenerateConfig]) -> list[Verdict]:
        search.kept.budget.check()
        return _verdicts(search, (_sheet(search, [item], missing) for item in recorded()), missing)

    return known(search, candidates, verdicts)


def judge_read(
    search: Search, config: GenerateConfig, candidates: Sequence[GenerateConfig], wanted: Wanted, title: str
) -> Judged:
    """Return how good each candidate is, reading picture after picture, of which only the sheets are kept.

    Args:
        search: the model and the pictures.
        config: the settings they are read with; its timesteps are all that the candidates have.
        candidates: settings of one timestep each.
        wanted: what is recorded.
        title: what the progress bar says.

    """
    reader = reader_of(search, config)

    def verdicts(missing: Sequence[GenerateConfig]) -> list[Verdict]:
        names = [candidate_key(candidate) for candidate in missing]
        key = digest("sheets", reader.prompt, reader.diffusion, reader.resize, wanted, names)

        def make(rest: Sequence[Picture]) -> Iterator[Sheet]:
            for items in _together(read(search, reader, wanted, title, rest), len(reader.diffusion.timesteps)):
                yield _sheet(search, items, missing)

        pictures = in_reading_order(reader, search.pictures)
        sheets = (sheet for _, sheet in search.kept.by_picture(key, pictures, make))
        return _verdicts(search, sheets, missing)

    return known(search, candidates, verdicts)


def candidate_key(config: GenerateConfig) -> str:
    """Return a name for what of some settings decides the maps and what they are judged by."""
    return digest(
        config.prompt, config.diffusion, config.resize, config.attention, config.affinity, config.fuse.background
    )


def known(
    search: Search,
    candidates: Sequence[GenerateConfig],
    verdicts: Callable[[Sequence[GenerateConfig]], Sequence[Verdict]],
) -> Judged:
    """Return the verdict of each candidate; those that are not known are given by `verdicts`, and kept."""
    judged, names = search.kept.judged, [candidate_key(candidate) for candidate in candidates]
    search.tried += len(candidates)
    missing = {name: each for name, each in zip(names, candidates, strict=True) if name not in judged}
    if missing:
        found = verdicts(list(missing.values()))
        search.kept.add({name: (each.score, each.threshold) for name, each in zip(missing, found, strict=True)})
    return [(each, Verdict(*judged[name])) for name, each in zip(names, candidates, strict=True)]


def _sheet(search: Search, items: Sequence[Sentences], candidates: Sequence[GenerateConfig]) -> Sheet:
    if search.by_truth:
        return sheet_by_truth(items, candidates, search.cell_layers, search.n_classes)
    return sheet_by_labels(items, candidates, search.cell_layers)


def _verdicts(search: Search, sheets: Iterable[Sheet], candidates: Sequence[GenerateConfig]) -> list[Verdict]:
    if search.by_truth:
        return verdicts_by_truth(sheets, candidates, search.n_classes)
    return verdicts_by_labels(sheets, candidates)
