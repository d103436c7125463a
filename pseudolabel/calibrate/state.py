"""What a calibration works on, the best it has found, and reading and judging for its steps."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from data.classes import ClassSet
from pseudolabel.calibrate.candidates import describe
from pseudolabel.calibrate.judge import Verdict, judge_by_labels, judge_by_truth
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.calibrate.recordings import Sentences, Wanted, record
from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.passes import Reader

logger = logging.getLogger(__name__)

MIN_GAIN = 0.002  # what is chosen must win by more, so that the simpler of two equal settings stays


@dataclass
class Search:
    """Everything a calibration works on, and the best it has found.

    Attributes:
        parts: the whole model.
        classes: phrases and background words.
        pictures: the images.
        layers: all layers of the model.
        by_truth: whether ground truth decides.
        config: best settings so far.
        verdict: what they reached.
        steps: what was tried and chosen, one line each.
        latents: of the images, encoded once.

    """

    parts: Parts
    classes: ClassSet
    pictures: Sequence[Picture]
    layers: tuple[Layer, ...]
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


def read(
    search: Search,
    config: GenerateConfig,
    *,
    cross: Sequence[Layer] | None = None,
    self_layers: Sequence[Layer] = (),
    title: str,
    scale: float = 1.0,
    **wanted: Any,
) -> Iterable[Sentences]:
    """Read all pictures once with some settings; every cross layer unless `cross` names fewer.

    Args:
        search: the model and the pictures.
        config: the settings.
        cross: cross layers that are recorded.
        self_layers: layers whose self-attention is recorded.
        title: what the progress bar says.
        scale: size of the images, relative to that of the settings.
        **wanted: further fields of `Wanted`.

    """
    diffusion = replace(config.diffusion, scales=(scale,), flip=False)
    shared = (config.prompt, diffusion, config.resize, config.run)
    reader = Reader(search.parts, search.classes, *shared, latents=search.latents)
    words = config.fuse.background == "words"
    layers = search.layers if cross is None else cross
    found = record(reader, search.pictures, Wanted(layers, self_layers, words=words, **wanted))
    total = len(search.pictures) * len(config.diffusion.timesteps)
    return tqdm(found, title, total=total, unit="map", leave=False, mininterval=1.0)


def judge(
    search: Search, recorded: Iterable[Sentences], candidates: Sequence[GenerateConfig]
) -> list[tuple[GenerateConfig, Verdict]]:
    """Return how good each candidate is on what was recorded at its timestep."""
    if search.by_truth:
        verdicts = judge_by_truth(recorded, candidates, search.layers, len(search.classes) + 1)
    else:
        verdicts = judge_by_labels(recorded, candidates, search.layers)
    return list(zip(candidates, verdicts, strict=True))
