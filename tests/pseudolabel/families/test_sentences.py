"""Sentences of models that read with T5, alone or behind CLIP: diffusers' embeddings, words where they are."""

import pytest
import torch
from diffusers import Flux2KleinPipeline, FluxPipeline, PixArtSigmaPipeline, StableDiffusion3Pipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from data.classes import VOC, ClassSet
from data.errors import LabelError
from pseudolabel.ground.sentences import given_sentences, similarity_shares
from pseudolabel.softmaps.config import PromptConfig
from pseudolabel.softmaps.diffusion.families import encode_text
from pseudolabel.softmaps.prompt import find_spans, plan_prompts
from pseudolabel.softmaps.tokens import chat_text, token_ids, tokens_at
from pseudolabel.softmaps.windows import in_every_window, spelt_tokens

SENTENCE = "a photo including dog, aeroplanes, and cat."


@pytest.fixture(scope="module")
def t5(load_family):
    return load_family("pixart").tokenizer


def plan(parts, labels=(1, 8, 12), classes=VOC, **prompt):
    planned = plan_prompts(labels, classes, PromptConfig(**prompt), parts.tokenizer, parts.window)
    return in_every_window(planned, parts.windows)


def words(prompt, parts):
    return ["".join(spelt_tokens(prompt, span, parts.windows)) for span in prompt.spans]


def test_sd3_text_is_embedded_as_the_pipeline_of_diffusers_does(load_family):
    for name in ("sd3", "sd3_t5"):
        parts = load_family(name)
        third = (parts.text_encoders[2], parts.tokenizers[2]) if name == "sd3_t5" else (None, None)
        pipeline = StableDiffusion3Pipeline(
            parts.denoiser, None, parts.vae, parts.text_encoders[0], parts.tokenizers[0], parts.text_encoders[1],
            parts.tokenizers[1], *third,
        )  # fmt: skip
        asked = {"do_classifier_free_guidance": False, "device": torch.device("cpu")}
        expected, _, pooled, _ = pipeline.encode_prompt(SENTENCE, SENTENCE, SENTENCE, **asked)
        found = encode_text(parts, SENTENCE)
        torch.testing.assert_close(found.tokens, expected)
        torch.testing.assert_close(found.pooled, pooled)


def test_flux_text_is_embedded_as_the_pipeline_of_diffusers_does(load_family):
    parts = load_family("flux")
    (clip, t5), (first, second) = parts.text_encoders, parts.tokenizers
    pipeline = FluxPipeline(None, parts.vae, clip, first, t5, second, parts.denoiser)
    expected, pooled, places = pipeline.encode_prompt(SENTENCE, SENTENCE, max_sequence_length=256)
    found = encode_text(parts, SENTENCE)
    torch.testing.assert_close(found.tokens, expected)
    torch.testing.assert_close(found.pooled, pooled)
    assert not places.any()


def test_pixart_text_is_embedded_as_the_pipeline_of_diffusers_does(load_family):
    parts = load_family("pixart")
    pipeline = PixArtSigmaPipeline(parts.tokenizer, parts.text_encoders[0], parts.vae, parts.denoiser, None)
    expected, mask, _, _ = pipeline.encode_prompt(SENTENCE, do_classifier_free_guidance=False)
    found = encode_text(parts, SENTENCE)
    torch.testing.assert_close(found.tokens, expected)
    assert torch.equal(found.mask, mask)
    assert found.pooled is None


def test_flux2_text_is_embedded_as_the_pipeline_of_diffusers_does(load_family):
    parts = load_family("flux2")
    [encoder], [tokenizer] = parts.text_encoders, parts.tokenizers
    pipeline = Flux2KleinPipeline(None, parts.vae, encoder, tokenizer, parts.denoiser)
    expected, _ = pipeline.encode_prompt(SENTENCE, device=torch.device("cpu"))
    torch.testing.assert_close(encode_text(parts, SENTENCE).tokens, expected)


