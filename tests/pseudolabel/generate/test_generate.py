import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.classes import IGNORE, VOC
from data.config import DataConfig
from data.errors import StoreError
from data.readers.layout import open_samples
from data.samples import Sample, SampleSet
from data.store.records import FEW_PIXELS, mask_warnings
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.generate.jobs import pending_samples
from pseudolabel.generate.loop import generate_masks

RUN = [sys.executable, "-m", "pseudolabel.cli"]


def generate(root, store, *options) -> int:
    return main(["generate", "--root", str(root), "--store", str(store), *options])


def times(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (store / "masks").iterdir()}


def test_every_image_has_a_mask_and_a_record(made_store, world):
    store = MaskStore.open(made_store)
    samples = {sample.id: sample for sample in open_samples(DataConfig(root=world)).samples}
    assert store.ids() == sorted(samples)
    for record in store.records():
        sample = samples[record["id"]]
        mask, argmax = store.read_mask(record["id"]), store.read_argmax(record["id"])
        assert mask.shape == argmax.shape == (128, 128)
        assert set(np.unique(argmax)) <= {0, *sample.labels}
        assert np.array_equal(mask[mask != IGNORE], argmax[mask != IGNORE])
        assert record["image"] == f"JPEGImages/{record['id']}.png"
        assert record["labels"] == list(sample.labels)
        assert record["ignore_share"] == pytest.approx(np.mean(mask == IGNORE), abs=1e-6)
        assert store.image_path(record).is_file()
        soft = store.read_soft(record["id"])
        assert soft.maps.shape[0] == len(sample.labels)


def test_a_second_run_leaves_everything(made_store, world, tiny_options, capsys):
    before = times(made_store)
    assert generate(world, made_store, *tiny_options, "--model.id=/gone") == 2  # another model is another setting
    assert generate(world, made_store, *tiny_options, "--batch_size=1") == 0
    assert times(made_store) == before
    assert "0 made now" in capsys.readouterr().out


def test_same_masks_whatever_the_batch_order_shard_or_workers(made_store, world, tiny_options, tmp_path, store_bytes):
    whole = store_bytes(made_store)
    assert generate(world, tmp_path / "one", *tiny_options, "--batch_size=1") == 0
    assert store_bytes(tmp_path / "one") == whole
    assert generate(world, tmp_path / "workers", *tiny_options, "--batch_size=3", "--workers=2") == 0
    assert store_bytes(tmp_path / "workers") == whole
    assert generate(world, tmp_path / "shards", *tiny_options, "--shard=2/2") == 0
    assert len(store_bytes(tmp_path / "shards")) == len(whole) // 2
    assert generate(world, tmp_path / "shards", *tiny_options, "--shard=1/2") == 0
    assert store_bytes(tmp_path / "shards") == whole


def test_reversed_order_and_unequal_sizes(world, tiny_config, tmp_path, store_bytes):
    samples = open_samples(DataConfig(root=world))
    config = replace(tiny_config, data=DataConfig(root=world))
    cropped = []
    for number, sample in enumerate(samples.samples):
        from PIL import Image

        path = tmp_path / f"{sample.id}.png"
        Image.open(sample.image_path).crop((0, 0, 128, 128 - 40 * (number % 2))).save(path)
        cropped.append(replace(sample, image_path=path))
    for name, chosen in (("forth", cropped), ("back", cropped[::-1])):
        generate_masks(tmp_path / name, SampleSet(VOC, chosen), config)
    assert store_bytes(tmp_path / "forth") == store_bytes(tmp_path / "back")
    assert {record["height"] for record in MaskStore.open(tmp_path / "forth").records()} == {88, 128}


def test_other_settings_are_an_error_that_shows_them(made_store, world, tiny_options, capsys):
    before = times(made_store)
    assert generate(world, made_store, *tiny_options, "--fuse.threshold=0.3") == 2
    assert "config.fuse.threshold: 0.5 there, 0.3 now" in capsys.readouterr().err
    assert times(made_store) == before


