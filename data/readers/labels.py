"""Label files as people have them: labels.csv and labels.jsonl.

labels.csv, with or without a first line of column names:

    image,labels                one row per image; several labels in one cell, separated by , ; | or a tab
    cat_1.jpg,cat;sofa
    image,label                 or one row per label
    image,label1,label2         or one column per label
    image,cat,dog               or one column per class, holding 0 or 1

Columns may be separated by a comma, semicolon, tab or bar. Quotes, a byte order mark, UTF-16 and Windows-1252 text,
Windows paths and blank lines are understood. labels.jsonl has one object per line, such as {"image": "a.jpg",
"labels": ["cat"]}. The field's cls_labels.npy is read too, safely (see `cls_labels`).

A class name may hold spaces ("dining table"). A cell without another separator is split at its spaces only where every
piece is a class by itself: one of the class file, or, without one, one that stands alone in another row.
"""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.classes import ClassSet, class_key
from data.errors import LabelError
from data.images import IMAGE_SUFFIXES
from data.readers.cls_labels import read_cls_label_names
from data.readers.listing import interned

IMAGE_COLUMNS = (
    "image",
    "images",
    "filename",
    "file_name",
    "file",
    "path",
    "image_path",
    "img",
    "image_id",
    "id",
    "name",
)
LABEL_COLUMNS = ("labels", "label", "classes", "class", "categories", "category", "tags", "tag")
_SEPARATORS = re.compile(r"[,;|\t\n]")
_HINT = "write `image,labels` as the first line and `cat_1.jpg,cat;sofa` below it"


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
            raise LabelError(f"{path} may run code when it is opened; write its labels to labels.csv instead; {_HINT}.")
        case ".jsonl" | ".ndjson":
            rows = _read_jsonl(_read_text(path), path)
        case _:
            rows = _read_csv(_read_text(path), path)
    cells: dict[str, list[str]] = {}
    for image, labels in rows:
        cells.setdefault(image.strip().replace("\\", "/"), []).extend(labels)
    if not cells:
        raise LabelError(f"{path} has no rows; {_HINT}.")
    return _split_cells(cells, classes)


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LabelError(f"Cannot read the label file {path}: {error.strerror}; check --data.labels.") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        return content.decode("cp1252")  # what Excel writes as "CSV" on a Western Windows
    except UnicodeDecodeError as error:
        raise LabelError(f"{path} is no text file ({error.reason}); save it as CSV in UTF-8.") from error


def _read_jsonl(text: str, path: Path) -> Iterable[tuple[str, list[str]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise LabelError(f"{path}, line {number} is not JSON ({error}); write one object a line.") from error
        image = next((row[key] for key in IMAGE_COLUMNS if key in row), None) if isinstance(row, dict) else None
        labels = next((row[key] for key in LABEL_COLUMNS if key in row), None) if isinstance(row, dict) else None
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
        yield image, labels


def _read_csv(text: str, path: Path) -> Iterable[tuple[str, list[str]]]:
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    delimiter = _delimiter(first)
    if delimiter is None:
        raise LabelError(f"{path}: the first line is {first[:60]!r}, which names no image and no columns; {_HINT}.")
    try:
        rows = [
            row for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise LabelError(f"{path} is not CSV ({error}); {_HINT}.") from error
    header = [cell.strip().casefold() for cell in rows[0]]
    if _is_image(rows[0][0]):
        return [(row[0], row[1:]) for row in rows]
    image_column = next((header.index(name) for name in IMAGE_COLUMNS if name in header), 0)
    if _is_one_hot(rows, image_column, header):
        return [(row[image_column], _marked(rows[0], row, image_column)) for row in rows[1:]]
    label_column = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
    return [(row[image_column], _labels_of(row, image_column, label_column, len(header))) for row in rows[1:]]


def _delimiter(line: str) -> str | None:
    """Return the separator that makes the first cell an image or the cells column names."""
    for delimiter in ",;\t|":
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
        names = {cell.strip().casefold() for cell in cells}
        if len(cells) > 1 and (_is_image(cells[0]) or names & set(IMAGE_COLUMNS)):
            return delimiter
    return "," if _is_image(line.strip().strip('"')) else None


def _is_image(cell: str) -> bool:
    return Path(cell.strip().strip("\"'").replace("\\", "/")).suffix.lower() in IMAGE_SUFFIXES


def _is_one_hot(rows: Sequence[Sequence[str]], image_column: int, header: Sequence[str]) -> bool:
    values = {cell.strip() for row in rows[1:] for column, cell in enumerate(row) if column != image_column}
    return len(header) > 1 and bool(values) and values <= {"0", "1", "0.0", "1.0", ""} and len(values - {""}) > 0


def _marked(header: Sequence[str], row: Sequence[str], image_column: int) -> list[str]:
    pairs = enumerate(zip(header, row, strict=False))
    return [name for column, (name, cell) in pairs if column != image_column and cell.strip() in {"1", "1.0"}]


def _labels_of(row: Sequence[str], image_column: int, label_column: int | None, width: int) -> list[str]:
    """Return the label cells of a row; more cells than columns are labels that were not put in quotes."""
    if label_column is None:
        return [cell for column, cell in enumerate(row) if column != image_column]
    last = label_column == width - 1
    return list(row[label_column:] if last else row[label_column : label_column + 1])


def _split_cells(cells: dict[str, list[str]], classes: ClassSet | None) -> dict[str, tuple[str, ...]]:
    pieces = {
        image: [piece for cell in labels for piece in map(_cleaned, _SEPARATORS.split(cell)) if piece]
        for image, labels in cells.items()
    }
    if classes is not None:
        known = {class_key(name) for name in classes.names}
    else:
        known = {class_key(piece) for found in pieces.values() for piece in found if len(piece.split()) == 1}
    names = {
        image: dict.fromkeys(one for piece in found for one in _words(piece, known)) for image, found in pieces.items()
    }
    return {image: interned(list(found)) for image, found in names.items()}


def _words(piece: str, known: set[str]) -> list[str]:
    """Split a piece at its spaces where all its words are known classes and the whole is not."""
    words = piece.split()
    if len(words) == 1 or class_key(piece) in known:
        return [piece]
    joined: list[str] = []
    while words:  # the longest run of words that is a class, again and again: "dining table person" is two
        length = next((n for n in range(len(words), 0, -1) if class_key(" ".join(words[:n])) in known), 0)
        if not length:
            return [piece]
        joined.append(" ".join(words[:length]))
        words = words[length:]
    return joined


def _cleaned(piece: str) -> str:
    return " ".join(piece.strip().strip("\"'[]").split())