def test_words_stand_behind_the_opening_of_a_chat(load_family):
    parts = load_family("flux2")
    [prompt] = plan(parts, background_words=False)
    whole = parts.tokenizer(chat_text(prompt.text, parts.tokenizer))["input_ids"]
    spelt = [parts.tokenizer.decode([whole[at] for at in span]).strip() for span in prompt.spans]
    assert spelt == words(prompt, parts) == ["aeroplane", "cat", "dog"]
    assert parts.tokenizer.decode([whole[at] for at in prompt.content]) == prompt.text
    assert whole[prompt.content[0] - 1] == parts.tokenizer("\n")["input_ids"][0]
    many = ClassSet(("x",), ("qz" * 260,), ((),))
    with pytest.raises(LabelError, match="does not fit into the text encoder's 512 tokens"):
        plan(parts, (1,), many)
    [given] = given_sentences("a tall tree and a dog", ["dog", "tall tree"], parts.tokenizer, 512)
    found = parts.tokenizer(chat_text(given.text, parts.tokenizer))["input_ids"]
    assert [parts.tokenizer.decode([found[at] for at in span]).strip() for span in given.spans] == ["dog", "tall tree"]


def test_windows_are_the_trained_ones(load_family):
    sizes = {name: [(w.size, w.offset) for w in load_family(name).windows] for name in ("sd3", "sd3_t5", "flux",
             "flux_dev", "pixart", "alpha")}  # fmt: skip
    assert sizes == {
        "sd3": [(77, 0)], "sd3_t5": [(77, 0), (256, 77)], "flux": [(256, 0)], "flux_dev": [(512, 0)],
        "pixart": [(300, 0)], "alpha": [(120, 0)],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["flux", "pixart"])
def test_a_word_of_several_pieces_is_all_of_them(load_family, name):
    parts = load_family(name)
    [prompt] = plan(parts, background_words=False)
    assert prompt.text == "a photo including aeroplane, cat, and dog."
    assert prompt.spans == ((3, 4, 5), (7,), (10,))  # no start token; a mark, "aero" and "plane"; a comma behind each
    assert words(prompt, parts) == ["aeroplane", "cat", "dog"]
    assert prompt.content == tuple(range(12))


def test_a_word_has_tokens_in_both_of_sd3s_encoders(load_family):
    parts = load_family("sd3_t5")
    [prompt] = plan(parts, background_words=False)
    [clip_only] = plan(load_family("sd3"), background_words=False)
    assert prompt.text == clip_only.text
    assert prompt.spans == tuple((*own, *(77 + at for at in behind)) for own, behind in
                                 zip(clip_only.spans, ((3, 4, 5), (7,), (10,)), strict=True))  # fmt: skip
    assert words(prompt, parts) == ["aeroplaneaeroplane", "catcat", "dogdog"]
    assert prompt.content == (*clip_only.content, *range(77, 89))
    assert max(clip_only.content) < 77


def test_background_words_have_tokens_in_both_of_sd3s_encoders(load_family, monkeypatch):
    """As the classes have; a word that T5's window cuts off keeps those in CLIP's."""
    parts = load_family("sd3_t5")
    background = ClassSet(("dog", "cat"), ("dog", "cat"), (("tree", "river"), ("bird",)))
    [prompt] = plan(parts, (1, 2), background)
    [clip_only] = plan(load_family("sd3"), (1, 2), background)
    assert prompt.text == clip_only.text == "a photo including dog, cat, tree, river, and bird."
    assert [word for word, _ in prompt.words] == [word for word, _ in clip_only.words] == ["tree", "river", "bird"]
    for (word, span), (_, first) in zip(prompt.words, clip_only.words, strict=True):
        second = span[len(first) :]
        assert span[: len(first)] == first
        assert max(first) < 77 <= min(second)
        assert "".join(spelt_tokens(prompt, first, parts.windows)) == word
        assert "".join(spelt_tokens(prompt, second, parts.windows)) == word
    monkeypatch.setattr("pseudolabel.softmaps.diffusion.sd3.T5_TOKENS", 8)
    [cut_off] = plan(load_family("sd3_t5", anew=True), (1, 2), background)
    kept = [span for _, span in cut_off.words]
    assert kept[1:] == [span for _, span in clip_only.words][1:]  # T5 sees "a photo including dog, cat," alone
    assert cut_off.spans == prompt.spans


