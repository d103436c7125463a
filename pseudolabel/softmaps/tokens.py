"""Where the tokens of a text are, by tokenizer: CLIP's, SentencePiece's, which T5 reads with, and a chat model's.

CLIP begins with a start token and lets a token end at the end of a word; T5 has no start token and marks where a word
begins. Each of T5's words is cut into pieces by itself, so that its pieces can be laid along its characters. (The
offsets that the tokenizer gives are wrong for a piece that is the mark alone.) A chat model (Qwen3, of Flux.2) reads a
sentence as what a user says: the tokens that open the user's turn come before it, and those of an empty answer behind.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

from data.errors import LabelError

MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign of the beginning of a word
_HOLE = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for the sentence where a template is looked at

BYTE_MARK = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"  # byte-pair encodings' sign of the space before a word

Span = tuple[int, ...]


@dataclass(frozen=True)
class TextWindow:
    """The tokens that a model is given of a sentence by one of its text encoders, or by several side by side.

    Attributes:
        tokenizer: cuts the sentence.
        size: number of tokens, special ones and filler included; what is longer is cut off.
        offset: position of the first among all of the model's text tokens.

    """

    tokenizer: Any
    size: int
    offset: int = 0


def token_ids(text: str, tokenizer: Any) -> tuple[int, ...]:
    """Return the token ids of a text without start and end tokens."""
    return tuple(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def kind_of(tokenizer: Any) -> Literal["clip", "pieces", "chat"]:
    """Return whose a tokenizer is: CLIP's, SentencePiece's, or a chat model's."""
    mark = tokenizer.convert_tokens_to_ids(MARK)
    if mark is not None and mark != tokenizer.unk_token_id:
        return "pieces"
    return "chat" if getattr(tokenizer, "chat_template", None) else "clip"


def by_characters(tokenizer: Any) -> bool:
    """Whether words are found by where their characters are; CLIP's are found by their token ids."""
    return kind_of(tokenizer) != "clip"


def chat_text(text: str, tokenizer: Any) -> str:
    """Return a sentence as what a user says, and the opening of an answer without thoughts."""
    said = [{"role": "user", "content": text}]
    found: str = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return found


def _around(tokenizer: Any) -> tuple[int, int]:
    """Return how many tokens a chat model has before and behind the sentence."""
    before, after = chat_text(_HOLE, tokenizer).split(_HOLE)
    return len(token_ids(before, tokenizer)), len(token_ids(after, tokenizer))


def lead(tokenizer: Any) -> int:
    """Return how many tokens come before the first word: CLIP's start token, none, or the opening of a user's turn."""
    match kind_of(tokenizer):
        case "clip":
            return 1
        case "pieces":
            return 0
        case "chat":
            return _around(tokenizer)[0]


def trail(tokenizer: Any) -> int:
    """Return how many tokens a sentence needs beside its own, before and behind it together."""
    return sum(_around(tokenizer)) if kind_of(tokenizer) == "chat" else lead(tokenizer) + 1


def tokens_at(text: str, ranges: Sequence[tuple[int, int]], tokenizer: Any) -> Span:
    """Return the positions of the tokens of a text that hold one of some characters.

    Args:
        text: the sentence.
        ranges: first characters and those after the last.
        tokenizer: SentencePiece's, or a fast one; others do not say where a token is, and nothing is found.

    Returns:
        Positions in the encoder's window, ascending, special tokens counted.

    Raises:
        LabelError: the pieces of the words are not those of the text.

    """
    pieces = kind_of(tokenizer) == "pieces"
    stretches = _piece_stretches(text, tokenizer) if pieces else token_stretches(text, tokenizer)
    return tuple(
        position
        for position, (first, last) in enumerate(stretches, start=lead(tokenizer))
        if any(first < stop and last > start for start, stop in ranges)
    )


def token_stretches(text: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Return which characters each token of a text has, by a fast tokenizer; nothing by a slow one."""
    if not getattr(tokenizer, "is_fast", False):
        return []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [tuple(each) for each in encoded["offset_mapping"]]


def _piece_stretches(text: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Return which characters each piece has; where pieces do not spell the word, each has all of it."""
    found: list[tuple[int, int]] = []
    ids: list[int] = []
    for word in re.finditer(r"\S+", text):
        own = token_ids(word.group(), tokenizer)
        pieces = tokenizer.convert_ids_to_tokens(list(own))
        ids += own
        spelt = "".join(pieces).removeprefix(MARK) == word.group()
        if not spelt:  # an unknown sign, or one that the tokenizer writes in another way
            found += [word.span()] * len(pieces)
            continue
        lengths = [len(piece.removeprefix(MARK)) if place == 0 else len(piece) for place, piece in enumerate(pieces)]
        starts = [word.start(), *(word.start() + end for end in accumulate(lengths))]
        found += [(start, max(stop, start + 1)) for start, stop in pairwise(starts)]  # the mark alone: its word's first
    if tuple(ids) != token_ids(text, tokenizer):
        raise LabelError(f"The tokens of {text!r} cannot be told apart; simplify the phrases in it")
    return found


def ranges_of(phrase: str, text: str) -> list[tuple[int, int]]:
    """Return where a phrase stands as whole words in a text, in upper or lower case.

    >>> ranges_of("dog", "a Dog, a hotdog")
    [(2, 5)]
    """
    pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
    return [found.span() for found in re.finditer(pattern, text, re.IGNORECASE)]
