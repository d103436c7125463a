"""Argument parsers of the command line: one-line errors, no abbreviations."""

from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from data.config_files import check_groups, find_paths
from data.console import exit_with_line


class LineParser(ArgumentParser):
    """A parser without abbreviations that prints an error as one line and exits with status 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config file and find the files and folders that it names."""
        settings = super().parse_path(path, *args, **kwargs)
        check_groups(settings, [action.dest for action in self._actions], Path(str(path)))
        find_paths(settings, Path(str(path)))
        return settings

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message as one line and exit."""
        exit_with_line(self, message, ex)
