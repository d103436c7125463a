import json

import numpy as np
import pytest
from PIL import Image

from data.errors import ConfigError
from data.phrase_scores import overlap_of
from data.store.softmaps import SoftMaps
from pseudolabel.ground.refer_table import rows_of
from pseudolabel.ground.referring import CUTS, Answer, ReferOptions, contrast_map, find_particular, scored, words_of


@pytest.fixture
def things(tmp_path, rgb_u8):
    """Two concepts, two subsets, the second without the thing."""
    root = tmp_path / "things"
    mask = np.zeros(rgb_u8.shape[:2], np.uint8)
    mask[10:30, 10:40] = 255
    for concept, word in (("mine", "dog"), ("yours", "cat")):
        for subset, drawn in (("all", mask), ("semantic_distractor", 0 * mask)):
            for kind, picture in (("images", rgb_u8), ("masks", drawn)):
                (root / concept / subset / kind).mkdir(parents=True)
                Image.fromarray(picture).save(root / concept / subset / kind / "1.png")
        (root / concept / "concept.yaml").write_text(f"token: plane\nclass_word: {word}\n")
    return root


@pytest.mark.parametrize("rule", ["contrast", "compete", "token", "class"])
def test_particular_things(things, tmp_path, ground_options, run, rule):
    output = tmp_path / "out"
    status, out, err = run("refer", *ground_options, "--root", things, "--output", output, "--rule", rule)
    assert status == 0, err
    results = json.loads((output / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == [
        "mine", "yours", "subset all", "subset semantic_distractor", "total",
    ]  # fmt: skip
    assert [row["targets"] for row in results["rows"]] == [2, 2, 2, 2, 4]
    assert out.startswith("| | targets | mIoU")
    assert (output / "table.md").read_text() in out
    first = (output / "targets.jsonl").read_text()
    assert len(first.splitlines()) == 4


def test_a_run_goes_on_and_refuses_other_settings(things, tmp_path, ground_options, run):
    command = ["refer", *ground_options, "--root", things, "--output", tmp_path / "out"]
    assert run(*command, "--limit", 1)[0] == 0
    first = (tmp_path / "out" / "targets.jsonl").read_text()
    with (tmp_path / "out" / "targets.jsonl").open("a") as file:
        file.write('{"id": "torn')
    assert run(*command)[0] == 0
    lines = (tmp_path / "out" / "targets.jsonl").read_text()
    assert lines.startswith(first)
    assert len(lines.splitlines()) == 5
    status, _, err = run(*command, "--contrast", 1)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "another options" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--token", ""], "'mine' has no token; give --token"),
        (["--class_word", ""], "has no class_word"),
        (["--token", "<my-{concept}>"], "no token '<my-mine>'"),
        (["--token", "dog", "--class_word", "Dog"], "is given twice"),
        (["--limit", "0"], "--limit is 0"),
        (["--contrast", "-1"], "--contrast is -1"),
        (["--split", "val"], "has no splits"),
        (["--layout", "png"], "Cannot read the annotations"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(things, tmp_path, ground_options, run, arguments, words):
    status, _, err = run("refer", *ground_options, "--root", things, "--output", tmp_path / "out", *arguments)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert words in err
    assert not (tmp_path / "out" / "targets.jsonl").exists()


def test_a_folder_of_something_else_is_left_alone(things, tmp_path, ground_options, run):
    status, _, err = run("refer", *ground_options, "--root", things, "--output", things)
    assert status == 2
    assert "is not empty" in err


def test_expressions(tmp_path, rgb_u8, ground_options, run):
    pytest.importorskip("pycocotools.mask")
    root = tmp_path / "refcoco"
    (root / "images").mkdir(parents=True)
    Image.fromarray(rgb_u8).save(root / "images" / "1.png")
    polygon = [[10, 10, 40, 10, 40, 30, 10, 30]]
    instances = {"images": [{"id": 1, "file_name": "1.png", "height": 48, "width": 64}],
                 "annotations": [{"id": 5, "image_id": 1, "category_id": 18, "segmentation": polygon}],
                 "categories": [{"id": 18, "name": "dog"}]}  # fmt: skip
    sentences = [{"sent_id": 1, "sent": "a dog"}, {"sent_id": 2, "sent": "cat " * 90}, {"sent_id": 3, "sent": "cat"}]
    refs = [{"split": "val", "ann_id": 5, "image_id": 1, "sentences": sentences}]
    (root / "instances.json").write_text(json.dumps(instances))
    (root / "refs(unc).json").write_text(json.dumps(refs))
    status, out, err = run("refer", *ground_options, "--root", root, "--output", tmp_path / "out")
    assert status == 0, err
    [row] = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert row["targets"] == 2
    assert set(row) == {"name", "targets", "oIoU", "mIoU", "oracle mIoU"}
    assert "1 of 3 phrases left out, such as" in out


def test_the_contrast_takes_away_what_the_class_has_too(localizer, rgb_u8):
    words, found = ("plane", "dog"), {}
    for weight in (0.0, 0.5, 5.0):
        found[weight] = find_particular(localizer, rgb_u8, words, ReferOptions(weight=weight))
    plain = find_particular(localizer, rgb_u8, words, ReferOptions("compete"))
    both = np.stack([found[0.0].soft, plain.soft]).reshape(2, -1)
    assert np.corrcoef(both)[0, 1] > 0.999  # the same map but for its scale
    assert found[5.0].soft.mean() < found[0.5].soft.mean() < found[0.0].soft.mean()
    assert len({answer.presence for answer in found.values()}) == 1


def test_contrast_map_is_its_formula():
    maps = np.array([[[0.8, 0.4], [0.2, 1.0]], [[0.2, 0.6], [1.0, 0.5]]], np.float16)
    soft = SoftMaps(maps, (1, 2), False, (2, 2), (2, 2), (2, 2))
    expected = np.array([[0.7, 0.1], [0.0, 0.75]]) / 0.75
    assert np.allclose(contrast_map(soft, 0.5).maps[0], expected, atol=2e-3)
    assert not contrast_map(soft, 10).maps.any() or contrast_map(soft, 10).maps.max() == 1
    nothing = SoftMaps(np.stack([maps[0] * 0, maps[1]]), (1, 2), False, (2, 2), (2, 2), (2, 2))
    assert not contrast_map(nothing, 0.5).maps.any()


def test_the_class_word_takes_presence_away(localizer, rgb_u8):
    alone = find_particular(localizer, rgb_u8, ("plane",), ReferOptions("token"))
    both = find_particular(localizer, rgb_u8, ("plane", "dog"), ReferOptions("compete"))
    assert 0 < both.presence < 1
    assert alone.presence != both.presence


def _line(name, truth, mask, group="all", presence=0.5):
    from data.readers.targets import MaskArray, Target

    target = Target(f"{name}/{group}", None, name, MaskArray(truth), group=group)
    return scored(target, Answer(mask, mask.astype(np.float32), presence), truth)


def test_the_tables_figures_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    masks = [rng.random((20, 20)) < 0.3 for _ in range(6)]
    truths = [rng.random((20, 20)) < 0.3 for _ in range(5)] + [np.zeros((20, 20), bool)]
    names = ["a", "a", "b", "b", "b", "b"]
    lines = [_line(*item, presence=n / 10) for n, item in enumerate(zip(names, truths, masks, strict=True))]
    total = rows_of("personal", lines)[-1].figures
    by_name = {}
    for name, truth, mask in zip(names, truths, masks, strict=True):
        both, either = by_name.setdefault(name, [0, 0])
        by_name[name] = [both + (truth & mask).sum(), either + (truth | mask).sum()]
    assert total["mIoU"] == pytest.approx(np.mean([both / either for both, either in by_name.values()]))
    assert total["oracle mIoU"] == pytest.approx(total["mIoU"])  # a mask of 0 and 1 is the same at every cut
    assert total["false alarms"] == 1.0
    assert total["presence AUROC"] == 0.0  # the one that is not there has the highest presence
    [together] = rows_of("permis", lines)
    pairs = list(zip(truths, masks, strict=True))
    both, either = sum((t & m).sum() for t, m in pairs), sum((t | m).sum() for t, m in pairs)
    assert together.figures["mIoU"] == pytest.approx(both / either)


def test_things_that_are_not_there_do_not_change_the_protocols_figure():
    truth = np.zeros((10, 10), bool)
    truth[:5] = True
    lines = [_line("a", truth, truth), _line("a", 0 * truth > 0, truth, group="absent")]
    assert rows_of("perseg", lines)[-1].figures["mIoU"] == 1.0
    assert rows_of("perseg", lines)[-1].figures["false alarms"] == 1.0


def test_narratives_have_a_row_for_each_kind():
    truth = np.ones((4, 4), bool)
    lines = [_line("a", truth, truth) | {"tags": ["things", "plural"]}]
    lines += [_line("b", truth, ~truth) | {"tags": ["stuff", "singular"]}]
    rows = {row.name: row.figures["mIoU"] for row in rows_of("png", lines)}
    assert rows == {"things": 1.0, "stuff": 0.0, "singular": 0.0, "plural": 1.0, "total": 0.5}


def test_the_oracle_is_the_best_cut():
    truth = np.zeros((10, 10), bool)
    truth[:, :5] = True
    soft = np.tile(np.linspace(1, 0, 10, dtype=np.float32), (10, 1))
    from data.readers.targets import MaskArray, Target

    line = scored(Target("a", None, "a", MaskArray(truth), group="all"), Answer(~truth, soft, 1.0), truth)
    best = max(overlap_of(soft > cut, truth).iou for cut in CUTS)
    assert rows_of("personal", [line])[-1].figures["oracle mIoU"] == pytest.approx(best) == 1.0


def test_words_of_a_concept(localizer):
    tokenizer = localizer.pipeline.parts.tokenizers[0]
    known = {"token": "plane", "class_word": "dog"}
    assert words_of("x", known, ReferOptions(), tokenizer) == ("plane", "dog")
    assert words_of("x", known, ReferOptions("class"), tokenizer) == ("dog",)
    assert words_of("x", {}, ReferOptions("token", token="{concept}y"), tokenizer) == ("xy",)
    with pytest.raises(ConfigError, match="has no class_word"):
        words_of("x", {"token": "plane"}, ReferOptions(), tokenizer)
