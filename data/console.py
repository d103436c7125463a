"""What both command lines share: which machine this is, how they exit, and what they say of an error."""

import contextlib
import io
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from data.errors import UserError

logger = logging.getLogger(__name__)

DISTRIBUTION = "text2mask-wsss"
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141

REPOSITORY = Path(__file__).resolve().parents[1]


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


def written_by(program: str) -> str:
    """Return a program's name with the installed version, as files name what wrote them."""
    try:
        return f"{program} {version(DISTRIBUTION)}"
    except PackageNotFoundError:  # run from a folder that was never installed
        return f"{program} of an unknown version"


def run_program(run: Callable[[Sequence[str]], None], args: Sequence[str] | None, interrupted: str) -> int:
    """Run a command line and return its exit status: 0, 2 for a wrong input, 130 interrupted, 141 cut short.

    Args:
        run: parses the arguments and does the work; it leaves through SystemExit on wrong usage.
        args: the arguments; those of the process if None.
        interrupted: what to say after Ctrl-C.

    """
    try:
        try:
            with printable_output():
                run(sys.argv[1:] if args is None else list(args))
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
        print(f"error: {one_line(error)}; check the path, the permissions and the free space", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


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


def one_line(error: Exception) -> str:
    """Return the message of an error as one line; out of a loader process it comes wrapped in a traceback."""
    text = str(error).strip()
    if "Caught" in text and "Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def exit_with_line(parser: Any, message: str, error: Exception | None, commands: Sequence[str] = ()) -> NoReturn:
    """Print a parser's error as one line and exit with status 2.

    Args:
        parser: the argument parser.
        message: what it says.
        error: what caused it; names the command's own parser where there is one.
        commands: names of commands; `generate.store` in a message is typed as `--store`.

    """
    program = (getattr(error, "subcommand_parser", None) or parser).prog.replace(" [options]", "")
    line = " ".join(str(message).split())
    if commands:
        line = re.sub(rf"\b({'|'.join(commands)})\.(?=[a-z])", "--", line)
    parser.exit(EXIT_USER_ERROR, f"error: {line} (see {program} --help)\n")
    raise SystemExit(EXIT_USER_ERROR)


def log_to_stderr(handler: logging.Handler, packages: Sequence[str]) -> None:
    """Send the project's log lines to stderr; those of libraries only from warnings on."""
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in packages:
        logging.getLogger(package).setLevel(logging.INFO)


def idle_lines(flags: Sequence[str]) -> list[str]:
    """Return what to say of settings that have no effect: one line, or none."""
    if not flags:
        return []
    return [f"No effect with the other settings, and left aside: {', '.join(f'--{flag}' for flag in flags)}."]


def warn_of_idle(flags: Sequence[str]) -> None:
    """Warn, once, of settings that have no effect."""
    for line in idle_lines(flags):
        logger.warning("%s", line)
