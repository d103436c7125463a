"""A whole review in a real browser, Chromium driven by Playwright, and what store and training hold after it."""

import json
import os
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from data.store.folder import REVIEW
from data.store.review import mask_hash, read_corrected, read_reviews
from data.store.store import MaskStore

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="NO CHROMIUM: apt-get install chromium, or name one in CHROMIUM"),
]
pytest.importorskip("starlette", reason="the extra [review] is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: pip install 'text2mask-wsss[browser]'")
pytest.importorskip("playwright", reason="NO PLAYWRIGHT: pip install 'text2mask-wsss[browser]'")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Reviewer:
    """A person at the page; what the page complains of is kept."""

    def __init__(self, page, store: MaskStore) -> None:
        self.page, self.store = page, store
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.wait_for_selector("#labels li")

    @property
    def title(self) -> str:
        return self.page.inner_text("#title")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def until(self, selector: str, text: str) -> None:
        """Wait until an element says something."""
        sync_api.expect(self.page.locator(selector)).to_contain_text(text)

    def lines(self) -> list[dict]:
        path = self.store.path / REVIEW
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def written(self, number: int) -> dict:
        """Wait for a line to be written and return it."""
        for _ in range(200):
            found = self.lines()
            if len(found) >= number:
                return found[number - 1]
            self.page.wait_for_timeout(25)
        raise AssertionError(f"{len(self.lines())} lines, not {number}")

    def at(self, column: float, row: float) -> tuple[float, float]:
        """Where a pixel of the image is on the page."""
        box = self.page.locator("#overlay").bounding_box()
        return box["x"] + box["width"] * column / 64, box["y"] + box["height"] * row / 48


@pytest.fixture
def reviewer(browser, visitor, drawn) -> Iterator[Reviewer]:
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    found = Reviewer(context.new_page(), drawn)
    found.open(visitor.url)
    yield found
    context.close()
    assert found.complaints == []


def samples(store: MaskStore) -> dict:
    """What the next fit would learn from."""
    from train.samples import list_training

    return {sample.id: sample for sample in list_training(store, "store", None, None)}


def test_a_whole_session(reviewer, drawn):
    queue = [row for row in reviewer.page.locator("#rows .row .name").all_inner_texts()]
    assert len(queue) == 6
    assert reviewer.title == queue[0]
    reviewer.page.fill("#who", "Ada")
    reviewer.press("Escape")
    # accept, reject, skip by keys
    reviewer.press("a")
    reviewer.until("#title", queue[1])
    reviewer.press("r")
    reviewer.until("#title", queue[2])
    reviewer.press("s")
    reviewer.until("#title", queue[3])
    assert [(line["id"], line["decision"]) for line in reviewer.lines()] == list(
        zip(queue, ("accept", "reject", "skip"), strict=False)
    )
    assert {line["who"] for line in reviewer.lines()} == {"Ada"}
    # undo takes back the skip and goes there
    reviewer.press("z")
    reviewer.until("#title", queue[2])
    assert reviewer.written(4)["decision"] == "none"
    # a label that is wrong
    reviewer.press("2")
    assert reviewer.written(5)["wrong"] == ["box"]
    sync_api.expect(reviewer.page.locator("#labels li.wrong")).to_have_count(1)
    # brush "undecided" over the middle of the next image, and save
    reviewer.press("ArrowRight")
    reviewer.until("#title", queue[3])
    before = drawn.read_mask(queue[3])
    reviewer.press("u")
    reviewer.page.mouse.move(*reviewer.at(20, 40))
    reviewer.page.mouse.down()
    reviewer.page.mouse.move(*reviewer.at(44, 40), steps=4)
    reviewer.page.mouse.up()
    reviewer.until("#edited", "drawn on: not saved")
    reviewer.press("Enter")
    line = reviewer.written(6)
    corrected = read_corrected(drawn, queue[3], line["correction"])
    assert (corrected[40, 20:44] == 255).all()
    assert (corrected[:30] == before[:30]).all()
    assert line["decision"] == "accept"
    assert line["mask"] == mask_hash(corrected)
    # retune the next one and accept what is seen
    reviewer.press("ArrowRight")
    reviewer.until("#title", queue[4])
    reviewer.page.locator("#t-threshold").fill("0.2")
    reviewer.until("#edited", "Retuned: not saved")
    assert "--threshold=0.2" in reviewer.page.inner_text("#t-command")
    reviewer.press("a")
    line = reviewer.written(7)
    assert line["settings"]["fuse"]["threshold"] == 0.2
    retuned = read_corrected(drawn, queue[4], line["correction"])
    assert (retuned != drawn.read_mask(queue[4])).any()
    # reload: everything is as it was
    reviewer.until("#title", queue[5])
    reviewer.page.reload()
    reviewer.until("#title", queue[5])
    reviewer.until("#counts", "4 of 6 decided: 3 accepted, 1 rejected, 0 skipped; 2 corrected")
    # and the next fit learns from what is left
    learnt = samples(drawn)
    assert set(learnt) == set(queue) - {queue[1]}
    assert (learnt[queue[3]].mask() == corrected).all()
    assert (learnt[queue[4]].mask() == retuned).all()
    assert not (learnt[queue[2]].mask() == 2).any()