def test_overwrite_is_the_only_way_to_lose_a_mask(made_store, world, tiny_options, tmp_path, store_bytes):
    store = shutil.copytree(made_store, tmp_path / "store")
    before, content = times(store), store_bytes(store)
    assert generate(world, store, *tiny_options, "--overwrite", "--limit=2") == 0
    assert sum(times(store)[name] != before[name] for name in before) == 2
    assert store_bytes(store) == content
    assert generate(world, store, *tiny_options, "--overwrite", "--threshold=0.2", "--shard=1/2") == 2
    assert store_bytes(store) == content
    assert generate(world, store, *tiny_options, "--overwrite", "--threshold=0.2", "--limit=1") == 0
    assert MaskStore.open(store).header["config"]["fuse"]["threshold"] == 0.2
    assert len(list((store / "masks").iterdir())) == len(MaskStore.open(store).ids()) == 1


def test_unreadable_images_are_skipped_named_and_done_later(world, tiny_options, tmp_path, capsys):
    root = shutil.copytree(world, tmp_path / "world")
    broken = root / "JPEGImages" / "train_000003.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:200])
    assert generate(root, tmp_path / "store", *tiny_options, "--on_error=skip") == 0
    said = capsys.readouterr().out
    assert "1 IMAGE WAS SKIPPED" in said
    assert "train_000003" in said
    assert (tmp_path / "store" / "skipped.txt").read_text().startswith("train_000003\t")
    assert generate(root, tmp_path / "store", *tiny_options, "--on_error=skip") == 0  # the others are there
    broken.write_bytes(good)
    assert generate(root, tmp_path / "store", *tiny_options) == 0
    assert len(MaskStore.open(tmp_path / "store").ids()) == 6


def test_not_one_image_is_an_error_even_when_skipping(world, tiny_options, tmp_path, capsys):
    root = shutil.copytree(world, tmp_path / "world")
    for path in (root / "JPEGImages").glob("train_*"):
        path.write_bytes(b"")
    assert generate(root, tmp_path / "store", *tiny_options, "--on_error=skip") == 2
    said = capsys.readouterr()
    assert "6 IMAGES WERE SKIPPED" in said.out
    assert "none of 6 images" in said.err
    assert not (tmp_path / "store").exists()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc to find the worker processes")
