"""What a data set lacks is counted, named and told for what it is; sequences end at their end alone."""

import numpy as np
import pytest

from data.config import DataConfig
from data.errors import ConfigError, LabelError
from data.masks import write_mask
from data.readers.checks import check_data, report_lines
from data.readers.layout import open_samples
from data.samples import LazySamples, evenly_spaced


@pytest.fixture
def part_of_voc(tmp_path, make_voc):
    make_voc(tmp_path, {"a": ["cat"], "b": [], "c": ["dog"], "d": ["cow"]})
    for name in ("c", "d"):
        (tmp_path / "JPEGImages" / f"{name}.jpg").unlink()
        (tmp_path / "Annotations" / f"{name}.xml").unlink()
    return tmp_path


def test_images_of_a_list_that_are_not_on_disk(part_of_voc):
    found = open_samples(DataConfig(part_of_voc))
    assert [one.id for one in found.samples] == ["a"]
    assert found.notes == (
        "1 of 4 images has no labels in Annotations (the first is b); left out.",
        "2 of 4 images of the list are not on disk (c, d); left out.",
    )
    report = check_data(DataConfig(part_of_voc))
    assert (report.unlabelled, report.not_on_disk, report.labelled) == (["b"], ["c", "d"], 1)
    assert report.problems == []
    text = "\n".join(report_lines(report))
    assert "2 not on disk" in text
    assert "2 images of the list are not on disk (c, d)" in text


