import base64
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from data.classes import VOC, ClassSet, make_classes
from data.config import DataConfig
from data.masks import overlay
from data.store.softmaps import SoftMaps
from data.store.source import stored_data
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.review import blocks
from pseudolabel.review.coverage import measure_coverage
from pseudolabel.review.report import choose_images, image_card, image_strip, report_page

VOID = {"meta", "img", "input", "br"}


class Checker(HTMLParser):
    """Collects what a page refers to, and fails on tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts: list[str] = []
        self.text = ""
        self.isolated: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag == "bdi":
            self.isolated.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data
        if "bdi" in self.open:
            self.isolated[-1] += data


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


def report(store, tmp_path, *options) -> str:
    target = tmp_path / "page" / "report.html"
    assert main(["report", f"--store={store}", f"--output={target}", *options]) == 0
    return target.read_text()


def test_one_file_without_outside_references(made_store, tmp_path):
    html = report(made_store, tmp_path)
    sources = check(html).sources
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?://|@import|url\(", html)
    assert len(html) < 2e6
    assert "prefers-color-scheme: dark" in html
    assert "overflow-x" not in html  # nothing scrolls sideways; rows of pictures break instead
    assert ".strip { display: flex; flex-wrap: wrap" in html


def test_without_truth_there_are_no_scores_and_with_it_there_are(made_store, tmp_path, capsys):
    plain = report(made_store, tmp_path)
    assert "mIoU" not in plain
    assert "ground truth</bdi></figcaption>" not in plain
    scored = report(made_store, tmp_path, "--truth=SegmentationClassTruth")
    assert "mIoU after CRF" in scored
    assert scored.count("ground truth</bdi></figcaption>") == 6
    assert main(["report", f"--store={made_store}", "--truth=/none/such"]) == 2
    assert "/none/such" in capsys.readouterr().err


def test_every_image_has_a_card_with_its_classes_and_warnings(made_store, tmp_path):
    html = report(made_store, tmp_path)
    for record in MaskStore.open(made_store).records():
        card = html.split(f"<b><bdi>{record['id']}</bdi></b>")[1].split('class="card"')[0]
        labels = [VOC.name(label) for label in record["labels"]]
        assert all(f"<figcaption><bdi>{label}</bdi></figcaption>" in card for label in labels)
        assert card.count("<img") == len(labels) + 2
        assert all(warning in card for warning in record["warnings"])


def test_the_limit_bounds_the_page(made_store, tmp_path):
    assert report(made_store, tmp_path, "--limit=2").count('<div class="card"') == 2
    store = MaskStore.open(made_store)
    assert len(choose_images(store, 4, {"train_000001"})) == 4
    assert "train_000001" in {record["id"] for record in choose_images(store, 4, {"train_000001"})}
    everything = {record["id"] for record in store.records()}
    assert len(choose_images(store, 4, everything)) == 4


def test_a_missing_image_does_not_lose_the_page(made_store, world, tmp_path):
    root = shutil.copytree(world, tmp_path / "world")
    (root / "JPEGImages" / "train_000000.png").unlink()
    html = report(made_store, tmp_path, f"--root={root}")
    assert "There is no image" in html
    check(html)


HOSTILE = (
    "<script>alert(1)</script>",
    '" onload="alert(2)',
    "' onmouseover='x",
    "a & b</title></style></pre>",
    "cat\u202egnp.exe",
    "no\u200bwidth",
    "red\x1b[31m\n",
    "\u0642\u0637\u0629",
)


@pytest.fixture(scope="session")
def hostile_store(tmp_path_factory):
    """A store whose class names, id, warning, model and settings all try to change the page; its path does too."""
    root = tmp_path_factory.mktemp("hostile") / "<b>&\u202e"
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (32, 24), "green").save(root / "images" / "a.png")
    classes = ClassSet(HOSTILE, HOSTILE, ((),) * len(HOSTILE))
    data = {"format": "folder", "root": str(root / "images"), "split": "all", "note": HOSTILE[3]}
    store = MaskStore.create(
        root / HOSTILE[4], classes=classes, config={HOSTILE[4]: HOSTILE[3]}, model={"id": HOSTILE[0]}, data=data
    )
    labels = tuple(range(1, len(HOSTILE) + 1))
    mask = np.zeros((24, 32), np.uint8)
    maps = np.zeros((len(labels), 3, 4), np.float16)
    soft = SoftMaps(maps, labels, False, (24, 32), (24, 32), (24, 32))
    warnings = [f"{name}: no pixels" for name in HOSTILE]
    record = {"image": "a.png", "labels": labels, "warnings": warnings}
    store.write('i<script>"\u202e', mask, argmax=mask, soft=soft, record=record)
    return store.path


def test_no_name_changes_the_page(hostile_store, made_store, tmp_path):
    found, usual = check(report(hostile_store, tmp_path)), check(report(made_store, tmp_path))
    assert found.scripts == usual.scripts
    assert found.tags <= usual.tags
    assert found.attributes <= usual.attributes
    for name in (*HOSTILE[:4], HOSTILE[-1]):  # as isolated pieces: a class's chip and the caption of its map
        assert found.isolated.count(name) >= 3
    hidden = {character for name in HOSTILE for character in name} - set(found.text)
    assert {"\u202e", "\u200b", "\x1b"} <= hidden
    for name in ("cat\\u202egnp.exe", "no\\u200bwidth", "red\\x1b[31m\\n", 'i<script>"\\u202e'):
        assert name in found.isolated
    assert f"Masks in {HOSTILE[4]}".replace("\u202e", "\\u202e") in found.text


def test_predictions_without_an_object_have_a_page(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 24), "green").save(tmp_path / "images" / "a.png")
    data = {"format": "folder", "root": str(tmp_path / "images"), "split": "all"}
    store = MaskStore.create(tmp_path / "s", classes=VOC, config={}, model={}, data=data)
    mask = np.zeros((24, 32), np.uint8)
    soft = SoftMaps(np.ones((1, 3, 4), np.float16), (), True, (24, 32), (24, 32), (24, 32))
    record = {"image": "a.png", "labels": [], "class_share": {"background": 1.0}, "warnings": ["all background"]}
    store.write("a", mask, argmax=mask, soft=soft, record=record)
    html = report(store.path, tmp_path)
    assert html.count("<figure") == 2
    assert check(html).text.count("all background") == 2
    assert "1 mask made" in check(html).text
    assert "1 image is below" in check(html).text


def test_equal_stores_have_equal_pages(made_store, tmp_path):
    first = report_page(MaskStore.open(made_store))
    other = shutil.copytree(made_store, tmp_path / made_store.name)
    lines = (other / "index.jsonl").read_bytes().splitlines(keepends=True)
    (other / "index.jsonl").write_bytes(b"".join(reversed(lines)))
    assert report_page(MaskStore.open(other)) == first


def test_a_negative_limit_is_an_error(made_store, capsys):
    assert main(["report", f"--store={made_store}", "--limit=-1"]) == 2
    assert "--limit is -1" in capsys.readouterr().err


def test_a_damaged_map_costs_no_other_picture(made_store, world, tmp_path):
    store, root = shutil.copytree(made_store, tmp_path / "s"), shutil.copytree(world, tmp_path / "world")
    shutil.copytree(root / "SegmentationClassTruth", root / "SegmentationClass", dirs_exist_ok=True)
    (store / "scores" / "train_000000.npz").write_bytes(b"torn")
    html = report(store, tmp_path, f"--root={root}")
    assert "Not scored: " in html
    card = html.split("<b><bdi>train_000000</bdi></b>")[1].split('class="card"')[0]
    assert card.count("<img") == 3
    assert "are damaged" in card


@pytest.mark.parametrize("count", [1, 3, 5, 6, 12])
@pytest.mark.parametrize("image_hw", [(375, 500), (500, 375), (400, 2400), (2000, 100), (128, 128)])
def test_a_row_of_pictures_fits_the_page_or_breaks_evenly(image_hw, count):
    height, width = blocks.thumbnail_size(image_hw, count)
    assert height <= blocks.THUMBNAIL_PX
    assert width <= 3 * blocks.THUMBNAIL_PX
    in_a_row = (blocks.ROW_PX + blocks.GAP_PX) // (width + blocks.GAP_PX)
    assert in_a_row == 1 or in_a_row >= min(count, 2)
    assert count <= in_a_row or height > blocks.SMALLEST_PX / 2


def pixels(picture: blocks.Picture) -> np.ndarray:
    content = base64.b64decode(picture.address.partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_truth_is_drawn_as_the_mask_is():
    rgb_u8 = np.full((144, 144, 3), (90, 140, 60), np.uint8)
    mask = np.zeros((144, 144), np.uint8)
    mask[32:96, 32:96], mask[100:, :] = 15, 255
    image, drawn_mask, drawn_truth = image_strip(VOC, rgb_u8, None, mask, mask)
    assert [image.caption, drawn_truth.caption] == ["image", "ground truth"]
    assert drawn_mask.address == drawn_truth.address
    assert np.abs(pixels(drawn_truth) - overlay(rgb_u8, mask)).mean() < 3


def test_white_truth_is_drawn_as_it_is_scored(tmp_path):
    """255 is the one class where the store says so, and drawn in its colour."""
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((144, 144, 3), (90, 140, 60), np.uint8)).save(tmp_path / "cat" / "1.png")
    mask = np.zeros((144, 144), np.uint8)
    mask[32:96, 32:96] = 1
    Image.fromarray(mask * 255).save(tmp_path / "white.png")
    store = MaskStore.create(
        tmp_path / "store",
        classes=make_classes(["cat"], {}, {}),
        config={},
        model={"id": "m"},
        data=stored_data(DataConfig(tmp_path, truth_255="class")),
    )
    store.write("cat__1", mask, argmax=mask, soft=None, record={"image": "cat/1.png", "labels": [1]})
    [record] = store.records()
    _, drawn_mask, drawn_truth = image_card(store, record, None, tmp_path / "white.png").pictures
    assert drawn_mask.address == drawn_truth.address


def test_an_empty_store_is_an_error(tmp_path, capsys):
    MaskStore.create(tmp_path / "s", classes=VOC, config={}, model={}, data={"root": "."})
    assert main(["report", f"--store={tmp_path / 's'}"]) == 2
    assert "no finished image" in capsys.readouterr().err


def test_coverage_adds_up_the_index(made_store):
    coverage = measure_coverage(MaskStore.open(made_store))
    records = list(MaskStore.open(made_store).records())
    assert coverage.images == 6
    assert sum(coverage.with_label.values()) == sum(len(record["labels"]) for record in records)
    assert coverage.ignore == pytest.approx(sum(record["ignore_share"] for record in records))
    assert coverage.warned == sum(bool(record["warnings"]) for record in records)


def test_heat_shows_the_image_and_not_the_padding():
    maps = np.zeros((1, 8, 8), np.float16)
    maps[0, :, :4] = 1  # the left half of the grid is all of the image
    soft = SoftMaps(maps, (1,), False, padded_hw=(64, 64), resized_hw=(64, 32), image_hw=(100, 50))
    heat = blocks.heat_maps(soft, (20, 10))
    assert heat.shape == (1, 20, 10)
    assert heat[..., :-1].min() > 0.99  # the last column is mixed with the padding's first, as in the mask


def test_hotter_is_brighter():
    grey = np.full((1, 5, 3), 128, np.uint8)
    shown = blocks.heat_overlay(grey, np.linspace(0, 1, 5)[None])
    assert (np.diff(shown.astype(int).sum(axis=-1)[0]) > 0).all()


def test_pictures_survive_the_page():
    drawn = np.zeros((16, 24, 3), np.uint8)
    drawn[:8] = (192, 128, 0)
    assert np.abs(pixels(blocks.picture(drawn, "mask")) - drawn).max() < 12


def test_the_data_set_is_opened_once(made_store, monkeypatch):
    from data.store import source

    opened = []
    read = source.open_samples
    monkeypatch.setattr(source, "open_samples", lambda *args, **named: opened.append(args) or read(*args, **named))
    assert "<html" in report_page(MaskStore.open(made_store), truth="SegmentationClassTruth")
    assert len(opened) == 1
