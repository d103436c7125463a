import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from data.errors import ConfigError, LabelError
from data.readers.phrases import PhraseRow, read_phrase_table
from data.readers.target_layout import open_targets
from data.readers.targets import read_region

pycocotools = pytest.importorskip("pycocotools.mask")


def image(path, size_hw=(8, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_hw[::-1]).save(path)


# ------------------------------------------------------------------------------------------------------------ own table


@pytest.mark.parametrize(
    "text",
    [
        'image,phrase\na.jpg,a brown dog\nb/c.jpg,"red car, parked"\n',
        "phrase;image\na brown dog;a.jpg\nred car, parked;b\\c.jpg\n",
        "\ufeffImage\tPhrase\tnote\na.jpg\ta brown dog\tx\n\nb/c.jpg\tred car, parked\ty\n",
    ],
)
def test_tables(tmp_path, text):
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8")
    assert read_phrase_table(path) == [
        PhraseRow(tmp_path / "a.jpg", "a brown dog"), PhraseRow(tmp_path / "b/c.jpg", "red car, parked"),
    ]  # fmt: skip


def test_a_sentence_column(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("image,phrase,sentence\na.jpg,dog,a dog runs\na.jpg,cat,\n")
    assert [row.sentence for row in read_phrase_table(path)] == ["a dog runs", None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no column"),
        ("image\na.jpg\n", "no column 'phrase'"),
        ("image,phrase\n", "has no rows"),
        ("image,phrase\na.jpg,\n", "row 2 has no phrase"),
        ("image,phrase\n,dog\n", "row 2 has no image"),
        ("image,phrase,phrase\na,b,c\n", "no column 'phrase'"),
    ],
)
def test_faults_of_tables(tmp_path, text, words):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(LabelError, match=words):
        read_phrase_table(path)


def test_a_table_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(LabelError, match="Cannot read"):
        read_phrase_table(tmp_path / "none.csv")
    (tmp_path / "p.csv").write_bytes(b"\x81\xff\x00")
    with pytest.raises(LabelError, match="Cannot read"):
        read_phrase_table(tmp_path / "p.csv")


# -------------------------------------------------------------------------------------------------------------- RefCOCO


def refs():
    sentences = [{"sent_id": 5, "sent": "left dog", "raw": "Left dog", "tokens": ["left", "dog"]},
                 {"sent_id": 6, "sent": "brown one", "raw": "Brown one", "tokens": ["brown", "one"]}]  # fmt: skip
    one = {"ref_id": 1, "ann_id": 11, "category_id": 18, "image_id": 581857, "split": "val", "sent_ids": [5, 6],
           "file_name": "COCO_train2014_000000581857_16.jpg", "sentences": sentences}  # fmt: skip
    other = one | {"ref_id": 2, "split": "train", "ann_id": 12, "sentences": [sentences[0] | {"sent_id": 7}]}
    return [one, other]


def instances():
    mask = np.zeros((8, 10), np.uint8, order="F")
    mask[1:4, 2:7] = 1
    code = pycocotools.encode(mask)
    compressed = {"size": [8, 10], "counts": code["counts"].decode()}
    polygon = [[2, 1, 7, 1, 7, 4, 2, 4]]
    return {
        "images": [{"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "height": 8, "width": 10}],
        "annotations": [{"id": 11, "image_id": 581857, "segmentation": polygon, "category_id": 18},
                        {"id": 12, "image_id": 581857, "segmentation": compressed, "category_id": 18}],
        "categories": [{"id": 18, "name": "dog"}],
    }  # fmt: skip


def write_refcoco(root, protocol=0, images="images"):
    image(root / images / "COCO_train2014_000000581857.jpg")
    (root / "instances.json").write_text(json.dumps(instances()))
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs(), protocol=protocol))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("images", ["images", "../images/mscoco/images/train2014"])
def test_refcoco(tmp_path, protocol, images):
    root = tmp_path / "refcoco"
    root.mkdir()
    write_refcoco(root, protocol, images)
    found = open_targets(root)
    assert found.kind == "refcoco"
    assert [(one.id, one.phrase) for one in found.targets] == [("5", "left dog"), ("6", "brown one")]
    mask = read_region(found.targets[0])
    assert mask[1:4, 2:7].all()
    assert int(mask.sum()) == 15
    [trained] = open_targets(root, split="train").targets
    assert np.array_equal(read_region(trained), mask)  # a run-length code says the same as a polygon


def test_refcoco_of_python_2(tmp_path):
    """The authors' files were pickled by Python 2: text is bytes there, read as latin1."""
    write_refcoco(tmp_path)
    old = b"(lp0\n(dp1\nS'sentences'\np2\n(lp3\n(dp4\nS'sent'\np5\nS'left dog'\np6\nsS'sent_id'\np7\nI5\nsas"
    old += b"S'ann_id'\np8\nI11\nsS'image_id'\np9\nI581857\nsS'split'\np10\nS'val'\np11\nsa."
    (tmp_path / "refs(unc).p").write_bytes(old)
    [target] = open_targets(tmp_path).targets
    assert target.phrase == "left dog"


class _Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_refcoco(tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([_Harmful()]))
    with pytest.raises(LabelError, match=r"wants to run .*mkdir"):
        open_targets(tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_json_is_taken_where_there_is_some(tmp_path):
    write_refcoco(tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(b"nonsense")
    (tmp_path / "refs(unc).json").write_text(json.dumps(refs()))
    assert len(open_targets(tmp_path).targets) == 2


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda root: (root / "refs(unc).p").write_bytes(b"nonsense"), LabelError, "is no list"),
        (lambda root: (root / "refs(unc).p").write_bytes(pickle.dumps({"a": 1})), LabelError, "holds a dict"),
        (lambda root: (root / "refs(unc).p").write_bytes(pickle.dumps([{"split": "val"}])), LabelError, "holds no"),
        (lambda root: (root / "instances.json").write_text("{"), LabelError, "is not JSON"),
        (lambda root: next((root / "images").iterdir()).unlink(), ConfigError, "There is no image"),
    ],
)
def test_faults_of_refcoco(tmp_path, spoil, error, words):
    write_refcoco(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=words):
        open_targets(tmp_path)


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    write_refcoco(tmp_path)
    with pytest.raises(ConfigError, match="may be train, val"):
        open_targets(tmp_path, split="testA")


