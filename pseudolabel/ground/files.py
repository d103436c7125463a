"""What `pseudolabel ground` writes: maps, masks and overlays as PNG, a page, and results.json; all of it or nothing."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.errors import ConfigError
from data.files import is_free
from data.images import encode_picture
from data.machine import written_by
from data.masks import overlay
from pseudolabel.ground.localizer import Localization
from pseudolabel.ground.page import phrase_overlay

FORMAT, FORMAT_VERSION = "pseudolabel-ground", 1
PAGE, RESULTS = "ground.html", "results.json"


def check_output(output: Path) -> None:
    """Raise ConfigError unless the folder is new or empty."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file; --output must name a new folder.")
    if not is_free(output):
        raise ConfigError(f"{output} is not empty; name a new folder with --output.")


def write_image_files(
    folder: Path, image_id: str, rgb_u8: UInt8[np.ndarray, "height width 3"], found: Localization
) -> dict[str, Any]:
    """Write the PNG files of an image and return its entry in results.json.

    A soft map is 8-bit grey, 255 for 1; a mask is 255 where the phrase is and 0 elsewhere.
    """
    place = folder / image_id
    place.mkdir(parents=True)
    entries = []
    for number, one in enumerate(found.phrases, start=1):
        stem = f"{number}_{slug(one.phrase)}"
        pictures = {
            "soft": np.round(255 * one.soft).astype(np.uint8),
            "mask": np.where(one.mask, np.uint8(255), np.uint8(0)),
            "overlay": phrase_overlay(rgb_u8, one.mask, number),
        }
        files = {}
        for kind, picture in pictures.items():
            (place / f"{stem}_{kind}.png").write_bytes(encode_picture(picture, "PNG"))
            files[kind] = f"{image_id}/{stem}_{kind}.png"
        entries.append(
            {
                "phrase": one.phrase,
                "presence": one.presence,
                "share": round(float(one.mask.mean()), 6),
                "words": list(one.words),
                "positions": list(one.positions),
                **files,
            }
        )
    entry = {"id": image_id, "height": rgb_u8.shape[0], "width": rgb_u8.shape[1], "sentences": list(found.sentences)}
    if found.labels is not None:
        (place / "all.png").write_bytes(encode_picture(overlay(rgb_u8, found.labels), "PNG"))
        entry["overlay"] = f"{image_id}/all.png"
    return entry | ({"dropped_words": list(found.dropped)} if found.dropped else {}) | {"phrases": entries}


def results_json(entries: list[dict[str, Any]], settings: dict[str, Any], model: dict[str, str]) -> bytes:
    """Return the content of results.json: what was found in each image, with which settings and model."""
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "written_by": written_by("pseudolabel")}
    content = {**head, "model": model, "settings": settings, "images": entries}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def slug(phrase: str) -> str:
    """Return a phrase as a part of a file name.

    >>> slug("A brown dog!"), slug("../x"), slug("猫")
    ('a_brown_dog', 'x', 'phrase')
    """
    return re.sub(r"[^a-z0-9]+", "_", phrase.lower())[:40].strip("_") or "phrase"
