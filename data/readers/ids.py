"""Ids of images: one each, never shared, the same wherever and whenever the image is listed.

An id names the files of a mask store, which may lie on a file system that knows no capitals: ids that differ in case or
in composed accents alone count as the same here.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from data.errors import LabelError
from data.samples import MAX_ID_BYTES, check_id, is_portable


def make_ids(images: Sequence[str], wanted: Sequence[str] | None = None) -> list[str]:
    """Return an id for each image. All differ, and `check_id` accepts each.

    Args:
        images: paths relative to the data set's folder, with forward slashes.
        wanted: the ids a layout would like (a file's stem); one that two images would share, or that cannot be an id,
            gives way to the path. Without it the path is wanted.

    Returns:
        The wanted id; or the path without suffix, `/` as `__`; or, where that will not do either, the path with eight
        hexadecimal digits of its hash. An id depends on no other images but its namesakes.

    """
    if wanted is None:
        return _replaced([_path_id(image) for image in images], images, _hashed_id, is_portable)
    ids = _replaced(wanted, images, _path_id, bool)
    kept = set(wanted)
    return _replaced(ids, images, _hashed_id, lambda sample_id: sample_id in kept or is_portable(sample_id))


def check_distinct(ids: Sequence[str], images: Sequence[str]) -> None:
    """Raise LabelError if two images share an id; it names both."""
    seen: dict[str, int] = {}
    for position, sample_id in enumerate(ids):
        first = seen.setdefault(folded(sample_id), position)
        if first != position:
            raise LabelError(
                f"The images {images[first]!r} and {images[position]!r} would share the id {sample_id!r} and one mask; "
                "list each image once, or rename one."
            )


def folded(path: str) -> str:
    """Return the form under which two paths are the same on a file system without capitals."""
    return unicodedata.normalize("NFC", path).casefold()


def _replaced(
    ids: Sequence[str], images: Sequence[str], make: Callable[[str], str], fits: Callable[[str], bool]
) -> list[str]:
    """Return the ids with those made anew that are not alone, do not fit, or cannot be ids."""
    keys = [folded(sample_id) for sample_id in ids]
    taken = Counter(keys)
    return [
        sample_id if taken[key] == 1 and fits(sample_id) and _acceptable(sample_id) else make(image)
        for sample_id, key, image in zip(ids, keys, images, strict=True)
    ]


def _path_id(image: str) -> str:
    path = unicodedata.normalize("NFC", image).removeprefix("images/")
    return path.rsplit(".", 1)[0].replace("/", "__")


def _acceptable(sample_id: str) -> bool:
    try:
        check_id(sample_id)
    except LabelError:
        return False
    return True


def _hashed_id(image: str) -> str:
    sample_id = _path_id(image)
    digest = hashlib.sha1(image.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:8]
    safe = "".join(each if each.isprintable() and each not in '/\\<>:"|?*' else "_" for each in sample_id)
    safe = safe.replace("..", "_").lstrip(".")
    safe = safe if is_portable(f"{safe}-{digest}") else f"_{safe}"  # con.x is a device whatever follows the dot
    safe = safe.encode("utf-8", "replace")[: MAX_ID_BYTES - 9].decode("utf-8", "ignore")
    return f"{safe}-{digest}"
