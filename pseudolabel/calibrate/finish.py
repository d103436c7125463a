"""The last steps of a calibration: threshold, refinement along edges and the background's rule.

They work on soft maps as `generate` makes them, with all draws and image sizes, and are judged by mIoU after the
refinement at the images' own size, since that is what `generate` writes (the CRF prefers a lower threshold than the
maps by themselves do).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data.console import progress_bar
from data.masks import read_truth
from data.scoring import confusion_matrix, score
from data.store.softmaps import SoftMaps, decode_soft, encode_soft
from pseudolabel.calibrate.budget import OutOfTime
from pseudolabel.calibrate.candidates import (
    describe_masks,
    other_backgrounds,
    other_refinements,
    refinement_changes,
    with_threshold,
)
from pseudolabel.calibrate.kept import digest
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.calibrate.state import MIN_GAIN, Search, candidate_key
from pseudolabel.config import GenerateConfig, mask_config
from pseudolabel.masks.config import MaskConfig, SamConfig
from pseudolabel.masks.crf import with_engine
from pseudolabel.masks.fuse import before_crf
from pseudolabel.masks.labelmap import image_marginals, label_map
from pseudolabel.pipeline import Pipeline

THRESHOLD_STEPS = tuple(0.025 * step for step in range(-4, 3))  # tried around the best one before the CRF
AGAIN_STEPS = (-0.025, 0.025)  # tried around the best one after another refinement was chosen


@dataclass(frozen=True)
class Measured:
    """The mIoU of some settings as `generate` writes them, at full size and with all draws."""

    before_crf: float
    after_crf: float

    def __str__(self) -> str:
        return f"{self.before_crf:.4f} / {self.after_crf:.4f}"


@dataclass
class Maps:
    """Soft maps of all pictures, as `generate` makes them with some settings; made once they are asked for.

    Attributes:
        search: the model and the pictures.
        config: the settings.

    """

    search: Search
    config: GenerateConfig

    @property
    def key(self) -> str:
        """What they are kept by."""
        return digest("soft maps", candidate_key(self.config))

    @cached_property
    def soft(self) -> dict[str, SoftMaps]:
        """Those of each picture, by its id."""
        return {picture.id: decode_soft(kept["soft"].numpy().tobytes()) for picture, kept in self._kept}

    @property
    def seconds(self) -> float:
        """How long they took, in whichever run."""
        return sum(float(kept["seconds"]) for _, kept in self._kept)

    @cached_property
    def _kept(self) -> list[tuple[Picture, dict[str, Tensor]]]:
        search, clock = self.search, self.search.kept.budget.clock

        def make(rest: Sequence[Picture]) -> Iterator[dict[str, Tensor]]:
            pipeline = Pipeline(search.parts, self.config, search.classes, cut=False)
            for picture in _bar(search, "soft maps", rest):
                started = clock()
                [soft] = pipeline.soft_maps([picture.rgb_u8], [picture.labels], [picture.id])
                content = torch.frombuffer(bytearray(encode_soft(soft)), dtype=torch.uint8)
                yield {"soft": content, "seconds": torch.tensor(clock() - started, dtype=torch.float64)}

        return list(search.kept.by_picture(self.key, search.pictures, make))


def _bar(search: Search, title: str, rest: Sequence[Picture]) -> Iterator[Picture]:
    done = len(search.pictures) - len(rest)
    yield from progress_bar(
        rest, desc=f"{search.place} {title}", total=len(search.pictures), initial=done, unit="image", leave=False
    )


def measure(maps: Maps, variants: Sequence[MaskConfig], title: str = "measure") -> list[Measured]:
    """Return what some ways to turn soft maps into masks reach."""
    search = maps.search
    # What is left undecided (`ignore_below`) changes no figure.
    names = [digest("masks", maps.key, variant.fuse, variant.crf, variant.sam) for variant in variants]
    judged = search.kept.judged
    missing = {name: each for name, each in zip(names, variants, strict=True) if name not in judged}
    if missing:
        counts = _count(maps, list(missing.values()), title)
        found = [[score(after).miou, score(before).miou] for before, after in counts]
        search.kept.add(dict(zip(missing, found, strict=True)))
    return [Measured(judged[name][1], judged[name][0]) for name in names]


def _count(maps: Maps, variants: Sequence[MaskConfig], title: str) -> np.ndarray:
    """Return the confusion matrices of each variant, before the refinement and after it, over all pictures."""
    search = maps.search
    device, n_classes = str(search.parts.device), search.n_classes

    def make(rest: Sequence[Picture]) -> Iterator[dict[str, Tensor]]:
        for picture in _bar(search, title, rest):
            sample, soft, rgb_u8 = search.samples[picture.id], maps.soft[picture.id], picture.rgb_u8
            assert sample.truth_path is not None
            truth = read_truth(sample.truth_path, picture.size_hw, sample.image_path, sample.white)
            counts = np.zeros((len(variants), 2, n_classes, n_classes), np.int64)
            for (before, after), variant in zip(counts, variants, strict=True):
                found = label_map(rgb_u8, soft, replace(variant, crf=with_engine(variant.crf, device)), device)[1]
                before += confusion_matrix(truth, before_crf(soft, variant.fuse, variant.crf), n_classes)
                after += confusion_matrix(truth, found, n_classes)
            yield {"counts": torch.from_numpy(counts)}

    key = digest("mask counts", maps.key, list(variants))
    total = np.zeros((len(variants), 2, n_classes, n_classes), np.int64)
    for _, kept in search.kept.by_picture(key, search.pictures, make):
        total += kept["counts"].numpy()
    return total


def measure_given(search: Search) -> Measured:
    """Return what the settings given reach, and set aside the time that measuring others at the end will take."""
    maps, budget = Maps(search, search.given), search.kept.budget
    key = digest("seconds", maps.key)
    started = budget.clock()
    [found] = measure(maps, [mask_config(search.given)], "measure the settings given")
    if key not in search.kept.judged:
        seconds = maps.seconds
        search.kept.add({key: [seconds, max(0.0, budget.clock() - started - seconds)]})
    for_maps, for_masks = search.kept.judged[key]
    budget.reserve_s = for_maps + len(THRESHOLD_STEPS) * for_masks
    search.tried += 1
    search.note("the settings given", found.after_crf, describe_masks(mask_config(search.given)))
    return found


def choose_threshold(maps: Maps, start: float) -> Measured:
    """Choose the threshold that is best after the refinement, around the one that is best before it."""
    masks = _without_sam(maps.search.config)
    variants = [with_threshold(masks, start + step) for step in THRESHOLD_STEPS if 0 < start + step <= 1]
    return _take(maps, variants, "threshold after the refinement", None)


def choose_refinement(maps: Maps, reached: Measured) -> Measured:
    """Choose the refinement, then the threshold again and the background's score, where that helps.

    Raises:
        OutOfTime: the time is up; what was chosen until then stays.

    """
    former = maps.search.config
    try:
        reached = _refinement_steps(maps, reached)
    except OutOfTime:
        keep_ignored_share(maps, former)
        raise
    keep_ignored_share(maps, former)
    return reached


def _refinement_steps(maps: Maps, reached: Measured) -> Measured:
    search, former = maps.search, maps.search.config.crf
    reached = _take(maps, other_refinements(_without_sam(search.config)), "refinement", reached)
    reached = _take(maps, refinement_changes(_without_sam(search.config)), "small changes to it", reached)
    masks = _without_sam(search.config)
    if masks.crf != former:
        tau = masks.fuse.threshold
        again = [with_threshold(masks, tau + step) for step in AGAIN_STEPS if 0 < tau + step <= 1]
        reached = _take(maps, again, "threshold again", reached)
    return _take(maps, other_backgrounds(_without_sam(search.config)), "background's score", reached)


def _take(maps: Maps, variants: Sequence[MaskConfig], step: str, reached: Measured | None) -> Measured:
    """Take over the best of some ways to make masks if it beats what there is (None: anything does)."""
    if reached is not None and not variants:
        return reached
    search = maps.search
    search.tried += len(variants)
    found = measure(maps, variants, step)
    best = max(range(len(variants)), key=lambda index: found[index].after_crf)
    if reached is not None and found[best].after_crf <= reached.after_crf + MIN_GAIN:
        search.note(step, reached.after_crf, "nothing better")
        return reached
    chosen = variants[best]
    search.config = replace(search.config, fuse=chosen.fuse, crf=chosen.crf)
    search.note(step, found[best].after_crf, describe_masks(chosen))
    return found[best]


def _without_sam(config: GenerateConfig) -> MaskConfig:
    return replace(mask_config(config), sam=SamConfig())


def keep_ignored_share(maps: Maps, former: GenerateConfig) -> None:
    """Set the share below which a pixel is ignored so that another kind of refinement ignores as many as the former.

    Refinements differ in how sure they are: what 0.95 is to the dense CRF, TLP seldom reaches.
    """
    search = maps.search
    if not former.ignore_below or search.config.crf.kind == former.crf.kind:
        return
    edges = np.linspace(0, 1, 101)
    counts = np.zeros((2, 100), np.int64)
    for picture in search.pictures:
        for row, config in zip(counts, (former, search.config), strict=True):
            marginals = image_marginals(picture.rgb_u8, maps.soft[picture.id], _without_sam(config))
            row += np.histogram(marginals.max(axis=0), edges)[0]
    below = np.concatenate([np.zeros((2, 1)), (counts / counts[0].sum()).cumsum(axis=1)], axis=1)  # at each edge
    share = below[0, round(100 * former.ignore_below)]
    limit = round(float(edges[int(abs(below[1] - share).argmin())]), 2)
    search.config = replace(search.config, ignore_below=limit)
    search.steps.append(f"ignore_below {limit}: {100 * share:.0f} % of pixels undecided, as with {former.crf.kind}")
    search.seconds.append(0.0)
