import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from data.classes import VOC
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.review import blocks
from pseudolabel.review.coverage import measure_coverage
from pseudolabel.review.report import choose_images, report_page

VOID = {"meta", "img", "input", "br"}


class Checker(HTMLParser):
    """Collects what a page refers to, and fails on tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


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


def test_without_truth_there_are_no_scores_and_with_it_there_are(made_store, tmp_path, capsys):
    plain = report(made_store, tmp_path)
    assert "mIoU" not in plain
    assert "ground truth</figcaption>" not in plain
    scored = report(made_store, tmp_path, "--truth=SegmentationClassTruth")
    assert "mIoU after CRF" in scored
    assert scored.count("ground truth</figcaption>") == 6
    assert main(["report", f"--store={made_store}", "--truth=/none/such"]) == 2
    assert "/none/such" in capsys.readouterr().err


def test_every_image_has_a_card_with_its_classes_and_warnings(made_store, tmp_path):
    html = report(made_store, tmp_path)
    for record in MaskStore.open(made_store).records():
        card = html.split(f"<b>{record['id']}</b>")[1].split('class="card"')[0]
        labels = [VOC.name(label) for label in record["labels"]]
        assert all(f"<figcaption>{label}</figcaption>" in card for label in labels)
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


def test_names_are_escaped(world, tmp_path):
    data = {"format": "voc", "root": str(world), "split": "train"}
    store = MaskStore.create(tmp_path / "s", classes=VOC, config={}, model={"id": "<b>&"}, data=data)
    mask = np.zeros((128, 128), np.uint8)
    record = {"image": "JPEGImages/train_000000.png", "labels": [1], "warnings": ["<script>"]}
    store.write("train_000000", mask, argmax=mask, soft=None, record=record)
    html = report(tmp_path / "s", tmp_path)
    assert "<b>&<" not in html
    assert "&lt;script&gt;" in html
    check(html)


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
    mask = np.zeros((10, 12, 3), np.uint8)
    mask[2:5] = (192, 128, 0)
    html = blocks.picture(mask, "mask", "flat")
    import base64
    import io

    content = base64.b64decode(re.search(r"base64,([^\"]+)", html).group(1))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), mask)


def test_the_data_set_is_opened_once(made_store, monkeypatch):
    from data.store import source

    opened = []
    read = source.open_samples
    monkeypatch.setattr(source, "open_samples", lambda *args, **named: opened.append(args) or read(*args, **named))
    assert "<html" in report_page(MaskStore.open(made_store), truth="SegmentationClassTruth")
    assert len(opened) == 1