def test_erasing_polygon_and_undo(reviewer, drawn):
    name = reviewer.title
    before = drawn.read_mask(name)
    reviewer.press("e")
    reviewer.page.mouse.click(*reviewer.at(16, 20))
    reviewer.until("#edited", "drawn on")
    reviewer.press("z")
    reviewer.until("#edited", "The machine's mask.")
    reviewer.press("p")
    reviewer.page.select_option("#draw", "2")
    for column, row in ((2, 2), (12, 2), (12, 10), (2, 10)):
        reviewer.page.mouse.click(*reviewer.at(column, row))
        reviewer.page.wait_for_timeout(30)
    reviewer.press("Enter")
    reviewer.until("#edited", "drawn on")
    reviewer.press("Enter")
    corrected = read_corrected(drawn, name, reviewer.written(1)["correction"])
    assert (corrected[3:9, 3:11] == 2).all()
    assert (corrected[12:] == before[12:]).all()
    reviewer.press("z")
    assert reviewer.written(2)["correction"] == ""
    reviewer.until("#edited", "The machine's mask.")
    assert not read_reviews(drawn)[name].says_something


def test_a_mask_that_is_not_shown_is_not_drawn_on(reviewer):
    reviewer.press("b", "h")  # the brush, then a soft map in place of the mask
    reviewer.page.mouse.click(*reviewer.at(16, 20))
    reviewer.until("#edited", "The machine's mask.")
    reviewer.press("m")  # the mask again
    sync_api.expect(reviewer.page.locator("#view")).to_have_value("mask")
    reviewer.page.mouse.click(*reviewer.at(16, 20))
    reviewer.until("#edited", "drawn on: not saved")


def test_strokes_that_were_not_saved_are_there_on_coming_back(reviewer, drawn):
    reviewer.press("e")
    reviewer.page.mouse.click(*reviewer.at(16, 20))
    reviewer.until("#edited", "drawn on: not saved")
    reviewer.press("ArrowRight")
    reviewer.until("#place", "2 of 6")
    reviewer.until("#edited", "The machine's mask.")
    reviewer.press("ArrowLeft")
    reviewer.until("#place", "1 of 6")
    reviewer.until("#edited", "drawn on: not saved")
    reviewer.press("z")
    reviewer.until("#edited", "The machine's mask.")
    assert reviewer.lines() == []


