"""The line about an image in a store's index: the same from both stages."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.classes import IGNORE, ClassSet
from data.masks import value_counts

FEW_PIXELS = 0.001  # a class below this share of the image is worth a warning
MOSTLY_IGNORED = 0.9


def image_record(
    sample_id: str,
    image: str,
    mask: UInt8[np.ndarray, "height width"],
    argmax: UInt8[np.ndarray, "height width"],
    labels: Sequence[int],
    classes: ClassSet,
    seconds: float,
    dropped_words: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the line about an image in the store's index.

    Args:
        sample_id: id of the image.
        image: its file, as `data.store.source.stored_path` gives it.
        mask: class ids, 255 where there is no decision.
        argmax: class ids without the 255 band.
        labels: class ids that the mask may show, without the background.
        classes: names of the classes.
        seconds: work that the image took.
        dropped_words: background words for which the sentence had no room; named in the line only where there are some.

    Returns:
        JSON values. `class_share` is the share of the image's pixels of the background and of each label in the mask
        with the 255 band, by name; `ignore_share` that of 255; `warnings` say what a person should look at.

    """
    shares = value_counts(mask) / mask.size
    record = {
        "id": sample_id,
        "image": image,
        "height": int(mask.shape[0]),
        "width": int(mask.shape[1]),
        "labels": [int(label) for label in labels],
        "ignore_share": round(float(shares[IGNORE]), 6),
        "class_share": {classes.name(i): round(float(shares[i]), 6) for i in (0, *labels)},
        "warnings": mask_warnings(argmax, labels, classes, float(shares[IGNORE])),
        "seconds": round(seconds, 3),
    }
    return record | ({"dropped_words": list(dropped_words)} if dropped_words else {})


def mask_warnings(
    argmax: UInt8[np.ndarray, "height width"], labels: Sequence[int], classes: ClassSet, ignore_share: float
) -> list[str]:
    """Return one line for each thing about a mask that a person should look at; most masks have none."""
    shares = value_counts(argmax) / argmax.size
    if shares[0] == 1.0:
        return ["all background"]
    warnings = [f"{classes.name(i)}: no pixels" for i in labels if shares[i] == 0]
    warnings += [f"{classes.name(i)}: almost no pixels" for i in labels if 0 < shares[i] < FEW_PIXELS]
    if shares[0] == 0:
        warnings.append("no background")
    if ignore_share > MOSTLY_IGNORED:
        warnings.append("almost all ignored")
    return warnings
