"""The sentence the text encoder reads, and where in it each class is.

Source: arXiv 2309.04109, section 3.1: "a photo including c1, c2, ..., b1, ..., and bM." with the present classes'
phrases c and the background words b of these classes. The background words are not read out; they soak up attention
that would otherwise fall on the classes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

from data.classes import ClassSet
from data.errors import LabelError
from pseudolabel.softmaps.config import PromptConfig
from pseudolabel.softmaps.tokens import Span, by_characters, lead, ranges_of, token_ids, tokens_at, trail


@dataclass(frozen=True)
class Prompt:
    """One sentence and the tokens of the classes that are read from it.

    Attributes:
        text: the sentence, learned placeholders spelt out token by token.
        rows: positions, in the image's list of labels, of the classes in this sentence.
        spans: for each of these classes the positions of its tokens among all that the model is given of the sentence;
            CLIP's position 0 is the start token. Encoders that stand one behind the other each have tokens of a class.
        content: positions of all tokens of the sentence, start, end and filler tokens left out.
        dropped: background words for which there was no room.
        shares: for each class the weights of its tokens, which sum to 1; None is the mean over them.
        words: the background words of the sentence, and the positions of their tokens.

    """

    text: str
    rows: tuple[int, ...]
    spans: tuple[Span, ...]
    content: Span
    dropped: tuple[str, ...] = ()
    shares: tuple[tuple[float, ...], ...] | None = None
    words: tuple[tuple[str, Span], ...] = ()


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

    Where a sign of the phrase and what follows it are one token ("dog!" in "a dog!, a cat"), that token is counted.

    Raises:
        LabelError: the phrase does not occur in the text as whole words.

    """
    text = expand_placeholders(text, tokenizer)
    found = occurrences(text, phrase, tokenizer)
    found = found or tokens_at(text, ranges_of(_split(phrase, tokenizer).text, text), tokenizer)
    if not found:
        raise LabelError(f"The phrase {phrase!r} does not occur in the prompt {text!r}; use its very words in --phrase")
    return found


def occurrences(text: str, phrase: str, tokenizer: Any) -> Span:
    """Return the positions (start token counted) of every occurrence of a phrase in a text; empty without any.

    Raises:
        LabelError: the phrase has no tokens.

    """
    item, found = _split(phrase, tokenizer), set[int]()
    if by_characters(tokenizer):
        words = [part.strip() for part in item.text.split(",") if part.strip()]
        return tokens_at(text, [place for word in words for place in ranges_of(word, text)], tokenizer)
    ids = token_ids(text, tokenizer)
    for part in item.parts:
        position = find_tokens(part, ids)
        while position is not None:
            found.update(range(position + 1, position + 1 + len(part)))
            position = find_tokens(part, ids, position + len(part))
    return tuple(sorted(found))


def _split(phrase: str, tokenizer: Any) -> _Item:
    """Tokenise a phrase; "backpack, bag" has two parts, and the comma between them belongs to neither."""
    if not phrase.isascii() and phrase.encode(errors="replace").decode() != phrase:
        raise LabelError(f"The phrase {phrase!r} holds half of a character; correct it in the class file")
    text = expand_placeholders(phrase, tokenizer).strip()
    parts = tuple(token_ids(part, tokenizer) for part in text.split(",") if part.strip())
    if not parts or not all(parts):
        raise LabelError(f"The phrase {phrase!r} has no tokens; give the class a phrase of letters in the class file")
    own = [token for token in tokenizer.all_special_tokens if token in text]
    if own:
        raise LabelError(
            f"The phrase {phrase!r} holds a sign of the tokenizer's own, {own[0]!r}; give the class another phrase in "
            "the class file"
        )
    return _Item(text, parts)


@dataclass(frozen=True)
class _Piece:
    """A stretch of a sentence: part of a phrase or a background word (its row: classes first), or what lies between."""

    text: str
    row: int | None = None


def _pieces(items: Sequence[_Item], words: Sequence[str], template: str) -> list[_Piece]:
    """Cut the sentence into the parts of its classes' phrases and what lies between them; nothing is left out."""
    before, after = template.split("{}")
    pieces = [_Piece(before)]
    count = len(items) + len(words)
    for row in range(count):
        if row:
            pieces.append(_Piece(", and " if row == count - 1 else ", "))
        if row >= len(items):
            pieces.append(_Piece(words[row - len(items)], row))
            continue
        for number, part in enumerate(items[row].text.split(",")):
            pieces += [_Piece(",")] * (number > 0) + [_Piece(part, row if part.strip() else None)]
    return [piece for piece in [*pieces, _Piece(after)] if piece.text]


