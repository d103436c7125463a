"""Argument parsers of the command line: one-line errors, no abbreviations."""

import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser


class LineParser(ArgumentParser):
    """A parser without abbreviations that prints an error as one line and exits with status 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message as one line and exit."""
        exit_with_line(self, message, ex)


def exit_with_line(parser: ArgumentParser, message: str, ex: Exception | None) -> NoReturn:
    """Print a parser's error as one line and exit with status 2."""
    program = parser.prog.replace(" [options]", "")
    line = re.sub(r"\s*\n\s*", " ", str(message)).strip()
    parser.exit(2, f"error: {line} (see {program} --help)\n")
    raise SystemExit(2)
