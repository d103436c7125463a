import json
import shutil

import numpy as np
import pytest

from data.classes import VOC
from data.masks import read_mask, write_mask
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.config import mask_settings
from pseudolabel.masks.fuse import before_crf
from pseudolabel.review.score import score_store

TRUTH = "SegmentationClassTruth"


def reference_miou(pairs, n_classes: int = 21) -> float:
    """The mean over classes of intersection over union, with sets of pixels."""
    ious = []
    for class_id in range(n_classes):
        intersection = sum(int(((true == class_id) & (made == class_id)).sum()) for true, made in pairs)
        union = sum(int((((true == class_id) | (made == class_id)) & (true != 255)).sum()) for true, made in pairs)
        if union:
            ious.append(intersection / union)
    return float(np.mean(ious))


def test_figures_are_those_of_an_independent_count(made_store, world):
    store = MaskStore.open(made_store)
    found = score_store(store, truth=TRUTH)
    truths = {name: read_mask(world / TRUTH / f"{name}.png") for name in store.ids()}
    after = reference_miou([(truths[name], store.read_argmax(name)) for name in truths])
    assert found.after_crf.miou == pytest.approx(after)
    config = mask_settings(store.header["config"])
    before = reference_miou([(truths[name], before_crf(store.read_soft(name), config.fuse)) for name in truths])
    assert found.before_crf.miou == pytest.approx(before)
    assert found.ignore_share == pytest.approx(np.mean([store.read_mask(name) == 255 for name in truths]), abs=1e-5)
    assert found.images == 6
    assert found.missing_truth == ()


def test_missing_truth_is_counted_and_named(made_store, world, tmp_path, capsys):
    truth = shutil.copytree(world / TRUTH, tmp_path / "truth")
    (truth / "train_000004.png").unlink()
    assert main(["score", f"--store={made_store}", f"--truth={truth}"]) == 0
    said = capsys.readouterr().out
    assert "1 IMAGE HAS NO GROUND TRUTH" in said
    assert "train_000004" in said
    assert "5 images" in said


def test_no_truth_at_all_is_an_error_with_a_remedy(made_store, capsys):
    assert main(["score", f"--store={made_store}"]) == 2
    said = capsys.readouterr().err
    assert "--truth" in said
    assert "--root" in said


def test_truth_of_another_size(made_store, world, tmp_path, capsys):
    truth = shutil.copytree(world / TRUTH, tmp_path / "truth")
    write_mask(truth / "train_000001.png", np.zeros((5, 7), np.uint8))
    assert main(["score", f"--store={made_store}", f"--truth={truth}"]) == 2
    assert "5 x 7" in capsys.readouterr().err


def test_json(made_store, capsys):
    assert main(["score", f"--store={made_store}", f"--truth={TRUTH}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 6
    assert set(found["after_crf"]["iou"]) == {"background", *VOC.names}
    assert 0 <= found["before_crf"]["miou"] <= 1


def test_table_has_a_line_for_each_class(made_store, capsys):
    assert main(["score", f"--store={made_store}", f"--truth={TRUTH}"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("background", *VOC.names, "mean (mIoU)", "left undecided"))


def test_perfect_masks_score_one_and_a_store_without_soft_maps_has_no_before(world, tmp_path):
    data = {"format": "voc", "root": str(world), "split": "val"}
    store = MaskStore.create(tmp_path / "s", classes=VOC, config={}, model={}, data=data)
    for path in sorted((world / "SegmentationClass").glob("val_*.png")):
        mask = read_mask(path)
        store.write(path.stem, mask, argmax=mask, soft=None, record={"image": "x", "labels": []})
    found = score_store(store)
    assert found.after_crf.miou == 1.0
    assert found.before_crf is None
    assert found.images == 2


def test_a_threshold_is_read_from_the_store(world, tmp_path):
    data = {"format": "voc", "root": str(world), "split": "val"}
    figures = []
    for threshold in (0.1, 0.9):
        config = {"fuse": {"threshold": threshold}}
        store = MaskStore.create(tmp_path / str(threshold), classes=VOC, config=config, model={}, data=data)
        soft = SoftMaps(np.full((1, 4, 4), 0.5, np.float16), (3,), False, (128, 128), (128, 128), (128, 128))
        mask = np.zeros((128, 128), np.uint8)
        store.write("val_000000", mask, argmax=mask, soft=soft, record={"image": "x", "labels": [3]})
        figures.append(score_store(store).before_crf.matrix.sum(axis=0))
    assert figures[0][3] == figures[1][0] == 128 * 128
