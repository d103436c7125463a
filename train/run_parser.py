"""The command line of fit, validate and test: Lightning's parser, stricter, and what follows from what was given."""

import os
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

from data.config_files import check_groups, find_paths
from data.console import exit_with_line


def data_seed(seed: bool | int) -> int:
    """Return the seed of order and augmentation for --seed_everything; true is what Lightning then falls back on."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is True else int(seed)


# Arguments of the data that follow from another option: name -> that option, and how.
LINKED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "data.seed": ("seed_everything", data_seed),
    "data.need_truth": ("save_voc_test", lambda folder: folder is None),
}


class RunParser(LightningArgumentParser):
    """Lightning's parser without abbreviations, and with one-line errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def link_arguments(self, source: Any, target: str, *args: Any, **kwargs: Any) -> None:
        """Link, without a line about it in the help: there is nothing to choose."""
        super().link_arguments(source, target, *args, **kwargs)
        next(action for action in self._actions if action.dest == target).help = SUPPRESS

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config file and find the files and folders that it names."""
        settings = super().parse_path(path, *args, **kwargs)
        check_groups(settings, [action.dest for action in self._actions], Path(str(path)))
        find_paths(settings, Path(str(path)))
        return settings

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message as one line and exit."""
        exit_with_line(self, message, ex)


def plain_namespace(value: Any) -> Any:
    """Return a group of settings as plain values."""
    return value.as_dict() if isinstance(value, Namespace) else value or {}


def differences(stored: dict[str, Any], given: dict[str, Any], prefix: str = "--model") -> list[str]:
    """Return a line for each given setting that differs from the stored one."""
    lines = []
    for key, value in given.items():
        name, there = f"{prefix}.{key}", stored.get(key)
        if isinstance(value, dict) and isinstance(there, dict) and key != "encoder_args":
            lines += differences(there, value, name)
        elif value != there:
            lines.append(f"{name}: {there} there, {value} here")
    return lines
