import os
import pickle

import numpy as np
import pytest

from data.classes import VOC, make_classes
from data.config import DataConfig
from data.errors import LabelError
from data.readers.cls_labels import read_cls_labels
from data.readers.labels import read_label_table
from data.readers.layout import open_samples


def save(path, content) -> None:
    np.save(path, content, allow_pickle=True)


def vector(*names: str) -> np.ndarray:
    values = np.zeros(20, np.float32)
    values[[VOC.index(name) - 1 for name in names]] = 1
    return values


def test_voc_file(tmp_path):
    save(tmp_path / "c.npy", {"2007_000032": vector("aeroplane", "person"), 2007000039: vector("tvmonitor")})
    assert read_label_table(tmp_path / "c.npy") == {
        "2007_000032": ("aeroplane", "person"),
        "2007_000039": ("tvmonitor",),
    }


def test_coco_file(tmp_path):
    save(tmp_path / "c.npy", {30: np.eye(80)[1]})
    assert read_label_table(tmp_path / "c.npy") == {"000000000030": ("bicycle",)}


def test_classes_of_ones_own(tmp_path):
    save(tmp_path / "c.npy", {"a": np.array([0, 1])})
    assert read_label_table(tmp_path / "c.npy", make_classes(["mug", "gnome"], {}, {})) == {"a": ("gnome",)}


def test_it_labels_a_data_set(tmp_path, make_voc):
    root = make_voc(tmp_path / "voc", {"2007_000032": ["cat"], "2007_000039": ["dog"]})
    save(tmp_path / "c.npy", {"2007_000032": vector("aeroplane", "person"), 2007000039: vector("tvmonitor")})
    found = open_samples(DataConfig(root=root, labels=tmp_path / "c.npy"))
    assert [sample.labels for sample in found.samples] == [(1, 15), (20,)]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_every_pickle_protocol_and_both_numpys(tmp_path, protocol, core):
    header = (tmp_path / "h.npy", {"a": 1})
    save(*header)
    content = {"a": vector("cat"), "b": vector("dog").astype(np.int64), "n": np.frombuffer(bytes(20), np.uint8)}
    stream = pickle.dumps(np.array(content, dtype=object), protocol=protocol)
    if protocol < 4:  # later protocols write the length before the name
        stream = stream.replace(b"numpy._core", core.encode())
    start = (tmp_path / "h.npy").read_bytes()[:128]
    (tmp_path / "c.npy").write_bytes(start + stream)
    found = read_cls_labels(tmp_path / "c.npy")
    assert sorted(found) == ["a", "b", "n"]
    np.testing.assert_array_equal(found["a"], vector("cat"))


class Bomb:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.system, eval, os.remove, print, getattr, __import__])
def test_code_is_refused_and_never_run(tmp_path, call):
    target = tmp_path / "target"
    target.touch()
    arguments = {os.remove: (str(target),), getattr: (os, "system")}.get(call, (f"rm {target}",))
    bomb = Bomb(call, *arguments)
    if call is getattr:
        bomb = Bomb(call, Bomb(__import__, "os"), "system")
    save(tmp_path / "c.npy", {"a": vector("cat"), "b": bomb})
    with pytest.raises(LabelError, match="wants to run"):
        read_cls_labels(tmp_path / "c.npy")
    with pytest.raises(LabelError, match="wants to run"):
        read_label_table(tmp_path / "c.npy")
    assert target.exists()


def test_decoding_tricks_are_refused(tmp_path):
    import codecs

    save(tmp_path / "c.npy", {"a": Bomb(codecs.encode, "x", "rot13")})
    with pytest.raises(LabelError, match="encode"):
        read_cls_labels(tmp_path / "c.npy")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (np.zeros((3, 20)), "plain array"),
        ([vector("cat")], "not a dictionary"),
        ({"a": "cat"}, "no vector"),
        ({"a": np.zeros((2, 2))}, "no vector"),
        ({"a": np.array(["cat"])}, "an array of 'U3'"),
        ({}, "not a dictionary"),
    ],
)
def test_other_contents_are_named(tmp_path, content, match):
    save(tmp_path / "c.npy", np.array(content) if isinstance(content, np.ndarray) else np.array(content, dtype=object))
    with pytest.raises(LabelError, match=match):
        read_cls_labels(tmp_path / "c.npy")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY", b"\x93NUMPY\x01\x00v\x00{'descr'"])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "c.npy").write_bytes(content)
    with pytest.raises(LabelError, match=r"no cls_labels\.npy"):
        read_cls_labels(tmp_path / "c.npy")


@pytest.mark.parametrize(
    ("length", "classes", "match"), [(80, VOC, "80 labels for 20 classes"), (7, None, "7 labels for classes it cannot")]
)
def test_wrong_number_of_classes(tmp_path, length, classes, match):
    save(tmp_path / "c.npy", {"a": np.ones(length)})
    with pytest.raises(LabelError, match=match):
        read_label_table(tmp_path / "c.npy", classes)
