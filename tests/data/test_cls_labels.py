import os
import pickle

import numpy as np
import pytest

from data.classes import VOC
from data.cls_labels import main, read_cls_labels
from data.errors import LabelError
from data.labels import read_label_table


def save(path, content) -> None:
    np.save(path, content, allow_pickle=True)


def vector(*names: str) -> np.ndarray:
    values = np.zeros(20, np.float32)
    values[[VOC.index(name) - 1 for name in names]] = 1
    return values


def test_voc_file(tmp_path, capsys):
    save(tmp_path / "c.npy", {"2007_000032": vector("aeroplane", "person"), 2007000039: vector("tvmonitor")})
    for name in ("labels.jsonl", "labels.csv"):
        assert main([str(tmp_path / "c.npy"), str(tmp_path / name)]) == 0
        assert read_label_table(tmp_path / name) == {
            "2007_000032": ("aeroplane", "person"),
            "2007_000039": ("tvmonitor",),
        }
    assert "labels of 2 images" in capsys.readouterr().out


def test_coco_file(tmp_path):
    save(tmp_path / "c.npy", {30: np.eye(80)[1]})
    assert main([str(tmp_path / "c.npy"), str(tmp_path / "l.csv"), "--classes=coco"]) == 0
    assert read_label_table(tmp_path / "l.csv") == {"000000000030": ("bicycle",)}


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
def test_code_is_refused_and_never_run(tmp_path, call, capsys):
    target = tmp_path / "target"
    target.touch()
    arguments = {os.remove: (str(target),), getattr: (os, "system")}.get(call, (f"rm {target}",))
    bomb = Bomb(call, *arguments)
    if call is getattr:
        bomb = Bomb(call, Bomb(__import__, "os"), "system")
    save(tmp_path / "c.npy", {"a": vector("cat"), "b": bomb})
    with pytest.raises(LabelError, match="wants to run"):
        read_cls_labels(tmp_path / "c.npy")
    assert main([str(tmp_path / "c.npy"), str(tmp_path / "l.csv")]) == 2
    assert target.exists()
    assert not (tmp_path / "l.csv").exists()
    assert capsys.readouterr().err.startswith("error: ")


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
        ({"a": np.array(["cat"])}, "no vector"),
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


def test_wrong_number_of_classes(tmp_path, capsys):
    save(tmp_path / "c.npy", {"a": np.ones(80)})
    assert main([str(tmp_path / "c.npy"), str(tmp_path / "l.csv")]) == 2
    assert "80 labels for 20 classes; choose --classes" in capsys.readouterr().err
