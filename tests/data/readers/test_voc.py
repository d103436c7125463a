import pickle
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data.classes import VOC
from data.config import DataConfig
from data.errors import ConfigError, LabelError
from data.masks import write_mask
from data.readers.layout import open_samples
from data.readers.voc import SHIPPED_SPLITS, read_split


def labels(sample_set) -> dict[str, list[str]]:
    return {one.id: [sample_set.classes.name(label) for label in one.labels] for one in sample_set.samples}


@pytest.mark.parametrize("given", ["", "VOC2012", "VOCdevkit"])
def test_root_may_be_any_level(tmp_path, make_voc, given):
    make_voc(tmp_path / "VOCdevkit" / "VOC2012", {"2007_000001": ["person", "cat", "cat"], "2007_000002": ["dog"]})
    root = {"": tmp_path, "VOC2012": tmp_path / "VOCdevkit" / "VOC2012", "VOCdevkit": tmp_path / "VOCdevkit"}[given]
    found = open_samples(DataConfig(root))
    assert labels(found) == {"2007_000001": ["cat", "person"], "2007_000002": ["dog"]}
    sample = found.samples[0]
    assert sample.image_path.is_file()
    assert sample.truth_path.is_file()
    assert sample.labels == (8, 15)
    assert found.notes == ()


