"""Masks of other programs become a store that every command reads."""

import csv
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn
from PIL import Image

from data.class_file import save_classes
from data.classes import make_classes
from data.masks import read_mask, write_mask
from data.store.softmaps import upsample
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.generate.importing import soft_maps, without_undecided

NAMES = ("cat", "dog")


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)


def mask_of(*labels: int) -> np.ndarray:
    mask = np.zeros((40, 60), np.uint8)
    for position, label in enumerate(labels):
        mask[4 + 16 * position : 18 + 16 * position, 10:50] = label
    mask[:, 8:10] = 255
    return mask


@pytest.fixture
def photos(tmp_path):
    """A folder of images with labels, and a folder of masks of another program: by id, by path, and a stray one."""
    root = tmp_path / "photos"
    (root / "home").mkdir(parents=True)
    save_classes(make_classes(list(NAMES), {}, {}), root / "classes.yaml")
    rows = {"1.jpg": "cat", "home/2.jpg": "cat;dog", "3.jpg": "dog"}
    for name in rows:
        Image.fromarray(picture()).save(root / name)
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "labels"), *rows.items()])
    masks = tmp_path / "theirs"
    (masks / "home").mkdir(parents=True)
    write_mask(masks / "1.png", mask_of(1, 2))  # a dog that the labels do not name
    write_mask(masks / "home" / "2.png", mask_of(1, 2))
    write_mask(masks / "9.png", mask_of(1))
    return root, masks


def importing(root, masks, store, *more) -> int:
    return main(["import", "--root", str(root), "--masks", str(masks), "--store", str(store), *more])


def test_masks_are_found_by_id_and_by_path_and_what_does_not_fit_is_named(photos, tmp_path, capsys):
    root, masks = photos
    assert importing(root, masks, tmp_path / "S") == 0
    printed = capsys.readouterr().out
    assert "2 masks in" in printed
    assert "1 image has no mask: 3." in printed
    assert "1 mask belongs to no image of the split: 9.png." in printed
    assert "that their image's labels do not name: dog (1)." in printed
    store = MaskStore.open(tmp_path / "S")
    assert store.ids() == ["1", "home__2"]
    assert {record["id"]: record["labels"] for record in store.records()} == {"1": [1, 2], "home__2": [1, 2]}
    for sample in store.ids():
        assert np.array_equal(store.read_mask(sample), mask_of(1, 2))
        assert set(np.unique(store.read_argmax(sample))) == {0, 1, 2}


def test_every_command_works_on_it(photos, tmp_path, capsys):
    root, masks = photos
    assert importing(root, masks, tmp_path / "S") == 0
    (root / "masks").mkdir()
    write_mask(root / "masks" / "1.png", mask_of(1, 2))
    assert main(["score", "--store", str(tmp_path / "S"), "--json"]) == 0
    assert '"miou": 1.0' in capsys.readouterr().out
    assert main(["report", "--store", str(tmp_path / "S")]) == 0
    assert main(["refine", "--store", str(tmp_path / "S"), "--output", str(tmp_path / "R"), "--workers", "0"]) == 0
    assert MaskStore.open(tmp_path / "R").ids() == ["1", "home__2"]
    exported = ["--format", "voc", "--output", str(tmp_path / "V")]
    assert main(["export", "--store", str(tmp_path / "S"), *exported]) == 0
    assert list((tmp_path / "V").rglob("home__2.png"))


def test_masks_without_soft_maps_have_one_iou_and_no_crf_to_be_before(photos, tmp_path, capsys):
    root, masks = photos
    assert importing(root, masks, tmp_path / "S", "--soft", "false") == 0
    (root / "masks").mkdir()
    write_mask(root / "masks" / "1.png", mask_of(1, 2))
    assert main(["score", "--store", str(tmp_path / "S")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^class +IoU +precision +recall$", said, re.MULTILINE)
    assert re.search(r"^mean \(mIoU\) +100.0$", said, re.MULTILINE)
    assert main(["report", "--store", str(tmp_path / "S")]) == 0
    page = (tmp_path / "S" / "report.html").read_text(encoding="utf-8")
    assert "<th>IoU" in page
    assert "before CRF" not in page
    assert "after CRF" not in page
    assert f"made by <bdi>another program ({masks})</bdi>" in page


def test_it_goes_on_where_it_stopped(photos, tmp_path, capsys):
    root, masks = photos
    assert importing(root, masks, tmp_path / "S") == 0
    write_mask(masks / "3.png", mask_of(2))
    capsys.readouterr()
    assert importing(root, masks, tmp_path / "S") == 0
    assert "3 masks in" in (printed := capsys.readouterr().out)
    assert "1 taken now" in printed
    assert importing(root, tmp_path / "theirs" / "home", tmp_path / "S") == 2  # other masks: another store


def test_masks_inside_the_image_folder_are_no_images(photos, tmp_path):
    root, masks = photos
    inside = masks.rename(root / "sam")
    assert importing(root, inside, tmp_path / "S") == 0
    assert MaskStore.open(tmp_path / "S").ids() == ["1", "home__2"]


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (np.zeros((41, 60), np.uint8), "41 x 60 pixels"),
        (np.full((40, 60), 7, np.uint8), "holds class 7"),
        (np.zeros((40, 60, 3), np.uint8), "holds colours"),
    ],
)
def test_a_wrong_mask_stops_or_is_left_out_and_named(photos, tmp_path, capsys, broken, expected):
    root, masks = photos
    Image.fromarray(broken).save(masks / "1.png")
    assert importing(root, masks, tmp_path / "S") == 2
    assert expected in capsys.readouterr().err
    assert importing(root, masks, tmp_path / "T", "--on_error", "skip") == 0
    printed = capsys.readouterr().out
    assert "1 IMAGE WAS SKIPPED" in printed
    assert expected in printed
    assert MaskStore.open(tmp_path / "T").ids() == ["home__2"]


