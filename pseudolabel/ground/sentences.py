"""The sentences in which an image's phrases are read: one that is given, or one made from the phrases.

A phrase has several tokens. The paper takes the mean over them (arXiv 2309.04109, section 3.2); the other rule weighs
each by the likeness of its embedding to the last one's, so that "a brown dog" is read by its dog more than by its a.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.classes import MAX_CLASSES, ClassSet
from data.errors import LabelError
from data.wording import count
from pseudolabel.softmaps.config import PromptConfig
from pseudolabel.softmaps.prompt import Prompt, expand_placeholders, occurrences, plan_prompts
from pseudolabel.softmaps.tokens import Span, lead, token_ids, trail


def check_phrases(phrases: Sequence[str]) -> tuple[str, ...]:
    """Return the phrases without outer spaces.

    Raises:
        LabelError: none, too many, an empty one, or two that differ in case and spaces alone.

    """
    stripped = tuple(" ".join(phrase.split()) for phrase in phrases)
    if not stripped:
        raise LabelError("There is no phrase to look for; give one with --phrase.")
    if len(stripped) > MAX_CLASSES:
        raise LabelError(
            f"{count(len(stripped), 'phrase')} for one image: at most {MAX_CLASSES} are read; split --phrase."
        )
    if "" in stripped:
        raise LabelError(f"Phrase {stripped.index('') + 1} of {len(stripped)} is empty; --phrase must name something.")
    folded = [phrase.casefold() for phrase in stripped]
    for place, phrase in enumerate(folded):
        if phrase in folded[:place]:
            raise LabelError(f"The phrase {stripped[place]!r} is given twice; give each --phrase once.")
    return stripped


def made_sentences(
    phrases: Sequence[str], background: Sequence[str], config: PromptConfig, tokenizer: Any, window: int
) -> tuple[Prompt, ...]:
    """Put phrases into one sentence of the template, or into as few as hold them, by the rules of class names.

    Raises:
        LabelError: a phrase without tokens, or longer than the window.

    """
    numbers = tuple(str(place) for place in range(1, len(phrases) + 1))
    words = tuple(tuple(background) if place == 0 else () for place in range(len(phrases)))
    classes = ClassSet(numbers, tuple(phrases), words)
    return plan_prompts(range(1, len(phrases) + 1), classes, config, tokenizer, window)


def given_sentences(sentence: str, phrases: Sequence[str], tokenizer: Any, window: int) -> tuple[Prompt, ...]:
    """Find phrases in a sentence; one that is too long for the window is cut at its full stops.

    A token that several phrases claim belongs to the longest ("dog" in "a hot dog" only where nothing else is left).

    Raises:
        LabelError: a phrase that is not in the sentence, or a sentence that is too long between two full stops.

    """
    text = " ".join(sentence.split())
    if not text:
        raise LabelError("The sentence is empty; leave --sentence out to have one made from the phrases.")
    prompts = []
    for part in _cut(text, tokenizer, window):
        ids = token_ids(part, tokenizer)
        found = [occurrences(part, phrase, tokenizer) for phrase in phrases]
        rows = tuple(row for row, span in enumerate(found) if span)
        if rows:
            spans = _shared_out([found[row] for row in rows], [phrases[row] for row in rows])
            first = lead(tokenizer)
            prompts.append(Prompt(part, rows, spans, tuple(range(first, first + len(ids)))))
    known = {row for prompt in prompts for row in prompt.rows}
    for row, phrase in enumerate(phrases):
        if row not in known:
            raise LabelError(
                f"The phrase {phrase!r} is not in the sentence {text!r}; use the sentence's very words in --phrase, "
                "or leave --sentence out."
            )
    return tuple(prompts)


def _shared_out(spans: Sequence[Span], phrases: Sequence[str]) -> tuple[Span, ...]:
    """Take from each phrase the tokens that a longer one claims, as long as it keeps some."""
    shared = list(spans)
    for row, phrase in enumerate(phrases):
        longer = {
            position
            for other, span in enumerate(spans)
            if len(phrases[other]) > len(phrase)
            for position in span
        }  # fmt: skip
        shared[row] = tuple(position for position in spans[row] if position not in longer) or spans[row]
    return tuple(shared)


def _cut(text: str, tokenizer: Any, window: int) -> list[str]:
    """Return a text in as few parts as fit the window, cut after full stops alone, placeholders spelt out."""
    parts: list[str] = []
    for piece in re.split(r"(?<=[.!?])\s+", expand_placeholders(text, tokenizer)):
        longer = f"{parts[-1]} {piece}" if parts else piece
        if len(token_ids(longer, tokenizer)) + trail(tokenizer) <= window:
            parts[-1:] = [longer]
            continue
        if len(token_ids(piece, tokenizer)) + trail(tokenizer) > window:
            raise LabelError(
                f"The sentence {piece[:60] + '...' if len(piece) > 60 else piece!r} has "
                f"{len(token_ids(piece, tokenizer))} tokens, the text encoder reads {window - trail(tokenizer)}; "
                "shorten it, or put full stops, where it is cut."
            )
        parts.append(piece)
    return parts


def similarity_shares(
    prompt: Prompt, embedding: Float[Tensor, "tokens dim"], starts: Sequence[int] = (0,)
) -> tuple[tuple[float, ...], ...]:
    """Return, for each phrase of a sentence, weights of its tokens by their likeness to its last one; they sum to 1.

    Likeness is the cosine of their embeddings, as the text encoder gives them; a negative one counts as 0. After
    DiffPNG (ECCV 2024). Embeddings of different encoders are not compared: each encoder's tokens weigh as many as they
    are.

    Args:
        prompt: the sentence.
        embedding: of its tokens.
        starts: where the tokens of each encoder begin.

    """
    unit = torch.nn.functional.normalize(embedding.float(), dim=-1)
    shares = []
    for span in prompt.spans:
        weights: list[float] = []
        for _, group in groupby(span, lambda position: bisect_right(starts, position)):
            own = list(group)
            likeness = (unit[own] @ unit[own[-1]]).clamp_min(0)
            weights += [float(value) * len(own) / len(span) for value in likeness / likeness.sum()]
        shares.append(tuple(weights))
    return tuple(shares)
