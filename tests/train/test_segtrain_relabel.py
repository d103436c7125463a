"""Self-training: which decisions are taken, and a store that trains again."""

import json
import shutil

import numpy as np
import pytest

from data.errors import ConfigError
from data.store.softmaps import upsample
from data.store.store import MaskStore
from train.cli import main
from train.predict import shrink
from train.predict import soft_maps as prediction_maps
from train.relabel import allow, corrected


def test_relabelling_follows_labels_agreement_and_certainty():
    old = np.array([[0, 1, 255, 1, 255]], np.uint8)
    probability = np.zeros((4, 1, 5), np.float32)
    probability[:, 0, 0] = 0.1, 0.2, 0.1, 0.6  # class 3 is absent: of the rest 1 leads, against the mask, not sure
    probability[:, 0, 1] = 0.4, 0.5, 0.1, 0.0  # agreement, though not sure
    probability[:, 0, 2] = 0.1, 0.8, 0.1, 0.0  # no decision before, sure enough now
    probability[:, 0, 3] = 0.97, 0.01, 0.02, 0  # contradiction, sure
    probability[:, 0, 4] = 0.34, 0.33, 0.33, 0  # no decision before, none now
    allowed = allow(probability, (1, 2))
    assert np.allclose(allowed.sum(0), 1)
    assert (allowed[3] == 0).all()
    mask, decided = corrected(old, allowed, sure=0.9, ignore_below=0.5)
    assert mask.tolist() == [[255, 1, 1, 0, 255]]
    assert decided.tolist() == [[1, 1, 1, 0, 0]]
    mask, _ = corrected(old, allowed, disagreement="network", ignore_below=0.45)
    assert mask.tolist() == [[1, 1, 1, 0, 255]]
    with pytest.raises(ConfigError, match="--sure"):
        corrected(old, allowed, sure=2.0)


def test_soft_maps_of_a_prediction_keep_sizes_and_range():
    probability = np.random.default_rng(1).dirichlet([1, 1, 1], (21, 30)).transpose(2, 0, 1).astype(np.float32)
    soft = prediction_maps(shrink(probability), (2,), (21, 30))
    assert soft.maps.shape == (2, 3, 4)
    assert soft.padded_hw == (24, 32)
    assert upsample(soft.maps.astype(np.float32), soft).shape == (2, 21, 30)
    assert 0 <= soft.maps.min() <= soft.maps.max() <= 1


def test_relabel_writes_a_store_that_trains(checkpoint, world, tmp_path):
    arguments = ["relabel", "--ckpt_path", str(checkpoint), "--data.store", str(world.store), "--device", "cpu"]
    assert main([*arguments, "--output", str(tmp_path / "S2")]) == 0
    old, new = MaskStore.open(world.store), MaskStore.open(tmp_path / "S2")
    assert new.ids() == old.ids()
    for record in new.records():
        assert set(np.unique(new.read_mask(record["id"]))) <= {0, 255, *record["labels"]}
    assert new.image_path("train_000").is_file()
    share = {name: [np.mean(store.read_mask(i) == 255) for i in old.ids()] for name, store in (("o", old), ("n", new))}
    assert np.mean(share["n"]) < np.mean(share["o"])
    more = ["--data.store", str(tmp_path / "S2"), "--trainer.max_steps", "1"]
    assert main(world.fit(tmp_path / "r", *more)) == 0
    assert main([*arguments, "--output", str(world.store)]) == 2


def test_after_the_images_have_moved_the_lines_of_the_index_are_as_before(checkpoint, world, tmp_path, capsys, caplog):
    root, store = shutil.copytree(world.root, tmp_path / "W"), shutil.copytree(world.store, tmp_path / "S")
    header = json.loads((store / "store.json").read_text())
    header["data"] |= {"root": str(root), "classes": str(world.root / "classes.yaml")}
    (store / "store.json").write_text(json.dumps(header))
    command = ["relabel", "--ckpt_path", str(checkpoint), "--data.store", str(store), "--device", "cpu"]
    command += ["--output", str(tmp_path / "S2"), "--disagreement", "network", "--sure", "0.5"]
    assert main(command) == 0
    assert "No effect with the other settings, and left aside: --sure." in capsys.readouterr().err + caplog.text
    index = tmp_path / "S2" / "index.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[:8]))
    root.rename(tmp_path / "moved")
    assert main([*command, "--data.root", str(tmp_path / "moved")]) == 0
    assert [json.loads(line)["image"] for line in index.read_text().splitlines()] == [
        json.loads(line)["image"] for line in lines
    ]


def test_a_network_of_other_classes_corrects_nothing(checkpoint, world, tmp_path, capsys):
    store = shutil.copytree(world.store, tmp_path / "S")
    header = json.loads((store / "store.json").read_text())
    header["classes"]["names"][1] = "cone"
    (store / "store.json").write_text(json.dumps(header))
    command = ["--ckpt_path", str(checkpoint), "--data.store", str(store), "--output", str(tmp_path / "S2")]
    assert main(["relabel", *command, "--device", "cpu"]) == 2
    assert "class 2 is 'cone' in the first and is 'box' in the second" in capsys.readouterr().err
    assert not (tmp_path / "S2").exists()
