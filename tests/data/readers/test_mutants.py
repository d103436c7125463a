"""Seeded mutants of the files of every reader: each is read or refused by an error of ours, never by another one."""

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data.class_file import load_classes
from data.config import DataConfig
from data.errors import UserError
from data.readers.checks import check_data
from data.readers.labels import read_label_table
from data.readers.layout import open_samples

MUTANTS = 100
ODD: list[Any] = [
    *(None, True, False, 0, -1, 2, 3.5, 1e300, float("nan"), float("inf"), -float("inf"), 2**31, 2**63, 10**400),
    *("", "x", "0", "1e5", "../x", "/etc/passwd", "a\0b", "\ud800", "ä" * 300, "background", "\u202e", "=1+1", "<a>"),
    *([], {}, [[]], [None], {"a": {"b": []}}, [1, "2", None], [[[[[[1]]]]]], {"": ""}),
]


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """Return a copy of nested lists and dictionaries with one or two places changed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 2])):
        places = list(_places(tree))
        if not places:
            break
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 2:
                holder[key] = str(holder[key])
            case 3:
                holder[key] = [holder[key]]
            case _:
                holder[key] = copy.deepcopy(rng.choice(ODD))
    return tree


def _places(tree: Any):
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return bytes cut, flipped, repeated, nested or written in another encoding."""
    at = rng.randrange(len(content) + 1)
    match rng.randrange(8):
        case 0:
            return content[:at]
        case 1:
            return content[at:]
        case 2 | 3:
            changed = bytearray(content)
            for _ in range(rng.choice([1, 3, 20])):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 4:
            odd = rng.choice(
                [b"\0", b"\xff", b"\r", b'"', b"<", b"[" * 5000, b"{" * 5000, b"- " * 3000, b"9" * 5000, b"&a *a"]
            )
            return content[:at] + odd + content[at:]
        case 5:
            return content[:at] + content[at // 2 :]
        case 6:
            text = content.decode("latin1")
            return text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7"]))
        case _:
            return rng.choice([b"", b"\n", b"null", b"0", b"[]", b"{}", b"<a/>", b"\x93NUMPY", b"\xff\xd8\xff"])


def refusal(work: Callable[[], object]) -> str | None:
    """Return the message of the error of ours that comes out, or None; any other one goes through."""
    try:
        work()
    except UserError as error:
        return str(error)
    return None


def survive(config: DataConfig) -> None:
    """Do what every command does first; what comes out is checked, and raised again if it is an error of ours."""
    found = [
        refusal(work) for work in (lambda: list(open_samples(config).samples), lambda: check_data(config, examine=1))
    ]
    messages = [message for message in found if message is not None]
    assert all(0 < len(message) < 3000 for message in messages)
    if messages:
        raise UserError(messages[0])


def try_all(
    path: Path, make: Callable[[random.Random], bytes], run: Callable[[], object], seed: int, count: int = MUTANTS
) -> None:
    """Write mutants over a file and run each; a failure names its number. Some must be read and some refused."""
    start, refused = time.process_time(), 0
    for number in range(count):
        path.write_bytes(make(random.Random(f"{seed} {number}")))
        try:
            run()
        except UserError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"mutant {number} of {path.name}: {path.read_bytes()[:300]!r}") from error
    assert 0 < refused < count
    assert time.process_time() - start < 60


