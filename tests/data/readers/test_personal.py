import os

import numpy as np
import pytest
from PIL import Image

from data.errors import ConfigError, ImageError, LabelError
from data.readers.target_layout import open_targets
from data.readers.targets import read_region


def picture(path, mask=None, size_hw=(8, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((*size_hw, 3), 90, np.uint8) if mask is None else mask
    Image.fromarray(values).convert(mode).save(path)


def drawn(size_hw=(8, 10), value=255):
    mask = np.zeros(size_hw, np.uint8)
    mask[2:5, 3:6] = value
    return mask


@pytest.fixture
def personal(tmp_path):
    for concept in ("mug", "toy"):
        for subset, value in (("all", 255), ("semantic_distractor", 0)):
            picture(tmp_path / concept / subset / "images" / "01.jpg")
            picture(tmp_path / concept / subset / "masks" / "01.png", drawn(value=value), mode="L")
        picture(tmp_path / concept / "references" / "00.jpg")
    (tmp_path / "mug" / "concept.yaml").write_text('token: "<my-mug>"\nclass_word: mug\n')
    return tmp_path


def test_own_layout(personal):
    found = open_targets(personal)
    assert found.kind == "personal"
    assert [target.id for target in found.targets] == [
        "mug/all/01", "mug/semantic_distractor/01", "toy/all/01", "toy/semantic_distractor/01",
    ]  # fmt: skip
    assert found.concepts == {"mug": {"token": "<my-mug>", "class_word": "mug"}, "toy": {}}
    assert [int(read_region(target).sum()) for target in found.targets] == [9, 0, 9, 0]


def test_own_layout_without_concept_folders(personal):
    found = open_targets(personal / "mug")
    assert [(target.phrase, target.group) for target in found.targets] == [
        ("mug", "all"), ("mug", "semantic_distractor"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda root: (root / "mug/all/masks/01.png").unlink(), ImageError, "without a mask"),
        (lambda root: picture(root / "mug/all/masks/02.png", drawn()), ImageError, "has no image"),
        (lambda root: picture(root / "mug/all/images/01.png"), ImageError, "share their name"),
        (lambda root: (root / "mug/concept.yaml").write_text("tokens: x"), LabelError, "'tokens' is unknown"),
        (lambda root: (root / "mug/concept.yaml").write_text("token: [a]"), LabelError, "must hold the lines"),
        (lambda root: (root / "mug/concept.yaml").write_text("a: b: c"), LabelError, "Cannot read"),
    ],
)
def test_faults_are_named(personal, spoil, error, words):
    spoil(personal)
    with pytest.raises(error, match=words):
        open_targets(personal)


def test_a_mask_of_another_size_is_an_error(personal):
    picture(personal / "mug/all/masks/01.png", drawn((8, 12)), mode="L")
    with pytest.raises(ImageError, match="8 x 12"):
        read_region(open_targets(personal).targets[0])


def test_no_such_folder_and_a_folder_of_nothing(tmp_path):
    with pytest.raises(ConfigError, match="There is no folder"):
        open_targets(tmp_path / "none")
    with pytest.raises(ConfigError, match="holds no <concept>"):
        open_targets(tmp_path)
    with pytest.raises(ConfigError, match="has no splits"):
        open_targets(tmp_path, "personal", "val")


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "RGBA", "1"])
def test_everything_but_black_is_the_thing(personal, mode):
    path = personal / "mug/all/masks/01.png"
    values = np.zeros((8, 10, 3), np.uint8)
    values[2:5, 3:6] = (128, 0, 0)
    image = Image.fromarray(values)
    if mode == "P":
        image = Image.fromarray((values[..., 0] > 0).astype(np.uint8) * 3)
        image.putpalette([255, 255, 255] * 256)  # a palette that paints everything white changes nothing
    elif mode == "1":
        image = Image.fromarray(values[..., 0] > 0)
    else:
        image = image.convert(mode)
    image.save(path)
    assert int(read_region(open_targets(personal).targets[0]).sum()) == 9


@pytest.fixture
def perseg(tmp_path):
    for name, count in (("cat2", 3), ("table_100", 2)):
        for number in range(count):
            picture(tmp_path / "Images" / name / f"{number:02d}.jpg")
            picture(tmp_path / "Annotations" / name / f"{number:02d}.png", drawn(), mode="RGB")
    return tmp_path


def test_perseg_leaves_out_the_reference_alone(perseg):
    """The official script passes over every path with 00 in it, so over the whole of table_100 too."""
    found = open_targets(perseg)
    assert found.kind == "perseg"
    assert [one.id for one in found.targets if one.group != "absent"] == ["cat2/01", "cat2/02", "table_100/01"]
    assert found.concepts["cat2"] == {"class_word": "cat"}


def test_perseg_pairs_by_name_not_by_order(perseg):
    """The official script zips two sorted lists: one file more in either shifts all pairs after it."""
    picture(perseg / "Images" / "cat2" / "10.jpg")
    with pytest.raises(ImageError, match=r"without a mask.*the first is 10"):
        open_targets(perseg)


def test_perseg_asks_for_things_that_are_not_there(perseg):
    absent = [one for one in open_targets(perseg).targets if one.group == "absent"]
    assert [(one.phrase, one.image_path.parent.name) for one in absent] == [
        ("cat2", "table_100"), ("table_100", "cat2"),
    ]  # fmt: skip
    assert not read_region(absent[0]).any()


def permis_video(folder, mask, name="masks.npz.npy"):
    for frame in range(3):
        picture(folder / f"{frame}.jpg")
    np.save(folder / "masks", [{7: np.zeros_like(mask)}, {7: mask}, {7: mask}], allow_pickle=True)
    (folder / "masks.npy").rename(folder / name)


def test_permis(tmp_path):
    permis_video(tmp_path / "3", drawn())
    permis_video(tmp_path / "12", np.asfortranarray(drawn()))  # as pycocotools draws masks
    permis_video(tmp_path / "20", np.zeros((8, 10), np.uint8))
    found = open_targets(tmp_path)
    assert found.kind == "permis"
    assert [one.id for one in found.targets] == ["3", "12", "3/absent", "12/absent"]
    for target in found.targets[:2]:
        assert np.array_equal(read_region(target), drawn() > 0)
    assert found.targets[0].image_path.name == "1.jpg"
    assert "1 object below" in found.notes[0]


class _Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    permis_video(tmp_path / "r" / "3", drawn())
    np.save(tmp_path / "r" / "3" / "masks.npz", np.array([_Harmful()] * 3, dtype=object), allow_pickle=True)
    (tmp_path / "r" / "3" / "masks.npz").unlink(missing_ok=True)
    with pytest.raises(LabelError, match=r"wants to run .*mkdir"):
        open_targets(tmp_path / "r")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [np.zeros(3), [1, 2], [{}, {}, {}], [{1: "x"}] * 3])
def test_mask_files_of_another_form_are_refused(tmp_path, content):
    permis_video(tmp_path / "3", drawn())
    np.save(tmp_path / "3" / "masks.npz.npy", np.array(content, dtype=object if isinstance(content, list) else None))
    with pytest.raises(LabelError, match=r"masks.npz.npy"):
        open_targets(tmp_path)