def test_images_that_are_not_on_disk_may_stop_a_run(part_of_voc):
    (part_of_voc / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nc\nd\n")
    with pytest.raises(LabelError, match=r"2 of 3 images of the list are not on disk \(c, d\)"):
        open_samples(DataConfig(part_of_voc, unlabelled="stop"))
    assert "not on disk" in check_data(DataConfig(part_of_voc, unlabelled="stop")).problems[0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
def test_lists_in_any_unicode(part_of_voc, encoding):
    (part_of_voc / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n", encoding=encoding)
    assert len(open_samples(DataConfig(part_of_voc)).samples) == 1


@pytest.mark.parametrize("content", [b"\xffa\n", b"a\0\n", b"\xff\xfea"])
def test_lists_that_are_no_text(part_of_voc, content):
    (part_of_voc / "ImageSets" / "Segmentation" / "train.txt").write_bytes(content)
    with pytest.raises(ConfigError, match="Cannot read the list"):
        open_samples(DataConfig(part_of_voc))


@pytest.mark.parametrize("name", ["labels.csv", "classes.yaml"])
def test_files_that_are_devices(tmp_path, save_image, name):
    save_image(tmp_path / "cat" / "1.jpg")
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises((LabelError, ConfigError), match="not a file"):
        open_samples(DataConfig(tmp_path))


@pytest.mark.parametrize("name", ["Annotations/a.xml", "ImageSets/Segmentation/train.txt"])
def test_files_of_voc_that_are_devices(part_of_voc, name):
    (part_of_voc / name).unlink()
    (part_of_voc / name).symlink_to("/dev/zero")
    with pytest.raises((LabelError, ConfigError), match="not a file"):
        open_samples(DataConfig(part_of_voc))


@pytest.mark.parametrize(
    "text",
    [
        "<annotation><object><name></name></object></annotation>",
        "<annotation><object/></annotation>",
        '<?xml version="1.0" encoding="nonsense"?><annotation/>',
        '<!DOCTYPE a [<!ENTITY b "'
        + "x" * 999
        + '">'
        + "<!ENTITY c '"
        + "&b;" * 900
        + "'>]><a>"
        + "&c;" * 900
        + "</a>",
    ],
)
def test_annotations_that_are_refused(part_of_voc, text):
    (part_of_voc / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(LabelError, match=r"a\.xml") as caught:
        open_samples(DataConfig(part_of_voc))
    assert "\n" not in str(caught.value)


def test_a_difficult_mark_that_says_neither(part_of_voc):
    path = part_of_voc / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>maybe"))
    assert len(open_samples(DataConfig(part_of_voc)).samples) == 1
    with pytest.raises(LabelError, match="<difficult> of 'cat' is 'maybe'"):
        open_samples(DataConfig(part_of_voc, difficult=False))


@pytest.mark.parametrize("split", ["../x", "/etc", "a/../../b", "", "C:\\x", "a\0b", "..\\x"])
@pytest.mark.parametrize("layout", ["voc", "coco", "folder"])
def test_a_split_stays_inside_the_root(tmp_path, split, layout):
    with pytest.raises(ConfigError, match=r"--data\.split"):
        open_samples(DataConfig(tmp_path, split=split, format=layout))


def test_an_error_inside_never_ends_a_loop_quietly(part_of_voc, monkeypatch):
    samples = open_samples(DataConfig(part_of_voc)).samples
    assert isinstance(samples, LazySamples)
    monkeypatch.setattr("data.readers.listing.find_truth", lambda *_: [][0])
    with pytest.raises(IndexError):
        list(samples)
    with pytest.raises(IndexError):
        "x" in samples  # noqa: B015


def test_even_positions():
    assert evenly_spaced(1449, 5) == [0, 289, 579, 869, 1159]
    assert evenly_spaced(3, None) == evenly_spaced(3, 9) == [0, 1, 2]
    assert evenly_spaced(0, 3) == []


@pytest.fixture
def white(tmp_path, save_image):
    save_image(tmp_path / "cat" / "1.jpg")
    mask = np.zeros((24, 32), np.uint8)
    mask[:5] = 255
    (tmp_path / "masks").mkdir()
    write_mask(tmp_path / "masks" / "cat__1.png", mask)
    return tmp_path


def test_white_truth_is_warned_of_before_a_run(white):
    [warning] = check_data(DataConfig(white)).warnings
    assert "Only 0 and 255 in 1 of the 1 mask of ground truth" in warning
    assert "--data.truth_255=class" in warning
    assert check_data(DataConfig(white, truth_255="class")).warnings == []
    assert open_samples(DataConfig(white, truth_255="class")).samples[0].white == "class"


def test_white_truth_needs_a_single_class(white, save_image):
    save_image(white / "dog" / "1.jpg")
    with pytest.raises(ConfigError, match="there are 2 classes"):
        open_samples(DataConfig(white, truth_255="class"))
    assert len(open_samples(DataConfig(white, truth_255="class"), need_truth=False).samples) == 2


def test_white_truth_is_scored_where_the_store_or_the_flag_says_so(white, caplog):
    from data.classes import make_classes
    from data.store.source import stored_data
    from data.store.store import MaskStore
    from pseudolabel.review.score import score_store

    mask = np.zeros((24, 32), np.uint8)
    mask[:5] = 1
    for name, wanted in (("ignore", 0.0), ("class", 1.0)):
        data = stored_data(DataConfig(white, truth_255=name))
        assert ("truth_255" in data) == (name == "class")  # stores made before have no such entry
        store = MaskStore.create(
            white.parent / f"{white.name}-{name}",
            classes=make_classes(["cat"], {}, {}),
            config={"refine": {}},
            model={"id": "m", "fingerprint": "f"},
            data=data,
        )
        store.write("cat__1", mask, argmax=mask, soft=None, record={"image": "cat/1.jpg"})
        recall = score_store(store).after_crf.recall[1]
        assert (0.0 if np.isnan(recall) else recall) == wanted
        assert score_store(store, truth_255="class").after_crf.recall[1] == 1
    assert "holds only 0 and 255" in caplog.text
    assert "--truth_255=class" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        *({"format": "vok"}, {"format": 7}, {"split": 5}, {"split": None}, {"split": ["train"]}, {"split": "x" * 5000}),
        *({"difficult": "maybe"}, {"unlabelled": None}, {"crowd": "x"}, {"truth_255": 1}, {"truth": 3}, {"truth": ""}),
        *({"truth": "a\0b"}, {"truth": "x" * 5000, "format": "voc"}, {"root": "x" * 5000}, {"root": "a\0b"}),
    ],
    ids=str,
)
def test_settings_out_of_a_store_of_somebody_elses(part_of_voc, settings):
    with pytest.raises(ConfigError) as caught:
        open_samples(DataConfig(**{"root": part_of_voc} | settings))
    assert "\n" not in str(caught.value)


def test_a_folder_of_truth_means_the_same_wherever_it_is_named(part_of_voc, tmp_path_factory, monkeypatch):
    """--truth of score and --data.truth of fit: absolute, below the data set's folder, or below the working one."""
    from data.classes import VOC
    from data.store.source import stored_data, truth_paths
    from data.store.store import MaskStore
    from train.samples import list_training

    work = tmp_path_factory.mktemp("work")
    monkeypatch.chdir(work)
    mask = np.zeros((24, 32), np.uint8)
    model = {"id": "m", "fingerprint": "f"}
    data = stored_data(DataConfig(part_of_voc))
    store = MaskStore.create(work / "store", classes=VOC, config={}, model=model, data=data)
    store.write("a", mask, argmax=mask, soft=None, record={"image": "JPEGImages/a.jpg", "labels": [8]})
    places = {"below the data": part_of_voc / "mine", "both": part_of_voc / "both", "here": work / "here"}
    for folder in (*places.values(), work / "both"):
        folder.mkdir()
        write_mask(folder / "a.png", mask)
    for named, folder in (("mine", "below the data"), ("both", "both"), ("here", "here"), (str(work / "here"), "here")):
        assert truth_paths(store, truth=named)["a"] == places[folder] / "a.png"
        [sample] = list_training(store, "truth", named, None)
        assert sample.mask_path == places[folder] / "a.png"
