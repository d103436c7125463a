import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from data import densecrf
from data.classes import VOC
from data.densecrf import has_pydensecrf
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.generate import workers
from pseudolabel.masks.config import CrfConfig, MaskConfig


def refine(store, output, *options) -> int:
    return main(["refine", "--store", str(store), "--output", str(output), "--workers=0", *options])


def test_the_same_settings_give_the_same_store(made_store, tmp_path, store_bytes):
    assert refine(made_store, tmp_path / "s") == 0
    assert store_bytes(tmp_path / "s") == store_bytes(made_store)
    assert MaskStore.open(tmp_path / "s").header == MaskStore.open(made_store).header


def test_worker_processes_change_nothing(made_store, tmp_path, store_bytes):
    assert refine(made_store, tmp_path / "s", "--workers=2") == 0
    assert store_bytes(tmp_path / "s") == store_bytes(made_store)


def test_settings_that_are_not_given_are_the_stores(made_store, tmp_path, capsys):
    with pytest.raises(SystemExit):
        refine(made_store, tmp_path / "s", "--threshold=0.4", "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["fuse"]["threshold"] == 0.4
    assert printed["crf"]["iterations"] == 2  # what the store was made with; the default in code is 10


def started_from(capsys, *args) -> tuple[str, int]:
    """Return the store that `refine` would read, and the CRF iterations it would start from."""
    with pytest.raises(SystemExit) as done:
        main([*args, "--print_config"])
    assert done.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    printed = printed.get("refine", printed)
    return Path(printed["store"]).name, printed["crf"]["iterations"]


def test_the_store_is_found_wherever_it_is_named_and_the_last_one_counts(tmp_path, capsys):
    for name, iterations in (("two", 2), ("seven", 7)):
        header = {"config": {"crf": {"iterations": iterations}}, "model": {}, "data": {"root": "."}}
        MaskStore.create(tmp_path / name, classes=VOC, **header)
        (tmp_path / f"{name}.yaml").write_text(f"store: {tmp_path / name}\n")
    (tmp_path / "all.yaml").write_text(f"refine: {{store: {tmp_path / 'two'}}}\ngenerate: {{store: other}}\n")
    (tmp_path / "one.yaml").write_text(f"refine: {{store: {tmp_path / 'two'}, output: o}}\n")
    two, seven = f"--store={tmp_path / 'two'}", f"--config={tmp_path / 'seven.yaml'}"
    assert started_from(capsys, "refine", *two.split("=")) == ("two", 2)
    assert started_from(capsys, "refine", seven) == ("seven", 7)
    assert started_from(capsys, "refine", seven, two) == ("two", 2)
    assert started_from(capsys, "refine", two, seven) == ("seven", 7)
    assert started_from(capsys, "refine", f"--config={{store: {tmp_path / 'two'}}}") == ("two", 2)
    assert started_from(capsys, f"--config={tmp_path / 'all.yaml'}", "refine") == ("two", 2)
    assert started_from(capsys, f"--config={tmp_path / 'one.yaml'}") == ("two", 2)
    assert started_from(capsys, "refine", seven, "--crf.iterations=3") == ("seven", 3)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "There is no mask store at"),
        ("nothing", "store.json is damaged"),
        ("[]", "is not of the format"),
        ({"fuse": {"thresh": 0.5}}, "settings in the store cannot be read"),
    ],
)
def test_a_bad_store_is_one_line(content, expected, tmp_path, capsys):
    store = tmp_path / "bad"
    if isinstance(content, dict):
        MaskStore.create(store, classes=VOC, config=content, model={}, data={"root": "."})
    elif content is not None:
        store.mkdir()
        (store / "store.json").write_text(content)
    (tmp_path / "c.yaml").write_text(f"store: {store}\n")
    for named in (f"--store={store}", f"--config={tmp_path / 'c.yaml'}"):
        assert main(["refine", named, "--output", str(tmp_path / "s")]) == 2
        message = capsys.readouterr().err.splitlines()
        assert len(message) == 1
        assert expected in message[0]
    assert not (tmp_path / "s").exists()


