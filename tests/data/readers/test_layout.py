from pathlib import Path

import pytest

from data.config import DataConfig
from data.errors import ConfigError
from data.readers.layout import detect_format, open_samples


def test_layouts_are_recognised(tmp_path, make_voc, make_coco):
    make_voc(tmp_path / "kit" / "VOC2012", {"a": ["cat"]})
    make_coco(tmp_path / "coco", {1: []})
    (tmp_path / "own").mkdir()
    found = {name: detect_format(DataConfig(tmp_path / name)) for name in ("kit", "kit/VOC2012", "coco", "own")}
    assert found == {"kit": "voc", "kit/VOC2012": "voc", "coco": "coco", "own": "folder"}
    assert detect_format(DataConfig(tmp_path / "kit", format="folder")) == "folder"


def test_missing_root():
    with pytest.raises(ConfigError, match="--root"):
        open_samples(DataConfig(Path("/nowhere/at/all")))
