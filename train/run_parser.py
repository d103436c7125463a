"""The command line of fit, validate and test: Lightning's parser, stricter, and what follows from what was given."""

import os
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

from train.arguments import LineParser


def data_seed(seed: bool | int) -> int:
    """Return the seed of order and augmentation for --seed_everything; true is what Lightning then falls back on."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is True else int(seed)


# Arguments of the data that follow from another option: name -> that option, and how.
LINKED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "data.seed": ("seed_everything", data_seed),
    "data.need_truth": ("save_voc_test", lambda folder: folder is None),
}


# Options that a command has, because one config file serves all three, and does not read.
_ALL_OF_A_RUN = frozenset({"output", "overwrite", "ema_decay", "checkpoint_every", "wandb"})
_UNREAD = {
    "fit": frozenset({"inference", "report", "save_voc_test"}),
    "validate": _ALL_OF_A_RUN,
    "test": _ALL_OF_A_RUN,
}


class RunParser(LineParser, LightningArgumentParser):
    """Lightning's parser without abbreviations, and with one-line errors."""

    def link_arguments(self, source: Any, target: str, *args: Any, **kwargs: Any) -> None:
        """Link, without a line about it in the help: there is nothing to choose."""
        super().link_arguments(source, target, *args, **kwargs)
        next(action for action in self._actions if action.dest == target).help = SUPPRESS


def unread(command: str, args: Sequence[str]) -> list[str]:
    """Return which options among typed arguments a command does not read.

    >>> unread("test", ["--output", "T", "--ckpt_path=a.ckpt"]), unread("fit", ["--inference.flip=true"])
    (['output'], ['inference.flip'])

    """
    typed = (arg.removeprefix("--").partition("=")[0] for arg in args if arg.startswith("--"))
    return [name for name in typed if name.partition(".")[0] in _UNREAD[command]]


def plain_namespace(value: Any) -> Any:
    """Return a group of settings as plain values."""
    return value.as_dict() if isinstance(value, Namespace) else value or {}


def filled(stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return stored settings with the defaults of those that there were not yet when they were stored.

    >>> filled({"loss": {"kind": "balanced"}}, {"loss": {"kind": "plain", "scales": [1.0]}, "compile": False})
    {'loss': {'kind': 'balanced', 'scales': [1.0]}, 'compile': False}

    """
    result = defaults | stored
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(result[name], dict):
            result[name] = filled(result[name], default)
    return result


def differences(stored: dict[str, Any], given: dict[str, Any], prefix: str = "--model") -> list[str]:
    """Return a line for each given setting that differs from the stored one.

    The file of first weights may lie elsewhere now: what was in it has been trained on since.
    """
    lines = []
    for key, value in given.items():
        name, there = f"{prefix}.{key}", stored.get(key)
        if isinstance(value, dict) and isinstance(there, dict) and key != "encoder_args":
            lines += differences(there, value, name)
        elif value != there and not (name == "--model.network.weights" and _are_one_file(value, there)):
            lines.append(f"{name}: {there} there, {value} here")
    return lines


def _are_one_file(one: Any, other: Any) -> bool:
    """Return whether two settings name files that are called alike."""
    return isinstance(one, str) and isinstance(other, str) and Path(one).name == Path(other).name