def test_everything_by_keyboard(reviewer, drawn):
    name = reviewer.title
    reviewer.press("b")
    reviewer.page.focus("#stage")
    reviewer.press("ArrowRight", "ArrowDown", "Shift+ArrowRight", " ")
    reviewer.until("#edited", "drawn on")
    reviewer.press("Enter")
    assert reviewer.written(1)["correction"]
    assert reviewer.title == name
    reviewer.press("v")
    reached = set()
    for _ in range(60):
        reviewer.press("Tab")
        reached.add(reviewer.page.evaluate("document.activeElement.id || document.activeElement.dataset.tool || ''"))
    wanted = {"who", "f-label", "list", "stage", "accept", "reject", "skip", "undo", "t-threshold", "t-crf", "look"}
    assert wanted <= reached
    reviewer.page.focus("#accept")
    outline = reviewer.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    reviewer.press("?")
    assert reviewer.page.locator("#help").is_visible()
    reviewer.press("Escape")
    assert not reviewer.page.locator("#help").is_visible()


def test_filters_and_zoom(reviewer, drawn):
    reviewer.press("r")
    reviewer.written(1)
    reviewer.page.select_option("#f-decision", "reject")
    reviewer.until("#q-count", "1 image")
    reviewer.page.select_option("#f-decision", "none")
    reviewer.until("#q-count", "5 images")
    before = reviewer.page.locator("#overlay").bounding_box()["width"]
    reviewer.press("+", "+")
    assert reviewer.page.locator("#overlay").bounding_box()["width"] > 1.4 * before
    reviewer.press("0")
    assert reviewer.page.locator("#overlay").bounding_box()["width"] == pytest.approx(before)


def test_undecided_pixels_are_striped_and_borders_drawn(reviewer, drawn):
    """Colour is not the only sign: stripes stand for "undecided"."""
    name = reviewer.title
    mask = drawn.read_mask(name)
    assert (mask == 255).any()
    shown = reviewer.page.evaluate(
        "() => Array.from(document.querySelector('#overlay').getContext('2d').getImageData(0, 0, 64, 48).data)"
    )
    pixels = np.array(shown, np.uint8).reshape(48, 64, 4)
    same = [mask[1:-1, 1:-1] == np.roll(mask, step, axis)[1:-1, 1:-1] for step in (1, -1) for axis in (0, 1)]
    inside, mask, pixels = np.all(same, axis=0), mask[1:-1, 1:-1], pixels[1:-1, 1:-1]
    assert len(np.unique(pixels[(mask == 255) & inside][:, :3], axis=0)) >= 2
    assert (pixels[mask == 0][:, 3] == 0).all()
    assert (pixels[(mask == 1) & ~inside][:, 3] == 255).all()


def test_hostile_names_run_nothing(browser, served, tmp_path):
    from PIL import Image

    from data.classes import ClassSet
    from data.store.softmaps import SoftMaps

    names = ("<img src=x onerror=window.hit=1>", "<script>window.hit=1</script>", "'\"><svg onload=window.hit=1>")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48), "green").save(tmp_path / "images" / "a.png")
    data = {"format": "folder", "root": str(tmp_path / "images"), "split": "all"}
    classes = ClassSet(names, names, ((),) * 3)
    store = MaskStore.create(tmp_path / "m<img src=x>", classes=classes, config={}, model={}, data=data)
    mask = np.zeros((48, 64), np.uint8)
    soft = SoftMaps(np.zeros((3, 3, 4), np.float16), (1, 2, 3), False, (48, 64), (48, 64), (48, 64))
    record = {"image": "a.png", "labels": [1, 2, 3], "warnings": [f"{name}: no pixels" for name in names]}
    store.write("<b onclick=1>i", mask, argmax=mask, soft=soft, record=record)
    with served(store.path) as visitor:
        reviewer = Reviewer(browser.new_page(), store)
        reviewer.open(visitor.url)
        reviewer.page.fill("#who", names[0])
        reviewer.press("Escape", "1", "r")
        reviewer.until("#state", "Rejected")
        assert reviewer.page.evaluate("window.hit") is None
        assert reviewer.title == "<b onclick=1>i"
        assert names[1] in reviewer.page.inner_text("#labels")
        reviewer.page.close()
        assert reviewer.complaints == []


@pytest.mark.parametrize("width", [380, 820, 1500])
def test_nothing_is_wider_than_the_window(browser, visitor, drawn, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    Reviewer(page, drawn).open(visitor.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#stage").bounding_box()["width"] > 0.4 * min(width, 800)
    page.close()
