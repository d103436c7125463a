"""Two images never share an id, in any layout; ids of data sets that worked stay."""

import json

import pytest

from data.config import DataConfig
from data.errors import LabelError
from data.masks import write_mask
from data.readers.ids import check_distinct, make_ids
from data.readers.layout import open_samples

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def folded(ids) -> set[str]:
    return {one.casefold() for one in ids}


@pytest.fixture
def coco(tmp_path, save_image):
    """Write a COCO data set of the given files; image number n is of class n + 1."""

    def make(files: list[str]) -> DataConfig:
        root = tmp_path / "coco"
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        for file in set(files):
            save_image(root / "train2014" / file)
        content = {
            "images": [{"id": n, "file_name": file, "height": 24, "width": 32} for n, file in enumerate(files)],
            "annotations": [
                {"id": n, "image_id": n, "category_id": n, "iscrowd": 0, "area": 16, "segmentation": SQUARE}
                for n in range(len(files))
            ],
            "categories": [{"id": n, "name": f"class{n}"} for n in range(len(files))],
        }
        (root / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
        return DataConfig(root, cache=tmp_path / "cache")

    return make


@pytest.mark.parametrize(
    "files",
    [["x/1.png", "y/1.png"], ["1.jpg", "1.png"], ["A.png", "a.png"], ["x/1.png", "x__1.png", "y/1.png"], ["a..b.png"]],
)
def test_coco_images_of_one_name_have_their_own_masks_and_truth(coco, files):
    found = open_samples(coco(files))
    samples = list(found.samples)
    assert len(folded(one.id for one in samples)) == len(files)
    assert len({one.truth_path for one in samples}) == len(files)
    assert [one.labels for one in samples] == [(n + 1,) for n in range(len(files))]
    assert all(one.image_path.is_file() for one in samples)


def test_coco_ids_stay_the_stems_where_they_differ(coco):
    assert [one.id for one in open_samples(coco(["x/1.png", "y/2.png", "z/v1.5.jpg"])).samples] == ["1", "2", "v1.5"]


def test_an_image_listed_twice_is_named(coco):
    with pytest.raises(LabelError, match=r"'train2014/1\.png' and 'train2014/1\.png'"):
        open_samples(coco(["1.png", "1.png"]))


def test_voc_images_that_differ_in_case(tmp_path, make_voc):
    make_voc(tmp_path, {"A": ["cat"], "a": ["dog"], "b": ["cow"]})
    samples = list(open_samples(DataConfig(tmp_path)).samples)
    assert len(folded(one.id for one in samples)) == 3
    assert samples[2].id == "b"
    assert [one.truth_path.name for one in samples] == ["A.png", "a.png", "b.png"]
    assert [one.labels for one in samples] == [(8,), (12,), (10,)]


def test_voc_images_that_differ_in_suffix(tmp_path, make_voc, save_image):
    make_voc(tmp_path, {"1": ["cat"], "2": ["dog"]})
    save_image(tmp_path / "JPEGImages" / "1.png")
    for split in ("train", "all"):
        found = open_samples(DataConfig(tmp_path, split=split))
        assert [one.image_path.name for one in found.samples] == ["1.jpg", "2.jpg"]
        assert found.notes == ("1 file beside a .jpg of its name was left out (1.png).",)
    save_image(tmp_path / "JPEGImages" / "3.png")
    save_image(tmp_path / "JPEGImages" / "3.webp")
    assert len(open_samples(DataConfig(tmp_path)).samples) == 2
    with pytest.raises(LabelError, match=r"holds 3\.png and 3\.webp"):
        open_samples(DataConfig(tmp_path, split="all"))


def test_a_label_file_gives_voc_images_their_own_labels(tmp_path, make_voc, save_image):
    make_voc(tmp_path, {"1": ["cat"], "2": ["cat"], "v1.5": ["cat"]})
    save_image(tmp_path / "JPEGImages" / "1.png")
    table = tmp_path / "mine.csv"
    table.write_text("image,labels\n1.jpg,cat\n1.png,dog\nother/2.jpg,dog\nv1.6,dog\nv1.5,cow\nJPEGImages/2.jpg,car\n")
    found = open_samples(DataConfig(tmp_path, labels=table))
    assert {one.id: one.labels for one in found.samples} == {"1": (8,), "2": (7,), "v1.5": (10,)}
    assert any("2 rows of mine.csv have no image" in note for note in found.notes)


def test_a_mask_that_two_images_could_claim_is_no_ones_truth(tmp_path, save_image):
    import numpy as np

    for name in ("cat/1.jpg", "cat/1.png", "cat/2.png"):
        save_image(tmp_path / name)
    (tmp_path / "masks" / "cat").mkdir(parents=True)
    for name in ("1", "2"):
        write_mask(tmp_path / "masks" / "cat" / f"{name}.png", np.zeros((24, 32), np.uint8))
    truths = [one.truth_path for one in open_samples(DataConfig(tmp_path)).samples]
    assert truths == [None, None, tmp_path / "masks" / "cat" / "2.png"]


def test_ids_do_not_depend_on_order():
    files = ["x/1.png", "y/1.png", "2.png", "A.png", "a.png"]
    stems = ["1", "1", "2", "A", "a"]
    ids = make_ids(files, stems)
    assert ids[:3] == ["x__1", "y__1", "2"]
    assert make_ids(files[::-1], stems[::-1]) == ids[::-1]
    with pytest.raises(LabelError, match=r"'x\.png' and 'y\.png' would share the id 'B'"):
        check_distinct(["b", "B"], ["x.png", "y.png"])
