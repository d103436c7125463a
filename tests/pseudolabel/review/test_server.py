"""The review page's HTTP interface: what it shows, what it writes, and whom it refuses."""

import gzip
import io
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.classes import ClassSet
from data.exporters.export import export_store
from data.exporters.items import ExportOptions
from data.masks import read_mask
from data.store.folder import REVIEW
from data.store.review import mask_hash, read_corrected, read_reviews
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from pseudolabel.masks.config import CrfConfig, FuseConfig, MaskConfig
from pseudolabel.masks.labelmap import label_map

from .conftest import FIRST, decision, lines

pytest.importorskip("starlette", reason="the extra [review] is not installed")


def ids_of(answer, shape=(48, 64)) -> np.ndarray:
    assert answer.status == 200
    return np.frombuffer(gzip.decompress(answer.body), np.uint8).reshape(shape)


def runs(mask: np.ndarray) -> list[int]:
    """A mask as the page sends it: class id and length of each run, row by row."""
    flat = mask.reshape(-1)
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] ^ 1))
    lengths = np.diff(starts, append=flat.size)
    return np.stack([flat[starts], lengths], axis=1).reshape(-1).tolist()


# What is shown


def test_the_page_and_its_files_are_ours_alone(visitor):
    from pseudolabel.review.server import STATIC

    page = visitor.get("/")
    assert page.status == 200
    html = page.body.decode()
    files = {"/static/style.css", "/static/review.css", "/static/review.js"}
    assert set(re.findall(r'(?:src|href)="([^"]+)"', html)) == {"#stage", *files}
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|https?://", html)
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    for name in STATIC:
        answer = visitor.get(f"/static/{name}")
        assert answer.status == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(rb"https?://|innerHTML|insertAdjacentHTML|document\.write|eval\(", answer.body)
    assert visitor.get("/static/report.html.j2").status == 404
    assert visitor.get("/static/..%2F..%2Fcli.py").status == 404


def test_the_queue_is_sorted_by_doubt_and_filtered(visitor, drawn):
    found = visitor.get("/api/queue").json
    assert sorted(found["ids"]) == drawn.ids()
    rows = visitor.post("/api/rows", {"ids": found["ids"]}).json
    doubts = [row["doubt"] for row in rows]
    assert doubts == sorted(doubts, reverse=True)
    assert len(set(doubts)) > 1
    assert visitor.get("/api/queue?order=id").json["ids"] == drawn.ids()
    assert visitor.get("/api/queue?text=_3").json["ids"] == ["scene_3"]
    assert visitor.get("/api/queue?label=2").json["ids"] == found["ids"]
    visitor.post("/api/decide", decision(drawn, decision="reject", wrong=[2]))
    assert visitor.get("/api/queue?decision=reject").json["ids"] == [FIRST]
    assert visitor.get("/api/queue?decision=wrong").json["ids"] == [FIRST]
    assert FIRST not in visitor.get("/api/queue?decision=none").json["ids"]
    assert visitor.get("/api/queue?order=recent").json["ids"][0] == FIRST
    counts = visitor.get("/api/queue").json["counts"]
    assert counts == {"total": 6, "accept": 0, "reject": 1, "skip": 0, "none": 5, "corrected": 0, "wrong": 1}
    assert visitor.get("/api/queue?order=colour").status == 422


def test_an_image_comes_with_its_pictures_and_masks(visitor, drawn):
    item = visitor.get(f"/api/item?id={FIRST}").json
    assert (item["height"], item["width"]) == (48, 64)
    assert [label["name"] for label in item["labels"]] == ["disc", "box"]
    assert item["machine"] == item["mask"] == mask_hash(drawn.read_mask(FIRST))
    assert item["soft"] == [1, 2]
    assert (ids_of(visitor.get(f"/mask?id={FIRST}")) == drawn.read_mask(FIRST)).all()
    for path, size in (
        (f"/image?id={FIRST}", (64, 48)),
        (f"/heat?id={FIRST}&label=2", (64, 48)),
        (f"/thumb?id={FIRST}", None),
    ):
        picture = Image.open(io.BytesIO(visitor.get(path).body))
        assert picture.format == "JPEG"
        assert size is None or picture.size == size
    assert visitor.get(f"/heat?id={FIRST}&label=7").status == 404
    assert visitor.get(f"/mask?id={FIRST}&which=correction").status == 404


