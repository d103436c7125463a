import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools.coco import COCO as CocoReader

from data.classes import VOC, make_classes
from data.config import DataConfig
from data.errors import ImageError, StoreError
from data.exporters.brush import encode_brush
from data.exporters.export import export_store
from data.exporters.items import ExportOptions
from data.exporters.polygons import outlines, yolo_line
from data.images import read_image
from data.masks import read_mask
from data.readers.layout import open_samples
from data.store.store import MaskStore

MASK = np.zeros((24, 32), np.uint8)
MASK[2:10, 3:12] = 8
MASK[4:7, 5:9] = 0  # a hole
MASK[15:20, 20:30] = 8  # a second region of the same class
MASK[12:14, 0:32] = 15
MASK[22:24] = 255


@pytest.fixture
def store(tmp_path, save_image) -> MaskStore:
    data = {"root": str(tmp_path / "photos"), "split": "train", "format": "folder"}
    made = MaskStore.create(tmp_path / "store", classes=VOC, config={}, model={"id": "m"}, data=data)
    for name, mask in (("a", MASK), ("b", np.zeros((24, 32), np.uint8))):
        save_image(tmp_path / "photos" / "sub" / f"{name}.jpg")
        record = {"image": f"sub/{name}.jpg", "labels": [8, 15]}
        made.write(
            f"sub__{name}", mask, argmax=np.where(mask == 255, 20, mask).astype(np.uint8), soft=None, record=record
        )
    return made


def test_coco_through_pycocotools(store, tmp_path, capsys):
    done = export_store(store, "coco", tmp_path / "out", ExportOptions())
    assert done.opens == tmp_path / "out" / "instances_train.json"
    reader = CocoReader(str(done.opens))
    assert [reader.imgs[number]["file_name"] for number in reader.getImgIds()] == ["sub/a.jpg", "sub/b.jpg"]
    assert reader.cats[8]["name"] == "cat"
    rebuilt = np.zeros_like(MASK)
    for annotation in reader.loadAnns(reader.getAnnIds(imgIds=1)):
        mask = reader.annToMask(annotation)
        rebuilt[mask == 1] = annotation["category_id"]
        assert annotation["area"] == mask.sum()
        left, top, width, height = annotation["bbox"]
        rows, columns = np.nonzero(mask)
        assert (left, top) == (columns.min(), rows.min())
        assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
    np.testing.assert_array_equal(rebuilt, np.where(MASK == 255, 0, MASK))
    assert reader.getAnnIds(imgIds=2) == []


def test_coco_components_and_small_ones_left_out(store, tmp_path, capsys):
    export_store(store, "coco", tmp_path / "out", ExportOptions(components=True, min_area_px=55))
    reader = CocoReader(str(tmp_path / "out" / "instances_train.json"))
    areas = {annotation["category_id"]: annotation["area"] for annotation in reader.anns.values()}
    assert areas == {8: 8 * 9 - 3 * 4, 15: 64}


def test_coco_reads_back_as_a_data_set(store, tmp_path):
    export_store(store, "coco", tmp_path / "out" / "annotations", ExportOptions())
    (tmp_path / "out" / "train").symlink_to(tmp_path / "photos")
    found = open_samples(DataConfig(tmp_path / "out", format="coco", cache=tmp_path / "cache"))
    assert found.classes.names == VOC.names
    assert found.samples[0].labels == (8, 15)
    np.testing.assert_array_equal(read_mask(found.samples[0].truth_path), np.where(MASK == 255, 0, MASK))


def test_argmax_has_no_undecided_pixels(store, tmp_path, capsys):
    export_store(store, "coco", tmp_path / "out", ExportOptions(source="argmax"))
    reader = CocoReader(str(tmp_path / "out" / "instances_train.json"))
    assert {annotation["category_id"] for annotation in reader.anns.values()} == {8, 15, 20}


def fill_yolo(text: str, size_hw: tuple[int, int]) -> np.ndarray:
    """Fill polygons as Ultralytics does: scale, cut off the fraction, cv2.fillPoly."""
    filled = np.zeros(size_hw, np.uint8)
    for line in text.splitlines():
        index, *values = line.split()
        points = np.array(values, dtype=np.float64).reshape(-1, 2) * [size_hw[1], size_hw[0]]
        cv2.fillPoly(filled, [points.astype(np.int32)], int(index) + 1)
    return filled


def test_yolo_polygons_fill_to_the_mask(store, tmp_path):
    import yaml

    done = export_store(store, "yolo", tmp_path / "out", ExportOptions())
    text = (tmp_path / "out" / "labels" / "train" / "sub__a.txt").read_text()
    np.testing.assert_array_equal(fill_yolo(text, MASK.shape), np.where(MASK == 255, 0, MASK))
    assert (tmp_path / "out" / "labels" / "train" / "sub__b.txt").read_text() == ""
    image = tmp_path / "out" / "images" / "train" / "sub__a.jpg"
    np.testing.assert_array_equal(read_image(image), read_image(tmp_path / "photos" / "sub" / "a.jpg"))
    content = yaml.safe_load(done.opens.read_text())
    assert content["names"][7] == "cat"
    assert (Path(content["path"]) / content["train"] / "sub__a.jpg").exists()


