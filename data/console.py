"""What both command lines share: how they start and exit, and what they log."""

import contextlib
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from data.about import keep_traceback
from data.errors import ConfigError, UserError
from data.wording import is_encodable, one_line, printable, short, system_fault

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


def run_program(run: Callable[[Sequence[str]], None], args: Sequence[str] | None, interrupted: str) -> int:
    """Run a command line and return its exit status.

    0: done. 1: an error that nobody expected; its traceback is in a file. 2: a wrong input. 130: interrupted. 141: who
    reads the output has gone.

    Args:
        run: parses the arguments and does the work; it leaves through SystemExit on wrong usage.
        args: the arguments; those of the process if None.
        interrupted: what to say after Ctrl-C.

    """
    answer_interrupts()
    given = sys.argv[1:] if args is None else list(args)
    try:
        try:
            check_encoding(given)
            check_configs(given)
            with printable_output():
                run(given)
        finally:
            with contextlib.suppress(ValueError):  # closed by a test's capture
                sys.stdout.flush()  # so that a reader that has gone shows here
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:  # `| head` has read enough; what is left unprinted must not fail at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except OSError as error:
        _give_up_full_output()
        print(f"error: {system_fault(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:  # a fault of ours, or of a library: the last place where it can be told in one line
        print(f"error: {unexpected(error, given)}", file=sys.stderr)
        return EXIT_FAULT
    return 0


def unexpected(error: Exception, args: Sequence[str]) -> str:
    """Keep the traceback of an error that nobody expected in a file, and return the message that names that file."""
    what = f"{type(error).__name__}: {one_line(error)[:300]}"
    try:
        kept = f"its traceback is in {keep_traceback(error, args)}"
    except OSError as full:
        traceback.print_exception(error)
        kept = f"its traceback is above, as no file can be written ({one_line(full)})"
    return (
        f"unexpected {what}; {kept}. This is a fault of the program or of a library; a report with that file and what "
        "`pseudolabel about` prints helps to mend it"
    )


def answer_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, where the start of the program left it to end the process."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Let stdout write as an escape what its encoding lacks: a file name of no encoding, an accent in ASCII."""
    stream = sys.stdout
    former = getattr(stream, "errors", None)
    if not isinstance(stream, io.TextIOWrapper):  # a test's or a notebook's own
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, BrokenPipeError):  # closed, or nobody reads on: told by the last flush
            stream.reconfigure(errors=former)


def check_encoding(args: Sequence[str]) -> None:
    """Raise ConfigError for an argument that is no text in UTF-8, such as the name of a file of another encoding."""
    for arg in args:
        if not is_encodable(arg):
            raise ConfigError(
                f"The argument {arg!a} holds bytes that are no text in UTF-8; rename the file, or go to its folder "
                "and name it from there."
            )


def check_configs(args: Sequence[str]) -> None:
    """Read the files that --config names, as far as they are there, so that none of them can stop the parser.

    Raises:
        ConfigError: a device, too large, no YAML, aliases that explode (`data.texts.read_yaml` states the limits), or
            no settings by name.

    """
    named = [value for flag, value in pairwise(args) if flag == "--config"]
    named += [arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")]
    for path in named:
        if os.path.exists(path) and not os.path.isdir(path):
            from data.texts import CONFIG_FILE, read_yaml  # with numpy, which --help does without

            content = read_yaml(Path(path), CONFIG_FILE)
            if not isinstance(content, dict):
                what = "nothing" if content is None else short(content)
                raise CONFIG_FILE.fault(Path(path), f"it holds {what}, and must hold settings by name")


def _give_up_full_output() -> None:
    """Let go of output that a full disk does not take, or the interpreter would complain of it again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError:  # closed by a test's capture
        pass


def exit_with_line(parser: Any, message: str, error: Exception | None, commands: Sequence[str] = ()) -> NoReturn:
    """Print a parser's error as one line and exit with status 2.

    Args:
        parser: the argument parser.
        message: what it says.
        error: what caused it; names the command's own parser where there is one.
        commands: names of commands; `generate.store` in a message is typed as `--store`.

    """
    program = (getattr(error, "subcommand_parser", None) or parser).prog.replace(" [options]", "")
    line = printable(" ".join(str(message).split()))
    if commands:
        line = re.sub(rf"\b({'|'.join(commands)})\.(?=[a-z])", "--", line)
    parser.exit(EXIT_USER_ERROR, f"error: {line} (see {program} --help)\n")
    raise SystemExit(EXIT_USER_ERROR)


class PrintableFormatter(logging.Formatter):
    """Writes out what cannot be seen in a log line; see `printable`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record; those of a traceback stay apart."""
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


def log_to_stderr(handler: logging.Handler, packages: Sequence[str], line: str) -> None:
    """Send the project's log lines to stderr; those of libraries only from warnings on.

    Args:
        handler: writes them.
        packages: whose lines of information are shown too.
        line: what a line looks like, as `logging.Formatter` takes it.

    """
    handler.setFormatter(PrintableFormatter(line))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in packages:
        logging.getLogger(package).setLevel(logging.INFO)


def progress_bar(items: Iterable[Any] | None = None, often: float = 0.5, **bar: Any) -> "tqdm[Any]":
    """Return a progress bar on stderr; where that is no terminal, as in a log file, it is a line every half minute.

    Args:
        items: what is gone through; None: who takes the bar moves it on.
        often: seconds between two looks of the bar on a terminal, or in a notebook.
        bar: as tqdm takes it.

    """
    from tqdm import tqdm

    is_watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(items, mininterval=often if is_watched else 30.0, dynamic_ncols=True, **bar)


def idle_lines(flags: Sequence[str]) -> list[str]:
    """Return the line about settings that have no effect, or none."""
    if not flags:
        return []
    return [f"No effect with the other settings, and left aside: {', '.join(f'--{flag}' for flag in flags)}."]


def warn_of_idle(flags: Sequence[str]) -> None:
    """Warn, once, of settings that have no effect."""
    for line in idle_lines(flags):
        logger.warning("%s", line)
