"""How counts, names and errors are said to a reader: in plain words, in one line, and so that nothing is hidden."""

import errno
import os
import reprlib
import unicodedata
from collections.abc import Sequence

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


def one_line(error: Exception) -> str:
    """Return the message of an error as one printable line; out of a loader process it comes wrapped in a traceback."""
    text = str(error).strip()
    if "Caught" in text and "Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return printable(" ".join(text.split()))


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