@pytest.mark.parametrize("name", ["../masks/scene_0", "scene_0.png", "/etc/passwd", "", "%00", "scene_0%00"])
def test_an_id_is_looked_up_and_never_a_path(visitor, name):
    for path in ("/api/item", "/image", "/thumb", "/mask", "/heat"):
        answer = visitor.get(f"{path}?id={name}&label=1")
        assert answer.status == 404
    assert visitor.post("/api/decide", {"id": name, "decision": "accept"}).status == 404
    assert visitor.post("/api/rows", {"ids": [name]}).json == []


def test_a_mask_is_retuned_as_refine_makes_it(visitor, drawn):
    soft = drawn.read_soft("scene_4")
    rgb = np.asarray(Image.open(drawn.image_path("scene_4")).convert("RGB"))
    for threshold, crf in ((0.2, False), (0.7, False), (0.4, True)):
        kind = CrfConfig() if crf else CrfConfig(kind="none")
        expected, _ = label_map(rgb, soft, MaskConfig(FuseConfig(threshold), kind, 0.3))
        settings = {"threshold": threshold, "crf": crf, "scale": 1, "ignore_below": 0.3}
        found = ids_of(visitor.post("/api/retune", {"id": "scene_4", "settings": settings}))
        assert (found == expected).all()
    answer = visitor.post("/api/retune", {"id": "scene_4", "settings": {"threshold": 7}})
    assert answer.status == 422
    assert "fuse.threshold" in answer.json["error"]
    assert visitor.post("/api/retune", {"id": "scene_4", "settings": {"threshold": "low"}}).status == 422
    assert lines(drawn) == []


# What is written


