import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data.classes import COCO
from data.config import DataConfig
from data.errors import ConfigError, LabelError
from data.masks import read_truth
from data.readers.coco import list_data, render_truth
from data.readers.layout import open_samples


def square(left: float, top: float, size: float, category: int = 3, **more: object) -> dict:
    right, bottom = left + size, top + size
    points = [left, top, right, top, right, bottom, left, bottom]
    return {"category_id": category, "area": size * size, "segmentation": [points], **more}


def crowd(mask: np.ndarray, category: int = 3) -> dict:
    runs = np.asfortranarray(mask, dtype=np.uint8).ravel(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], runs, [2]])))
    counts = np.diff(np.concatenate([[0], changes])).tolist()
    segmentation = {"size": list(mask.shape), "counts": counts}
    return {"category_id": category, "area": float(mask.sum()), "iscrowd": 1, "segmentation": segmentation}


@pytest.fixture
def config(tmp_path):
    return DataConfig(tmp_path / "coco", cache=tmp_path / "cache")


def test_labels_are_contiguous_and_images_without_any_are_counted(config, make_coco):
    make_coco(config.root, {7: [square(1, 1, 4), square(9, 9, 5, 90)], 2: [], 5: [square(1, 1, 3, 90)] * 2})
    found = open_samples(config)
    assert found.classes.names == ("car", "toothbrush")
    assert [(one.id, one.labels) for one in found.samples] == [
        ("COCO_train2014_000000000005", (2,)),
        ("COCO_train2014_000000000007", (1, 2)),
    ]
    assert found.samples[0].image_path.is_file()
    [note] = found.notes
    assert note.startswith("1 of 3 images has no labels in instances_train2014.json")


def test_all_eighty_categories_are_cocos(config, make_coco):
    make_coco(config.root, {1: [square(1, 1, 4)]})
    path = config.root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    gaps = [number for number in range(1, 91) if number not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}]
    content["categories"] = [{"id": number, "name": name} for number, name in zip(gaps, COCO.names, strict=True)]
    path.write_text(json.dumps(content))
    found = open_samples(config)
    assert found.classes == COCO
    assert found.samples[0].labels == (3,)


def test_truth_draws_small_on_large_whatever_the_order(config, make_coco):
    large, small = square(0, 0, 20), square(5, 5, 6, 90)
    make_coco(config.root, {1: [small, large], 2: [large, small]})
    truths = [read_truth(one.truth_path, (24, 32)) for one in open_samples(config).samples]
    np.testing.assert_array_equal(truths[0], truths[1])
    assert truths[0][8, 8] == 2
    assert truths[0][15, 15] == 1
    assert truths[0][23, 31] == 0


def test_truth_agrees_with_pycocotools(config, make_coco):
    shape = {"category_id": 3, "area": 60, "segmentation": [[1, 1, 12, 2, 7, 15], [20, 3, 30, 3, 30, 9, 20, 9]]}
    make_coco(config.root, {1: [shape]})
    truth = read_truth(open_samples(config).samples[0].truth_path, (24, 32))
    codes = coco_mask.frPyObjects(shape["segmentation"], 24, 32)
    np.testing.assert_array_equal(truth, coco_mask.decode(coco_mask.merge(codes)))


def test_crowds_are_ignored_below_objects_or_belong_to_their_class(config, make_coco):
    region = np.zeros((24, 32), bool)
    region[:, 10:30] = True
    make_coco(config.root, {1: [square(12, 4, 6, 90), crowd(region)]})
    found = open_samples(config)
    assert found.samples[0].labels == (1, 2)
    truth = read_truth(found.samples[0].truth_path, (24, 32))
    assert truth[20, 20] == 255
    assert truth[6, 14] == 2
    assert truth[0, 0] == 0
    as_class = DataConfig(config.root, cache=config.cache, crowd="class")
    assert read_truth(open_samples(as_class).samples[0].truth_path, (24, 32))[20, 20] == 1