# ------------------------------------------------------------------------------------------------------------------ PNG


def write_png(root):
    image(root / "images" / "val2017" / "000000000139.jpg")
    ids = np.zeros((8, 10), np.int64)
    ids[:4], ids[4:, :5] = 300, 70000
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    drawn = root / "annotations" / "panoptic_segmentation" / "val2017"
    drawn.mkdir(parents=True)
    Image.fromarray(colours).save(drawn / "000000000139.png")
    panoptic = {
        "images": [{"id": 139, "file_name": "000000000139.jpg", "height": 8, "width": 10}],
        "annotations": [{"image_id": 139, "file_name": "000000000139.png", "segments_info": [
            {"id": 300, "category_id": 187}, {"id": 70000, "category_id": 1}]}],
        "categories": [{"id": 1, "isthing": 1}, {"id": 187, "isthing": 0}],
    }  # fmt: skip
    parts = [("In this image", [], False), ("the sky", ["300"], True), ("is above", [], False),
             ("people", ["70000", "300"], True), ("a ghost", [], True)]  # fmt: skip
    segments = [{"utterance": text, "segment_ids": found, "noun": noun, "plural": False} for text, found, noun in parts]
    caption = "In this image the sky is above people a ghost."
    narrative = {"image_id": "139", "annotator_id": 1, "caption": caption, "segments": segments}
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(panoptic))
    (root / "annotations" / "png_coco_val2017.json").write_text(json.dumps([narrative]))


def test_panoptic_narratives(tmp_path):
    write_png(tmp_path)
    found = open_targets(tmp_path)
    assert found.kind == "png"
    assert [(one.phrase, one.tags) for one in found.targets] == [
        ("the sky", ("stuff", "singular")), ("people", ("things", "plural")),
    ]  # fmt: skip
    assert [int(read_region(one).sum()) for one in found.targets] == [40, 60]
    assert "1 of 3 noun phrases without" in found.notes[0]
    assert found.targets[0].sentence.startswith("In this image")


def test_faults_of_panoptic_narratives(tmp_path):
    write_png(tmp_path)
    (tmp_path / "annotations" / "panoptic_val2017.json").write_text("[]")
    with pytest.raises(LabelError, match="holds no PNG annotations"):
        open_targets(tmp_path)
    (tmp_path / "annotations" / "panoptic_val2017.json").unlink()
    with pytest.raises(LabelError, match="Cannot read the annotations"):
        open_targets(tmp_path)


@pytest.mark.parametrize("isthing", [False, "1", 2, None, 1.0])
def test_a_category_is_a_thing_or_not(tmp_path, isthing):
    """False equals 0, but who writes it may mean anything."""
    write_png(tmp_path)
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["categories"][0]["isthing"] = isthing
    path.write_text(json.dumps(content))
    with pytest.raises(LabelError, match="holds no PNG annotations"):
        open_targets(tmp_path)
