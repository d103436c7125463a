"""Label files as people have them: labels.csv and labels.jsonl.

labels.csv, with or without a first line of column names:

    image,labels                one row per image; several labels in one cell, separated by , ; | or a tab
    cat_1.jpg,cat;sofa
    image,label                 or one row per label
    image,label1,label2         or one column per label
    image,cat,dog               or one column per class, holding 0 or 1, True or False, yes or no, x or nothing

Other numbers in a column for a class (2, -1, 0.9) are refused, and so are labels that can hardly be names: True, 0.9,
nan, the name of an image file. What a class file names is never refused.

Columns may be separated by a comma, semicolon, tab or bar. Quotes, a byte order mark, UTF-16 and Windows-1252 text,
Windows paths and blank lines are understood. labels.jsonl has one object per line, such as {"image": "a.jpg",
"labels": ["cat"]}. The field's cls_labels.npy is read too, safely (see `cls_labels`).

A class name may hold spaces ("dining table"). A cell without another separator is split at its spaces only where every
piece is a class by itself: one of the class file, or, without one, one that stands alone in another row. A name that
holds a separator ("salt; pepper") is whole as the name of a column, in a list of labels.jsonl, and, in a cell of its
own, where a class file has it.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from data.classes import MAX_NAME, ClassSet, class_key
from data.errors import LabelError
from data.readers.cls_labels import read_cls_label_names
from data.readers.csv_labels import HINT, IMAGE_COLUMNS, LABEL_COLUMNS, is_image, read_rows
from data.readers.listing import interned
from data.texts import FileKind, json_of, read_text

LABEL_FILE = FileKind(
    "the label file",
    256 * 1024 * 1024,
    "check --data.labels, and save it as CSV in UTF-8",
    LabelError,
    fallback="cp1252",  # what Excel writes as "CSV" on a Western Windows
)
_SEPARATORS = re.compile(r"[,;|\t\n]")
_LINES = re.compile("\r\n|\n|\r")
_NO_NAME = re.compile(r"true|false|nan|null|[-+]?[0-9]*\.[0-9]*(e[-+]?[0-9]+)?|[-+][0-9]+|[-+]?inf", re.IGNORECASE)


def read_label_table(path: Path, classes: ClassSet | None = None) -> dict[str, tuple[str, ...]]:
    """Return the class names of each image of a label file.

    Args:
        path: labels.csv (also .tsv, .txt), labels.jsonl, or the field's cls_labels.npy.
        classes: the classes, if they are known; they decide what a name with a space in it means.

    Returns:
        Names by the image as the file gives it, with forward slashes. Rows of one image are joined. An image whose
        row names no class has no names.

    Raises:
        LabelError: missing, empty, not text, a row that cannot be understood (with its number), or a pickle.

    """
    path = Path(path)
    match path.suffix.lower():
        case ".npy":
            return read_cls_label_names(path, classes)
        case ".npz" | ".pkl" | ".pickle":
            raise LabelError(f"{path} may run code when it is opened; write its labels to labels.csv instead; {HINT}.")
        case ".jsonl" | ".ndjson":
            rows, are_names = _read_jsonl(read_text(path, LABEL_FILE), path), True  # a name in JSON is a name
        case _:
            table, are_names = read_rows(read_text(path, LABEL_FILE), path)
            rows = ((image, labels, are_names) for image, labels in table)
    cells: dict[str, list[str]] = {}
    whole: dict[str, list[str]] = {}
    for image, labels, named in rows:
        image = image.strip().replace("\\", "/")
        cells.setdefault(image, [])
        (whole if named else cells).setdefault(image, []).extend(labels)
    if not cells:
        raise LabelError(f"{path} has no rows; {HINT}.")
    found = _split_cells(cells, classes)
    for image, names in whole.items():
        found[image] = interned(list(dict.fromkeys([*filter(None, map(str.strip, names)), *found[image]])))
    if not are_names:
        _check_names(found, classes, path)
    return found


def _read_jsonl(text: str, path: Path) -> Iterable[tuple[str, list[str], bool]]:
    """Yield image, labels, and whether each of these is a name; a text instead of a list may hold several."""
    for number, line in enumerate(_LINES.split(text), start=1):
        if not line.strip():
            continue
        row = json_of(line, path, LABEL_FILE, f"line {number}")
        values = row if isinstance(row, dict) else {}
        image = next((values[key] for key in IMAGE_COLUMNS if key in values), None)
        labels = next((values[key] for key in LABEL_COLUMNS if key in values), None)
        named = isinstance(labels, list)
        if isinstance(labels, str):
            labels = [labels]
        if (
            not isinstance(image, str)
            or not isinstance(labels, list)
            or not all(isinstance(one, str) for one in labels)
        ):
            raise LabelError(
                f'{path}, line {number} is {line.strip()[:60]!r}; write {{"image": "cat_1.jpg", "labels": ["cat"]}}.'
            )
        yield image, labels, named


def _check_names(found: dict[str, tuple[str, ...]], classes: ClassSet | None, path: Path) -> None:
    """Raise LabelError where a label can hardly be a name and no class is called so."""
    known = {class_key(name) for name in classes.names} if classes else set()
    names = {name: image for image, group in found.items() for name in group if class_key(name) not in known}
    for name, image in names.items():
        fault = ""
        if len(name) > MAX_NAME:
            fault = f"is longer than {MAX_NAME} characters"
        elif is_image(name):
            fault = "is the name of an image: is a quote or a line break missing?"
        elif _NO_NAME.fullmatch(name):
            fault = "is a value, not the name of a class: call the column by the class, or write names"
        if fault:
            raise LabelError(f"{path}: the label {name[:60]!r} of {image[:MAX_NAME]!r} {fault}; {HINT}.")
    if names and classes is None and names.keys() <= {"0", "1"}:
        raise LabelError(
            f"{path}: all labels are 0 or 1. If a column says whether a class is there, call it by the class; if two "
            "classes are called so, name them in a class file (--data.classes)."
        )


def _split_cells(cells: dict[str, list[str]], classes: ClassSet | None) -> dict[str, tuple[str, ...]]:
    """Return the names in each image's cells, split at separators, and at spaces where that gives classes alone."""
    given = set() if classes is None else {class_key(name) for name in classes.names}
    pieces = {
        image: [
            piece
            for cell in labels
            for piece in map(_cleaned, [cell] if class_key(cell.strip()) in given else _SEPARATORS.split(cell))
            if piece
        ]
        for image, labels in cells.items()
    }
    alone = {class_key(piece) for found in pieces.values() for piece in found if len(piece.split()) == 1}
    known = alone if classes is None else given
    longest = max(map(len, known), default=1)
    return {
        image: interned(list(dict.fromkeys(one for piece in found for one in _words(piece, known, longest))))
        for image, found in pieces.items()
    }


def _words(piece: str, known: set[str], longest: int) -> list[str]:
    """Split a piece at its spaces where all its words are known classes and the whole is not."""
    words = piece.split()
    if len(words) == 1 or class_key(piece) in known:
        return [piece]
    joined: list[str] = []
    while words:  # the longest run of words that is a class, again and again: "dining table person" is two
        length = next((n for n in range(min(len(words), longest), 0, -1) if class_key(" ".join(words[:n])) in known), 0)
        if not length:
            return [piece]
        joined.append(" ".join(words[:length]))
        words = words[length:]
    return joined


def _cleaned(piece: str) -> str:
    return " ".join(piece.strip().strip("\"'[]").split())
