"""The sentence the text encoder reads, and where in it each class is.

Source: arXiv 2309.04109, section 3.1: "a photo including c1, c2, ..., b1, ..., and bM." with the present classes'
phrases c and the background words b of these classes. The background words are not read out; they soak up attention
that would otherwise fall on the classes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from data.classes import ClassSet
from data.errors import LabelError
from pseudolabel.config import PromptConfig

Span = tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """One sentence and the tokens of the classes that are read from it.

    Attributes:
        text: the sentence, learned placeholders spelt out token by token.
        rows: positions, in the image's list of labels, of the classes in this sentence.
        spans: for each of these classes the positions of its tokens in the encoder's window; position 0 is the start
            token.
        content: positions of all tokens of the sentence, start, end and filler tokens left out.
        dropped: background words for which there was no room.
        shares: for each class the weights of its tokens, which sum to 1; None is the mean over them.

    """

    text: str
    rows: tuple[int, ...]
    spans: tuple[Span, ...]
    content: Span
    dropped: tuple[str, ...] = ()
    shares: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class _Item:
    """A phrase to be placed, and its token ids: one tuple for each of its comma-separated parts."""

    text: str
    parts: tuple[tuple[int, ...], ...]


def join_phrases(phrases: Sequence[str]) -> str:
    """Join phrases as the published prompts do.

    >>> join_phrases(["cow", "grass", "stone"])
    'cow, grass, and stone'
    >>> join_phrases(["cow"])
    'cow'
    """
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + f", and {phrases[-1]}"


def expand_placeholders(text: str, tokenizer: Any) -> str:
    """Spell out learned placeholders of several vectors: "<thing>" becomes "<thing> <thing>_1 <thing>_2".

    The names are those that diffusers gives the tokens of a textual inversion (`load_textual_inversion`).
    """
    known = tokenizer.get_added_vocab()
    for token in sorted(known, key=len, reverse=True):
        if re.search(r"_\d+$", token) or f"{token}_1" not in known:
            continue
        count = 1
        while f"{token}_{count}" in known:
            count += 1
        spelt = " ".join([token, *(f"{token}_{index}" for index in range(1, count))])
        pattern = rf"(?<!\S){re.escape(token)}(?!_\d|\s+{re.escape(token)}_1)"
        text = re.sub(pattern, spelt.replace("\\", r"\\"), text)
    return text


def token_ids(text: str, tokenizer: Any) -> tuple[int, ...]:
    """Return the token ids of a text without start and end tokens."""
    return tuple(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def find_tokens(needle: Sequence[int], haystack: Sequence[int], start: int = 0) -> int | None:
    """Return where a run of token ids first occurs at or after `start`, or None.

    >>> find_tokens([7, 8], [1, 7, 8, 7, 8], start=2)
    3
    """
    width = len(needle)
    for position in range(start, len(haystack) - width + 1):
        if tuple(haystack[position : position + width]) == tuple(needle):
            return position
    return None


def find_spans(text: str, phrase: str, tokenizer: Any) -> Span:
    """Return the positions (start token counted) of every occurrence of a phrase in a text, for a hand-written prompt.

    Raises:
        LabelError: the phrase does not occur in the text as whole words.

    """
    found = occurrences(token_ids(expand_placeholders(text, tokenizer), tokenizer), phrase, tokenizer)
    if not found:
        raise LabelError(f"The phrase {phrase!r} does not occur in the prompt {text!r}; use its very words in --phrase")
    return found


def occurrences(ids: Sequence[int], phrase: str, tokenizer: Any) -> Span:
    """Return the positions (start token counted) of every occurrence of a phrase among token ids; empty without any.

    Raises:
        LabelError: the phrase has no tokens.

    """
    found: set[int] = set()
    for part in _split(phrase, tokenizer).parts:
        position = find_tokens(part, ids)
        while position is not None:
            found.update(range(position + 1, position + 1 + len(part)))
            position = find_tokens(part, ids, position + len(part))
    return tuple(sorted(found))


def _split(phrase: str, tokenizer: Any) -> _Item:
    """Tokenise a phrase; "backpack, bag" has two parts, and the comma between them belongs to neither."""
    text = expand_placeholders(phrase, tokenizer).strip()
    parts = tuple(token_ids(part, tokenizer) for part in text.split(",") if part.strip())
    if not parts or not all(parts):
        raise LabelError(f"The phrase {phrase!r} has no tokens; give the class a phrase of letters in the class file")
    return _Item(text, parts)


def _locate(items: Sequence[_Item], text: str, template: str, tokenizer: Any) -> tuple[tuple[Span, ...], int]:
    """Find the tokens of each item, in their order in the text; also returns the number of tokens of the text.

    Going through the items in order keeps "bear" apart from the "bear" in "teddy bear".
    """
    ids = token_ids(text, tokenizer)
    cursor = len(token_ids(template.split("{}")[0], tokenizer))
    spans = []
    for item in items:
        span: list[int] = []
        for part in item.parts:
            position = find_tokens(part, ids, cursor)
            if position is None:
                raise LabelError(f"The phrase {item.text!r} cannot be found among the tokens of {text!r}; simplify it")
            cursor = position + len(part)
            span.extend(range(position + 1, cursor + 1))
        spans.append(tuple(span))
    return tuple(spans), len(ids)


def _fit(
    classes: Sequence[_Item], words: Sequence[str], template: str, tokenizer: Any, window: int
) -> tuple[str, tuple[Span, ...], int, int] | None:
    """Return text, spans, number of tokens and number of words kept for the longest word list that fits, or None."""
    for kept in range(len(words), -1, -1):
        text = template.format(join_phrases([item.text for item in classes] + list(words[:kept])))
        if len(token_ids(text, tokenizer)) + 2 <= window:
            spans, length = _locate(classes, text, template, tokenizer)
            return text, spans, length, kept
    return None


def background_words(labels: Sequence[int], classes: ClassSet) -> tuple[str, ...]:
    """Return the background words of some classes, each once, in first-seen order.

    A word that is itself the phrase of a present class is left out: it would take the class's attention away.
    """
    present = {classes.phrases[label - 1] for label in labels} | {classes.names[label - 1] for label in labels}
    words = (word for label in labels for word in classes.background_words[label - 1])
    return tuple(dict.fromkeys(word for word in words if word not in present))


def plan_prompts(
    labels: Sequence[int], classes: ClassSet, config: PromptConfig, tokenizer: Any, window: int
) -> tuple[Prompt, ...]:
    """Put the classes of an image into one sentence, or into as few as hold them all.

    A sentence longer than the window first loses background words, from the end; where the classes alone are too long
    they are split, in order, over several sentences. No class is ever lost.

    Args:
        labels: class ids, ascending.
        classes: phrases and background words.
        config: template and whether background words are used.
        tokenizer: a CLIP tokenizer.
        window: tokens the encoder reads at once, start and end included.

    Raises:
        LabelError: no labels, or one phrase that alone is longer than the window.

    """
    if not labels:
        raise LabelError("An image without labels has no prompt; give it labels or leave it out")
    items = [_split(classes.phrases[label - 1], tokenizer) for label in labels]
    for count in range(1, len(items) + 1):
        bounds = [round(part * len(items) / count) for part in range(count + 1)]
        groups = [range(start, stop) for start, stop in pairwise(bounds)]
        prompts = [_plan_group(group, items, labels, classes, config, tokenizer, window) for group in groups]
        fitting = tuple(prompt for prompt in prompts if prompt is not None)
        if len(fitting) == count:
            return fitting
    longest = max(items, key=lambda item: sum(map(len, item.parts)))
    raise LabelError(
        f"The phrase {longest.text!r} does not fit into the text encoder's {window} tokens; "
        "shorten it in the class file or shorten --prompt.template"
    )


def _plan_group(
    group: range,
    items: Sequence[_Item],
    labels: Sequence[int],
    classes: ClassSet,
    config: PromptConfig,
    tokenizer: Any,
    window: int,
) -> Prompt | None:
    """Make the sentence of some of an image's classes, or None where they do not fit."""
    words: tuple[str, ...] = ()
    if config.background_words:
        words = background_words([labels[row] for row in group], classes)
        others = {classes.phrases[label - 1] for label in labels}
        words = tuple(word for word in words if word not in others)
    fitted = _fit([items[row] for row in group], words, config.template, tokenizer, window)
    if fitted is None:
        return None
    text, spans, length, kept = fitted
    return Prompt(text, tuple(group), spans, tuple(range(1, length + 1)), words[kept:])
