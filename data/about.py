"""What is installed here: for `pseudolabel about`, and beside the traceback of an error that nobody expected."""

import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

DISTRIBUTION = "text2mask-wsss"
# What each extra adds; the packages of each are those that pyproject.toml names.
EXTRAS = {
    "train": "segtrain: training, evaluation, prediction",
    "export": "segtrain export to ONNX, and the predictor that needs no torch",
    "crf": "pydensecrf, the quicker engine of the dense CRF on a CPU; torch does the same without it",
    "coco": "MS COCO, RefCOCO and panoptic narratives",
    "ray": "--run.engine ray: many machines",
    "large": "--model.offload, less main memory while loading, PixArt's tokenizer",
    "review": "pseudolabel review: the page to look masks over",
    "browser": "tests of that page in Chromium",
    "wandb": "--wandb: log a training to Weights & Biases",
    "dev": "tests and checks of this project",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"extra\s*==\s*[\"']([\w-]+)[\"']")


def installed(package: str) -> str | None:
    """Return the version of a package that is installed, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def required(extra: str | None = None) -> list[str]:
    """Return the names of the packages that this one needs, or that an extra of it names; none if it was not installed.

    Args:
        extra: the extra; None: what is always needed.

    """
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    found = []
    for line in lines:
        marker = _EXTRA.search(line)
        name = _NAME.match(line)
        if name and (marker[1] if marker else None) == extra and name[0] != DISTRIBUTION:
            found.append(name[0])
    return found


def versions(extra: str | None = None) -> dict[str, str | None]:
    """Return the installed version of each package that is needed (for an extra); None where it is missing."""
    return {name: installed(name) for name in required(extra)}


def system() -> str:
    """Return Python's version and the system's name."""
    return f"Python {platform.python_version()} on {platform.platform()}"


def keep_traceback(error: BaseException, args: Sequence[str]) -> Path:
    """Write the traceback of an error to a file, with what a report of it needs, and return the file.

    Args:
        error: what was raised.
        args: the command line.

    Raises:
        OSError: the folder for temporary files takes nothing.

    """
    known = {DISTRIBUTION: installed(DISTRIBUTION), **versions()}
    lines = [
        time.strftime("%Y-%m-%d %H:%M:%S"),
        " ".join([Path(sys.argv[0]).name, *map(repr, args)]),
        system(),
        ", ".join(f"{name} {found}" for name, found in known.items() if found),
        "",
        "".join(traceback.format_exception(error)),
    ]
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", errors="backslashreplace", prefix="text2mask-error-", suffix=".txt", delete=False
    ) as file:
        file.write("\n".join(lines))
    return Path(file.name)
