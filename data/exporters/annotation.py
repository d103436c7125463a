"""The annotation file of an image as Pascal VOC writes it: what it shows, and in which box."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.classes import ClassSet


def voc_annotation(
    file_name: str, mask: UInt8[np.ndarray, "height width"], labels: Sequence[int], classes: ClassSet
) -> bytes:
    """Return the XML of an image: an object for each label, with the box of its pixels, or the whole image's.

    Boxes count pixels from 1, both ends included.

    Args:
        file_name: of the image.
        mask: class ids.
        labels: class ids that the image shows.
        classes: their names.

    """
    height, width = mask.shape
    top = ElementTree.Element("annotation")
    _fields(top, {"folder": "JPEGImages", "filename": file_name, "segmented": 1})
    _fields(ElementTree.SubElement(top, "size"), {"width": width, "height": height, "depth": 3})
    for label in labels:
        rows, columns = np.nonzero(mask == label)
        if not rows.size:
            rows, columns = np.array([0, height - 1]), np.array([0, width - 1])
        entry = ElementTree.SubElement(top, "object")
        _fields(entry, {"name": classes.name(label), "truncated": 0, "difficult": 0})
        box = {"xmin": columns.min() + 1, "ymin": rows.min() + 1, "xmax": columns.max() + 1, "ymax": rows.max() + 1}
        _fields(ElementTree.SubElement(entry, "bndbox"), box)
    ElementTree.indent(top)
    return bytes(ElementTree.tostring(top, encoding="utf-8"))


def _fields(parent: ElementTree.Element, values: dict[str, Any]) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = str(value)
