"""The command line of stage one: a table of typed functions handed to jsonargparse.

The commands import what they need when they are called, so `pseudolabel --help` stays quick.
"""

import json
import logging
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, auto_cli, capture_parser, set_parsing_settings

from data.config_files import check_groups, find_paths
from data.console import exit_with_line, log_to_stderr, run_program
from pseudolabel.commands.about import about
from pseudolabel.commands.calibrate import calibrate
from pseudolabel.commands.check import check
from pseudolabel.commands.demo import demo
from pseudolabel.commands.doubt import doubt
from pseudolabel.commands.export import export
from pseudolabel.commands.generate import generate
from pseudolabel.commands.ground import ground
from pseudolabel.commands.import_masks import import_masks
from pseudolabel.commands.init import init
from pseudolabel.commands.personalize import personalize
from pseudolabel.commands.refer import refer
from pseudolabel.commands.refine import refine, stored_defaults
from pseudolabel.commands.report import report
from pseudolabel.commands.review import review
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
    "doubt": doubt,
    "report": report,
    "review": review,
    "export": export,
    "ground": ground,
    "refer": refer,
    "personalize": personalize,
    "synthesize": synthesize,
    "about": about,
    "import": import_masks,
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

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config file and find the files and folders that it names."""
        settings = super().parse_path(path, *args, **kwargs)
        check_groups(settings, [action.dest for action in self._actions], Path(str(path)))
        find_paths(settings, Path(str(path)), ("store",) if self.prog.split()[-1:] == ["generate"] else ())
        return settings

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the help text with types by their names alone."""
        return re.sub(r"<class(\s+)'(\w+)'>", r"\1\2", super().format_help(*args, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message as one line and exit with status 2."""
        exit_with_line(self, message, ex, tuple(COMMANDS))


class _QuietParser(CommandParser):
    """A parser that says nothing of errors and raises."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error."""
        raise ArgumentError(None, message)


def _defaults(args: Sequence[str]) -> dict[str, Any]:
    """Return defaults that depend on the arguments: `refine` starts from the settings of the store it reads.

    Which store that is (flag, config file or both) the parser says itself: it reads the arguments once before, without
    what ends in printing, and with stand-ins for what is required.
    """
    command = next((arg for arg in args if arg in COMMANDS), None)
    if command != "refine" and not (command is None and any(arg.startswith("--config") for arg in args)):
        return {}
    parser = capture_parser(auto_cli, COMMANDS, as_positional=False, parser_class=_QuietParser)
    given = [arg for arg in args if arg not in {"-h", "--help"} and not arg.startswith("--print_config")]
    if command is None:
        given.append("refine")  # the config file may have a section of that name
    try:
        parsed = parser.parse_args(['--config={"refine": {"store": "", "output": ""}}', *given], defaults=False)
    except ArgumentError:
        return {}  # the real parse says what is wrong
    return {f"refine.{key}": value for key, value in stored_defaults(parsed.refine.store).items()}


# Flags that are given once for each value; what is given replaces a config file's, as every other flag does.
REPEATED = ("--model.tokens", "--model.lora", "--phrase", "--image")


def gather_repeated(args: Sequence[str], flags: Sequence[str] = REPEATED) -> list[str]:
    """Put the values of a flag that is given several times into one list, where the flag stood first.

    >>> gather_repeated(["--model.lora", "a", "--x", "--model.lora=b"])
    ['--model.lora=["a", "b"]', '--x']
    """
    gathered: list[str] = []
    values: dict[str, list[str]] = {}
    places: dict[str, int] = {}
    waiting = ""  # the flag whose value comes next
    for arg in args:
        flag, equals, value = (waiting, "=", arg) if waiting and not arg.startswith("--") else arg.partition("=")
        if waiting and arg.startswith("--"):
            gathered.append(waiting)  # without a value: the parser says so
        waiting = flag if flag in flags and not equals else ""
        if flag not in flags:
            gathered.append(arg)
        elif equals:
            if flag not in values:
                places[flag] = len(gathered)
                gathered.append(flag)
            values.setdefault(flag, []).extend(yaml_list(value))
    gathered += [waiting] if waiting else []
    for flag, place in places.items():
        gathered[place] = f"{flag}={json.dumps(values[flag], ensure_ascii=False)}"
    return gathered


def yaml_list(value: str) -> list[str]:
    """Return the items of a list written as YAML ([a, b]), or the value alone."""
    if not value.startswith("["):
        return [value]
    import yaml

    try:
        return [str(item) for item in yaml.safe_load(value)]
    except yaml.YAMLError:
        return [value]


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
    log_to_stderr(_ProgressFriendlyHandler(), ("data", "pseudolabel"), "%(levelname)s %(name)s: %(message)s")
    return run_program(run, args, "interrupted; the same command goes on from here, finished images are kept")


if __name__ == "__main__":
    sys.exit(main())