def test_a_decision_is_a_line(visitor, drawn):
    answer = visitor.post("/api/decide", decision(drawn, decision="accept", who="Ada")).json
    assert answer["review"]["decision"] == "accept"
    assert answer["counts"]["accept"] == 1
    [line] = lines(drawn)
    assert (line["id"], line["decision"], line["who"]) == (FIRST, "accept", "Ada")
    assert line["mask"] == mask_hash(drawn.read_mask(FIRST))
    back = visitor.post("/api/decide", decision(drawn, decision="none", wrong=[])).json
    assert back["counts"]["none"] == 6
    assert len(lines(drawn)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {}, {"decision": "perhaps"}, {"wrong": "box"}, {"wrong": [True]}, {"wrong": [9]}, {"correction": "0" * 64},
        {"correction": "../../x"}, {"decision": "accept", "mask": "x"}, {"decision": "accept", "machine": 3},
        {"decision": "accept", "settings": {"fuse": {"threshold": 9}}}, {"decision": "accept", "who": ["ada"]},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_written(visitor, drawn, change):
    answer = visitor.post("/api/decide", decision(drawn) | change)
    assert answer.status == 422
    assert answer.json["error"]
    assert lines(drawn) == []
    for body in (b"", b"[", b"[1]", b"[" * 200, b"\xff"):
        assert visitor.ask("POST", "/api/decide", body, Content_Type="application/json").status == 422


def test_a_drawn_mask_is_written_beside_the_machines(visitor, drawn):
    before = (drawn.path / "masks" / f"{FIRST}.png").read_bytes()
    mask = drawn.read_mask(FIRST).copy()
    mask[:10, :10], mask[20:, 40:] = 2, 255
    body = decision(drawn, base="machine", decision="accept", runs=runs(mask))
    answer = visitor.post("/api/correct", body).json
    assert answer["review"]["correction"] == mask_hash(mask)
    assert not answer["review"]["stale"]
    assert (read_corrected(drawn, FIRST, mask_hash(mask)) == mask).all()
    assert (ids_of(visitor.get(f"/mask?id={FIRST}")) == mask).all()
    assert (ids_of(visitor.get(f"/mask?id={FIRST}&which=machine")) == drawn.read_mask(FIRST)).all()
    assert (drawn.path / "masks" / f"{FIRST}.png").read_bytes() == before
    assert visitor.get("/api/queue?decision=corrected").json["ids"] == [FIRST]
    visitor.post("/api/decide", decision(drawn, correction="", decision="none"))
    assert (ids_of(visitor.get(f"/mask?id={FIRST}")) == drawn.read_mask(FIRST)).all()
    assert len(list((drawn.path / "corrected").iterdir())) == 1


def test_a_retuned_mask_keeps_its_settings(visitor, drawn):
    settings = {"threshold": 0.2, "crf": False, "scale": 1, "ignore_below": 0.3}
    mask = ids_of(visitor.post("/api/retune", {"id": FIRST, "settings": settings}))
    body = decision(drawn, base="retuned", decision="accept", settings=settings, runs=runs(mask))
    assert visitor.post("/api/correct", body).status == 200
    [line] = lines(drawn)
    assert line["settings"]["fuse"]["threshold"] == 0.2
    assert line["settings"]["ignore_below"] == 0.3
    assert (read_corrected(drawn, FIRST, line["correction"]) == mask).all()


@pytest.mark.parametrize("given", [[], [0], [0, 5], [7, 48 * 64], [0, -1, 0, 48 * 64 + 1], [0.5, 48 * 64], "x", None])
def test_a_mask_that_cannot_be_is_refused(visitor, drawn, given):
    answer = visitor.post("/api/correct", decision(drawn, base="machine", runs=given))
    assert answer.status == 422
    assert lines(drawn) == []
    assert not (drawn.path / "corrected").exists() or not list((drawn.path / "corrected").iterdir())


def test_two_people_lose_nothing_and_hear_of_one_another(drawn, served):
    with served(drawn.path) as ada, served(drawn.path) as bob:
        seen = ada.get(f"/api/item?id={FIRST}").json["review"]["lines"]

        def decide(visitor, who: str) -> None:
            for number in range(20):
                body = decision(drawn, f"scene_{number % 6}", decision="accept" if number % 2 else "reject", who=who)
                assert visitor.post("/api/decide", body).status == 200

        threads = [threading.Thread(target=decide, args=pair) for pair in ((ada, "ada"), (bob, "bob"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(lines(drawn)) == 40
        mine = visitor_state(ada, drawn)
        assert mine == visitor_state(bob, drawn)
        bob.post("/api/decide", decision(drawn, decision="skip", who="bob"))
        answer = ada.post("/api/decide", decision(drawn, wrong=[1], lines=seen)).json
        assert answer["meanwhile"] == "bob"
        assert answer["review"]["decision"] == "skip"


def visitor_state(visitor, store: MaskStore) -> dict:
    return {sample_id: visitor.get(f"/api/item?id={sample_id}").json["review"] for sample_id in store.ids()}


def test_a_mask_that_changes_makes_its_decision_stale(visitor, drawn):
    visitor.post("/api/decide", decision(drawn, decision="accept"))
    assert visitor.get("/api/queue?decision=stale").json["ids"] == []
    record = next(record for record in drawn.records() if record["id"] == FIRST)
    other = np.zeros((48, 64), np.uint8)
    drawn.write(FIRST, other, argmax=other, soft=drawn.read_soft(FIRST), record=record)
    assert visitor.get("/api/queue?decision=stale").json["ids"] == [FIRST]
    item = visitor.get(f"/api/item?id={FIRST}").json
    assert item["review"]["stale"]
    assert item["machine"] == mask_hash(other)


def test_images_made_meanwhile_join_the_queue(visitor, drawn):
    record = next(record for record in drawn.records() if record["id"] == FIRST)
    mask = drawn.read_mask(FIRST)
    drawn.write("later", mask, argmax=mask, soft=None, record=record)
    assert "later" in visitor.get("/api/queue").json["ids"]
    assert visitor.get("/api/item?id=later").json["retunable"] is False
    assert visitor.post("/api/retune", {"id": "later", "settings": {}}).status == 422


def test_damaged_files_are_told_of_and_cost_nothing_else(visitor, drawn):
    (drawn.path / "scores" / f"{FIRST}.npz").write_bytes(b"torn")
    (drawn.path / "masks" / "scene_1.png").write_bytes(b"torn")
    drawn.image_path("scene_2").unlink()
    assert "damaged" in " ".join(visitor.get(f"/api/item?id={FIRST}").json["problems"])
    assert visitor.get("/api/item?id=scene_1").json["mask"] == ""
    assert "no image" in " ".join(visitor.get("/api/item?id=scene_2").json["problems"])
    assert visitor.get("/image?id=scene_2").status == 422
    assert visitor.get("/thumb?id=scene_1").status == 200
    assert len(visitor.post("/api/rows", {"ids": drawn.ids()}).json) == 6


def test_the_disagreement_of_a_network_is_doubt(drawn, tmp_path, capsys):
    from pseudolabel.review.desk import Desk
    from pseudolabel.review.doubt import disagreements
    from pseudolabel.review.queue import Query

    other = MaskStore.create(tmp_path / "p", classes=drawn.classes, config={}, model={}, data=drawn.header["data"])
    for record in drawn.records():
        mask = drawn.read_argmax(record["id"]) if record["id"] != "scene_0" else np.full((48, 64), 2, np.uint8)
        other.write(record["id"], mask, argmax=mask, soft=None, record=record)
    found = disagreements(drawn, other)
    assert found["scene_1"] == 0
    assert found["scene_0"] > 0.5
    assert Desk(drawn.path).queue(Query())[0] != "scene_0"
    desk = Desk(drawn.path, predictions=other, disagreement=found)
    assert desk.queue(Query())[0] == "scene_0"
    assert "the network disagrees" in " ".join(desk.line("scene_0").doubt.reasons)
    assert (desk.mask(desk.line("scene_0"), "predictions") == 2).all()


HOSTILE = ("<script>alert(1)</script>", '" onload="alert(2)', "cat\u202egnp.exe", "a & b</title>")


def test_hostile_names_are_text(tmp_path, served):
    images = tmp_path / "<b>&\u202e"
    images.mkdir()
    Image.new("RGB", (32, 24), "green").save(images / "a.png")
    classes = ClassSet(HOSTILE, HOSTILE, ((),) * len(HOSTILE))
    data = {"format": "folder", "root": str(images), "split": "all"}
    path = tmp_path / "<img src=x onerror=alert(3)>\u202e"
    store = MaskStore.create(path, classes=classes, config={}, model={}, data=data)
    mask, sample_id = np.zeros((24, 32), np.uint8), 'i<script>"\u202e'
    soft = SoftMaps(np.zeros((4, 3, 4), np.float16), (1, 2, 3, 4), False, (24, 32), (24, 32), (24, 32))
    record = {"image": "a.png", "labels": [1, 2, 3, 4], "warnings": [f"{HOSTILE[0]}: no pixels"]}
    store.write(sample_id, mask, argmax=mask, soft=soft, record=record)
    with served(path) as visitor:
        page = visitor.get("/").body.decode()
        assert "<img" not in page
        assert "\u202e" not in page
        assert page.count("<script") == 1
        [found] = visitor.get("/api/queue").json["ids"]
        assert found == sample_id
        [row] = visitor.post("/api/rows", {"ids": [found]}).json
        assert row["shown"] == 'i<script>"\\u202e'
        names = [one["name"] for one in visitor.get("/api/store").json["classes"]]
        assert "cat\\u202egnp.exe" in names
        assert visitor.get("/api/store").headers["content-type"] == "application/json"
        answer = visitor.post("/api/decide", decision(store, sample_id, decision="reject", who="<b>\u202e", wrong=[3]))
        assert answer.json["review"]["who"] == "<b>\\u202e"
        assert answer.json["review"]["wrong"] == [3]


def test_what_the_disk_does_not_take_is_told_of_and_no_link_is_followed(visitor, drawn, tmp_path):
    (tmp_path / "elsewhere").write_text("")
    (drawn.path / REVIEW).symlink_to(tmp_path / "elsewhere")
    answer = visitor.post("/api/decide", decision(drawn, decision="accept"))
    assert answer.status == 507
    assert REVIEW in answer.json["error"]
    assert (tmp_path / "elsewhere").read_text() == ""


def test_export_follows_what_was_decided_on_the_page(visitor, drawn, tmp_path):
    visitor.post("/api/decide", decision(drawn, decision="reject"))
    done = export_store(drawn, "voc", tmp_path / "voc", ExportOptions(images="none"))
    assert done.n_images == 5
    assert not (tmp_path / "voc" / "SegmentationClass" / f"{FIRST}.png").exists()
    assert read_reviews(drawn)[FIRST].decision == "reject"
    assert read_mask(tmp_path / "voc" / "SegmentationClass" / "scene_1.png").shape == (48, 64)


def test_nothing_but_the_desk_opens_paths():
    source = Path(sys.modules["pseudolabel.review.desk"].__file__).with_name("server.py").read_text()
    assert not re.search(r"\bopen\(|Path\(|read_text|FileResponse|StaticFiles", source)
