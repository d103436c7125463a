import contextlib
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.readers.pickled import PickleFault, load_npy_objects, load_pickle


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32", ">i2"])
def test_arrays_come_back_as_they_were(protocol, order, dtype):
    array = np.asarray(np.arange(12).reshape(3, 4) % 2, dtype=dtype, order=order)
    found = load_pickle(pickle.dumps({"a": [array, 3, "x"]}, protocol=protocol))
    assert np.array_equal(found["a"][0], array)
    assert found["a"][1:] == [3, "x"]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values(protocol):
    value = {"a": (1, 2.5, None, True), 3: ["é", b"x"], "n": np.float64(2)}
    assert load_pickle(pickle.dumps(value, protocol=protocol)) == value


class _Harmful:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.system, os.mkdir, eval, np.load, np.ndarray, getattr])
def test_nothing_is_called(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PickleFault, match="wants to run"):
        load_pickle(pickle.dumps(_Harmful(call, "harmed")))
    assert list(tmp_path.iterdir()) == []


WHOLE = pickle.dumps({"a": [np.eye(3, dtype=np.uint8), "text"]}, protocol=2)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4), st.integers(1, len(WHOLE)))
def test_damage_is_one_kind_of_fault(changes, length):
    content = bytearray(WHOLE)
    for at, value in changes:
        content[at] = value
    with contextlib.suppress(PickleFault):
        load_pickle(bytes(content[:length]))


def test_npy_files(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{1: np.eye(2)}, None], dtype=object), allow_pickle=True)
    content = (tmp_path / "a.npy").read_bytes()
    assert np.array_equal(load_npy_objects(content)[0][1], np.eye(2))
    np.save(tmp_path / "b.npy", np.eye(2))
    for spoilt in (b"", content[:9], content[:40], b"x" + content, (tmp_path / "b.npy").read_bytes()):
        with pytest.raises(PickleFault):
            load_npy_objects(spoilt)


def test_an_odd_escape_in_a_text_is_read_without_a_warning():
    assert load_pickle(b"S'\\q'\n.") == "\\q"
