import json

import numpy as np
import pytest
from PIL import Image

from data.class_file import load_classes, save_classes
from data.classes import make_classes
from data.config import DataConfig
from data.masks import read_mask
from data.readers.layout import open_samples
from data.store.store import MaskStore
from pseudolabel.generate.synthesize import Recipe, order_of


@pytest.fixture(scope="module")
def class_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("classes") / "classes.yaml"
    words = {name: ("tree", "river") for name in ("dog", "cat", "big bird")}
    save_classes(make_classes(["dog", "cat", "big bird"], {"big bird": "bird"}, words), path)
    return path


@pytest.fixture
def command(class_file, sd_folder):
    return [
        "synthesize", f"--model.id={sd_folder}", "--resize.long_side_px=64", "--diffusion.draws=1", "--device=cpu",
        "--attention.cross_layers=[1/2,mid]", "--attention.self_layers=[up_blocks.1.attentions.1]",
        "--crf.iterations=1", "--steps=1", "--size=64", f"--classes={class_file}", "--per_image=[1,2]",
    ]  # fmt: skip


def content(root):
    kept = ("JPEGImages/*", "SegmentationClass/*", "Annotations/*", "ImageSets/*/*", "labels.csv", "store/masks/*")
    paths = sorted(path for pattern in kept for path in root.glob(pattern))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_a_data_set_in_voc_layout_and_a_store(command, tmp_path, class_file, run):
    root = tmp_path / "drawn"
    status, out, err = run(*command, "--count", 4, "--absent", "keep", "--output", root)
    assert status == 0, err
    assert "4 images drawn, 4 of them now; 4 with masks" in out
    samples = open_samples(DataConfig(root=root, classes=root / "classes.yaml"))
    assert samples.classes == load_classes(class_file)
    assert [sample.id for sample in samples.samples] == [f"drawn_{number:06d}" for number in range(4)]
    lines = [json.loads(line) for line in (root / "drawn.jsonl").read_text().splitlines()]
    store = MaskStore.open(root / "store")
    assert sorted(record["id"] for record in store.records()) == [line["id"] for line in lines]
    for sample, line in zip(samples.samples, lines, strict=True):
        assert [samples.classes.name(label) for label in sample.labels] == line["labels"]
        mask = read_mask(sample.truth_path)
        assert np.array_equal(mask, store.read_mask(sample.id))
        assert set(np.unique(mask)) <= {0, 255, *sample.labels}
        with Image.open(sample.image_path) as image:
            assert image.size == (64, 64)
        assert set(line["presence"]) == set(line["labels"])
        assert all(store.classes.phrases[label - 1] in line["prompt"] for label in sample.labels)


def test_a_run_goes_on_and_a_larger_one_begins_with_a_smaller(command, tmp_path, run):
    assert run(*command, "--count", 2, "--output", tmp_path / "a", "--absent", "keep")[0] == 0
    first = content(tmp_path / "a")
    with (tmp_path / "a" / "drawn.jsonl").open("a") as file:
        file.write('{"index": 2, "to')  # torn by a power cut
    status, out, _ = run(*command, "--count", 4, "--output", tmp_path / "a", "--absent", "keep")
    assert status == 0
    assert "4 images drawn, 2 of them now" in out
    assert run(*command, "--count", 4, "--output", tmp_path / "b", "--absent", "keep")[0] == 0
    grown, whole = content(tmp_path / "a"), content(tmp_path / "b")
    assert grown == whole
    assert {name: grown[name] for name in first if name.startswith("JPEG")} == {
        name: value for name, value in first.items() if name.startswith("JPEG")
    }


def test_what_is_not_there_is_taken_out_or_thrown_away(command, tmp_path, run):
    root = tmp_path / "all"
    assert run(*command, "--count", 4, "--output", root, "--absent", "keep")[0] == 0
    lines = [json.loads(line) for line in (root / "drawn.jsonl").read_text().splitlines()]
    scores = sorted(score for line in lines for score in line["presence"].values())
    least = (scores[1] + scores[2]) / 2  # none of them to the last bit
    for absent in ("relabel", "drop"):
        status, out, _ = run(*command, "--count", 4, "--output", tmp_path / absent, "--absent", absent,
                             "--presence_min", least)  # fmt: skip
        assert status == 0
        found = [json.loads(line) for line in (tmp_path / absent / "drawn.jsonl").read_text().splitlines()]
        for line, whole in zip(found, lines, strict=True):
            there = [name for name, score in whole["presence"].items() if score >= least]
            every = len(there) == len(whole["presence"])
            assert line["labels"] == (there if absent == "relabel" or every else [])
            assert line["kept"] == bool(line["labels"])
            assert (tmp_path / absent / "JPEGImages" / f"{line['id']}.png").exists() == line["kept"]
        thrown = sum(not line["kept"] for line in found)
        assert f"Thrown away for it: {thrown}, " in out
        ids = (tmp_path / absent / "ImageSets/Segmentation/train.txt").read_text().split()
        assert ids == [line["id"] for line in found if line["kept"]]


def test_other_settings_on_the_same_folder_are_refused(command, tmp_path, run):
    assert run(*command, "--count", 1, "--output", tmp_path / "a")[0] == 0
    status, _, err = run(*command, "--count", 1, "--output", tmp_path / "a", "--seed", 1)
    assert status == 2
    assert "synthesis.seed" in err or "made with other settings" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "0"], "--count is 0"),
        (["--per_image", "4"], "from 1 to 3, the number of classes"),
        (["--per_image", "[]"], "--per_image is []"),
        (["--background", "2"], "--background is 2"),
        (["--presence_min", "-1"], "--presence_min is -1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--steps", "0"], "--steps is 0"),
        (["--size", "[64, 50]"], "must be multiples of 16 px"),
        (["--classes", "none.yaml"], "none.yaml"),
        (["--prompt.template", "{} " + "dog " * 90], "tokens, the text encoder reads"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(command, tmp_path, run, arguments, words):
    status, _, err = run(*command, "--count", "2", "--output", tmp_path / "a", *arguments)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert words in err
    assert not (tmp_path / "a").exists()


def test_a_folder_of_something_else_is_left_alone(command, tmp_path, run):
    (tmp_path / "mine.txt").write_text("x")
    status, _, err = run(*command, "--count", 1, "--output", tmp_path)
    assert status == 2
    assert "is not empty" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_orders_depend_on_seed_and_number_alone_and_classes_take_turns():
    classes = make_classes([f"c{number}" for number in range(5)], {}, {})
    recipe = Recipe(per_image=(1, 3))
    orders = [order_of(index, classes, recipe, "a photo including {}.") for index in range(50)]
    assert orders[7] == order_of(7, classes, recipe, "a photo including {}.")
    assert orders[7] != order_of(7, classes, Recipe(per_image=(1, 3), seed=1), "a photo including {}.")
    assert {len(order.labels) for order in orders} == {1, 3}
    for index, order in enumerate(orders):
        assert index % 5 + 1 in order.labels
        assert list(order.labels) == sorted(set(order.labels))
    named = sum(any(f" {word}" in order.prompt for word in classes.background_words[0]) for order in orders)
    assert 10 < named < 40
    assert len({order.noise_seed for order in orders}) == 50
