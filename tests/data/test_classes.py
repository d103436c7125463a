import pytest

from data.classes import COCO, DEFAULT_BACKGROUND, VOC, ClassSet
from data.errors import ConfigError, LabelError


def test_counts_and_order():
    assert len(VOC) == 20
    assert len(COCO) == 80
    assert VOC.index("aeroplane") == 1
    assert VOC.index("tvmonitor") == 20
    assert COCO.index("toothbrush") == 80
    assert COCO.name(12) == "stop sign"
    assert (VOC.name(0), VOC.name(255)) == ("background", "ignore")


def test_phrases_and_background_words():
    assert VOC.phrases[VOC.index("tvmonitor") - 1] == "tv monitor screen"
    assert VOC.phrases[VOC.index("diningtable") - 1] == "dining table"
    assert VOC.background_words[VOC.index("cow") - 1] == ("grass", "stone", "rocks")
    assert VOC.background_words[VOC.index("cat") - 1] == DEFAULT_BACKGROUND
    assert COCO.phrases[24] == "backpack, bag"
    assert COCO.phrases[31] == "snowboard"
    assert set(COCO.background_words) == {DEFAULT_BACKGROUND}


@pytest.mark.parametrize("spelling", ["diningtable", "Dining Table", "dining_table", "DINING-TABLE"])
def test_spellings_of_one_class(spelling):
    assert VOC.index(spelling) == 11


def test_an_unknown_class_names_the_nearest():
    with pytest.raises(LabelError, match=r"'bycicle' \(did you mean 'bicycle'\?\)"):
        VOC.index("bycicle")
    with pytest.raises(LabelError, match="ids go from 0"):
        VOC.name(21)


def test_json_round_trip():
    assert ClassSet.from_json(COCO.to_json()) == COCO
    with pytest.raises(ConfigError, match="phrases"):
        ClassSet.from_json({"names": ["a"]})


def test_too_many_classes():
    names = tuple(f"class {number}" for number in range(255))
    with pytest.raises(ConfigError, match="1 to 254"):
        ClassSet(names, names, ((),) * 255)


@pytest.mark.parametrize("part", ["names", "phrases", "background_words"])
@pytest.mark.parametrize("value", ["ab", 1, None, [1, 2], ["a"], [["a"], 3]])
def test_json_of_wrong_types(part, value):
    plain = {"names": ["a", "b"], "phrases": ["a", "b"], "background_words": [["x"], []]} | {part: value}
    with pytest.raises(ConfigError):
        ClassSet.from_json(plain)


def test_messages_name_a_class_file_only_where_there_is_one():
    with pytest.raises(ConfigError) as caught:
        ClassSet(("a", "A"), ("a", "A"), ((), ()))
    assert "class file" not in str(caught.value)