def test_resumes_after_kill_9(world, tiny_options, tmp_path, store_bytes):
    slow = [*tiny_options, "--crf.iterations=60", "--workers=1"]
    args = ["generate", "--root", str(world), "--store", str(tmp_path / "killed"), *slow]
    process = subprocess.Popen([*RUN, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    index = tmp_path / "killed" / "index.jsonl"
    deadline = time.monotonic() + 120
    while not index.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert index.exists()
    assert workers
    finished = MaskStore.open(tmp_path / "killed").finished()
    assert 1 <= len(finished) < 6
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))  # no worker outlives the process that was killed
    finished = MaskStore.open(tmp_path / "killed").finished()
    before = times(tmp_path / "killed")

    assert generate(world, tmp_path / "killed", *slow, "--workers=0") == 0
    after = times(tmp_path / "killed")
    assert all(after[f"{name}.png"] == before[f"{name}.png"] for name in finished)
    assert generate(world, tmp_path / "whole", *slow, "--workers=0") == 0
    assert store_bytes(tmp_path / "killed") == store_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_on_one_store(made_store, world, tiny_options, tmp_path, store_bytes):
    args = ["generate", "--root", str(world), "--store", str(tmp_path / "both"), *tiny_options]
    running = [subprocess.Popen([*RUN, *args], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    assert store_bytes(tmp_path / "both") == store_bytes(made_store)
    assert len(list(MaskStore.open(tmp_path / "both").records())) == 6
    for line in (tmp_path / "both" / "index.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(world, tiny_options, tmp_path):
    slow = [*tiny_options, "--crf.iterations=150", "--workers=1"]
    args = ["generate", "--root", str(world), "--store", str(tmp_path / "s"), *slow]
    process = subprocess.Popen([*RUN, *args], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "s" / "index.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from here" in said
    assert "Traceback" not in said


class ManySamples(Sequence):
    """A hundred thousand samples that exist while they are looked at."""

    def __init__(self, samples: Sequence[Sample], count: int) -> None:
        self.samples, self.count = samples, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Sample:
        if position >= self.count:
            raise IndexError
        return replace(self.samples[position % len(self.samples)], id=f"image_{position:06d}")


def test_a_hundred_thousand_images_are_listed_quickly_in_flat_memory(world, tiny_config, tmp_path):
    config = replace(tiny_config, data=DataConfig(root=world), crf=replace(tiny_config.crf, iterations=1))
    many = SampleSet(VOC, ManySamples(list(open_samples(config.data).samples), 100_000))
    finished = dict.fromkeys(f"image_{position:06d}" for position in range(99_997))
    start = time.process_time()
    left = [sample.id for sample in pending_samples(many, config.run, finished)]
    assert left == ["image_099997", "image_099998", "image_099999"]
    assert time.process_time() - start < 5
    few = SampleSet(VOC, ManySamples(many.samples.samples, 5_000))  # measuring memory is slow
    tracemalloc.start()
    assert list(pending_samples(few, config.run, finished)) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    tally = generate_masks(tmp_path / "s", many, replace(config, run=replace(config.run, limit=3)))
    assert tally.written == 3
    assert MaskStore.open(tmp_path / "s").ids() == ["image_000000", "image_000001", "image_000002"]


def test_nothing_is_started_for_a_folder_that_is_something_else(world, tiny_config, tmp_path):
    (tmp_path / "letter.txt").write_text("dear diary")
    config = replace(tiny_config, data=DataConfig(root=world))
    with pytest.raises(StoreError, match="not empty"):
        generate_masks(tmp_path, open_samples(config.data), config)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_warnings_name_what_a_person_should_look_at():
    argmax = np.zeros((100, 100), np.uint8)
    assert mask_warnings(argmax, (1, 2), VOC, 0.0) == ["all background"]
    argmax[:5] = 1
    assert mask_warnings(argmax, (1,), VOC, 0.0) == []
    assert mask_warnings(argmax, (1, 2), VOC, 0.95) == ["bicycle: no pixels", "almost all ignored"]
    argmax[50, : int(10_000 * FEW_PIXELS) - 1] = 2
    assert mask_warnings(argmax, (1, 2), VOC, 0.0) == ["bicycle: almost no pixels"]
    argmax[:] = 1
    assert mask_warnings(argmax, (1,), VOC, 0.0) == ["no background"]


def test_words_without_room_in_the_sentence_are_named(world, tiny_options, tmp_path, capsys):
    words = [f"{first}{second}" for first in "abcdefg" for second in ("ump", "ond", "ilk", "art")]
    entries = [{"name": name, "background": words} for name in VOC.names]
    (tmp_path / "classes.yaml").write_text(json.dumps({"classes": entries}))
    store = tmp_path / "masks"
    args = ["generate", "--root", str(world), "--store", str(store), "--classes", str(tmp_path / "classes.yaml")]
    assert main([*args, "--limit=2", *tiny_options]) == 0
    lines = [json.loads(line) for line in (store / "index.jsonl").read_text().splitlines()]
    assert all(line["dropped_words"][-1] == words[-1] for line in lines)  # from the end of the list
    out = capsys.readouterr().out
    assert "the sentences of 2 images had no room for all background words: " in out
    assert f"{words[-1]} (2)" in out


def test_a_sentence_with_room_leaves_no_word_out(world, tiny_options, tmp_path, capsys):
    args = ["generate", "--root", str(world), "--store", str(tmp_path / "s"), "--limit=1", *tiny_options]
    assert main([*args, "--prompt.background_words=false"]) == 0
    assert "dropped_words" not in (tmp_path / "s" / "index.jsonl").read_text()
    assert "no room" not in capsys.readouterr().out


def test_settings_without_effect_are_warned_about_once(world, tiny_options, tmp_path, capsys):
    args = ["generate", "--root", str(world), "--store", str(tmp_path / "s"), *tiny_options, "--limit=1"]
    assert main([*args, "--affinity.sharpening=0.1"]) == 0
    assert capsys.readouterr().err.count("--affinity.sharpening") == 1
