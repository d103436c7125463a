"""Damaged and made-up stores: each is read, or refused with one line; nothing else comes out of them."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.classes import VOC
from data.errors import ConfigError, ImageError, StoreError, UserError
from data.store.softmaps import SoftMaps
from data.store.source import data_config
from data.store.store import MaskStore

FILES = ("store.json", "index.jsonl", "scores/a.npz", "masks/a.png", "argmax/a.png")
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 10**400, "", "x", "\0", "\ud800", "../..", "/etc"),
    *([], [1], [[]], ["x"], {}, {"a": 1}, [None, "x"], [0], [255], [300], "9" * 5000),
)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, bytes]:
    """The files of a good store of one image."""
    path = tmp_path_factory.mktemp("good") / "store"
    config = {"fuse": {"threshold": 0.4}, "crf": {"kind": "none", "iterations": 3}, "ignore_below": 0.5}
    data = {"root": "/photos", "split": "train", "format": "folder", "classes": None, "difficult": True}
    store = MaskStore.create(path, classes=VOC, config=config, model={"id": "m", "fingerprint": "f"}, data=data)
    mask = np.zeros((6, 8), np.uint8)
    mask[2:] = 3
    soft = SoftMaps(np.random.default_rng(0).random((1, 3, 4)).astype(np.float16), (3,), False, (6, 8), (6, 8), (6, 8))
    record = {"image": "a.png", "labels": [3], "class_share": {"bird": 0.5}, "warnings": ["no background"]}
    record |= {"ignore_share": 0.0, "seconds": 0.25, "dropped_words": ["tree"]}
    store.write("a", mask, argmax=mask, soft=soft, record=record)
    return {name: (path / name).read_bytes() for name in FILES}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def swapped(content: bytes, draw: random.Random) -> bytes:
    """Put another value, or none, in the place of one inside a JSON text."""
    tree = json.loads(content)
    place = draw.choice(places(tree))
    if not place:
        return json.dumps(draw.choice(VALUES)).encode() + b"\n"
    holder = tree
    for key in place[:-1]:
        holder = holder[key]
    if draw.random() < 0.2:
        del holder[place[-1]]
    else:
        holder[place[-1]] = draw.choice(VALUES)
    return json.dumps(tree).encode() + b"\n"


def nested(content: bytes, draw: random.Random) -> bytes:
    deep = draw.choice([b"[", b'{"a":']) * draw.choice([50, 900, 5000, 100_000])
    close = b"1" + (b"]" if deep.startswith(b"[") else b"}") * deep.count(deep[:1])
    return content.replace(b":", b":" + deep + close + b',"b":', 1) if content.startswith(b"{") else deep


def rezipped(content: bytes, draw: random.Random) -> bytes:
    """Swap, drop, cut or change the arrays of an .npz file, with the checksums right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = draw.choice(sorted(members))
    arrays = (
        *(np.zeros((2, 3, 4), np.float16), np.zeros((1, 3, 4), np.float64), np.full((1, 3, 4), np.nan, np.float16)),
        *(np.full((1, 3, 4), np.inf, np.float16), np.full((1, 3, 4), 7, np.float16), np.zeros((1, 0, 4), np.float16)),
        *(
            np.zeros((1, 900, 4), np.float16),
            np.int32(2),
            np.int32([-1]),
            np.int32([3, 3]),
            np.int32([255]),
            np.str_("x"),
        ),
        *(np.array([{}], dtype=object), np.int32([[2**31 - 1, 2**31 - 1]] * 3), np.int32([[0, 1]] * 3), np.zeros(0)),
        *(np.array([(1, 2)], dtype=[("a", "i4"), ("b", "f2")]), np.asfortranarray(np.eye(3)), np.bool_(True)),
    )
    match draw.randrange(5):
        case 0:
            del members[name]
        case 1:
            members[name] = members[draw.choice(sorted(members))]
        case 2:
            members[name] = flipped(members[name], draw)
        case 3:
            members["../../evil.npy"] = b"x"
        case _:
            buffer = io.BytesIO()
            np.save(buffer, draw.choice(arrays), allow_pickle=True)
            members[name] = buffer.getvalue()
    buffer = io.BytesIO()
    kind = draw.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(buffer, "w", kind) as file:
        for name, member in members.items():
            file.writestr(name, member)
    return buffer.getvalue()


def flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def doubled(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start // 2 :]


def other_encoding(content: bytes, draw: random.Random) -> bytes:
    return content.decode("latin-1").encode(draw.choice(["utf-16", "utf-16-le", "utf-32"]))


def other_file(content: bytes, draw: random.Random) -> bytes:
    return draw.choice([b"", b"\0" * 100, b"\n", b"null\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x80\x04K\x01."])


ANY = (flipped, cut, doubled, other_encoding, other_file)


def mutate(name: str, content: bytes, draw: random.Random) -> bytes:
    own: tuple[Callable[[bytes, random.Random], bytes], ...] = ()
    if name.endswith((".json", ".jsonl")):
        own = (swapped, swapped, swapped, swapped, nested)
    elif name.endswith(".npz"):
        own = (rezipped, rezipped, rezipped)
    return draw.choice((*own, *own, *ANY))(content, draw)


def use(path: Path) -> None:
    """Read all that the rest of the program reads of a store."""
    store = MaskStore.open(path)
    store.finished_labels()
    for record in store.records():
        store.read_mask(record)
        store.read_argmax(record)
        soft = store.read_soft(record)
        assert soft is None or np.isfinite(soft.maps).all()
        store.image_path(record)
    data_config(store)


@pytest.mark.parametrize("name", FILES)
def test_mutants_are_read_or_refused(good, tmp_path, name):
    for seed in range(120 if name.endswith(("json", "jsonl", "npz")) else 60):
        folder = tmp_path / str(seed)
        for other, content in good.items():
            (folder / other).parent.mkdir(parents=True, exist_ok=True)
            (folder / other).write_bytes(content)
        mutant = mutate(name, good[name], random.Random(f"{name} {seed}"))
        (folder / name).write_bytes(mutant)
        try:
            use(folder)
        except Exception as error:
            clean = isinstance(error, StoreError | ImageError | ConfigError) and "\n" not in str(error)
            if not clean:
                pytest.fail(f"seed {seed}: {error!r} for {mutant[:300]!r}")


def rewrite(good: dict[str, bytes], folder: Path, name: str, content: bytes) -> MaskStore:
    for other, own in (good | {name: content}).items():
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes(own)
    return MaskStore.open(folder)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("labels", [3, "cat"], "labels of 'a' is .*a list of class ids"),
        ("labels", [21], "the label 21 of 'a' does not exist: class ids end at 20"),
        ("height", True, "height of 'a' is True, not a number of pixels"),
        ("class_share", [], "class_share of 'a'"),
        ("ignore_share", float("nan"), "ignore_share of 'a' is nan"),
        ("warnings", "none", "warnings of 'a'"),
        ("seconds", 10**400, "seconds of 'a'"),
    ],
)
def test_a_line_says_what_is_wrong_with_it(good, tmp_path, field, value, rule):
    line = json.loads(good["index.jsonl"]) | {field: value}
    store = rewrite(good, tmp_path / "s", "index.jsonl", json.dumps(line).encode() + b"\n")
    with pytest.raises(StoreError, match=rf"Line 1 of .*index\.jsonl: {rule}.*delete the line and generate again"):
        list(store.records())


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda header: header["classes"].update(names="cat"), "Not a class list"),
        (lambda header: header["data"].update(format="zip"), "data.format is 'zip'"),
        (lambda header: header["data"].update(difficult="yes"), "data.difficult is 'yes'; it must be bool"),
        (lambda header: header.update(config=[]), "config is .*, not an object"),
        (lambda header: header.update(format_version="1"), "format version 1"),
        (lambda header: header.update(format_version=True), "format version True"),
    ],
)
def test_a_header_says_what_is_wrong_with_it(good, tmp_path, change, rule):
    header = json.loads(good["store.json"])
    change(header)
    with pytest.raises(StoreError, match=rule):
        rewrite(good, tmp_path / "s", "store.json", json.dumps(header).encode())


