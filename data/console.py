"""What both command lines share: which machine this is, how they exit, and how counts, names and errors are said."""

import contextlib
import errno
import io
import logging
import os
import platform
import re
import reprlib
import signal
import subprocess
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from data.about import DISTRIBUTION, installed, keep_traceback
from data.errors import ConfigError, UserError

logger = logging.getLogger(__name__)

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141

REPOSITORY = Path(__file__).resolve().parents[1]  # or where the packages are installed
# Unicode's general categories that are not drawn but change what stands beside them: control characters, format
# characters (of no width, or turning the direction of writing), halves of surrogate pairs, line and paragraph ends.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# What some errors of the system mean where this program meets them.
_SAID = {
    errno.EEXIST: "It exists, and is no folder",
    errno.EISDIR: "It is a folder, and a file is to be there",
    errno.ENOTDIR: "It, or a part of its path, is no folder",
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def describe_machine(device: str) -> str:
    """Return processor, number of cores and device in a few words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
            if "model name" in line
        )
        name = next(lines, name)
    return f"{name}, {available_cpus()} cores, device {device}"


def commit() -> str:
    """Return the commit of the project's folder, or "unknown"."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def available_cpus() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int | None:
    """Return the most memory this process has held; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes


def available_memory_bytes() -> int | None:
    """Return how much memory could be taken now without swapping; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = next((line.split()[1] for line in file if line.startswith("MemAvailable:")), None)
    except OSError:  # not Linux
        found = None
    return None if found is None else int(found) * 1024


def written_by(program: str) -> str:
    """Return a program's name with the installed version, as files name what wrote them."""
    found = installed(DISTRIBUTION)
    return f"{program} of an unknown version" if found is None else f"{program} {found}"


def plural(number: float, one: str, many: str | None = None) -> str:
    """Return the word, or the words, that go with a number.

    Args:
        number: how many there are.
        one: the words for one: "image", "image has".
        many: those for any other number; the regular plural of `one` if not given.

    >>> plural(1, "image"), plural(0, "class"), plural(2, "category"), plural(3, "image has", "images have")
    ('image', 'classes', 'categories', 'images have')

    """
    if number == 1:
        return one
    if many is not None:
        return many
    if one.endswith("y") and one[-2:-1] not in "aeiou":
        return f"{one[:-1]}ies"
    return one + ("es" if one.endswith(("s", "x", "ch", "sh")) else "s")


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with the word, or the words, that go with it; arguments as in `plural`.

    >>> count(1, "image"), count(1200, "image"), count(1, "problem stops a run", "problems stop a run")
    ('1 image', '1200 images', '1 problem stops a run')

    """
    return f"{number} {plural(number, one, many)}"


def some(items: Sequence[str], limit: int = 5) -> str:
    """Return the first few of some texts and how many more there are.

    >>> some(["a", "b", "c"]), some(["a", "b", "c"], limit=2)
    ('a, b, c', 'a, b and 1 more')

    """
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def short(value: object) -> str:
    """Return a value out of somebody's file for a message: in one line, cut where it is long or deep.

    >>> short("a" * 99)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaa'"

    """
    return _SHORT.repr(value)[:100]


def holds_control(text: str) -> bool:
    """Return whether a text holds a control character or half of a surrogate pair, which no name of a file may."""
    return any(ord(character) < 32 or ord(character) == 127 or _is_surrogate(character) for character in text)


def is_encodable(text: str) -> bool:
    """Return whether a text can be written as UTF-8: a name out of a folder may be bytes of another encoding."""
    return not any(map(_is_surrogate, text))


def _is_surrogate(character: str) -> bool:
    return 0xD800 <= ord(character) < 0xE000


def printable(text: str) -> str:
    r"""Return a text, such as a name out of a file, in which every character that cannot be seen is written out.

    A name must not change the terminal or the page around it, nor look like another one: control characters, those of
    no width and those that turn the direction of writing are shown as their escapes. Letters of any script stay.

    >>> print(printable("cat\u202egnp.\x1b[2J"), printable("naïve été 猫"))
    cat\u202egnp.\x1b[2J naïve été 猫

    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNSEEN else character
        for character in text
    )


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


def system_fault(error: OSError) -> str:
    """Return what the system says of a file or folder, in words, and what to look at.

    >>> system_fault(FileExistsError(errno.EEXIST, "File exists", "masks"))
    "It exists, and is no folder: 'masks'; check the path, the permissions and the free space"

    """
    if error.errno is None or error.strerror is None:
        return one_line(error)  # of a library, or with words of our own
    where = "" if error.filename is None else f": {printable(repr(_file_name(error.filename)))}"
    return f"{_SAID.get(error.errno, error.strerror)}{where}; check the path, the permissions and the free space"


def _file_name(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)


def _give_up_full_output() -> None:
    """Let go of output that a full disk does not take, or the interpreter would complain of it again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError:  # closed by a test's capture
        pass


def one_line(error: Exception) -> str:
    """Return the message of an error as one printable line; out of a loader process it comes wrapped in a traceback."""
    text = str(error).strip()
    if "Caught" in text and "Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return printable(" ".join(text.split()))


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


def idle_lines(flags: Sequence[str]) -> list[str]:
    """Return the line about settings that have no effect, or none."""
    if not flags:
        return []
    return [f"No effect with the other settings, and left aside: {', '.join(f'--{flag}' for flag in flags)}."]


def warn_of_idle(flags: Sequence[str]) -> None:
    """Warn, once, of settings that have no effect."""
    for line in idle_lines(flags):
        logger.warning("%s", line)
