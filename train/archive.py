"""The checksums inside the files that torch.save writes, which torch.load does not look at."""

import errno
import struct
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

from data.errors import ModelError

# What zipfile raises for an archive with wrong bytes in its data, its headers or its list of files.
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)
_DOS_FOLDER = 0x10  # of a part's external attributes (APPNOTE.TXT 4.4.15)


def verify_archive(path: Path) -> None:
    """Check every byte of a file that torch.save wrote against the checksums in it; once for a file and process.

    torch.load looks at none of them, so that a flipped bit silently becomes another weight.

    Raises:
        ModelError: no such archive, cut short, or changed since it was written.

    """
    there = path.stat()
    damage = _damage(path.resolve(), there.st_size, there.st_mtime_ns)
    if damage is not None:
        raise ModelError(
            f"Cannot read {path}: it is damaged, or no file of torch.save ({damage}); copy it again from where it is "
            "whole, or name another one."
        )


@lru_cache(maxsize=64)
def _damage(path: Path, size: int, changed_ns: int) -> str | None:
    """Return what is wrong with an archive, or None; size and time of change stand for its content."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch would take a part with this mark for a folder, and give a tensor whatever lies in its memory.
            folders = [part.filename for part in archive.infolist() if part.external_attr & _DOS_FOLDER]
            if folders:
                return f"its part {folders[0]} is marked as a folder"
            bad = archive.testzip()
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's begin, which a wrong list of files asks for
            raise
        return "its list of files does not fit its size"
    except _ARCHIVE_ERRORS as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None if bad is None else f"wrong checksum of its part {bad}"