def test_stored_settings_are_checked_like_given_ones(good):
    from pseudolabel.config import mask_settings
    from pseudolabel.masks.config import CrfConfig, FuseConfig

    config = json.loads(good["store.json"])["config"]
    assert mask_settings(config).fuse == FuseConfig(threshold=0.4)
    assert mask_settings(config).crf == CrfConfig(kind="none", iterations=3)
    for changed, rule in (
        ({"fuse": {"threshold": "0.5"}}, "config.fuse.threshold is '0.5'; it must be float"),
        ({"fuse": {"threshold": 7}}, "threshold"),
        ({"crf": {"kind": "magic"}}, "config.crf.kind is 'magic'"),
        ({"crf": {"unheard": 1}}, "config.crf.unheard is no setting of this version"),
        ({"crf": None}, "config.crf is None"),
        ({"ignore_below": [0.5]}, "config.ignore_below"),
    ):
        with pytest.raises(UserError, match=rule):
            mask_settings(config | changed)


@pytest.mark.parametrize(
    ("maps", "labels", "rule"),
    [
        (np.full((1, 3, 4), np.nan, np.float16), (3,), "values that are not numbers from 0 to 1"),
        (np.full((1, 3, 4), np.inf, np.float16), (3,), "values that are not numbers from 0 to 1"),
        (np.full((1, 3, 4), 2, np.float16), (3,), "values that are not numbers from 0 to 1"),
        (np.zeros((1, 3, 4), np.float16), (21,), "label 21, but class ids end at 20"),
        (np.zeros((1, 3, 4), np.float16), (4,), r"made for the labels \[4\], the index says \[3\]"),
        (np.zeros((1, 30, 4), np.float16), (3,), "a grid of"),
        (np.zeros((0, 3, 4), np.float16), (), "0 maps"),
    ],
)
def test_soft_maps_that_cannot_be_are_named(good, tmp_path, maps, labels, rule):
    from data.store.softmaps import encode_soft

    soft = SoftMaps(maps, labels, False, (6, 8), (6, 8), (6, 8))
    store = rewrite(good, tmp_path / "s", "scores/a.npz", encode_soft(soft))
    with pytest.raises(StoreError, match=rf"a\.npz are damaged \(.*{rule}"):
        store.read_soft(next(store.records()))


def test_soft_maps_of_any_memory_layout_come_back(good, tmp_path):
    from data.store.softmaps import encode_soft

    maps = np.asfortranarray(np.random.default_rng(1).random((1, 3, 4)).astype(np.float16))
    soft = SoftMaps(maps, (3,), False, (6, 8), (6, 8), (6, 8))
    store = rewrite(good, tmp_path / "s", "scores/a.npz", encode_soft(soft))
    np.testing.assert_array_equal(store.read_soft("a").maps, maps)


def test_a_line_without_end_is_not_read_into_memory(good, tmp_path, monkeypatch):
    from data.store import index

    monkeypatch.setattr(index, "MAX_LINE_BYTES", 1000)
    store = rewrite(good, tmp_path / "s", "index.jsonl", b"x" * 10_000 + b"\n" + good["index.jsonl"])
    assert store.ids() == ["a"]


def test_repeated_lines_count_once_and_are_told_of_once(good, tmp_path, caplog):
    store = rewrite(good, tmp_path / "s", "index.jsonl", good["index.jsonl"] * 3)
    with caplog.at_level("INFO"):
        assert len(list(store.records())) == len(store.finished_labels()) == len(store.ids()) == 1
    assert [message for message in caplog.messages if "2 lines are followed by another one" in message] != []
    assert len(caplog.messages) == 1
