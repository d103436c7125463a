import json

import pytest

from data.config import DataConfig
from data.errors import ConfigError
from data.readers.layout import open_samples
from data.store.source import stored_data, truth_paths
from data.store.store import MaskStore

CAR = {"category_id": 3, "area": 60, "segmentation": [[1, 1, 12, 2, 7, 15]]}


def test_truth_drawn_with_other_classes_than_the_stores_is_refused(tmp_path, make_coco):
    """COCO's ids follow the order of the categories: one more, and every mask would be scored against another class."""
    root = make_coco(tmp_path / "coco", {1: [CAR]})
    config = DataConfig(root, split="train2014", format="coco")
    classes = open_samples(config).classes
    store = MaskStore.create(
        tmp_path / "store", classes=classes, config={}, model={"id": "m"}, data=stored_data(config)
    )
    assert len(truth_paths(store)) == 1
    annotations = root / "annotations" / "instances_train2014.json"
    content = json.loads(annotations.read_text())
    content["categories"].append({"id": 1, "name": "person"})
    annotations.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"class 1 was 'car' and is 'person'"):
        truth_paths(store)
