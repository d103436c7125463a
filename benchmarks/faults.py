"""What damaged and odd inputs do: one line that names the fault, or something worse.

    python -m benchmarks.faults --count 300          # writes benchmarks/faults.md
    python -m benchmarks.faults --target coco --seed 3 --count 50 --show true   # one reader, each outcome printed

Each target is a drawn input and the reader a user's command meets it with. One file of it is mutated (bytes cut,
flipped, repeated; a value of a JSON or YAML tree swapped for one of another type, removed, or nested deeply; another
text encoding) and read again. Five outcomes are told apart:

- fine: read, with the result of the undamaged input, or with another one where only the input's author could know
  better (another name, another pixel of an image);
- clean: one error of `data.errors`, which the command lines print as one line;
- traceback: any other exception, a lack of memory, or the death of the process;
- silent: read with another result and no warning, although the reader could know: the file carries checksums (masks,
  soft maps, checkpoints), or a value was of another type;
- hang: no end within the limit.

The last three are to be zero. Targets run in processes of their own, because a library's crash would end this one.
"""

import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from jsonargparse import auto_cli

from benchmarks.common import HERE, machine, machine_line, table, write_text
from benchmarks.fault_inputs import TARGETS, Target
from benchmarks.mutations import mutate
from data.errors import UserError

OUTCOMES = ("fine", "clean", "traceback", "silent", "hang")
LIMIT_S = 20  # far above what any of these tiny inputs takes
MEMORY_BYTES = 6 << 30


class TimeUp(BaseException):
    """The limit has passed; no reader catches this one."""


def raise_time_up(_signal: int, _frame: FrameType | None) -> None:
    raise TimeUp


def trials(name: str, seed: int, first: int, count: int) -> Iterator[tuple[str, str]]:
    """Yield (outcome, what was done and what was said) for each trial from `first` on."""
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        target.build(root)
        pristine = {file: (root / file).read_bytes() for file in target.files}
        expected = target.read(root)
        signal.signal(signal.SIGALRM, raise_time_up)
        for number in range(first, count):
            rng = random.Random(f"{name}/{seed}/{number}")
            file = rng.choice(target.files)
            suffix = Path(file).suffix
            content, what, other = mutate(pristine[file], suffix, rng)
            (root / file).write_bytes(content)
            strict = (other and other not in target.either) or suffix in target.checked
            print(json.dumps({"begin": number, "what": f"{file}: {what}"}), flush=True)
            outcome, said = attempt(target, root, expected, bool(strict) and content != pristine[file])
            yield outcome, f"{file}: {what} -> {said}"
            (root / file).write_bytes(pristine[file])
            shutil.rmtree(root / "cache", ignore_errors=True)


class WarningCounter(logging.Handler):
    """Counts warnings: what a reader says it passes over is not silent."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.count += 1


WARNINGS = WarningCounter(logging.WARNING)


def attempt(target: Target, root: Path, expected: Any, strict: bool) -> tuple[str, str]:
    """Read a damaged input; return the outcome and what was said. Under `strict` another result needs a warning."""
    WARNINGS.count = 0
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        same = target.read(root) == expected
    except UserError as error:
        return "clean", str(error)
    except TimeUp:
        return "hang", f"no end within {LIMIT_S} s"
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    silent = strict and not same and not WARNINGS.count
    return ("silent" if silent else "fine"), ("the same" if same else "another result")


def watch(name: str, seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Run a target's trials in a process of its own; its death is an outcome too."""
    first = 0
    while first < count:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.faults", "--worker", name]
        command += ["--seed", str(seed), "--first", str(first), "--count", str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            began = ""
            for line in process.stdout:
                message = json.loads(line)
                if "begin" in message:
                    first, began = message["begin"] + 1, message["what"]
                else:
                    began = ""
                    yield message["outcome"], message["said"]
        if began:
            yield "traceback", f"{began} -> the process died with status {process.returncode}"
        elif process.returncode:
            raise RuntimeError(f"{name} could not be read undamaged (status {process.returncode})")


def main(
    target: str | None = None,
    worker: str | None = None,
    seed: int = 0,
    first: int = 0,
    count: int = 300,
    show: bool = False,
    output: Path = HERE / "faults.md",
) -> None:
    """Try damaged inputs on every reader.

    Args:
        target: try this one alone, and write no file.
        worker: run this target's trials in this process.
        seed: of the mutations.
        first: number of the first trial.
        count: number of trials per target; slow readers get a share of it.
        show: print each outcome that is to be zero, and with a target every outcome.
        output: Markdown file.

    """
    if worker:
        run_worker(worker, seed, first, count)
        return
    rows = []
    for name in [target] if target else list(TARGETS):
        counts: Counter[str] = Counter()
        for outcome, said in watch(name, seed, max(10, round(count * TARGETS[name].weight))):
            counts[outcome] += 1
            if show and (target or outcome in {"traceback", "silent", "hang"}):
                print(f"{name} | {outcome:9s} | {said[:300]}", flush=True)
        rows.append([name, sum(counts.values()), *(counts[outcome] for outcome in OUTCOMES)])
        print(*rows[-1], flush=True)
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 2 + len(OUTCOMES)))])
    if not target:
        text = [
            "# Damaged and odd inputs",
            "",
            f"{machine_line(machine())} Made by `python -m benchmarks.faults --seed {seed} --count {count}`; the",
            "module's first lines say what was done and what the outcomes mean. The last three columns are to be zero.",
            "",
            table(("input", "tried", *OUTCOMES), rows),
        ]
        write_text(output, "\n".join(text))


def run_worker(name: str, seed: int, first: int, count: int) -> None:
    """Run a target's trials in this process, its memory bounded, and print a JSON line for each."""
    logging.basicConfig(handlers=[WARNINGS], force=True)
    warnings.simplefilter("ignore")
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except ImportError:  # Windows: a reader that eats all memory then shows as a hang
        pass
    for outcome, said in trials(name, seed, first, count):
        print(json.dumps({"outcome": outcome, "said": said[:600]}), flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
