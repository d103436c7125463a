"""The card inside a checkpoint: everything needed to use the network that is not a tensor.

A checkpoint is Lightning's, read with `weights_only=True` always, so loading one never runs code out of the file. Under
the key `segtrain` lies a dictionary of plain values: format version, classes, palette, input rule, network, settings.
"""

import hashlib
import struct
import zipfile
import zlib
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from data.classes import ClassSet
from data.console import written_by
from data.errors import ModelError
from data.masks import voc_palette
from train.network import IMAGENET_MEAN, IMAGENET_STD, SIZE_MULTIPLE, NetworkConfig, Segmenter, build_network

CARD_KEY = "segtrain"
CARD_FORMAT = "segtrain-checkpoint"
CARD_VERSION = 1
# What zipfile raises for an archive with wrong bytes in its data, its headers or its list of files.
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


def make_card(classes: ClassSet, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the card of a network.

    Args:
        classes: what it tells apart.
        settings: the settings of the module as plain values, `network` among them.

    """
    return {
        "format": CARD_FORMAT,
        "format_version": CARD_VERSION,
        "written_by": written_by("segtrain"),
        "classes": classes.to_json(),
        "palette": voc_palette().tolist(),
        "input": {
            "layout": "NCHW, RGB, values 0 to 255",
            "normalisation": "inside the network",
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "size_multiple": SIZE_MULTIPLE,
            "padding": "right and bottom, with 255 * mean; cut off again",
        },
        "output": "NCHW scores; class id = argmax over C, 0 is the background",
        "settings": settings,
    }


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code out of it.

    Raises:
        ModelError: no such file, damaged, not one of segtrain's, or of a newer version.

    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"There is no checkpoint {path}; --ckpt_path takes a file that `segtrain fit` wrote.")
    verify_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a damaged or foreign file
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"Cannot read the checkpoint {path} ({reason}); --ckpt_path takes one of segtrain's."
        ) from error
    card = checkpoint.get(CARD_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise ModelError(f"{path} was not written by segtrain; --ckpt_path takes a file that `segtrain fit` wrote.")
    if card["format_version"] > CARD_VERSION:
        raise ModelError(
            f"{path} has checkpoint format version {card['format_version']}, this program reads up to {CARD_VERSION}: "
            f"install a text2mask-wsss that reads it (written by {card.get('written_by')})."
        )
    return checkpoint


def verify_archive(path: Path) -> None:
    """Check every byte of a file that torch.save wrote against the checksums in it; once for a file and process.

    torch.load looks at none of them, so that a flipped bit silently becomes another weight.

    Raises:
        ModelError: no such archive, cut short, or changed since it was written.

    """
    there = path.stat()
    damage = _damage(path.resolve(), there.st_size, there.st_mtime_ns)
    if damage is not None:
        raise ModelError(
            f"{path} is damaged ({damage}): copy it again from where it was whole, or use another of the run's "
            "checkpoints."
        )


@lru_cache(maxsize=64)
def _damage(path: Path, size: int, changed_ns: int) -> str | None:
    """Return what is wrong with an archive, or None; size and time of change stand for its content."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except _ARCHIVE_ERRORS as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None if bad is None else f"wrong checksum of its part {bad}"


def read_card(path: Path) -> dict[str, Any]:
    """Return the card of a checkpoint; errors as `read_checkpoint`."""
    return read_checkpoint(path)[CARD_KEY]


def network_config(card: dict[str, Any]) -> NetworkConfig:
    """Return the network's configuration out of a card."""
    stored = card["settings"]["network"]
    known = {field.name for field in fields(NetworkConfig)}
    return NetworkConfig(**{key: _tuple(value) for key, value in stored.items() if key in known})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def load_network(path: Path) -> tuple[Segmenter, ClassSet, dict[str, Any]]:
    """Return a checkpoint's network in evaluation mode (averaged weights, where there are), its classes and card."""
    checkpoint = read_checkpoint(path)
    card = checkpoint[CARD_KEY]
    classes = ClassSet.from_json(card["classes"])
    network = build_network(network_config(card), len(classes) + 1, pretrained=False)
    state = {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()}
    network.load_state_dict(state)
    return network.eval(), classes, card


def file_digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