def test_compressed_rle_and_degenerate_polygons(config, make_coco):
    mask = np.zeros((24, 32), np.uint8)
    mask[3:7, 3:9] = 1
    code = coco_mask.encode(np.asfortranarray(mask))
    packed = {"size": code["size"], "counts": code["counts"].decode()}
    line = {"category_id": 90, "area": 1, "segmentation": [[1, 1, 2, 2]]}
    make_coco(config.root, {1: [{"category_id": 3, "area": 24, "segmentation": packed}, line]})
    sample = open_samples(config).samples[0]
    np.testing.assert_array_equal(read_truth(sample.truth_path, (24, 32)), mask)


def test_json_is_parsed_once_and_masks_are_rendered_when_asked_for(config, make_coco, monkeypatch):
    make_coco(config.root, {number: [square(1, 1, 4)] for number in range(1, 41)})
    open_samples(config, need_truth=False)
    from data.readers import coco

    monkeypatch.setattr(coco, "read_instances", lambda path: pytest.fail("parsed again"))
    samples = open_samples(config).samples
    assert samples[1].truth_path.is_file()
    assert len(list(config.cache.rglob("*.png"))) < 10  # a type checker may have looked at a few
    stamp = samples[1].truth_path.stat().st_mtime_ns
    assert samples[1].truth_path.stat().st_mtime_ns == stamp
    assert [one.id[-2:] for one in samples[1:3]] == ["02", "03"]


def test_a_changed_json_gets_a_new_index(config, make_coco):
    make_coco(config.root, {1: [square(1, 1, 4)]})
    assert open_samples(config).samples[0].labels == (1,)
    make_coco(config.root, {1: [square(1, 1, 4, 90)]})
    path = config.root / "annotations" / "instances_train2014.json"
    os.utime(path, ns=(1, 1))
    assert open_samples(config).samples[0].labels == (2,)


def test_listing_writes_nothing(config, make_coco):
    make_coco(config.root, {1: [square(1, 1, 4)], 2: []})
    assert [len(names) for names in list_data(config).names] == [1, 0]
    assert not config.cache.exists()


def test_images_on_their_side(config, make_coco):
    make_coco(config.root, {1: [square(0, 0, 4)]})
    path = next((config.root / "train2014").iterdir())
    image = Image.fromarray(np.zeros((24, 32, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    truth = read_truth(open_samples(config).samples[0].truth_path, (32, 24))
    assert truth[1, 22] == 1
    assert truth[1, 1] == 0


@pytest.mark.parametrize("folder", ["images/train2014", "images", "."])
def test_other_image_folders(config, make_coco, folder):
    make_coco(config.root, {1: [square(1, 1, 4)]})
    target = config.root / folder
    target.mkdir(parents=True, exist_ok=True)
    for path in list((config.root / "train2014").iterdir()):
        path.rename(target / path.name)
    assert open_samples(config).samples[0].image_path.is_file()


def test_faults_are_named(config, make_coco, tmp_path):
    make_coco(config.root, {1: [square(1, 1, 4)]})
    with pytest.raises(ConfigError, match=r"no instances_val2014\.json \(it has instances_train2014\.json\)"):
        open_samples(DataConfig(config.root, split="val"))
    with pytest.raises(ConfigError, match=r"--data\.labels"):
        open_samples(DataConfig(config.root, labels=Path("labels.csv")))
    path = config.root / "annotations" / "instances_train2014.json"
    path.write_text('{"images": []}')
    with pytest.raises(LabelError, match="no 'annotations'"):
        open_samples(config)
    path.write_text('{"images"')
    with pytest.raises(LabelError, match="Cannot read"):
        open_samples(config)
    make_coco(config.root, {1: [square(1, 1, 4)]})
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--data\.cache"):
        open_samples(DataConfig(config.root, cache=tmp_path / "file"))


def test_a_link_to_annotations_that_are_gone_is_none_that_there_are(config, make_coco):
    make_coco(config.root, {1: [square(1, 1, 4)]})
    path = config.root / "annotations" / "instances_train2014.json"
    path.unlink()
    path.symlink_to("gone.json")
    with pytest.raises(ConfigError, match=r"no instances_train2014\.json \(it has none\)"):
        open_samples(config)


def test_no_annotations_give_background():
    np.testing.assert_array_equal(render_truth([], (2, 3)), np.zeros((2, 3), np.uint8))