def test_refined_as_if_generated_with_these_settings(made_store, world, tiny_options, tmp_path, store_bytes):
    changed = ["--crf.iterations=5", "--threshold=0.3", "--ignore_below=0.8"]
    assert refine(made_store, tmp_path / "refined", *changed) == 0
    args = ["generate", "--root", str(world), "--store", str(tmp_path / "generated"), *tiny_options, *changed]
    assert main(args) == 0
    assert store_bytes(tmp_path / "refined") == store_bytes(tmp_path / "generated")
    assert MaskStore.open(tmp_path / "refined").header == MaskStore.open(tmp_path / "generated").header


def test_a_refined_store_can_be_resumed_and_refined_again(made_store, tmp_path, store_bytes, capsys):
    assert refine(made_store, tmp_path / "s", "--threshold=0.3") == 0
    assert refine(made_store, tmp_path / "s", "--threshold=0.3") == 0
    assert "0 masks" in capsys.readouterr().out
    assert refine(made_store, tmp_path / "s", "--threshold=0.4") == 2
    assert "config.fuse.threshold: 0.3 there, 0.4 now" in capsys.readouterr().err
    assert refine(tmp_path / "s", tmp_path / "back", "--threshold=0.5") == 0
    assert store_bytes(tmp_path / "back") == store_bytes(made_store)


def test_not_one_mask_is_an_error_even_when_skipping(made_store, tmp_path, capsys):
    store = shutil.copytree(made_store, tmp_path / "store")
    for path in (store / "scores").iterdir():
        path.write_bytes(b"cut")
    assert refine(store, tmp_path / "s", "--on_error=skip") == 2
    said = capsys.readouterr()
    assert "6 IMAGES WERE SKIPPED" in said.out
    assert "none of 6 images could be processed" in said.err


def test_the_store_read_is_not_written(made_store, capsys):
    assert refine(made_store, made_store) == 2
    assert "is the store that is read" in capsys.readouterr().err


def test_images_that_have_moved(made_store, world, tmp_path, store_bytes, capsys):
    store = shutil.copytree(made_store, tmp_path / "store")
    header = (store / "store.json").read_text().replace(str(world), "/gone")
    (store / "store.json").write_text(header)
    assert refine(store, tmp_path / "lost") == 2
    assert "/gone" in capsys.readouterr().err
    assert refine(store, tmp_path / "found", f"--root={world}") == 0
    assert store_bytes(tmp_path / "found") == store_bytes(made_store)


def network_store(path: Path, world: Path) -> MaskStore:
    """A store as a trained network writes it: row 0 of the soft maps is the background."""
    data = {"format": "voc", "root": str(world), "split": "val"}
    store = MaskStore.create(path, classes=VOC, config={}, model={"id": "network"}, data=data)
    for image in sorted((world / "JPEGImages").glob("val_*.png")):
        maps = np.zeros((3, 16, 16), np.float16)
        maps[0], maps[1, :8], maps[2, 8:] = 0.2, 0.7, 0.7
        soft = SoftMaps(maps, (3, 12), True, (128, 128), (128, 128), (128, 128))
        empty = np.zeros((128, 128), np.uint8)
        record = {"image": f"JPEGImages/{image.name}", "labels": [3, 12]}
        store.write(image.stem, empty, argmax=empty, soft=soft, record=record)
    return store


def test_predictions_of_a_network(world, tmp_path, capsys):
    network_store(tmp_path / "n", world)
    assert refine(tmp_path / "n", tmp_path / "s", "--crf.kind=none", "--ignore_below=0", "--threshold=0.9") == 0
    argmax = MaskStore.open(tmp_path / "s").read_argmax("val_000000")
    assert (argmax[:60] == 3).all()
    assert (argmax[-60:] == 12).all()
    lines = [line for line in capsys.readouterr().err.splitlines() if "No effect" in line]
    assert len(lines) == 1
    assert lines[0].endswith("--fuse.threshold.")
    assert refine(tmp_path / "n", tmp_path / "t", "--crf.kind=none", "--ignore_below=0") == 0
    assert "No effect" not in capsys.readouterr().err


def test_the_threshold_has_an_effect_where_the_background_is_fused(made_store, tmp_path, capsys):
    assert refine(made_store, tmp_path / "s", "--threshold=0.3") == 0
    assert "No effect" not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--crf.kind=pamr", "--crf.engine=torch", "--crf.engine=auto"])