def test_black_and_white_masks_need_to_be_said_what_white_is(tmp_path, capsys):
    root, masks = tmp_path / "photos", tmp_path / "sam"
    for folder in (root, masks):
        folder.mkdir()
    save_classes(make_classes(["cat"], {}, {}), root / "classes.yaml")
    Image.fromarray(picture()).save(root / "1.jpg")
    Image.fromarray(np.uint8(255) * (mask_of(1) == 1)).save(masks / "1.png")
    assert importing(root, masks, tmp_path / "S") == 2
    assert "--white=class" in capsys.readouterr().err
    assert importing(root, masks, tmp_path / "T", "--white", "class") == 0
    assert np.array_equal(MaskStore.open(tmp_path / "T").read_mask("1"), (mask_of(1) == 1).astype(np.uint8))


def test_a_mask_on_the_rows_of_the_file_is_turned_with_its_image(tmp_path):
    root, masks = tmp_path / "photos", tmp_path / "theirs"
    for folder in (root, masks):
        folder.mkdir()
    save_classes(make_classes(list(NAMES), {}, {}), root / "classes.yaml")
    lying = Image.fromarray(picture())
    exif = lying.getexif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    lying.save(root / "1.jpg", exif=exif)
    write_mask(masks / "1.png", mask_of(1, 2))
    assert importing(root, masks, tmp_path / "S") == 0
    assert np.array_equal(read_mask(tmp_path / "S" / "masks" / "1.png"), np.rot90(mask_of(1, 2), -1))


def test_what_names_no_image_is_refused_with_an_example(photos, tmp_path, capsys):
    root, _ = photos
    assert importing(root, tmp_path / "nowhere", tmp_path / "S") == 2
    assert "--masks must name a folder" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    write_mask(tmp_path / "other" / "x.png", mask_of(1))
    assert importing(root, tmp_path / "other", tmp_path / "S") == 2
    assert "the first mask is x.png); a mask is named as its image's id, such as 1.png" in capsys.readouterr().err
    assert not (tmp_path / "S").exists()


MASKS = drawn.arrays(
    np.uint8, drawn.array_shapes(min_dims=2, max_dims=2, max_side=21), elements=st.sampled_from([0, 1, 2, 255])
)


@given(MASKS)
def test_undecided_pixels_take_the_class_of_a_nearest_decided_one(mask):
    filled = without_undecided(mask)
    known = np.argwhere(mask != 255)
    for row, column in np.ndindex(mask.shape):
        if not len(known):
            assert filled[row, column] == 0
        elif mask[row, column] != 255:
            assert filled[row, column] == mask[row, column]
        else:
            distance = np.hypot(*(known - (row, column)).T)
            near = known[distance <= distance.min() * 1.05 + 1e-6]  # OpenCV's distance is near the true one
            assert filled[row, column] in {mask[tuple(each)] for each in near}


@given(MASKS)
def test_soft_maps_are_shares_that_sum_to_one(mask):
    soft = soft_maps(mask, (1, 2))
    assert soft.background
    assert np.allclose(soft.maps.astype(float).sum(axis=0), 1, atol=2e-3)
    assert upsample(soft.maps.astype(np.float32), soft).shape == (3, *mask.shape)
    whole = mask[:8, :8]
    if whole.shape == (8, 8):
        share = [(whole == kind).mean() + (whole == 255).mean() / 3 for kind in (0, 1, 2)]
        assert np.allclose(soft.maps[:, 0, 0].astype(float), share, atol=1e-3)