def test_a_sentence_that_t5_cuts_off_keeps_its_words_in_clip(load_family, monkeypatch):
    monkeypatch.setattr("pseudolabel.softmaps.diffusion.sd3.T5_TOKENS", 9)
    parts = load_family("sd3_t5", anew=True)
    [prompt] = plan(parts, background_words=False)
    assert [len(span) for span in prompt.spans] == [4, 2, 1]  # T5's window ends, with its end token, before the dog
    assert max(prompt.content) == 77 + 7


def test_sentences_that_are_too_long_lose_background_words_then_classes_are_split(load_family):
    parts = load_family("alpha")
    [prompt] = plan(parts, (1, 4, 8, 9, 12, 15, 18))
    assert prompt.dropped
    assert len(token_ids(prompt.text, parts.tokenizer)) + 1 <= 120
    many = plan(parts, tuple(range(1, 21)))
    assert len(many) > 1
    assert sorted(row for prompt in many for row in prompt.rows) == list(range(20))
    long = ClassSet(("x",), ("qz" * 70,), ((),))
    with pytest.raises(LabelError, match="does not fit into the text encoder's 120 tokens"):
        plan(parts, (1,), long)


def test_words_are_found_in_a_hand_written_sentence(t5):
    assert find_spans("a dog, a Dogma and dogs", "dog", t5) == (1,)
    assert find_spans("dog's (dog)", "dog", t5) == (0, 5, 6, 7)  # a mark and a bracket before the letters
    with pytest.raises(LabelError, match="does not occur"):
        find_spans("a dogma", "dog", t5)
    [prompt] = given_sentences("a tall tree and a dog", ["dog", "tall tree"], t5, 120)
    assert [spelt(prompt.text, span, t5) for span in prompt.spans] == ["dog", "talltree"]


def spelt(text, span, tokenizer):
    pieces = tokenizer.convert_ids_to_tokens(list(token_ids(text, tokenizer)))
    return "".join(pieces[position] for position in span).replace("\N{LOWER ONE EIGHTH BLOCK}", "")


def test_signs_that_are_unknown_belong_to_their_word(t5):
    text = "a dog and caf\N{LATIN SMALL LETTER E WITH ACUTE} tree"
    at = text.index("caf")
    found = tokens_at(text, [(at, at + 4)], t5)
    pieces = t5.convert_ids_to_tokens(list(token_ids(text, t5)))
    assert [pieces[position] for position in found] == pieces[3:-1]
    assert "<unk>" in pieces


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("abdgost", min_size=1, max_size=8), min_size=1, max_size=6),
    st.integers(0, 5),
    st.sampled_from([" ", ", ", " and "]),
)
def test_pieces_at_a_word_spell_that_word(t5, chosen, which, between):
    """A law: whatever the words, the pieces found at one of them spell it."""
    text, which = between.join(chosen), which % len(chosen)
    start = len(between.join([*chosen[:which], ""])) if which else 0
    found = tokens_at(text, [(start, start + len(chosen[which]))], t5)
    assert spelt(text, found, t5).rstrip(",") == chosen[which]
    assert list(found) == list(range(found[0], found[-1] + 1))


def test_likeness_is_compared_within_an_encoder(load_family):
    parts = load_family("sd3_t5")
    [prompt] = plan(parts, background_words=False)
    text = encode_text(parts, prompt.text).tokens[0]
    starts = [window.offset for window in parts.windows]
    for own, span in zip(similarity_shares(prompt, text, starts), prompt.spans, strict=True):
        behind = [share for share, position in zip(own, span, strict=True) if position >= 77]
        assert sum(own) == pytest.approx(1)
        assert sum(behind) == pytest.approx(len(behind) / len(span))
