"""The card inside a checkpoint: everything needed to use the network that is not a tensor.

A checkpoint is Lightning's, read with `weights_only=True` always, so loading one never runs code out of the file. Under
the key `segtrain` lies a dictionary of plain values: format version, classes, palette, input rule, network, settings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from data.classes import ClassSet
from data.config import from_plain
from data.errors import ConfigError, ModelError
from data.files import file_sha256
from data.machine import written_by
from data.masks import voc_palette
from train.archive import verify_archive
from train.network import SIZE_MULTIPLE, NetworkConfig, Segmenter, build_network

CARD_KEY = "segtrain"
CARD_FORMAT = "segtrain-checkpoint"
CARD_VERSION = 1


def make_card(
    classes: ClassSet, normalisation: tuple[Sequence[float], Sequence[float]], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the card of a network.

    Args:
        classes: what it tells apart.
        normalisation: mean and deviation of the network, as `Segmenter.normalisation` gives them.
        settings: the settings of the module as plain values, `network` among them.

    """
    mean, std = normalisation
    return {
        "format": CARD_FORMAT,
        "format_version": CARD_VERSION,
        "written_by": written_by("segtrain"),
        "classes": classes.to_json(),
        "palette": voc_palette().tolist(),
        "input": {
            "layout": "NCHW, RGB, values 0 to 255",
            "normalisation": "inside the network",
            "mean": list(mean),
            "std": list(std),
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
    version = card.get("format_version")
    if not isinstance(version, int) or version > CARD_VERSION:
        raise ModelError(
            f"{path} has checkpoint format version {version!r:.40}, this program reads up to {CARD_VERSION}: "
            f"install a text2mask-wsss that reads it (written by {card.get('written_by')!r:.60})."
        )
    _check_content(checkpoint, card, path)
    return checkpoint


def _check_content(checkpoint: dict[str, Any], card: dict[str, Any], path: Path) -> None:
    """Raise ModelError where a checkpoint does not hold what everybody who reads one needs."""
    _check_kinds(card, {"palette": list, "input": dict, "settings": dict}, f"card in {path}")
    try:
        ClassSet.from_json(card.get("classes"))
        network_config(card)
    except ConfigError as error:
        raise ModelError(f"The card in {path} is damaged: {error}") from error
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise ModelError(f"The checkpoint {path} is damaged: state_dict must hold tensors by name.")


def check_resumable(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise ModelError where a checkpoint does not hold what a training needs to go on."""
    dictionaries, lists = ("loops", "callbacks"), ("optimizer_states", "lr_schedulers")
    wanted: dict[str, type] = {"epoch": int, "global_step": int}
    wanted |= dict.fromkeys(dictionaries, dict) | dict.fromkeys(lists, list)
    _check_kinds(checkpoint, wanted, f"checkpoint {path}")
    _check_kinds(checkpoint[CARD_KEY]["settings"], dict.fromkeys(("loss", "optimizer"), dict), f"card in {path}")
    _check_kinds(checkpoint["loops"], {"fit_loop": dict}, f"state of the loops in {path}")
    if not len(checkpoint["optimizer_states"]) == len(checkpoint["lr_schedulers"]) == 1:
        raise ModelError(f"The checkpoint {path} is damaged: it must hold the state of one optimizer and one schedule.")
    [optimizer], [schedule] = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    _check_kinds(optimizer, {"state": dict, "param_groups": list}, f"optimizer state in {path}")
    for group in optimizer["param_groups"]:
        _check_kinds(group, {"params": list}, f"optimizer state in {path}")
    _check_kinds(schedule, {"last_epoch": int, "base_lrs": list}, f"schedule in {path}")


def _check_kinds(values: Any, kinds: Mapping[str, type], what: str) -> None:
    for name, kind in kinds.items():
        value = values.get(name) if isinstance(values, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ModelError(
                f"The {what} is damaged: {name} is {value!r:.60}, it must be a {kind.__name__}; use another checkpoint."
            )


def network_config(card: dict[str, Any]) -> NetworkConfig:
    """Return the network's configuration out of a card.

    Raises:
        ConfigError: a setting of another type or out of its range.

    """
    stored = card["settings"].get("network")
    known = {field.name for field in fields(NetworkConfig)}
    if isinstance(stored, dict):  # a later version may have more settings
        stored = {name: value for name, value in stored.items() if name in known}
    return from_plain(NetworkConfig, stored, "settings.network")


def load_network(path: Path) -> tuple[Segmenter, ClassSet, dict[str, Any]]:
    """Return a checkpoint's network in evaluation mode (averaged weights, where there are), its classes and card.

    Raises:
        ModelError: as `read_checkpoint`, or weights that are NaN or infinite or do not fit the network of the card.

    """
    checkpoint = read_checkpoint(path)
    card = checkpoint[CARD_KEY]
    classes = ClassSet.from_json(card["classes"])
    network = build_network(network_config(card), len(classes) + 1, pretrained=False)
    state = {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()}
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ModelError(
                f"The weights {key} in {path} are NaN or infinite, in {str(value.dtype).removeprefix('torch.')}: the "
                "training went wrong; use another checkpoint, such as one of earlier in the run."
            )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:  # names that are missing, unknown, or of another shape
        raise ModelError(unfit(str(path), error)) from error
    return network.eval(), classes, card


def unfit(checkpoint: str, error: Exception) -> str:
    """Return what to say of weights that torch cannot put into the network of their card."""
    reason = " ".join(str(error).split())[:160]
    return f"The weights in {checkpoint} do not fit the network that its card names ({reason})."


def file_digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    return file_sha256(Path(path))[:16]