def either(tree: Any, write: Callable[[Any], bytes]) -> Callable[[random.Random], bytes]:
    """Return a maker of mutants: of the tree, or of its bytes."""

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.6:
            return write(mutated_tree(tree, rng))
        return mutated_bytes(write(tree), rng)

    return make


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def test_mutants_of_cocos_json(tmp_path, make_coco):
    square = {"id": 1, "category_id": 3, "area": 16, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
    crowd = {"id": 2, "category_id": 90, "iscrowd": 1, "area": 9, "segmentation": {"size": [24, 32], "counts": [9, 9]}}
    packed = {"id": 3, "category_id": 3, "area": 9, "segmentation": {"size": [24, 32], "counts": "P1a0"}}
    root = make_coco(tmp_path / "coco", {1: [square, crowd], 2: [packed]})
    path = root / "annotations" / "instances_train2014.json"
    tree = json.loads(path.read_text())
    config = DataConfig(root, cache=tmp_path / "cache")
    try_all(path, either(tree, as_json), lambda: survive(config), seed=1, count=2 * MUTANTS)


def test_mutants_of_cocos_index(tmp_path, make_coco):
    square = {"id": 1, "category_id": 3, "area": 16, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
    config = DataConfig(make_coco(tmp_path / "coco", {1: [square]}), cache=tmp_path / "cache")
    open_samples(config)
    [index] = config.cache.iterdir()
    for name in ("categories.json", "images.jsonl"):
        content = (index / name).read_bytes()
        try_all(index / name, lambda rng, content=content: mutated_bytes(content, rng), lambda: survive(config), seed=2)
        (index / name).write_bytes(content)


def test_mutants_of_vocs_annotations_and_lists(tmp_path, make_voc):
    root = make_voc(tmp_path, {"a": ["cat", "dog?"], "b": ["cow"]})
    for path in (root / "Annotations" / "a.xml", root / "ImageSets" / "Segmentation" / "train.txt"):
        content = path.read_bytes()
        try_all(
            path, lambda rng, content=content: mutated_bytes(content, rng), lambda: survive(DataConfig(root)), seed=3
        )
        path.write_bytes(content)


TABLES = {
    "names": [["image", "labels"], ["a.jpg", "cat;dog"], ["b.jpg", "cat"]],
    "marks": [["", "image", "cat", "dog"], ["0", "a.jpg", "1", "0"], ["1", "b.jpg", "True", ""]],
    "no header": [["a.jpg", "cat", "dog"], ["b.jpg", "dog"]],
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_mutants_of_csv(tmp_path, save_image, table):
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / name)

    def write(tree: Any) -> bytes:
        rows = tree if isinstance(tree, list) else [tree]
        lines = [",".join(str(cell) for cell in row) if isinstance(row, list) else str(row) for row in rows]
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    try_all(tmp_path / "labels.csv", either(table, write), lambda: survive(DataConfig(tmp_path)), seed=4)


def test_mutants_of_jsonl(tmp_path, save_image):
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / name)
    tree = [{"image": "a.jpg", "labels": ["cat", "dog"]}, {"image": "b.jpg", "labels": "cat"}]

    def write(rows: Any) -> bytes:
        return "\n".join(map(json.dumps, rows)).encode()

    try_all(tmp_path / "labels.jsonl", either(tree, write), lambda: survive(DataConfig(tmp_path)), seed=5)


def test_mutants_of_class_files(tmp_path):
    tree = {
        "format": "pseudolabel-classes",
        "format_version": 1,
        "default_background": ["sky"],
        "classes": ["cat", {"name": "dog", "phrase": "a dog", "background": ["tree", "lawn"]}],
    }

    def write(value: Any) -> bytes:
        return yaml.dump(value, allow_unicode=True, width=10_000).encode("utf-8", "surrogatepass")

    path = tmp_path / "classes.yaml"
    try_all(path, either(tree, write), lambda: load_classes(path), seed=6)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_mutants_of_cls_labels(tmp_path, protocol):
    import pickle

    path = tmp_path / "cls_labels.npy"
    content = {"2007_000032": np.eye(20)[3].astype(np.float32), 2007000039: [0] * 19 + [1], b"c": np.ones(20, bool)}
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    header = path.read_bytes()[:128]
    plain = header + pickle.dumps(np.array(content, dtype=object), protocol=protocol)
    path.write_bytes(plain)
    assert len(read_label_table(path)) == 3
    try_all(path, lambda rng: mutated_bytes(plain, rng), lambda: read_label_table(path), seed=7, count=3 * MUTANTS)


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_odd_values_in_cls_labels(tmp_path, value):
    path = tmp_path / "cls_labels.npy"
    for content in ({"a": value}, {"a": [value] * 20}, {value: np.ones(20)} if isinstance(value, str) else {}, [value]):
        holder = np.empty((), dtype=object)
        holder[()] = content
        np.save(path, holder, allow_pickle=True)
        message = refusal(lambda: read_label_table(path))
        good = isinstance(value, str) or (value in (0, 1) and content == {"a": [value] * 20})
        assert message or good
