"""Sentences, and where in them the classes are."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from data.classes import COCO, VOC, ClassSet
from data.errors import LabelError
from pseudolabel.softmaps.config import PromptConfig
from pseudolabel.softmaps.diffusion.parts import window_size
from pseudolabel.softmaps.prompt import (
    background_words,
    check_phrases,
    expand_placeholders,
    find_spans,
    join_phrases,
    plan_prompts,
    token_ids,
)
from pseudolabel.softmaps.reading import class_weights, sharing_tokens


@pytest.fixture(scope="module")
def tokenizer(sd_folder) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(sd_folder / "tokenizer")


def plan(labels, tokenizer, classes=VOC, window=77, **kwargs):
    return plan_prompts(labels, classes, PromptConfig(**kwargs), tokenizer, window)


def words_of(prompt, span, tokenizer) -> str:
    ids = [tokenizer.bos_token_id, *token_ids(prompt.text, tokenizer)]
    return tokenizer.decode([ids[position] for position in span]).strip()


def test_joining():
    assert join_phrases(["a", "b"]) == "a, and b"
    assert join_phrases(["a"]) == "a"


def test_the_published_sentence(word_tokenizer):
    [prompt] = plan((10, 19), word_tokenizer)
    assert prompt.text == "a photo including cow, train, grass, stone, rocks, railway, railroad, and track."
    assert [words_of(prompt, span, word_tokenizer) for span in prompt.spans] == ["cow", "train"]
    assert prompt.dropped == ()
    [bare] = plan((10,), word_tokenizer, background_words=False)
    assert bare.text == "a photo including cow."


def test_background_words_come_once_and_never_hide_a_class():
    classes = ClassSet(
        ("sheep", "grass", "boat"), ("sheep", "grass", "boat"), (("grass", "tree"), ("tree",), ("sea", "tree"))
    )
    assert background_words((1, 2, 3), classes) == ("tree", "sea")


def test_a_class_in_another_sentence_is_no_background_word_by_name_or_phrase():
    classes = ClassSet(("boat", "train"), ("boat", "locomotive"), (("train", "locomotive", "tree"), ()))
    assert background_words((1,), classes) == ("train", "locomotive", "tree")
    assert background_words((1,), classes, present=(1, 2)) == ("tree",)


@pytest.mark.parametrize("nothing", ["", " ", "\t"])
def test_a_background_word_without_tokens_is_left_out(word_tokenizer, nothing):
    """It would be read as a map of no tokens where background words compete."""
    classes = ClassSet(("dog",), ("dog",), ((nothing, "tree"),))
    [prompt] = plan((1,), word_tokenizer, classes)
    assert prompt.text == "a photo including dog, and tree."
    assert [word for word, _ in prompt.words] == ["tree"]
    weights = class_weights([prompt], 77, words=True)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 2))


def test_one_class_alone_shares_cells_with_the_rest_of_the_sentence(word_tokenizer):
    """Its only token would have all of every cell, and its map, the same everywhere, be empty."""
    classes = ClassSet(("dog", "cat"), ("dog", "cat"), ((), ("tree",)))
    found = []
    for labels in ((1,), (2,), (1, 2)):
        prompts = plan(labels, word_tokenizer, classes)
        [tokens] = sharing_tokens(prompts, 77, "words")
        found.append([word_tokenizer.tokenize(prompts[0].text)[p - 1].removesuffix("</w>") for p in tokens.nonzero()])
        assert tokens.sum() == len(found[-1])
    assert found == [["a", "photo", "including", "dog", "."], ["cat", "tree"], ["dog", "cat", "tree"]]


def test_a_phrase_of_several_tokens_is_one_span(tokenizer):
    [prompt] = plan((1, 12), tokenizer, background_words=False)
    assert len(prompt.spans[0]) > 1
    first = prompt.spans[0][-1] + 3  # a comma and the word "and" lie between
    assert prompt.spans == (tuple(range(4, first - 2)), (first,))
    assert words_of(prompt, prompt.spans[0], tokenizer) == "aeroplane"


def test_a_phrase_inside_another_is_not_taken_for_it(word_tokenizer):
    bear, teddy_bear, dog, hot_dog = (COCO.index(name) for name in ("bear", "teddy bear", "dog", "hot dog"))
    labels = tuple(sorted((bear, teddy_bear, dog, hot_dog)))
    [prompt] = plan(labels, word_tokenizer, COCO)
    found = {label: words_of(prompt, span, word_tokenizer) for label, span in zip(labels, prompt.spans, strict=True)}
    assert found == {bear: "bear", teddy_bear: "teddy bear", dog: "dog", hot_dog: "hot dog"}
    assert not set(prompt.spans[labels.index(bear)]) & set(prompt.spans[labels.index(teddy_bear)])


def test_two_classes_of_one_phrase_have_a_place_each(tokenizer):
    classes = ClassSet(("dog", "puppy"), ("dog", "dog"), ((), ()))
    [prompt] = plan((1, 2), tokenizer, classes)
    assert prompt.spans == ((4,), (7,))


def test_phrases_with_a_comma_are_one_set_of_tokens(word_tokenizer):
    backpack = COCO.index("backpack")
    [prompt] = plan((backpack,), word_tokenizer, COCO, background_words=False)
    assert prompt.text == "a photo including backpack, bag."
    assert prompt.spans == ((4, 6),)


def test_every_occurrence_in_a_hand_written_prompt_is_found(tokenizer):
    assert find_spans("a dog and a dog", "dog", tokenizer) == (2, 5)
    with pytest.raises(LabelError, match="'horse' does not occur"):
        find_spans("a dog", "horse", tokenizer)


def test_a_learned_placeholder_of_several_vectors_is_spelt_out(sd_folder):
    tokenizer = CLIPTokenizer.from_pretrained(sd_folder / "tokenizer")
    tokenizer.add_tokens(["<mug>", "<mug>_1", "<mug>_2", "<toy>"])
    assert expand_placeholders("a <mug> and <toy>", tokenizer) == "a <mug> <mug>_1 <mug>_2 and <toy>"
    spelt = expand_placeholders("a <mug>", tokenizer)
    assert expand_placeholders(spelt, tokenizer) == spelt
    classes = ClassSet(("mug", "dog"), ("<mug>", "dog"), ((), ()))
    [prompt] = plan((1, 2), tokenizer, classes)
    assert prompt.spans == ((4, 5, 6), (9,))
    classes = ClassSet(("mug",), ("<mug> dog",), ((),))
    [prompt] = plan((1,), tokenizer, classes)
    assert prompt.spans == ((4, 5, 6, 7),)


def test_too_long_a_prompt_first_loses_background_words(word_tokenizer):
    labels = tuple(range(1, 13))
    [whole] = plan(labels, word_tokenizer, window=200)
    [prompt] = plan(labels, word_tokenizer, window=50)
    assert len(prompt.spans) == 12
    assert prompt.dropped
    kept = [word for word in background_words(labels, VOC) if word not in prompt.dropped]
    assert whole.dropped == ()
    assert kept == list(background_words(labels, VOC))[: len(kept)]
    assert len(token_ids(prompt.text, word_tokenizer)) + 2 <= 50


def test_twenty_coco_classes_are_all_read(word_tokenizer):
    labels = tuple(range(38, 58))
    prompts = plan(labels, word_tokenizer, COCO)
    assert sorted(row for prompt in prompts for row in prompt.rows) == list(range(20))
    for prompt in prompts:
        assert len(token_ids(prompt.text, word_tokenizer)) + 2 <= 77
        for row, span in zip(prompt.rows, prompt.spans, strict=True):
            assert words_of(prompt, span, word_tokenizer) == COCO.phrases[labels[row] - 1].replace(",", "")


def test_eighty_coco_classes_take_several_sentences(word_tokenizer):
    prompts = plan(tuple(range(1, 81)), word_tokenizer, COCO)
    assert len(prompts) > 1
    assert sorted(row for prompt in prompts for row in prompt.rows) == list(range(80))
    assert all(max(max(span) for span in prompt.spans) < 76 for prompt in prompts)


def test_a_class_in_another_sentence_is_no_background_word(word_tokenizer):
    classes = ClassSet(("boat", "train"), ("boat", "train"), (("train", "tree"), ("boat",)))
    prompts = plan((1, 2), word_tokenizer, classes, window=7)
    assert len(prompts) == 2
    assert prompts[0].text == "a photo including boat."


def test_what_cannot_be_read_is_an_error(tokenizer):
    with pytest.raises(LabelError, match="without labels"):
        plan((), tokenizer)
    with pytest.raises(LabelError, match="does not fit into the text encoder's 8 tokens"):
        plan((1, 4), tokenizer, window=8)
    classes = replace(VOC, phrases=(" , ", *VOC.phrases[1:]))
    with pytest.raises(LabelError, match="has no tokens"):
        plan((1,), tokenizer, classes)


def test_content_is_the_sentence_without_start_and_end(tokenizer):
    [prompt] = plan((12,), tokenizer, background_words=False)
    assert prompt.content == (1, 2, 3, 4, 5)


def test_window_is_that_of_the_smaller_part(tokenizer):
    encoder = torch.nn.Identity()
    encoder.config = type("Config", (), {"max_position_embeddings": 64})()
    assert window_size(tokenizer) == 77
    assert window_size(tokenizer, encoder) == 64


@pytest.fixture(scope="module")
def byte_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with its whole alphabet of 256 bytes, and signs that it makes one token of."""
    letters = bytes_to_letters()
    merges = [(")", ",</w>"), ("!", ",</w>"), ("+", "+</w>"), ("%", ".</w>"), ("d", "o"), ("do", "g</w>")]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def bytes_to_letters() -> list[str]:
    """The letter that stands for each byte: printable ones for themselves, the others moved up (GPT-2's rule)."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(moved)) for byte in range(256)]


ODD = [
    *("bottle (plastic)", "50%", "dog!", "c++", "misc.", "and", "a", "it's", "x,y", "naïve café"),
    *("猫", "🐈\u200d⬛", "#1", "''"),
]


def class_set(phrases) -> ClassSet:
    names = tuple(f"class {index}" for index in range(len(phrases)))
    return ClassSet(names, tuple(phrases), (("grass!",),) * len(phrases))


def check_plan(names, tokenizer, window=77, **kwargs) -> None:
    """Every class has tokens of its own, and they are those of its phrase."""
    labels = tuple(range(1, len(names) + 1))
    prompts = plan(labels, tokenizer, class_set(names), window, **kwargs)
    assert sorted(row for prompt in prompts for row in prompt.rows) == list(range(len(names)))
    for prompt in prompts:
        ids = (tokenizer.bos_token_id, *token_ids(prompt.text, tokenizer))
        positions = [position for span in prompt.spans for position in span]
        assert len(positions) == len(set(positions))
        for row, span in zip(prompt.rows, prompt.spans, strict=True):
            parts = [part for part in names[row].strip().split(",") if part.strip()]
            expected = [token for part in parts for token in token_ids(part, tokenizer)]
            assert [ids[position] for position in span] == expected


@pytest.mark.parametrize("template", ["a photo including {}.", "{}", "({})!", "photo: {}%"])
def test_names_that_end_in_signs_have_tokens_of_their_own(byte_tokenizer, tokenizer, template):
    for name in ODD[:10]:
        check_plan([name], tokenizer, template=template)
    for name in ODD:
        check_plan([name], byte_tokenizer, template=template)
        check_plan([name, "dog", name], byte_tokenizer, template=template)
    check_plan(ODD, byte_tokenizer, template=template)


def test_ordinary_sentences_are_as_they_were(byte_tokenizer, word_tokenizer):
    for tokenizer, classes in ((byte_tokenizer, VOC), (word_tokenizer, COCO)):
        for label in range(1, len(classes) + 1):
            [prompt] = plan((label,), tokenizer, classes, window=999)
            words = background_words((label,), classes)
            assert prompt.text == f"a photo including {join_phrases([classes.phrases[label - 1], *words])}."


odd_names = st.text(
    st.sampled_from("dogand 019.,!?%+-#()[]{}'\"/\\&_~^<>|:;@*=$`") | st.characters(codec="utf-8"),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150)
@given(st.lists(odd_names, min_size=1, max_size=4))
def test_whatever_the_names_are_check_and_generate_agree(byte_tokenizer, names):
    present = tuple(range(1, len(names) + 1))
    refused = None
    try:
        check_phrases(present, class_set(names), PromptConfig(), byte_tokenizer, 77)
    except LabelError as error:
        refused = str(error)
    if refused is None:
        check_plan(names, byte_tokenizer)
    else:
        with pytest.raises(LabelError, match=f"^{re.escape(refused)}$"):
            plan(present, byte_tokenizer, class_set(names))


def test_signs_in_a_hand_written_prompt_are_found(byte_tokenizer):
    assert find_spans("a dog!, a c++, and", "dog!", byte_tokenizer) == (2, 3)
    with pytest.raises(LabelError, match="does not occur"):
        find_spans("a dog!", "do!", byte_tokenizer)


def test_the_tokenizers_own_signs_and_half_characters_are_refused(byte_tokenizer):
    for name, said in (("<|endoftext|>", "sign of the tokenizer's own"), ("a \ud800", "half of a character")):
        with pytest.raises(LabelError, match=said):
            plan((1,), byte_tokenizer, class_set([name]))