def test_slices_and_pickles(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"], "b": ["dog"]})
    samples = open_samples(DataConfig(tmp_path)).samples
    assert [one.id for one in samples[1:]] == ["b"]
    assert samples[-1].id == "b"
    assert list(pickle.loads(pickle.dumps(samples))) == list(samples)


def test_png_images_are_found(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"]}, suffix=".png")
    assert open_samples(DataConfig(tmp_path)).samples[0].image_path.name == "a.png"


def test_difficult_objects(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat", "sofa?"], "b": ["dog?"]})
    assert labels(open_samples(DataConfig(tmp_path))) == {"a": ["cat", "sofa"], "b": ["dog"]}
    strict = open_samples(DataConfig(tmp_path, difficult=False))
    assert labels(strict) == {"a": ["cat"]}
    assert strict.notes == ("1 of 2 images has no labels in Annotations (the first is b); left out.",)


def test_unlabelled_images(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"], "b": []})
    with pytest.raises(LabelError, match=r"1 of 2 images.*data\.unlabelled=skip"):
        open_samples(DataConfig(tmp_path, unlabelled="stop"))
    everything = open_samples(DataConfig(tmp_path), need_labels=False)
    assert labels(everything) == {"a": ["cat"], "b": []}


def test_no_labels_at_all_is_an_error(tmp_path, make_voc):
    make_voc(tmp_path, {"a": []})
    with pytest.raises(LabelError, match="1 of 1 image has no labels"):
        open_samples(DataConfig(tmp_path))


def test_labels_never_come_from_masks(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"]})
    write_mask(tmp_path / "SegmentationClass" / "a.png", np.full((24, 32), 15, np.uint8))
    assert labels(open_samples(DataConfig(tmp_path))) == {"a": ["cat"]}


def test_unknown_class_names_file_and_nearest(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["bycicle"]})
    with pytest.raises(LabelError, match=r"Annotations, image a: Unknown class 'bycicle' \(did you mean 'bicycle'"):
        open_samples(DataConfig(tmp_path))


def test_damaged_annotation(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"]})
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation><obj")
    with pytest.raises(LabelError, match=r"a\.xml"):
        open_samples(DataConfig(tmp_path))


def test_own_classes(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["zebra"]})
    (tmp_path / "c.yaml").write_text("classes: [zebra]")
    assert labels(open_samples(DataConfig(tmp_path, classes=tmp_path / "c.yaml"))) == {"a": ["zebra"]}


def test_augmented_truth(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"]}, split="train_aug")
    aug = tmp_path / "SegmentationClassAug"
    aug.mkdir()
    write_mask(aug / "a.png", np.zeros((24, 32), np.uint8))
    assert open_samples(DataConfig(tmp_path, split="train_aug")).samples[0].truth_path.parent == aug
    assert open_samples(DataConfig(tmp_path, split="all")).samples[0].truth_path.parent.name == "SegmentationClass"
    chosen = DataConfig(tmp_path, split="all", truth="SegmentationClassAug")
    assert open_samples(chosen).samples[0].truth_path.parent == aug
    assert open_samples(chosen, need_truth=False).samples[0].truth_path is None
    with pytest.raises(ConfigError, match=r"--data\.truth"):
        open_samples(DataConfig(tmp_path, split="all", truth="nothing"))


def test_shipped_lists():
    sizes = {
        name: len(read_split(Path("/nowhere"), name)) for name in ("train", "val", "train_aug", "test", "trainval")
    }
    assert sizes == {"train": 1464, "val": 1449, "train_aug": 10582, "test": 1456, "trainval": 2913}
    train, val, aug = (set(read_split(Path("/nowhere"), name)) for name in ("train", "val", "train_aug"))
    assert train <= aug
    assert not aug & val
    assert all((SHIPPED_SPLITS / f"{name}.txt").read_text().endswith("\n") for name in ("train", "val", "train_aug"))


def test_own_list_wins_over_a_shipped_one(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"]}, split="train_aug")
    assert read_split(tmp_path, "train_aug") == ["a"]


def test_split_without_its_images_and_unknown_split(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"]}, split="mine")
    with pytest.raises(ConfigError, match="none of the 1464 images"):
        open_samples(DataConfig(tmp_path))
    with pytest.raises(ConfigError, match="may be all, mine, test"):
        open_samples(DataConfig(tmp_path, split="vall"))
    (tmp_path / "ImageSets" / "Segmentation" / "mine.txt").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        open_samples(DataConfig(tmp_path, split="mine"))


def test_an_id_that_leaves_the_folder_is_refused(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"]}, split="mine")
    (tmp_path / "ImageSets" / "Segmentation" / "mine.txt").write_text("../../etc/passwd\n")
    with pytest.raises(LabelError, match="path separator"):
        open_samples(DataConfig(tmp_path, split="mine"))


def test_label_file_instead_of_annotations(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"], "b": ["dog"]})
    table = tmp_path / "mine.csv"
    table.write_text("image,labels\na.jpg,dining table tv_monitor\nb,person\n")
    assert labels(open_samples(DataConfig(tmp_path, labels=table))) == {
        "a": ["diningtable", "tvmonitor"],
        "b": ["person"],
    }


def test_no_annotations(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"]})
    (tmp_path / "Annotations" / "a.xml").unlink()
    (tmp_path / "Annotations").rmdir()
    with pytest.raises(LabelError, match=r"neither Annotations/\*\.xml nor labels\.csv"):
        open_samples(DataConfig(tmp_path))
    assert len(open_samples(DataConfig(tmp_path), need_labels=False).samples) == 1
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat person\n")
    assert labels(open_samples(DataConfig(tmp_path))) == {"a": ["cat", "person"]}


def test_train_aug_lists_quickly(tmp_path, make_voc):
    ids = read_split(Path("/nowhere"), "train_aug")
    make_voc(tmp_path, {"a": ["cat"]})
    text = (tmp_path / "Annotations" / "a.xml").read_text()
    (tmp_path / "JPEGImages" / f"{ids[0]}.jpg").touch()
    for sample_id in ids:
        (tmp_path / "Annotations" / f"{sample_id}.xml").write_text(text)
    start = time.process_time()
    found = open_samples(DataConfig(tmp_path, split="train_aug"))
    assert time.process_time() - start < 10
    assert len(found.samples) == 10582
    assert found.classes == VOC


def test_twenty_thousand_ids_list_quickly_in_flat_memory(tmp_path, make_voc):
    make_voc(tmp_path, {"000000": ["cat"]})
    ids = [f"{number:06d}" for number in range(20_000)]
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(ids))
    (tmp_path / "many.csv").write_text("image,labels\n" + "".join(f"{one}.jpg,cat;dog\n" for one in ids))
    start = time.process_time()
    found = open_samples(DataConfig(tmp_path, labels=tmp_path / "many.csv"))
    seconds = time.process_time() - start
    assert len(found.samples) == 20_000
    assert seconds < 5

    def walk() -> set[tuple[int, ...]]:
        return {found.samples[number].labels for number in range(0, 20_000, 4)}

    assert walk() == {(8, 12)}  # pathlib interns names, and Python's table of them may grow: once, and not by the list
    tracemalloc.start()
    assert walk() == {(8, 12)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6
