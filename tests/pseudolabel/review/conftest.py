"""A small drawn store with soft maps, and the review server on it, on a free port of this machine."""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.class_file import save_classes
from data.classes import make_classes
from data.store.folder import REVIEW
from data.store.records import image_record
from data.store.review import mask_hash
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from pseudolabel.config import stored_mask_settings
from pseudolabel.masks.config import CrfConfig, FuseConfig, MaskConfig
from pseudolabel.masks.labelmap import label_map

CLASSES = make_classes(["disc", "box"], {}, {})
SETTINGS = MaskConfig(FuseConfig(0.4), CrfConfig(kind="none"), 0.75)
SIZE = (48, 64)
FIRST = "scene_0"


def draw_store(folder: Path, count: int = 6) -> MaskStore:
    """Images of a disc and a box, with masks made from soft maps that are the blurrier the higher the number."""
    images = folder / "images"
    images.mkdir(parents=True)
    save_classes(CLASSES, images / "classes.yaml")
    rows = "".join(f"scene_{number}.png,disc;box\n" for number in range(count))
    (images / "labels.csv").write_text(f"image,labels\n{rows}")
    data = {"format": "folder", "root": str(images), "split": "all"}
    config = stored_mask_settings(SETTINGS)
    store = MaskStore.create(folder / "masks", classes=CLASSES, config=config, model={"id": "drawn"}, data=data)
    rows, columns = np.mgrid[: SIZE[0] // 4, : SIZE[1] // 4]
    for number in range(count):
        name = f"scene_{number}"
        disc = np.exp(-((rows - 5) ** 2 + (columns - 4) ** 2) / (6 + 10 * number))
        box = ((abs(rows - 7) < 3) & (abs(columns - 11) < 3 + number % 2)) * 0.9
        soft = SoftMaps(np.stack([disc, box]).astype(np.float16), (1, 2), False, SIZE, SIZE, SIZE)
        rgb = np.random.default_rng(number).integers(60, 120, (*SIZE, 3), np.uint8)
        Image.fromarray(rgb).save(images / f"{name}.png")
        mask, argmax = label_map(rgb, soft, SETTINGS)
        record = image_record(name, f"{name}.png", mask, argmax, (1, 2), CLASSES, 0.1)
        store.write(name, mask, argmax=argmax, soft=soft, record=record)
    return store


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Visitor:
    """Speaks to the server as a browser or as anybody else would."""

    port: int
    url: str
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {name: value for name, value in given.items() if value})
        answer = connection.getresponse()
        found = Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        connection.close()
        return found

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, value: Any, **headers: str) -> Answer:
        return self.ask("POST", path, json.dumps(value).encode(), **({"Content_Type": "application/json"} | headers))


@contextmanager
def serving(
    store: Path, host: str = "127.0.0.1", more: Sequence[Any] = (), model: str = "", **options: Any
) -> Iterator[Visitor]:
    """Serve a store for a while."""
    pytest.importorskip("starlette", reason="the extra [review] is not installed")
    pytest.importorskip("uvicorn", reason="the extra [review] is not installed")
    from pseudolabel.review.desk import Desk
    from pseudolabel.review.server import review_app
    from pseudolabel.review.serving import bind, server_of

    address = bind(host, 0)
    server = server_of(review_app(Desk(store, **options), "ada", more, model), address)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [address.socket]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield Visitor(address.port, address.url)
    finally:
        server.should_exit = True
        thread.join(20)
        address.socket.close()


@pytest.fixture
def drawn(tmp_path) -> MaskStore:
    return draw_store(tmp_path)


@pytest.fixture
def served():
    """Serve a store for a while: `with served(path) as visitor`."""
    return serving


@pytest.fixture
def visitor(drawn) -> Iterator[Visitor]:
    with serving(drawn.path) as found:
        yield found


def lines(store: MaskStore) -> list[dict]:
    """What review.jsonl holds."""
    path = store.path / REVIEW
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def decision(store: MaskStore, sample_id: str = FIRST, **change) -> dict:
    """What the page sends for a mask that nobody touched, and `change`."""
    machine = mask_hash(store.read_mask(sample_id))
    return {"id": sample_id, "mask": machine, "machine": machine, "who": "ada", **change}
