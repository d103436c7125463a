import sys

import pytest
import torch

from data import gpu


@pytest.fixture
def asked_anew():
    """Forget what this machine has, before and after."""
    gpu.may_have_gpu.cache_clear()
    yield
    gpu.may_have_gpu.cache_clear()


def test_where_torch_has_a_gpu_its_driver_is_found():
    assert gpu.may_have_gpu() or not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("platform", "library"), [("linux", "libcuda.so.1"), ("win32", "nvcuda.dll"), ("darwin", None)]
)
def test_each_system_is_asked_for_its_own_driver(monkeypatch, tmp_path, asked_anew, platform, library):
    asked = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(gpu, "AMD_DRIVER", tmp_path / "kfd")
    monkeypatch.setattr(gpu.ctypes, "CDLL", asked.append)
    assert gpu.may_have_gpu() == (library is not None)
    assert asked == ([] if library is None else [library])


def test_a_library_that_is_not_there_is_no_driver(monkeypatch, tmp_path, asked_anew):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(gpu, "AMD_DRIVER", tmp_path / "kfd")
    monkeypatch.setattr(gpu.ctypes, "CDLL", missing)
    assert not gpu.may_have_gpu()
    (tmp_path / "kfd").touch()
    gpu.may_have_gpu.cache_clear()
    assert gpu.may_have_gpu()