def _write(pieces: Sequence[_Piece], tokenizer: Any) -> tuple[str, tuple[int, ...], list[tuple[int, ...]]]:
    """Join pieces to a text in which no token lies in two of them; also returns its token ids, and those of each piece.

    A tokenizer may make one token of signs that stand side by side, of "dog!" and the comma behind it for example, and
    the class would lose its end: there a space is put between the two.
    """
    ids = [token_ids(piece.text, tokenizer) for piece in pieces]
    text = "".join(piece.text for piece in pieces)
    whole = token_ids(text, tokenizer)
    if whole != _concatenated(ids):
        text = pieces[0].text
        for (one, its), (other, others) in pairwise(zip(pieces, ids, strict=True)):
            apart = token_ids(one.text + other.text, tokenizer) == its + others
            text += other.text if apart else f" {other.text}"
        whole = token_ids(text, tokenizer)
    return text, whole, ids


def _concatenated(ids: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(chain.from_iterable(ids))


def _locate(pieces: Sequence[_Piece], ids: Sequence[tuple[int, ...]], n_items: int) -> tuple[Span, ...]:
    """Return the positions of each item's tokens, the start token counted."""
    spans: list[list[int]] = [[] for _ in range(n_items)]
    position = 1
    for piece, its in zip(pieces, ids, strict=True):
        if piece.row is not None:
            spans[piece.row].extend(range(position, position + len(its)))
        position += len(its)
    return tuple(map(tuple, spans))


def _laid(pieces: Sequence[_Piece], n_items: int, text: str, tokenizer: Any) -> tuple[Span, ...]:
    """Return the positions of each item's tokens, found by where its characters are."""
    ends = list(accumulate(len(piece.text) for piece in pieces))
    places = [(piece.row, (end - len(piece.text), end)) for piece, end in zip(pieces, ends, strict=True)]
    return tuple(tokens_at(text, [at for row, at in places if row == own], tokenizer) for own in range(n_items))


def _fit(
    items: Sequence[_Item], words: Sequence[str], template: str, tokenizer: Any, window: int
) -> tuple[str, tuple[Span, ...], int, int] | None:
    """Return text, spans (classes, then words), number of tokens and of words kept for as many words as fit, or None.

    Raises:
        LabelError: the tokenizer's pieces do not follow the text's.

    """
    words = words[:window]  # each takes a token at least
    for kept in range(len(words), -1, -1):
        pieces = _pieces(items, words[:kept], template)
        if by_characters(tokenizer):
            text = "".join(piece.text for piece in pieces)
            length = len(token_ids(text, tokenizer))
            if length + trail(tokenizer) <= window:
                return text, _laid(pieces, len(items) + kept, text, tokenizer), length, kept
            continue
        text, whole, ids = _write(pieces, tokenizer)
        if len(whole) + trail(tokenizer) <= window:
            if whole != _concatenated(ids):
                phrases = ", ".join(repr(item.text) for item in items)
                raise LabelError(f"The tokens of {phrases} cannot be told apart in {text!r}; simplify them")
            return text, _locate(pieces, ids, len(items) + kept), len(whole), kept
    return None


def background_words(labels: Sequence[int], classes: ClassSet, present: Sequence[int] = ()) -> tuple[str, ...]:
    """Return the background words of some classes, each once, in first-seen order.

    A word that is itself the name or the phrase of one of them, or of another class that is `present` in the image, is
    left out: it would take the class's attention away.
    """
    shown = {text[label - 1] for label in (*labels, *present) for text in (classes.phrases, classes.names)}
    words = (word for label in labels for word in classes.background_words[label - 1])
    return tuple(dict.fromkeys(word for word in words if word not in shown))


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
        tokenizer: the text encoder's, of any kind in `tokens`; of several the first's.
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


def check_phrases(labels: Sequence[int], classes: ClassSet, config: PromptConfig, tokenizer: Any, window: int) -> None:
    """Plan the sentence of each class alone: whatever can stop `plan_prompts` for some classes stops it here too.

    Args:
        labels: class ids that occur.
        classes: phrases and background words.
        config: template and whether background words are used.
        tokenizer: the text encoder's, of any kind in `tokens`; of several the first's.
        window: tokens the encoder reads at once, start and end included.

    Raises:
        LabelError: as `plan_prompts`, for the first class that cannot be asked for.

    """
    for label in labels:
        plan_prompts((label,), classes, config, tokenizer, window)


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
        words = background_words([labels[row] for row in group], classes, labels)
        words = tuple(word for word in words if token_ids(word, tokenizer))  # nothing, or spaces alone, is no word
    spelt = [expand_placeholders(word, tokenizer) for word in words]
    template = expand_placeholders(config.template, tokenizer)
    fitted = _fit([items[row] for row in group], spelt, template, tokenizer, window)
    if fitted is None:
        return None
    text, spans, length, kept = fitted
    own, others_spans = spans[: len(group)], spans[len(group) :]
    placed = tuple(zip(words[:kept], others_spans, strict=True))
    first = lead(tokenizer)
    content = tuple(range(first, first + length))
    return Prompt(text, tuple(group), own, content, words[kept:], words=placed)
