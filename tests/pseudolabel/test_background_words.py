"""Background words that compete: from their tokens through the store to the mask."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.classes import VOC
from data.errors import ConfigError, StoreError
from data.store.softmaps import SoftMaps, decode_soft, encode_soft
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.config import mask_config, stored_settings
from pseudolabel.masks.config import FuseConfig
from pseudolabel.masks.fuse import background_score
from pseudolabel.masks.labelmap import label_map
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.config import PromptConfig
from pseudolabel.softmaps.prompt import background_words, plan_prompts

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
LABELS = (8, 12)  # cat and dog
WORDS = FuseConfig(background="words")


@pytest.fixture
def pipeline(tiny_config) -> Pipeline:
    return Pipeline.load(replace(tiny_config, fuse=WORDS), VOC)


@pytest.mark.parametrize("labels", [(8,), (8, 12), (4, 10, 19)])
def test_the_positions_of_the_words_hold_the_words(word_tokenizer, labels):
    for prompt in plan_prompts(labels, VOC, PromptConfig(), word_tokenizer, 77):
        ids = word_tokenizer(prompt.text)["input_ids"]
        found = {
            word: word_tokenizer.decode([ids[position] for position in span]).strip() for word, span in prompt.words
        }
        assert found == {word: word for word in found}
        assert tuple(found) == background_words(labels, VOC)
        assert not {p for _, span in prompt.words for p in span} & {p for span in prompt.spans for p in span}


def test_the_map_of_words_is_the_largest_of_maps_made_as_the_classes_are(pipeline):
    """The words' tokens given as if they were classes'."""
    [soft] = pipeline.soft_maps([IMAGE], [LABELS], ["a"])
    [prompt] = pipeline.reader.plan(LABELS)
    spans = [*prompt.spans, *(span for _, span in prompt.words)]
    as_classes = Pipeline.load(replace(pipeline.config, fuse=FuseConfig()), VOC).explain(
        IMAGE,
        tuple(range(1, len(spans) + 1)),
        image_id="a",
        spans=spans,
        prompt_embeds=pipeline.reader.text(prompt.text),
    )
    maps = as_classes.soft.maps.astype(np.float32)
    np.testing.assert_allclose(soft.words, maps[len(LABELS) :].max(axis=0), atol=2e-3)
    np.testing.assert_allclose(soft.maps, maps[: len(LABELS)], atol=2e-3)


def test_explain_shows_what_generate_makes(pipeline):
    [soft] = pipeline.soft_maps([IMAGE], [LABELS], ["a"])
    shown = pipeline.explain(IMAGE, LABELS, image_id="a")
    np.testing.assert_array_equal(shown.soft.words, soft.words)
    expected = np.maximum(background_score(shown.maps.numpy(), FuseConfig()), soft.words)
    np.testing.assert_allclose(shown.background, expected, atol=1e-6)


def test_several_sentences_share_their_words(pipeline):
    """So long a list of labels that it takes two sentences; every word counts once."""
    labels = tuple(range(1, 21))
    plan = pipeline.reader.plan(labels)
    assert len(plan) > 1
    [soft] = pipeline.soft_maps([IMAGE], [labels], ["a"])
    assert soft.words is not None
    assert soft.words.shape == soft.maps.shape[1:]


@given(
    hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32)),
    hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)),
    st.floats(0.05, 1),
)
def test_words_only_raise_the_background(maps, words, tau):
    plain = background_score(maps, FuseConfig(threshold=tau))
    competing = background_score(maps, FuseConfig(threshold=tau, background="words"), words)
    np.testing.assert_array_equal(competing, np.maximum(plain, words))
    silent = background_score(maps, FuseConfig(threshold=tau, background="words"), np.zeros_like(words))
    np.testing.assert_array_equal(silent, plain)


def test_soft_maps_keep_them_and_without_them_are_as_before(pipeline):
    [soft] = pipeline.soft_maps([IMAGE], [LABELS], ["a"])
    again = decode_soft(encode_soft(soft))
    np.testing.assert_array_equal(again.words, soft.words)
    assert decode_soft(encode_soft(replace(soft, words=None))).words is None
    wrong = replace(soft)
    object.__setattr__(wrong, "words", np.zeros((2, 2), np.float16))  # past the check of shapes that tests have
    with pytest.raises(StoreError, match="a map of words of"):
        decode_soft(encode_soft(wrong))


def test_a_mask_from_maps_without_words_is_refused(tiny_config):
    soft = SoftMaps(np.ones((1, 4, 5), np.float16), (8,), False, (32, 40), (32, 40), (32, 40))
    with pytest.raises(StoreError, match=r"--fuse\.background rule"):
        label_map(np.zeros((32, 40, 3), np.uint8), soft, mask_config(replace(tiny_config, fuse=WORDS)))


def test_words_that_are_not_in_the_sentence_cannot_compete(tiny_config):
    with pytest.raises(ConfigError, match=r"--fuse\.background is 'words'"):
        replace(tiny_config, fuse=WORDS, prompt=PromptConfig(background_words=False))


def test_the_setting_is_in_the_header_where_it_is_used(tiny_config):
    assert "background" not in stored_settings(tiny_config)["fuse"]
    assert stored_settings(replace(tiny_config, fuse=WORDS))["fuse"]["background"] == "words"


def test_generate_keeps_them_and_refine_chooses(world, made_store, tiny_options, tmp_path, capsys, store_bytes):
    options = ["--root", str(world), "--limit=2", "--fuse.background=words", *tiny_options]
    assert main(["generate", "--store", str(tmp_path / "w"), *options]) == 0
    store = MaskStore.open(tmp_path / "w")
    assert all(store.read_soft(sample_id).words is not None for sample_id in store.ids())

    def refine(source, target, *more) -> int:
        return main(["refine", f"--store={source}", f"--output={tmp_path / target}", "--workers=0", *more])

    assert refine(tmp_path / "w", "same") == 0
    assert store_bytes(tmp_path / "same") == store_bytes(tmp_path / "w")
    assert refine(tmp_path / "w", "rule", "--fuse.background=rule") == 0
    ruled = MaskStore.open(tmp_path / "rule")
    plain = MaskStore.open(made_store)
    agree = [np.mean(ruled.read_argmax(i) == plain.read_argmax(i)) for i in ruled.ids()]
    assert np.mean(agree) > 0.999
    capsys.readouterr()
    assert refine(made_store, "none", "--fuse.background=words") == 2
    assert "hold none of background words" in capsys.readouterr().err