@settings(max_examples=150, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_outlines_without_holes_fill_to_the_mask(mask):
    padded = np.pad(mask, 1)
    flooded = padded.astype(np.uint8)
    cv2.floodFill(flooded, None, (0, 0), 2)
    solid = (flooded != 2)[1:-1, 1:-1]  # holes closed
    rows = "\n".join(yolo_line(outline, 0, solid.shape) for outline in outlines(solid))
    np.testing.assert_array_equal(fill_yolo(rows, solid.shape), solid.astype(np.uint8))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_outlines_with_holes_fill_nearly_to_the_mask(seed):
    generator = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(generator.random((40, 50)).astype(np.float32), (0, 0), 3)
    mask = noise > np.median(noise)
    rows = "\n".join(yolo_line(outline, 0, mask.shape) for outline in outlines(mask))
    filled = fill_yolo(rows, mask.shape).astype(bool)
    assert (filled & mask).sum() / (filled | mask).sum() > 0.97


def test_voc_reads_back(store, tmp_path):
    export_store(store, "voc", tmp_path / "VOC2012", ExportOptions())
    root = tmp_path / "VOC2012"
    found = open_samples(DataConfig(root, classes=root / "classes.yaml"))
    assert [(one.id, one.labels) for one in found.samples] == [("sub__a", (8, 15)), ("sub__b", (8, 15))]
    np.testing.assert_array_equal(read_mask(found.samples[0].truth_path), MASK)
    assert read_image(found.samples[0].image_path).shape == (24, 32, 3)


def test_voc_reads_back_with_names_that_hold_separators(tmp_path, save_image):
    classes = make_classes(["salt; pepper", "oil"], {}, {})
    save_image(tmp_path / "photos" / "a.jpg")
    data = {"root": str(tmp_path / "photos"), "split": "train", "format": "folder"}
    made = MaskStore.create(tmp_path / "store", classes=classes, config={}, model={"id": "m"}, data=data)
    mask = np.full((24, 32), 1, np.uint8)
    made.write("a", mask, argmax=mask, soft=None, record={"image": "a.jpg", "labels": [1, 2]})
    export_store(made, "voc", tmp_path / "VOC2012", ExportOptions())
    [found] = open_samples(DataConfig(tmp_path / "VOC2012", classes=tmp_path / "VOC2012" / "classes.yaml")).samples
    assert found.labels == (1, 2)


def test_voc_meets_other_trainers_expectations(store, tmp_path):
    """What mmsegmentation's PascalVOCDataset and deeplab-pytorch's VOC and VOCAug read, by their own rules."""
    root = tmp_path / "VOC2012"
    export_store(store, "voc", root, ExportOptions())
    for line in (root / "ImageSets" / "Segmentation" / "train.txt").read_text().splitlines():
        assert (root / "JPEGImages" / f"{line.strip()}.jpg").is_file()
        with Image.open(root / "SegmentationClass" / f"{line.strip()}.png") as image:
            values = np.asarray(image, dtype=np.int32)
        assert set(np.unique(values)) <= {*range(21), 255}
    for line in (root / "ImageSets" / "SegmentationAug" / "train.txt").read_text().splitlines():
        image, label = line.rstrip().split(" ")
        assert (root / image[1:]).is_file()
        assert (root / label[1:]).is_file()


def decode_brush(values: list[int]) -> np.ndarray:
    """Read the stream step by step, as rle-pack's decoder is documented."""
    bits = "".join(f"{value:08b}" for value in values)
    position = 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < total:
        is_run = take(1)
        length = take(sizes[take(2)]) + 1
        out += [take(word)] * length if is_run else [take(word) for _ in range(length)]
    assert len(bits) - position < 8
    return np.array(out, dtype=np.uint8)


@settings(max_examples=100, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_brush_stream_decodes_to_the_mask(mask):
    rgba = decode_brush(encode_brush(mask)).reshape(*mask.shape, 4)
    np.testing.assert_array_equal(rgba[..., 3] > 0, mask)


def test_long_runs_are_cut():
    mask = np.zeros((200, 400), bool)
    mask[100:, :] = True
    np.testing.assert_array_equal(decode_brush(encode_brush(mask)).reshape(200, 400, 4)[..., 3] > 0, mask)


def test_labelstudio_tasks(store, tmp_path):
    import xml.etree.ElementTree as ElementTree

    done = export_store(store, "labelstudio", tmp_path / "out", ExportOptions(url_prefix="https://x/"))
    tasks = json.loads(done.opens.read_text())
    assert [task["data"]["image"] for task in tasks] == ["https://x/sub/a.jpg", "https://x/sub/b.jpg"]
    results = tasks[0]["predictions"][0]["result"]
    rebuilt = np.zeros_like(MASK)
    for result in results:
        assert (result["original_height"], result["original_width"]) == MASK.shape
        rgba = decode_brush(result["value"]["rle"]).reshape(*MASK.shape, 4)
        rebuilt[rgba[..., 3] > 0] = VOC.index(result["value"]["brushlabels"][0])
    np.testing.assert_array_equal(rebuilt, np.where(MASK == 255, 0, MASK))
    view = ElementTree.parse(tmp_path / "out" / "label_config.xml").getroot()
    assert view.find("BrushLabels").get("name") == results[0]["from_name"]
    assert view.find("Image").get("name") == results[0]["to_name"]
    assert [label.get("value") for label in view.iter("Label")] == list(VOC.names)


def test_raw_orientation(store, tmp_path):
    path = tmp_path / "photos" / "sub" / "a.jpg"
    image = Image.fromarray(np.zeros((32, 24, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    export_store(store, "voc", tmp_path / "up", ExportOptions(images="none"))
    export_store(store, "voc", tmp_path / "raw", ExportOptions(orientation="raw", images="copy"))
    assert read_mask(tmp_path / "up" / "SegmentationClass" / "sub__a.png").shape == (24, 32)
    with Image.open(tmp_path / "raw" / "JPEGImages" / "sub__a.jpg") as raw:
        assert read_mask(tmp_path / "raw" / "SegmentationClass" / "sub__a.png").shape == (raw.height, raw.width)


def test_copies_and_missing_images(store, tmp_path):
    export_store(store, "voc", tmp_path / "copied", ExportOptions(images="copy"))
    assert not (tmp_path / "copied" / "JPEGImages" / "sub__a.jpg").is_symlink()
    (tmp_path / "photos" / "sub" / "b.jpg").unlink()
    with pytest.raises(ImageError, match="--root"):
        export_store(store, "yolo", tmp_path / "y", ExportOptions())
    export_store(store, "coco", tmp_path / "c", ExportOptions())
    with pytest.raises(ImageError, match="--root"):
        export_store(store, "coco", tmp_path / "r", ExportOptions(orientation="raw"))


def test_output_must_be_new_and_the_store_not_empty(store, tmp_path):
    with pytest.raises(StoreError, match="not empty"):
        export_store(store, "voc", tmp_path, ExportOptions())
    empty = MaskStore.create(tmp_path / "empty", classes=VOC, config={}, model={}, data={})
    with pytest.raises(StoreError, match="no finished masks"):
        export_store(empty, "voc", tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()


def own_store(folder: Path, names: list[str], size_hw: tuple[int, int] = (24, 32)) -> MaskStore:
    """Make a store for the given files of folder/photos."""
    data = {"root": str(folder / "photos"), "split": "train", "format": "folder"}
    made = MaskStore.create(folder / "own", classes=VOC, config={}, model={}, data=data)
    mask = np.zeros(size_hw, np.uint8)
    mask[:, :2] = 8
    for name in names:
        made.write(Path(name).stem, mask, argmax=mask, soft=None, record={"image": name, "labels": [8]})
    return made


def test_ids_with_spaces_and_camera_suffixes_read_back(tmp_path, save_image):
    names = ["IMG 1.JPG", "IMG 2.jpeg", "b.PNG"]
    for name in names:
        save_image(tmp_path / "photos" / name)
    done = export_store(own_store(tmp_path, names), "voc", tmp_path / "VOC2012", ExportOptions())
    assert sorted(path.name for path in (tmp_path / "VOC2012" / "JPEGImages").iterdir()) == [
        "IMG 1.jpg",
        "IMG 2.jpg",
        "b.png",
    ]
    found = open_samples(DataConfig(tmp_path / "VOC2012"))
    assert [one.id for one in found.samples] == ["IMG 1", "IMG 2", "b"]
    assert all(one.labels == (8,) for one in found.samples)
    assert ".jpg, .png" in done.notes[0]
    assert "deeplab-pytorch" in done.notes[1]


def test_yolo_copies_a_jpeg_that_readers_would_repair_in_place(tmp_path, save_image):
    """Ultralytics writes a JPEG with bytes after its end anew, through a link into the original."""
    for name in ("clean.jpg", "motion.JPG"):
        save_image(tmp_path / "photos" / name)
    with (tmp_path / "photos" / "motion.JPG").open("ab") as file:
        file.write(b"a film of two seconds")
    export_store(own_store(tmp_path, ["clean.jpg", "motion.JPG"]), "yolo", tmp_path / "y", ExportOptions())
    images = tmp_path / "y" / "images" / "train"
    assert (images / "clean.jpg").is_symlink()
    assert not (images / "motion.jpg").is_symlink()
    assert (images / "motion.jpg").read_bytes() == (tmp_path / "photos" / "motion.JPG").read_bytes()


def test_yolo_names_what_its_reader_passes_over(tmp_path, save_image):
    save_image(tmp_path / "photos" / "line.png", np.zeros((4, 32, 3), np.uint8))
    done = export_store(own_store(tmp_path, ["line.png"], (4, 32)), "yolo", tmp_path / "y", ExportOptions())
    assert "under 10 pixels: 1 image, first line" in done.notes[1]
