"""The class file: classes as a person writes them (YAML), what each is called in a prompt and seen with."""

from pathlib import Path
from typing import Any

from data.classes import DEFAULT_BACKGROUND, MAX_NAME, ClassSet, are_texts, check_name
from data.errors import ConfigError
from data.files import write_atomically
from data.texts import FileKind, read_yaml
from data.wording import short

CLASSES_FORMAT = "pseudolabel-classes"
CLASSES_VERSION = 1
CLASS_FILE = FileKind("the class file", 512 * 1024, "write one with: pseudolabel init --root R", ConfigError)
MAX_WORDS = 100  # background words of a class; a sentence has room for far fewer


def load_classes(path: Path) -> ClassSet:
    """Read a class file: YAML with a list `classes` of names or of {name, phrase, background} entries.

    `phrase` defaults to the name with `_` as a space, `background` to `default_background`, and that to the words
    of `DEFAULT_BACKGROUND`. `pseudolabel init` writes such a file.

    Raises:
        ConfigError: no such file, not YAML, a newer version, or not of this form.

    """
    path = Path(path)
    content = read_yaml(path, CLASS_FILE)
    entries = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path} has no list of classes; it needs the line `classes:` and under it `- name: cat`.")
    version = content.get("format_version", 1) if isinstance(content, dict) else 1
    if not isinstance(version, int) or version > CLASSES_VERSION:
        raise ConfigError(
            f"{path} has format_version {short(version)}; this program reads up to {CLASSES_VERSION}: update it."
        )
    default: tuple[str, ...] = DEFAULT_BACKGROUND
    if isinstance(content, dict) and "default_background" in content:
        default = _words(content["default_background"], f"{path}: default_background")
    parsed = [_entry(entry, default, path) for entry in entries]
    try:
        return ClassSet(*(tuple(column) for column in zip(*parsed, strict=True)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _entry(entry: Any, default: tuple[str, ...], path: Path) -> tuple[str, str, tuple[str, ...]]:
    if isinstance(entry, str):
        entry = {"name": entry}
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise ConfigError(
            f"{path}: {short(entry)} is no class; write `- name: cat` (quote names such as 'yes' or '12')."
        )
    unknown = [key for key in entry if key not in ("name", "phrase", "background")]
    if unknown:
        raise ConfigError(
            f"{path}: {short(unknown[0])} in class {short(name)} is unknown; use name, phrase, background."
        )
    check_name(name, f"{path}: ")
    words = default
    if "background" in entry:
        words = _words(entry["background"], f"{path}: background of class {name!r}")
    phrase = entry.get("phrase")
    if phrase is not None and (not isinstance(phrase, str) or len(phrase) > MAX_NAME):
        raise ConfigError(
            f"{path}: the phrase of class {name!r} is {short(phrase)}; write a text of at most {MAX_NAME} characters."
        )
    return name, phrase or name.replace("_", " "), words


def _words(value: Any, place: str) -> tuple[str, ...]:
    if not are_texts(value):
        raise ConfigError(f"{place} is {short(value)}, but must be a list of words, such as [tree, sky].")
    if len(value) > MAX_WORDS or any(len(word) > MAX_NAME for word in value):
        raise ConfigError(
            f"{place} has {len(value)} words; at most {MAX_WORDS} of at most {MAX_NAME} characters are read: a "
            "sentence has room for far fewer."
        )
    return tuple(value)


def save_classes(classes: ClassSet, path: Path) -> None:
    """Write a class file that `load_classes` reads back unchanged."""
    import yaml

    header = (
        "# Classes in the order of their ids (1, 2, ...; 0 is the background).\n"
        "# phrase: what the prompt calls the class. background: what it is often seen with, to be left out.\n"
    )
    entries = [
        {"name": name, "phrase": phrase, "background": list(words)}
        for name, phrase, words in zip(classes.names, classes.phrases, classes.background_words, strict=True)
    ]
    content = {"format": CLASSES_FORMAT, "format_version": CLASSES_VERSION, "classes": entries}
    text = header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    write_atomically(Path(path), text.encode())
