"""What a store's folder consists of: what is ours in it, what is in the way, and how a store is emptied."""

import errno
import os
from pathlib import Path

from data.errors import StoreError

FOLDERS = {"masks": ".png", "argmax": ".png", "scores": ".npz"}
INDEX, SKIPPED = "index.jsonl", "skipped.txt"
REVIEW, CORRECTED = "review.jsonl", "corrected"  # what people have decided and drawn: never emptied
_LOCK = f".{INDEX}.lock"
# What our programs put beside the masks; it does not stand in the way of a new store.
_LEFT_OVER = frozenset({SKIPPED, "report.html", REVIEW})


def in_the_way(path: Path) -> list[str]:
    """Return the names in a folder that keep a new store from being started there; what our programs leave is not.

    Hidden files, temporary files, a report and folders of ours without a mask are left-overs: of a run that was killed
    before its first mask, or while it emptied the folder.
    """
    if not path.is_dir():
        return []
    return sorted(entry.name for entry in path.iterdir() if not _is_left_over(entry))


def _is_left_over(entry: Path) -> bool:
    if _is_temporary(entry) or entry.name in _LEFT_OVER or (entry.name == CORRECTED and _is_own_folder(entry)):
        return True
    return entry.name in FOLDERS and _is_own_folder(entry) and all(map(_is_temporary, entry.iterdir()))


def _is_temporary(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name.endswith(".tmp")


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def is_headless(path: Path) -> bool:
    """Return whether a folder is what is left of a store that has lost its store.json, and holds nothing else."""
    if (path / "store.json").exists() or not ((path / INDEX).exists() or (path / _LOCK).exists()):
        return False
    return all(name == INDEX or (name in FOLDERS and _is_own_folder(path / name)) for name in in_the_way(path))


def check_free(path: Path) -> None:
    """Raise StoreError unless a store can be started there: no such folder, or one with nothing but our left-overs."""
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; name a new folder with --store.")
    names = in_the_way(path)
    if names and is_headless(path):
        raise StoreError(
            f"{path} holds masks but no store.json; restore it, or give --overwrite to delete the masks and start anew."
        )
    if names:
        raise StoreError(
            f"{path} is not empty and not a mask store (it holds {names[0]}); name a new folder with --store."
        )


def own_folder(path: Path) -> Path:
    """Make a folder of a store if it is not there, and return it.

    Raises:
        OSError: it cannot be made, or is a link: masks written or deleted there would be somebody's files elsewhere.

    """
    path.mkdir(exist_ok=True)
    _refuse_link(path)
    return path


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise OSError(errno.ELOOP, "A link, and what it points to is not written to", str(path))


def check_can_be_emptied(path: Path) -> None:
    """Raise OSError if emptying the store would reach through a link."""
    for name in (*FOLDERS, INDEX, _LOCK, ".store.json.lock"):
        _refuse_link(path / name)


def empty(path: Path) -> None:
    """Delete the index, the masks and the soft maps of a store, and nothing else: what people have decided stays.

    The index goes first: from then on no image counts as finished, so a run that is killed here leaves a store with
    fewer masks and never one that promises masks it lacks. store.json stays; it is replaced by the one who calls.
    """
    check_can_be_emptied(path)
    for name in (INDEX, SKIPPED):
        (path / name).unlink(missing_ok=True)
    for name, suffix in FOLDERS.items():
        if _is_own_folder(path / name):
            for entry in sorted((path / name).iterdir()):
                if entry.suffix in {suffix, ".tmp"} and not _is_own_folder(entry):
                    os.unlink(entry)
