"""The command line of stage one: a table of typed functions handed to jsonargparse.

The commands import what they need when they are called, so `pseudolabel --help` stays quick.
"""

import json
import logging
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli, set_parsing_settings

from data.console import exit_with_line, log_to_stderr, run_program
from pseudolabel.commands.calibrate import calibrate
from pseudolabel.commands.check import check
from pseudolabel.commands.demo import demo
from pseudolabel.commands.export import export
from pseudolabel.commands.generate import generate
from pseudolabel.commands.ground import ground
from pseudolabel.commands.init import init
from pseudolabel.commands.refer import refer
from pseudolabel.commands.refine import refine, stored_defaults
from pseudolabel.commands.report import report
from pseudolabel.commands.score import score
from pseudolabel.commands.synthesize import synthesize

COMMANDS: dict[str, Any] = {
    "demo": demo,
    "init": init,
    "check": check,
    "calibrate": calibrate,
    "generate": generate,
    "refine": refine,
    "score": score,
    "report": report,
    "export": export,
    "ground": ground,
    "refer": refer,
    "synthesize": synthesize,
}

# Short names of settings that are typed often; each is one more spelling of the long one, shown in the help.
ALIASES = {
    "--root": "data.root",
    "--split": "data.split",
    "--format": "data.format",
    "--classes": "data.classes",
    "--threshold": "fuse.threshold",
    "--batch_size": "run.batch_size",
    "--device": "run.device",
    "--workers": "run.workers",
    "--shard": "run.shard",
    "--on_error": "run.on_error",
    "--overwrite": "run.overwrite",
    "--limit": "run.limit",
    "--engine": "run.engine",
}


class CommandParser(ArgumentParser):
    """A parser without abbreviations, with short names, with flags that need no value, and one-line errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def add_function_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Add the function's parameters, then the short names and the valueless form of switches."""
        added = super().add_function_arguments(*args, **kwargs)
        by_destination = {action.dest: action for action in self._actions}
        for short, destination in ALIASES.items():
            if destination in by_destination and short not in self._option_string_actions:
                by_destination[destination].option_strings = [*by_destination[destination].option_strings, short]
                self._option_string_actions[short] = by_destination[destination]
        for action in self._actions:
            if getattr(action, "_typehint", None) is bool:
                action.nargs, action.const = "?", True
        self.usage = "%(prog)s [--config FILE] [--name value ...]"  # the full list is below, with what is required
        return added

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the help text with types by their names alone."""
        return re.sub(r"<class(\s+)'(\w+)'>", r"\1\2", super().format_help(*args, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message as one line and exit with status 2."""
        exit_with_line(self, message, ex, tuple(COMMANDS))


def _defaults(args: Sequence[str]) -> dict[str, Any]:
    """Return defaults that depend on the arguments: `refine` starts from the settings of the store it reads."""
    if next((arg for arg in args if arg in COMMANDS), None) != "refine":
        return {}
    return {f"refine.{key}": value for key, value in stored_defaults(args).items()}


# Flags that are given once for each value; what is given replaces a config file's, as every other flag does.
REPEATED = ("--phrase", "--image")


def gather_repeated(args: Sequence[str], flags: Sequence[str] = REPEATED) -> list[str]:
    """Put the values of a flag that is given several times into one list, where the flag stood first.

    >>> gather_repeated(["--image", "a", "--x", "--image=b"])
    ['--image=["a", "b"]', '--x']
    """
    gathered: list[str] = []
    values: dict[str, list[str]] = {}
    places: dict[str, int] = {}
    rest = iter(args)
    for arg in rest:
        flag, equals, value = arg.partition("=")
        if flag not in flags:
            gathered.append(arg)
            continue
        value = value if equals else next(rest, "")
        if flag not in values:
            places[flag] = len(gathered)
            gathered.append(flag)
        values.setdefault(flag, []).append(value)
    for flag, place in places.items():
        gathered[place] = f"{flag}={json.dumps(values[flag], ensure_ascii=False)}"
    return gathered


class _ProgressFriendlyHandler(logging.Handler):
    """Writes log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record to stderr."""
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def run(args: Sequence[str]) -> None:
    """Parse the arguments and run the command; exits through SystemExit on wrong usage."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    auto_cli(
        COMMANDS,
        args=gather_repeated(args),
        as_positional=False,
        set_defaults=_defaults(args) or None,
        parser_class=CommandParser,
        prog="pseudolabel",
        description="Image-level labels in, pseudo-masks out, from the attention of a diffusion model.",
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; see `data.console.run_program`."""
    handler = _ProgressFriendlyHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    log_to_stderr(handler, ("data", "pseudolabel"))
    return run_program(run, args, "interrupted; the same command goes on from here, finished images are kept")


if __name__ == "__main__":
    sys.exit(main())
