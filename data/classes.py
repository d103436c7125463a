"""Class names, what the prompt calls them, and the background words that go with them.

Class ids are the pixel values of a mask: 0 is the background, 1 to N are the classes in the order of
`ClassSet.names`, 255 (`IGNORE`) is "no decision" and takes part in no loss and no score.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data.errors import ConfigError, LabelError
from data.wording import count, holds_control, is_encodable, short, some

IGNORE = 255
MAX_CLASSES = 254  # 0 is the background and 255 the ignore value of an 8-bit mask
MAX_NAME = 200  # characters of a class name, a phrase or a background word
RESERVED = ("background", "ignore")  # what mask values 0 and 255 are called
_GAP = re.compile("[ _\t\u00a0-]+")
_GAP_IN_NUMBER = re.compile("(?<=[0-9])[ _\t\u00a0-]+(?=[0-9])")

# Words that soak up the attention which would otherwise fall on the classes (Xiao et al., arXiv 2309.04109, the
# published implementation's default list).
DEFAULT_BACKGROUND = (
    "tree",
    "river",
    "sea",
    "lake",
    "water",
    "railway",
    "railroad",
    "track",
    "stone",
    "rocks",
)


@dataclass(frozen=True)
class ClassSet:
    """The classes of a data set, without the background.

    Attributes:
        names: one name per class as the labels spell it; the class id of `names[i]` is i + 1.
        phrases: what the prompt calls each class ("bird avian" for bird).
        background_words: for each class, words of things it is often seen with, to be added to the prompt.

    """

    names: tuple[str, ...]
    phrases: tuple[str, ...]
    background_words: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.phrases) == len(self.background_words):
            raise ConfigError(
                f"{count(len(self.names), 'class name')}, {count(len(self.phrases), 'phrase')} and "
                f"{count(len(self.background_words), 'list')} of background words: each class needs one of each."
            )
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise ConfigError(f"{count(len(self.names), 'class')}: a mask holds 1 to {MAX_CLASSES}; name fewer.")
        for name in self.names:
            if not is_encodable(name):
                raise ConfigError(
                    f"The class name {name!a} holds bytes of no known encoding; rename its folder, or save the label "
                    "file as UTF-8."
                )
        repeated = repeated_names(self.names)
        if repeated:
            raise ConfigError(
                f"Class names must differ in more than case, spaces, _ and -, and not be empty: {repeated!r} do not."
            )

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Return the class id (1-based) of a name; case, spaces, `_` and `-` make no difference.

        Raises:
            LabelError: no such class; the message names the nearest one.

        """
        position = self._positions.get(class_key(name))
        if position is None:
            raise LabelError(
                f"Unknown class {name!r}{nearest(name, self.names)}; the classes are {some(self.names, 12)}."
            )
        return position + 1

    def name(self, class_id: int) -> str:
        """Return the name of a class id: 0 is "background", 255 is "ignore"."""
        if class_id == 0:
            return "background"
        if class_id == IGNORE:
            return "ignore"
        if not 1 <= class_id <= len(self.names):
            raise LabelError(f"Class id {class_id} does not exist: ids go from 0 (background) to {len(self.names)}.")
        return self.names[class_id - 1]

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain lists; `from_json` reads it back."""
        return {
            "names": list(self.names),
            "phrases": list(self.phrases),
            "background_words": [list(words) for words in self.background_words],
        }

    @classmethod
    def from_json(cls, value: Any) -> "ClassSet":
        """Build from what `to_json` returned."""
        parts: list[Any] = [
            value.get(key) if isinstance(value, dict) else None for key in ("names", "phrases", "background_words")
        ]
        names, phrases, words = parts
        if not (
            are_texts(names) and are_texts(phrases) and isinstance(words, list | tuple) and all(map(are_texts, words))
        ):
            raise ConfigError(
                "Not a class list: names, phrases and background_words are needed, lists of texts (the last of lists)."
            )
        return cls(tuple(names), tuple(phrases), tuple(tuple(one) for one in words))

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {class_key(name): position for position, name in enumerate(self.names)}  # asked for 100,000 times


def are_texts(value: Any) -> bool:
    """Return whether a value out of JSON or YAML is a list of texts."""
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def class_key(name: str) -> str:
    """Return the form under which two spellings of a class name are the same class.

    Spaces, `_` and `-` do not count, but between digits one of them keeps the numbers apart.

    >>> class_key("Dining_Table"), class_key("1-23"), class_key("12 3")
    ('diningtable', '1-23', '12-3')
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    return _GAP.sub("", _GAP_IN_NUMBER.sub("\0", folded)).replace("\0", "-")


def repeated_names(names: Sequence[str]) -> list[str]:
    """Return the names that are empty or the same class as another one, in their order."""
    keys = [class_key(name) for name in names]
    times = Counter(keys)
    return [name for name, key in zip(names, keys, strict=True) if not key or times[key] > 1]


def nearest(name: str, known: Sequence[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known name; an empty text if none is near."""
    if len(name) > MAX_NAME:  # a comparison takes the square of the length
        return ""
    by_key = {class_key(other): other for other in known}
    match = difflib.get_close_matches(class_key(name), list(by_key), n=1, cutoff=0.6)
    return f" (did you mean {by_key[match[0]]!r}?)" if match else ""


def make_classes(names: Sequence[str], phrases: dict[str, str], background: dict[str, tuple[str, ...]]) -> ClassSet:
    """Return a class set from names and the exceptions to "the phrase is the name" and "the default background"."""
    return ClassSet(
        tuple(names),
        tuple(phrases.get(name, name) for name in names),
        tuple(background.get(name, DEFAULT_BACKGROUND) for name in names),
    )


def check_name(name: str, place: str = "") -> str:
    """Return the name if a class may be called so.

    Raises:
        ConfigError: too long, what mask values 0 and 255 are called, or a character that no file can hold.

    """
    if class_key(name) in RESERVED:
        value = 0 if class_key(name) == RESERVED[0] else IGNORE
        raise ConfigError(
            f"{place}A class may not be called {name!r}, as mask value {value} is; rename it, or give such images no "
            "label."
        )
    if len(name) > MAX_NAME:
        raise ConfigError(f"{place}The class name {short(name)} is longer than {MAX_NAME} characters; shorten it.")
    if holds_control(name):
        raise ConfigError(f"{place}The class name {name!r} holds a control character; rename the class.")
    return name


VOC = make_classes(
    [
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
        *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    ],
    {
        "bird": "bird avian",
        "chair": "chair seat",
        "diningtable": "dining table",
        "person": "person with clothes",
        "pottedplant": "potted plant",
        "tvmonitor": "tv monitor screen",
    },
    {
        "boat": ("river", "sea", "lake", "water", "mountain"),
        "cow": ("grass", "stone", "rocks"),
        "train": ("railway", "railroad", "track"),
        "tvmonitor": ("keyboard", "wall"),
    },
)

COCO = make_classes(
    [
        *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
        *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
        *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
        *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
        *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
        *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
        *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
        *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
        *("scissors", "teddy bear", "hair drier", "toothbrush"),
    ],
    {
        "person": "person with clothes",
        "motorcycle": "motorbike",
        "airplane": "aeroplane",
        "bird": "bird avian",
        "backpack": "backpack, bag",
        "umbrella": "umbrella, parasol",
        "handbag": "handbag, purse",
        "tie": "necktie",
        "baseball glove": "glove",
        "spoon": "dessert spoon",
        "chair": "chair seat",
        "couch": "sofa",
        "tv": "tv monitor screen",
        "remote": "remote control",
        "hair drier": "hairdrier, blowdrier",
    },
    {},
)