def test_what_may_run_on_a_gpu_takes_a_device(made_store, tmp_path, capsys, option):
    assert refine(made_store, tmp_path / "wrong", option, "--device=cuda:7") == 2
    assert "error: --device is 'cuda:7'" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


@pytest.mark.skipif(not has_pydensecrf(), reason="needs pydensecrf: pip install '.[crf]'")
@pytest.mark.parametrize(("gpu", "imported"), [(False, False), (True, True)])
def test_without_a_gpu_torch_is_not_imported(made_store, tmp_path, store_bytes, gpu, imported):
    code = (
        "import sys; from pseudolabel.cli import main; from pseudolabel.generate import refine\n"
        f"refine.may_have_gpu = lambda: {gpu}\n"
        f"status = main(['refine', '--store', {str(made_store)!r}, '--output', {str(tmp_path / 's')!r}, "
        "'--workers=0', '--crf.engine=auto'])\n"
        "sys.exit(status or 10 + ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 10 + imported
    assert store_bytes(tmp_path / "s") == store_bytes(made_store)


@pytest.mark.skipif(not has_pydensecrf(), reason="needs pydensecrf: pip install '.[crf]'")
def test_both_engines_make_the_same_masks_and_the_store_says_which(made_store, tmp_path, monkeypatch):
    found = {}
    for engine in ("pydensecrf", "torch"):
        target = tmp_path / engine
        assert refine(made_store, target, f"--crf.engine={engine}", "--crf.iterations=10", "--device=cpu") == 0
        found[engine] = MaskStore.open(target)
        assert found[engine].header["config"]["crf"]["engine"] == engine
    one, other = found.values()
    assert np.mean([np.mean(one.read_argmax(i) == other.read_argmax(i)) for i in one.ids()]) >= 0.9999
    assert {record.get("crf_engine") for record in one.records()} == {None}
    assert {record.get("crf_engine") for record in other.records()} == {"torch"}
    # The engine is the machine's: either resumes the other's store, and neither hands its own on.
    assert refine(made_store, tmp_path / "torch", "--crf.engine=pydensecrf", "--crf.iterations=10") == 0
    monkeypatch.setattr(densecrf, "has_pydensecrf", lambda: False)
    assert refine(tmp_path / "pydensecrf", tmp_path / "again", "--workers=0") == 0
    again = MaskStore.open(tmp_path / "again")
    assert again.header["config"]["crf"]["engine"] == "torch"
    assert again.header["config"]["crf"]["iterations"] == 10


def test_an_engine_that_is_not_there_is_one_line(made_store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(densecrf, "has_pydensecrf", lambda: False)
    assert refine(made_store, tmp_path / "s", "--crf.engine=pydensecrf") == 2
    assert "crf.engine is pydensecrf, which cannot be imported here" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(not has_pydensecrf(), reason="needs pydensecrf: pip install '.[crf]'")
def test_pydensecrf_takes_no_device(made_store, tmp_path, store_bytes):
    assert refine(made_store, tmp_path / "dense", "--crf.engine=pydensecrf", "--device=cuda:7") == 0
    assert store_bytes(tmp_path / "dense") == store_bytes(made_store)


def test_pamr_off_the_cpu_runs_in_the_process_that_holds_the_device(made_store, tmp_path, monkeypatch, store_bytes):
    """The same device under another name stands for a GPU."""
    from pseudolabel.generate import refine as module

    assert refine(made_store, tmp_path / "a", "--crf.kind=pamr", "--device=cpu") == 0
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda _: pytest.fail("a worker process was started"))
    config = MaskConfig(crf=CrfConfig(kind="pamr", iterations=2))
    module.refine_masks(made_store, tmp_path / "b", config, workers=2, device="cpu:0")
    assert store_bytes(tmp_path / "a") == store_bytes(tmp_path / "b")


@pytest.mark.gpu
def test_pamr_on_a_gpu_gives_the_same_masks(made_store, tmp_path):
    for device in ("cpu", "cuda"):
        assert refine(made_store, tmp_path / device, "--crf.kind=pamr", f"--device={device}") == 0
    one, other = MaskStore.open(tmp_path / "cpu"), MaskStore.open(tmp_path / "cuda")
    assert np.mean([np.mean(one.read_argmax(i) == other.read_argmax(i)) for i in one.ids()]) > 0.999
