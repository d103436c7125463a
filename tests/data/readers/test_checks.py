import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.config import DataConfig
from data.masks import write_mask
from data.readers.checks import check_data, report_lines
from data.readers.layout import open_samples


def tree(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.fixture
def photos(tmp_path, save_image) -> Path:
    root = tmp_path / "photos"
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        save_image(root / name)
    (root / "labels.csv").write_text("image,labels\na.jpg,cat;dog\nb.jpg,cat\nc.jpg,dog\n")
    return root


def test_a_sound_folder(photos):
    before = tree(photos)
    report = check_data(DataConfig(photos))
    assert report.problems == []
    assert report.warnings == []
    assert (report.images, report.labelled, report.examined) == (3, 3, 3)
    assert report.classes == {"cat": 2, "dog": 2}
    assert report.sizes["height"] == [24, 24, 24]
    assert report.disk_mb > 0
    assert tree(photos) == before
    json.dumps(report.to_json())


def test_every_finding_is_named(photos, save_image):
    (photos / "classes.yaml").write_text("classes: [cat, dog, sofa]")
    shutil.copy(photos / "a.jpg", photos / "copy.jpg")
    content = (photos / "b.jpg").read_bytes()
    (photos / "b.jpg").write_bytes(content[: len(content) // 2])
    save_image(photos / "nolabel.jpg")
    (photos / "old.heic").touch()
    with (photos / "labels.csv").open("a") as file:
        file.write("copy.jpg,cat\nd.jpg,sofa\nc.jpg,catt\n")
    report = check_data(DataConfig(photos))
    assert report.unlabelled == ["nolabel"]
    assert "truncated" in report.unreadable["b"].lower()
    assert list(report.rows_without_image) == ["d.jpg"]
    assert "nearest:" in report.rows_without_image["d.jpg"]
    assert report.unknown_classes == {"catt": " (did you mean 'cat'?)"}
    assert report.duplicates == [["a", "copy"]]
    assert report.files_not_read == ["old.heic"]
    assert report.classes["sofa"] == 0
    text = "\n".join(report_lines(report))
    for part in ("catt", "did you mean 'cat'", "b: ", "a = copy", "without images: sofa", "old.heic", "1 unlabelled"):
        assert part in text
    assert len(report.problems) == 2
    assert len(check_data(DataConfig(photos), skip_unreadable=True).problems) == 1


def test_kinds_of_images(tmp_path):
    rgb = np.zeros((8, 12, 3), np.uint8)
    folder = tmp_path / "cat"
    folder.mkdir()
    Image.fromarray(rgb[..., 0]).save(folder / "grey.png")
    Image.fromarray(rgb[..., 0].astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.dstack([rgb, rgb[..., :1]])).save(folder / "alpha.png")
    Image.new("CMYK", (12, 8)).save(folder / "print.jpg")
    Image.fromarray(rgb).convert("P").save(folder / "indexed.png")
    turned = Image.fromarray(rgb)
    exif = turned.getexif()
    exif[0x0112] = 8
    turned.save(folder / "side.jpg", exif=exif)
    Image.fromarray(rgb).save(folder / "two.tif", save_all=True, append_images=[Image.fromarray(rgb)])
    report = check_data(DataConfig(tmp_path))
    assert report.kinds == {
        "greyscale": 2,
        "16-bit": 1,
        "alpha": 1,
        "CMYK": 1,
        "palette": 1,
        "EXIF rotation": 1,
        "several pictures": 1,
    }
    assert report.sizes["height"] == [8, 8, 12]
    assert "laid over white" in "\n".join(report_lines(report))
    assert report.problems == []


def test_examining_a_part(photos):
    assert check_data(DataConfig(photos), examine=2).examined == 2


def test_unlabelled_may_be_a_problem(photos, save_image):
    save_image(photos / "d.jpg")
    assert check_data(DataConfig(photos)).problems == []
    assert "data.unlabelled=stop" in check_data(DataConfig(photos, unlabelled="stop")).problems[0]


@pytest.mark.parametrize("make", ["nothing", "empty", "voc split"])
def test_faults_of_the_whole(tmp_path, make_voc, make):
    if make == "empty":
        (tmp_path / "d").mkdir()
    if make == "voc split":
        make_voc(tmp_path / "d", {"a": ["cat"]})
    config = DataConfig(tmp_path / "d", split="vall" if make == "voc split" else "train")
    report = check_data(config)
    assert len(report.problems) == 1
    assert report_lines(report)[-1].startswith("problem: ")


def test_voc_with_a_missing_image_and_an_unknown_class(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"], "b": ["catt"], "c": ["dog"]})
    (tmp_path / "JPEGImages" / "c.jpg").unlink()
    report = check_data(DataConfig(tmp_path))
    assert report.unreadable == {"c": "no such file"}
    assert "'catt' (did you mean 'cat'?)" in report.problems[0]
    assert report.with_truth == 3


def test_coco_writes_no_index(tmp_path, make_coco):
    shape = {"category_id": 3, "area": 9, "segmentation": [[0, 0, 3, 0, 3, 3]]}
    make_coco(tmp_path / "coco", {1: [shape], 2: []})
    report = check_data(DataConfig(tmp_path / "coco", cache=tmp_path / "cache"))
    assert report.classes == {"car": 1, "toothbrush": 0}
    assert report.unlabelled == ["COCO_train2014_000000000002"]
    assert not (tmp_path / "cache").exists()


def test_files_that_are_no_pictures_are_named_plainly(photos):
    (photos / "b.jpg").write_bytes(b"")
    (photos / "c.jpg").write_text("<html>404</html>")
    report = check_data(DataConfig(photos))
    assert report.unreadable == {"b": "an empty file", "c": "no picture in it that can be read"}


def test_every_ground_truth_is_counted_that_scoring_finds(tmp_path, make_voc, make_coco, save_image):
    square = {"category_id": 3, "area": 4, "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6]]}
    make_voc(tmp_path / "voc", {"a": ["cat"], "b": ["dog"]})
    make_coco(tmp_path / "coco", {1: [square], 2: [square]})
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        save_image(tmp_path / "own" / name)
    write_mask(make_folder(tmp_path / "own" / "masks" / "cat") / "1.png", np.zeros((24, 32), np.uint8))
    write_mask(tmp_path / "own" / "masks" / "dog__1.png", np.zeros((24, 32), np.uint8))
    for name, expected in (("voc", 2), ("coco", 2), ("own", 2)):
        config = DataConfig(root=tmp_path / name, cache=tmp_path / "cache")
        found = open_samples(config).samples
        there = sum(found[position].truth_path is not None for position in range(len(found)))
        assert check_data(config).with_truth == there == expected


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path
