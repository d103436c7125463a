"""Labels that may be wrong: from the attention of `generate` to the index, the list, the report and stage two."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.ground.presence import presence
from pseudolabel.pipeline import Pipeline
from pseudolabel.review.doubtful import doubtful_labels, flagged_labels


def with_presence(source: Path, target: Path, scores: dict[str, float]) -> MaskStore:
    """A copy of a store whose labels have these presences, by class, others 0.8."""
    target.mkdir()
    (target / "store.json").write_bytes((source / "store.json").read_bytes())
    for folder in ("masks", "argmax", "scores"):
        (target / folder).symlink_to(source / folder)
    lines = [json.loads(line) for line in (source / "index.jsonl").read_text().splitlines()]
    for line in lines:
        line["presence"] = {name: scores.get(name, 0.8) for name in line["presence"]}
    (target / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return MaskStore.open(target)


@pytest.fixture(scope="module")
def labels_of(made_store) -> dict[str, list[str]]:
    store = MaskStore.open(made_store)
    return {one["id"]: [store.classes.name(label) for label in one["labels"]] for one in store.records()}


def test_generate_names_the_presence_of_every_label(made_store, labels_of):
    found = {record["id"]: record["presence"] for record in MaskStore.open(made_store).records()}
    assert {sample_id: list(scores) for sample_id, scores in found.items()} == labels_of
    assert all(0 < score < 1 for scores in found.values() for score in scores.values())


def test_reading_the_shares_changes_no_bit_and_gives_what_phrases_get(tiny_config, classes):
    """The same sentence asked for as phrases: other code, the same attention."""
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    pipeline = Pipeline.load(tiny_config, classes)
    [plain] = pipeline.soft_maps([image], [(8, 12)], ["a"])
    [read] = pipeline.maps_and_shares_or_faults([image], [(8, 12)], ["a"])
    np.testing.assert_array_equal(plain.maps, read.soft.maps)
    [asked] = pipeline.phrase_maps([image], [pipeline.reader.plan((8, 12))], ["a"])
    for own, idle, other, rest in zip(read.attention, read.idle, asked.attention, asked.idle, strict=True):
        assert presence(own, idle) == pytest.approx(presence(other, rest), rel=1e-5)


def test_refine_keeps_what_generate_said(made_store, tmp_path):
    assert main(["refine", f"--store={made_store}", f"--output={tmp_path / 'r'}", "--threshold=0.3"]) == 0
    before, after = (
        {r["id"]: r["presence"] for r in MaskStore.open(p).records()} for p in (made_store, tmp_path / "r")
    )
    assert before == after


def test_the_most_doubtful_come_first_and_nothing_is_changed(made_store, tmp_path, capsys, labels_of):
    names = sorted({name for labels in labels_of.values() for name in labels})
    store = with_presence(made_store, tmp_path / "s", {names[0]: 0.125})
    index = (store.path / "index.jsonl").read_bytes()
    assert main(["doubt", f"--store={store.path}", "--limit=2", f"--output={tmp_path / 'all.csv'}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[0] == names[0].split()[0]
    assert "0.125" in printed[1]
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert [float(row["presence"]) for row in rows] == sorted(float(row["presence"]) for row in rows)
    assert len(rows) == sum(map(len, labels_of.values()))
    assert (store.path / "index.jsonl").read_bytes() == index
    assert main(["doubt", f"--store={store.path}", "--json", "--limit=0"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["format_version"] == 1
    assert [(one["id"], one["label"]) for one in listed["labels"]] == [(r["id"], r["label"]) for r in rows]


def test_only_labels_far_below_the_median_are_flagged(made_store, tmp_path, labels_of):
    name = next(iter(labels_of.values()))[0]
    others = [n for labels in labels_of.values() for n in labels if n != name]
    store = with_presence(made_store, tmp_path / "s", {name: 0.1})
    flagged = flagged_labels(store)
    assert len(others) > sum(name in labels for labels in labels_of.values())  # so that the median is theirs
    assert set(flagged) == {sample_id for sample_id, labels in labels_of.items() if name in labels}
    assert {n for names in flagged.values() for n in names} == {name}
    assert main(["report", f"--store={store.path}", f"--output={tmp_path / 'r.html'}"]) == 0
    assert f"{name}: is it there?" in (tmp_path / "r.html").read_text()


def test_a_store_without_presence_is_refused_by_the_list_and_not_by_the_report(made_store, tmp_path, capsys):
    store = with_presence(made_store, tmp_path / "s", {})
    lines = [json.loads(line) for line in (store.path / "index.jsonl").read_text().splitlines()]
    for line in lines:
        del line["presence"]
    (store.path / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["doubt", f"--store={store.path}"]) == 2
    assert "pseudolabel generate --overwrite" in capsys.readouterr().err
    assert main(["report", f"--store={store.path}", f"--output={tmp_path / 'r.html'}"]) == 0
    assert main(["doubt", f"--store={made_store}", "--limit=-1"]) == 2
    assert "--limit is -1" in capsys.readouterr().err


def test_equal_presences_are_in_the_order_of_the_ids(made_store, tmp_path):
    found = doubtful_labels(with_presence(made_store, tmp_path / "s", {}))
    assert [(each.id, each.label) for each in found] == sorted((each.id, each.label) for each in found)
