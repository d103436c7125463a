"""Sentences of models that read with several text encoders, one behind the other: a word has tokens in each."""

from collections.abc import Sequence
from dataclasses import replace

from pseudolabel.softmaps.prompt import Prompt
from pseudolabel.softmaps.tokens import (
    BYTE_MARK,
    MARK,
    Span,
    TextWindow,
    lead,
    token_ids,
    token_stretches,
    tokens_at,
    trail,
)


def in_every_window(prompts: Sequence[Prompt], windows: Sequence[TextWindow]) -> tuple[Prompt, ...]:
    """Return sentences that were planned for the first window with the tokens that the others have of them as well.

    Tokens that another window cuts off are left out there.

    Args:
        prompts: planned for the first window, whose tokenizer is a fast one of CLIP's if there are others.
        windows: of the model's text encoders.

    """
    return tuple(prompts) if len(windows) < 2 else tuple(_in_windows(prompt, windows) for prompt in prompts)


def _in_windows(prompt: Prompt, windows: Sequence[TextWindow]) -> Prompt:
    """Add to each span the tokens of the other windows that lie on the same characters of the sentence."""
    first, *others = windows
    characters = token_stretches(prompt.text, first.tokenizer)
    every = (*prompt.spans, *(span for _, span in prompt.words))
    spans, content = [list(span) for span in every], list(prompt.content)
    for window in others:
        last = window.size - trail(window.tokenizer) + lead(window.tokenizer)
        whole = tokens_at(prompt.text, [(0, len(prompt.text))], window.tokenizer)
        content += [window.offset + position for position in whole if position < last]
        for own, span in zip(spans, every, strict=True):
            ranges = [characters[position - lead(first.tokenizer)] for position in span]
            there = tokens_at(prompt.text, ranges, window.tokenizer)
            own += [window.offset + position for position in there if position < last]
    found = tuple(map(tuple, spans))
    words = tuple((word, span) for (word, _), span in zip(prompt.words, found[len(prompt.spans) :], strict=True))
    return replace(prompt, spans=found[: len(prompt.spans)], content=tuple(content), words=words)


def spelt_tokens(prompt: Prompt, span: Span, windows: Sequence[TextWindow]) -> tuple[str, ...]:
    """Return the tokens at some positions of a sentence, spelt out."""
    found = []
    for window in windows:
        ids = token_ids(prompt.text, window.tokenizer)
        inside = [position - window.offset for position in span if 0 <= position - window.offset < window.size]
        found += window.tokenizer.convert_ids_to_tokens([ids[position - lead(window.tokenizer)] for position in inside])
    return tuple(word.removesuffix("</w>").removeprefix(MARK).removeprefix(BYTE_MARK) for word in found)
