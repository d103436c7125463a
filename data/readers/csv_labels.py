"""Rows of a labels.csv: which column is the image, and what the other ones say.

A column called labels, class, tag or the like holds names. Without one, either every other column stands for a class
and holds marks (0 and 1, True and False, yes and no, x), or all of them hold names. What is neither is refused, with
the column and the row: a number such as 2, -1 or 0.9 is no mark, and nobody has said which threshold is meant.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.classes import MAX_CLASSES
from data.errors import LabelError
from data.images import IMAGE_SUFFIXES
from data.wording import count

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
HINT = "write `image,labels` as the first line and `cat_1.jpg,cat;sofa` below it"
MAX_COLUMNS = 1000
_NO_CLASS = re.compile("(unnamed: [0-9]+)?|index|id|image_id|file_?name")  # pandas' index, and other names of the image
_NUMBERED = re.compile("(label|class|category|tag)[ _-]?[0-9]+")
_PRESENT = frozenset({"1", "1.0", "true", "yes", "y", "x"})
_ABSENT = frozenset({"", "0", "0.0", "false", "no", "n"})
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|nan|[-+]?inf", re.IGNORECASE)

Row = tuple[str, list[str]]  # an image and cells that name its labels


def read_rows(text: str, path: Path) -> tuple[list[Row], bool]:
    """Return the rows of a CSV text, and whether the names of their labels stand in the first line.

    Args:
        text: the content of the file.
        path: the file, for messages.

    Raises:
        LabelError: not CSV, no image column, more than `MAX_COLUMNS` columns, or columns of unclear meaning.

    """
    first = next((line for line in io.StringIO(text) if line.strip()), "").strip()
    delimiter = _delimiter(first)
    if delimiter is None:
        raise LabelError(f"{path}: the first line is {first[:60]!r}, which names no image and no columns; {HINT}.")
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows = [row for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise LabelError(f"{path} is not CSV ({error}: is a quote missing?); {HINT}.") from error
    widest = max(rows, key=len)
    if len(widest) > MAX_COLUMNS:
        raise LabelError(
            f"{path}: the row {widest[0][:60]!r} has {len(widest):,} columns; at most {MAX_COLUMNS:,} are read, and a "
            f"mask holds {MAX_CLASSES} classes."
        )
    if is_image(rows[0][0]):
        return [(row[0], row[1:]) for row in rows], False
    return _with_header(rows, path)


def is_image(cell: str) -> bool:
    """Return whether a cell is the name of an image file."""
    stem, dot, suffix = cell.strip().strip("\"'").rpartition(".")
    return bool(dot and stem) and f".{suffix}".lower() in IMAGE_SUFFIXES


def _with_header(rows: Sequence[list[str]], path: Path) -> tuple[list[Row], bool]:
    header = [cell.strip().casefold() for cell in rows[0]]
    image = next((header.index(name) for name in IMAGE_COLUMNS if name in header), 0)
    label = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
    body = [row for row in rows[1:] if len(row) > image and row[image].strip()]
    if label is not None:
        last = label == len(header) - 1  # more cells than columns are labels that were not put in quotes
        return [(row[image], row[label:] if last else row[label : label + 1]) for row in body], False
    aside = {column for column, name in enumerate(header) if column == image or _NO_CLASS.fullmatch(name)}
    values = {cell.strip() for row in body for column, cell in enumerate(row) if column not in aside}
    marks = {value for value in values if value.casefold() in _PRESENT | _ABSENT}
    numbered = all(_NUMBERED.fullmatch(name) for column, name in enumerate(header) if column not in aside)
    all_marks = marks == values != {""}
    if not all_marks and (numbered or not _is_doubtful(values, marks)):
        return [(row[image], [cell for column, cell in enumerate(row) if column not in aside]) for row in body], False
    names = {column: name.strip() for column, name in enumerate(rows[0]) if column not in aside}
    return _marked_rows(names, body, image, path), True


def _is_doubtful(values: set[str], marks: set[str]) -> bool:
    """Return whether there are numbers or marks among the values, so that they are hardly names."""
    return bool(marks - {""}) or any(_NUMBER.fullmatch(value) for value in values)


def _marked_rows(names: dict[int, str], body: Sequence[list[str]], image: int, path: Path) -> list[Row]:
    """Return the rows of a table with a column for each class, from the columns' names."""
    if len(names) > MAX_CLASSES:
        raise LabelError(f"{path} has columns for {count(len(names), 'class')}; a mask holds at most {MAX_CLASSES}.")
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    if twice:
        raise LabelError(f"{path} has several columns {twice[0]!r}; keep one.")
    found, width = [], max((image, *names)) + 1
    for row in body:
        if any(cell.strip() for cell in row[width:]):
            raise LabelError(f"{path}: the row of {row[image]!r} has more cells than the first line; {HINT}.")
        present = []
        for column, name in names.items():
            value = row[column].strip().casefold() if column < len(row) else ""
            if value in _PRESENT:
                present.append(name)
            elif value not in _ABSENT:
                raise LabelError(
                    f"{path}: the column {name!r} holds {row[column].strip()[:60]!r} for {row[image]!r}: a column for "
                    "a class holds 0 or 1 (or True, False, yes, no, x); or call a column of names `labels`."
                )
        found.append((row[image], present))
    return found


def _delimiter(line: str) -> str | None:
    """Return the separator that makes the first cell an image or the cells column names."""
    for delimiter in ",;\t|":
        try:
            cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:  # a cell of more than 131,072 characters
            return None
        names = {cell.strip().casefold() for cell in cells}
        if len(cells) > 1 and (is_image(cells[0]) or names & set(IMAGE_COLUMNS)):
            return delimiter
    return "," if is_image(line.strip().strip('"')) else None
