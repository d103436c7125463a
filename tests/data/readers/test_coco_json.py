"""COCO's JSON of wrong types: one line naming the annotation, before pycocotools can crash on it."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data.config import DataConfig
from data.errors import LabelError
from data.readers.checks import check_data
from data.readers.coco import render_truth
from data.readers.coco_json import read_instances
from data.readers.layout import open_samples

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
PLAIN = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "height": 24, "width": 32},
        {"id": 2, "file_name": "b.jpg", "height": 24, "width": 32},
    ],
    "annotations": [
        {"id": 71, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 16.0, "segmentation": [SQUARE]},
        {"id": 72, "image_id": 2, "category_id": 5, "iscrowd": 0, "area": 16.0, "segmentation": [SQUARE]},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
}


@pytest.fixture
def opened(tmp_path, save_image):
    """Open a COCO data set of the given content."""
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / "train2014" / name)
    (tmp_path / "annotations").mkdir()
    config = DataConfig(tmp_path, cache=tmp_path / "cache")

    def run(content: object):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "annotations" / "instances_train2014.json").write_text(text)
        return open_samples(config)

    run.config = config
    return run


def changed(part: str, position: int, **values: object) -> dict:
    content = copy.deepcopy(PLAIN)
    content[part][position].update(values)
    return content


def without(part: str, position: int, key: str) -> dict:
    content = copy.deepcopy(PLAIN)
    del content[part][position][key]
    return content


def runs(size: object, counts: object) -> dict:
    return changed("annotations", 1, segmentation={"size": size, "counts": counts})


HUGE = 10**400
FAULTS = {
    "unlisted category": (changed("annotations", 1, category_id=9), r"category_id of annotation 72 is 9"),
    "no category": (without("annotations", 1, "category_id"), r"category_id of annotation 72 is None"),
    "category as text": (changed("annotations", 1, category_id="5"), r"category_id of annotation 72"),
    "category as list": (changed("annotations", 1, category_id=[5]), r"category_id of annotation 72"),
    "image as text": (changed("annotations", 1, image_id="2"), r"image_id of annotation 72 .* of another kind"),
    "no image": (without("annotations", 1, "image_id"), r"image_id of annotation 72 is None"),
    "true as image": (changed("annotations", 1, image_id=True), r"image_id of annotation 72 is True"),
    "null crowd": (changed("annotations", 1, iscrowd=None), r"iscrowd of annotation 72 is None"),
    "crowd as text": (changed("annotations", 1, iscrowd="0"), r"iscrowd of annotation 72"),
    "crowd of 2": (changed("annotations", 1, iscrowd=2), r"iscrowd of annotation 72 is 2"),
    "area as text": (changed("annotations", 1, area="16"), r"area of annotation 72"),
    "area of nan": (changed("annotations", 1, area=float("nan")), r"area of annotation 72 is nan"),
    "negative area": (changed("annotations", 1, area=-1), r"area of annotation 72 is -1"),
    "null height": (changed("images", 1, height=None), r"Height and width of image 2 are None and 32"),
    "no width": (without("images", 1, "width"), r"Height and width of image 2 are 24 and None"),
    "height as text": (changed("images", 1, height="24"), r"Height and width of image 2"),
    "height of 0": (changed("images", 1, height=0), r"Height and width of image 2"),
    "huge height": (changed("images", 1, height=10**9), r"Height and width of image 2"),
    "half a pixel": (changed("images", 1, height=24.5), r"Height and width of image 2"),
    "no file": (without("images", 1, "file_name"), r"file_name of image 2 is None"),
    "file of a number": (changed("images", 1, file_name=7), r"file_name of image 2 is 7"),
    "file outside": (changed("images", 1, file_name="../b.jpg"), r"file_name of image 2 .* leaves the folder"),
    "absolute file": (changed("images", 1, file_name="/etc/b.jpg"), r"file_name of image 2 .* leaves the folder"),
    "Windows drive": (changed("images", 1, file_name="C:\\b.jpg"), r"file_name of image 2 .* leaves the folder"),
    "zero in file": (changed("images", 1, file_name="b\0.jpg"), r"file_name of image 2"),
    "half a character": (changed("images", 1, file_name="\ud800.jpg"), r"file_name of image 2"),
    "image id twice": (changed("images", 1, id=1), r"Several images have the id 1"),
    "mixed image ids": (changed("images", 1, id="2"), r"Some ids of images are numbers and some texts"),
    "null image id": (changed("images", 1, id=None), r"id of image 1 \(counted from 0\) is None"),
    "category id twice": (changed("categories", 1, id=3), r"Several categories have the id 3"),
    "mixed category ids": (changed("categories", 0, id="3"), r"category_id of annotation|Some ids of categories"),
    "name of a number": (changed("categories", 1, name=5), r"name of category 5 is 5"),
    "null name": (changed("categories", 1, name=None), r"name of category 5 is None"),
    "empty name": (changed("categories", 1, name=" "), r"name of category 5"),
    "name twice": (changed("categories", 1, name="Cat"), r"'Cat' and 'cat' differ in case"),
    "background": (changed("categories", 1, name="background"), r"may not be called 'background'"),
    "flat polygon": (changed("annotations", 1, segmentation=SQUARE), r"segmentation of annotation 72 holds 1"),
    "null polygon": (changed("annotations", 1, segmentation=[None]), r"segmentation of annotation 72 holds None"),
    "null number": (changed("annotations", 1, segmentation=[[*SQUARE[:7], None]]), r"segmentation of annotation 72"),
    "number as text": (changed("annotations", 1, segmentation=[[*SQUARE[:7], "5"]]), r"segmentation of annotation 72"),
    "true as number": (changed("annotations", 1, segmentation=[[*SQUARE[:7], True]]), r"segmentation of annotation 72"),
    "odd polygon": (changed("annotations", 1, segmentation=[SQUARE[:7]]), r"polygon of annotation 72 has 7 numbers"),
    "outline as text": (changed("annotations", 1, segmentation="x"), r"segmentation of annotation 72 is 'x'"),
    "outline of 0": (changed("annotations", 1, segmentation=0), r"segmentation of annotation 72 is 0"),
    "infinity": (changed("annotations", 1, segmentation=[[*SQUARE[:7], float("inf")]]), r"polygon of annotation 72"),
    "not a number": (
        changed("annotations", 1, segmentation=[[*SQUARE[:7], float("nan")]]),
        r"polygon of annotation 72",
    ),
    "1e300": (changed("annotations", 1, segmentation=[[*SQUARE[:7], 1e300]]), r"polygon of annotation 72"),
    "400 digits": (
        changed("annotations", 1, segmentation=[[float("nan"), HUGE, *SQUARE]]),
        r"polygon of annotation 72",
    ),
    "1e6 zigzag": (
        changed("annotations", 1, segmentation=[[0, 0, 1e6, 1e6] * 50]),
        r"polygon of annotation 72 is .* long",
    ),
    "other size": (runs([23, 32], [0, 23 * 32]), r"run lengths of annotation 72 are of the size \[23, 32\]"),
    "turned size": (runs([32, 24], [0, 24 * 32]), r"run lengths of annotation 72"),
    "packed, other size": (runs([2, 2], "04"), r"run lengths of annotation 72"),
    "no size": (runs(None, [0, 4]), r"run lengths of annotation 72"),
    "no counts": (runs([24, 32], None), r"counts of annotation 72 are no run lengths"),
    "negative run": (runs([24, 32], [10, -5, 10]), r"counts of annotation 72 are no run lengths"),
    "run as text": (runs([24, 32], ["10"]), r"counts of annotation 72 are no run lengths"),
    "half a run": (runs([24, 32], [0.5]), r"counts of annotation 72 are no run lengths"),
    "runs too long": (runs([24, 32], [0, 24 * 32 + 1]), r"counts of annotation 72 cover 769 pixels of 768"),
    "runs far too long": (runs([24, 32], [0, 2**40]), r"counts of annotation 72 cover"),
    "packed too long": (runs([24, 32], "oooooP"), r"counts of annotation 72"),
    "packed cut short": (runs([24, 32], "o"), r"counts of annotation 72 are no run lengths"),
    "packed nonsense": (runs([24, 32], "\x01 ~"), r"counts of annotation 72 are no run lengths"),
    "packed, not ASCII": (runs([24, 32], "é"), r"counts of annotation 72 are no run lengths"),
    "annotation of a number": ({**PLAIN, "annotations": [7]}, r"Entry 0 of 'annotations' is 7"),
    "annotations of text": ({**PLAIN, "annotations": "x"}, r"no 'annotations', a list"),
    "only strays": (
        {**PLAIN, "annotations": [{**PLAIN["annotations"][0], "image_id": 9}]},
        r"No annotation is of an image of the file; the first is annotation 71",
    ),
    "no categories": ({**PLAIN, "categories": []}, "no categories"),
    "no images": ({**PLAIN, "images": []}, "lists no images"),
    "a list": ([PLAIN], r"no 'images', a list"),
    "null": (None, r"no 'images', a list"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "deep polygon": (
        json.dumps(PLAIN).replace("[1, 1, 5", "[" * 400 + "1" + "]" * 400 + ", [1, 1, 5"),
        "annotation 71",
    ),
}


@pytest.mark.parametrize(("content", "match"), FAULTS.values(), ids=FAULTS.keys())
def test_one_line_names_what_is_wrong(opened, content, match):
    with pytest.raises(LabelError, match=match) as caught:
        opened(content)
    assert "instances_train2014.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert check_data(opened.config).problems == [str(caught.value)]


def test_what_pycocotools_would_crash_on_does_not_reach_it(opened):
    """In a process of its own, as a crash cannot be caught; with 4 GB of memory at most."""
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from data.config import DataConfig\nfrom data.errors import UserError\n"
        "from data.readers.layout import open_samples\n"
        "for root in sys.argv[1:]:\n"
        "    try:\n        found = open_samples(DataConfig(Path(root), cache=Path(root) / 'cache'))\n"
        "        print([one.truth_path for one in found.samples])\n"
        "    except UserError:\n        print('refused')\n"
    )
    roots = []
    for name in (
        "infinity",
        "1e300",
        "not a number",
        "1e6 zigzag",
        "runs too long",
        "runs far too long",
        "packed too long",
    ):
        root = opened.config.root / name
        (root / "annotations").mkdir(parents=True)
        (root / "annotations" / "instances_train2014.json").write_text(json.dumps(FAULTS[name][0]))
        roots.append(str(root))
    found = subprocess.run(
        [sys.executable, "-c", code, *roots], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False
    )
    assert (found.returncode, found.stdout.split()) == (0, ["refused"] * len(roots)), found.stderr


def test_what_is_unusual_but_clear_is_read(opened):
    content = changed("annotations", 1, area=None, iscrowd=False, category_id=5.0)
    content["annotations"][0].pop("area")
    content["annotations"].append({**content["annotations"][0], "id": 73, "image_id": 99})
    content["annotations"].append({"id": 74, "image_id": 2, "category_id": 3})
    content["images"][1]["file_name"] = "b.jpg"
    found = opened(content)
    assert [one.labels for one in found.samples] == [(1,), (1, 2)]
    assert any(
        "1 annotation is of an image that the file does not list (the first is annotation 73); it was left out" in one
        for one in found.notes
    )
    assert any("1 of 4 annotations has no outline" in one for one in found.notes)
    assert all(one.truth_path.is_file() for one in found.samples)
    assert set(found.notes) <= set(check_data(opened.config).warnings)


def test_text_ids_of_one_kind_are_read(opened):
    content = json.loads(json.dumps(PLAIN))
    for image in content["images"]:
        image["id"] = f"image {image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"image {annotation['image_id']}"
    assert [one.labels for one in opened(content).samples] == [(1,), (2,)]


def test_roboflows_root_category(opened):
    content = copy.deepcopy(PLAIN)
    content["categories"] = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "cat"},
        {"id": 5, "name": "dog", "supercategory": "cat"},
    ]
    found = opened(content)
    assert found.classes.names == ("cat", "dog")
    assert [one.labels for one in found.samples] == [(1,), (2,)]


def test_a_class_file_may_leave_out_what_no_annotation_uses(opened, tmp_path):
    content = copy.deepcopy(PLAIN)
    content["categories"].append({"id": 9, "name": "background"})
    (tmp_path / "c.yaml").write_text("[cat, dog]")
    with pytest.raises(LabelError, match="may not be called"):
        opened(content)
    found = open_samples(DataConfig(opened.config.root, cache=opened.config.cache, classes=tmp_path / "c.yaml"))
    assert found.classes.names == ("cat", "dog")


@pytest.mark.parametrize("seed", range(5))
def test_packed_runs_are_measured_as_pycocotools_reads_them(opened, seed):
    mask = np.random.default_rng(seed).random((24, 32)) < 0.1 + 0.2 * seed
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    found = opened(runs([24, 32], code["counts"].decode()))
    [segment] = render_of(found, 1)
    np.testing.assert_array_equal(segment, np.where(mask, 2, 0))


def render_of(found, position: int) -> list[np.ndarray]:
    from data.masks import read_mask

    return [read_mask(found.samples[position].truth_path)]


def test_a_measured_area_decides_the_order():
    small = {"label": 1, "crowd": 0, "area": None, "shape": [SQUARE]}
    large = {"label": 2, "crowd": 0, "area": None, "shape": [[0, 0, 12, 0, 12, 12, 0, 12]]}
    for order in ([small, large], [large, small]):
        truth = render_truth(order, (24, 32))
        assert (truth[3, 3], truth[10, 10]) == (1, 2)
    with pytest.raises(LabelError, match="is of the size"):
        render_truth([{**small, "shape": {"size": [2, 2], "counts": [4]}}], (24, 32))


def test_an_error_inside_never_ends_a_loop_quietly(opened, monkeypatch):
    found = opened(PLAIN)

    def broken(*_: object) -> None:
        raise IndexError("inside")

    monkeypatch.setattr("data.readers.coco._render", broken)
    with pytest.raises(IndexError, match="inside"):
        list(found.samples)
    with pytest.raises(IndexError, match="inside"):
        list(reversed(found.samples))


def test_a_damaged_index_is_named(opened):
    from data.errors import ConfigError

    found = opened(PLAIN)
    [index] = opened.config.cache.iterdir()
    (index / "segments.jsonl").write_text("{\n")
    with pytest.raises(ConfigError, match="delete that folder"):
        list(found.samples)
    (index / "images.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="delete that folder"):
        open_samples(opened.config)


def test_a_file_read_twice_is_equal(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(PLAIN))
    assert read_instances(tmp_path / "a.json") == read_instances(tmp_path / "a.json")
