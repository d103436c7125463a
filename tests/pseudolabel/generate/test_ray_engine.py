"""Ray with several workers on this machine: starting it takes most of the time."""

import sys

import pytest

from data.store.store import MaskStore
from pseudolabel.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own: deprecations of its dependencies, sockets left open


@pytest.mark.slow
def test_bit_identical_to_the_local_engine(made_store, world, tiny_options, tmp_path, store_bytes):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        args = ["generate", "--root", str(world), "--store", str(tmp_path / "s"), *tiny_options, "--engine=ray"]
        assert main([*args, "--shard=1/2", "--batch_size=1"]) == 0
        assert len(MaskStore.open(tmp_path / "s").ids()) == 3
        assert main(args) == 0
        assert store_bytes(tmp_path / "s") == store_bytes(made_store)
        assert MaskStore.open(tmp_path / "s").header == MaskStore.open(made_store).header
        lost = [*args[:4], str(tmp_path / "t"), *args[5:], "--model.id=./no/such/model"]
        assert main(lost) == 2
        assert not (tmp_path / "t").exists()
    finally:
        ray.shutdown()


def test_without_ray_the_error_names_the_extra(world, tiny_options, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    args = ["generate", "--root", str(world), "--store", str(tmp_path / "s"), *tiny_options, "--engine=ray"]
    assert main(args) == 2
    assert "text2mask-wsss[ray]" in capsys.readouterr().err
