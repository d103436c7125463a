"""The last steps of a calibration, against the pipeline's own masks, and what they do to the ignore band."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.config import DataConfig
from data.readers.layout import open_samples
from data.scoring import confusion_matrix, score
from pseudolabel.calibrate import finish
from pseudolabel.calibrate.budget import Budget, OutOfTime
from pseudolabel.calibrate.candidates import REFINEMENTS, other_refinements, refinement_changes, with_threshold
from pseudolabel.calibrate.finish import Maps, choose_refinement, choose_threshold, measure
from pseudolabel.calibrate.kept import Kept
from pseudolabel.calibrate.search import Options, found_by_truth, prepare, start
from pseudolabel.config import mask_config
from pseudolabel.masks.config import CrfConfig, MaskConfig
from pseudolabel.masks.labelmap import image_marginals
from pseudolabel.pipeline import Pipeline


@pytest.fixture
def maps(shared_world, tiny_config, tmp_path) -> Maps:
    """Those of the tiny configuration's settings on two images."""
    config = replace(tiny_config, data=DataConfig(root=shared_world), crf=CrfConfig(iterations=3))
    samples = open_samples(config.data, need_labels=True, need_truth=True)
    task = prepare(config, samples, samples.samples[:2], Options())
    search = start(task, Kept(tmp_path / "kept", Budget()))
    search.config = found_by_truth(search)
    return Maps(search, search.config)


def reached(maps: Maps, masks: MaskConfig) -> float:
    """The mIoU after the refinement, image by image through a pipeline of its own."""
    search = maps.search
    config = replace(maps.config, fuse=masks.fuse, crf=masks.crf)
    pipeline, total = Pipeline(search.parts, config, search.classes, cut=False), np.zeros((21, 21), int)
    for sample in search.samples.values():
        found = pipeline.explain(np.asarray(Image.open(sample.image_path)), sample.labels, image_id=sample.id)
        total += confusion_matrix(np.asarray(Image.open(sample.truth_path)), np.asarray(found.argmax), 21)
    return score(total).miou


def test_the_threshold_is_the_best_one_after_the_refinement(maps):
    found = choose_threshold(maps, 0.55)
    masks = mask_config(maps.config)
    by_hand = {tau: reached(maps, with_threshold(masks, tau)) for tau in np.round(np.arange(0.45, 0.61, 0.025), 4)}
    assert len(set(by_hand.values())) > 1
    assert found.after_crf == pytest.approx(max(by_hand.values()), abs=1e-3)
    assert by_hand[maps.search.config.fuse.threshold] == pytest.approx(found.after_crf, abs=1e-3)


def test_each_figure_is_that_of_the_pipeline(maps):
    variants = [replace(mask_config(maps.config), crf=CrfConfig(iterations=3, **change)) for change in REFINEMENTS[3:6]]
    for variant, found in zip(variants, measure(maps, variants), strict=True):
        assert found.after_crf == pytest.approx(reached(maps, variant), abs=1e-3)


def test_the_refinement_that_is_best_is_taken(maps):
    """The best of those that are tried, as a pipeline of its own measures them, or better after small changes to it."""
    search = maps.search
    before = choose_threshold(maps, 0.5)
    former = mask_config(search.config)
    tried = {each.crf.kind: [] for each in other_refinements(former)}
    for each in other_refinements(former):
        tried[each.crf.kind].append(reached(maps, each))
    after = choose_refinement(maps, before)
    assert set(tried) == {"densecrf", "tlp", "none"}
    best = max(max(figures) for figures in tried.values())
    assert best > before.after_crf + finish.MIN_GAIN  # else this test says nothing
    assert after.after_crf >= best - 1e-3
    assert search.config.crf != former.crf


@pytest.mark.parametrize("kind", ["tlp", "none"])
def test_another_refinement_leaves_as_many_pixels_undecided(maps, kind):
    search = maps.search
    former = search.config
    search.config = replace(former, crf=CrfConfig(kind=kind))
    finish.keep_ignored_share(maps, former)
    assert search.config.ignore_below < former.ignore_below

    def share(config) -> float:
        every = [
            image_marginals(picture.rgb_u8, maps.soft[picture.id], mask_config(config)).max(axis=0).ravel()
            for picture in search.pictures
        ]
        return float((np.concatenate(every) < config.ignore_below).mean())

    assert 0 < share(former) < 1
    below = share(replace(search.config, ignore_below=search.config.ignore_below - 0.01))
    above = share(replace(search.config, ignore_below=search.config.ignore_below + 0.01))
    assert below <= share(former) <= above


def test_what_is_tried_differs_in_one_number():
    masks = MaskConfig(crf=CrfConfig(kind="tlp"))
    found = [(each.crf.smoothness, each.crf.edge, each.crf.guide) for each in refinement_changes(masks)]
    assert found == [(32, 10, 0), (128, 10, 0), (64, 7, 0), (64, 14, 0), (64, 10, 9), (64, 10, 9)]
    assert {each.crf.guide for each in refinement_changes(MaskConfig(crf=CrfConfig(guide=9.0)))} == {0, 9}
    assert refinement_changes(MaskConfig(crf=CrfConfig(kind="none"))) == []
    assert masks not in other_refinements(masks)
    assert {each.crf.kind for each in other_refinements(masks)} == {"densecrf", "tlp", "none"}


def test_where_the_time_ends_a_refinement_that_is_less_sure_leaves_no_more_undecided(maps, monkeypatch):
    """The time is up right after TLP was taken."""
    search = maps.search
    former = search.config

    def until_small_changes(maps, variants, step, reached):
        if step == "small changes to it":
            raise OutOfTime
        search.config = replace(search.config, crf=CrfConfig(kind="tlp"))
        return reached

    monkeypatch.setattr(finish, "_take", until_small_changes)
    with pytest.raises(OutOfTime):
        choose_refinement(maps, finish.Measured(0.1, 0.1))
    assert search.config.crf.kind == "tlp"
    assert search.config.ignore_below < former.ignore_below
