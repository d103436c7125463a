from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data.classes import ClassSet
from data.errors import ConfigError, ImageError, LabelError
from pseudolabel.ground.config import MatchConfig
from pseudolabel.ground.localizer import Localizer, phrase_masks
from pseudolabel.ground.sentences import given_sentences, made_sentences, similarity_shares
from pseudolabel.pipeline import Pipeline


def match(localizer: Localizer, **values) -> Localizer:
    return Localizer(localizer.pipeline, replace(localizer.config, match=MatchConfig(**values)))


def test_what_comes_back(localizer, rgb_u8):
    found = localizer.localize(rgb_u8, ["a dog", "cat"])
    assert found.sentences == ("a photo including a dog, and cat.",)
    assert [one.phrase for one in found.phrases] == ["a dog", "cat"]
    for one in found.phrases:
        assert (one.soft.dtype, one.soft.shape) == (np.float32, (48, 64))
        assert (one.mask.dtype, one.mask.shape) == (bool, (48, 64))
        assert 0 <= one.soft.min() <= one.soft.max() <= 1
        assert 0 <= one.presence <= 1
    assert found["A  Dog"].words == ("a", "dog")
    assert found["a dog"].positions == (4, 5)
    with pytest.raises(KeyError):
        found["bird"]


def test_pil_and_numpy_are_alike_and_grey_is_turned_to_colour(localizer, rgb_u8):
    from_array = localizer.localize(rgb_u8, ["dog"])
    from_pil = localizer.localize(Image.fromarray(rgb_u8), ["dog"])
    assert np.array_equal(from_array["dog"].soft, from_pil["dog"].soft)
    grey = Image.fromarray(rgb_u8).convert("L")
    assert localizer.localize(grey, ["dog"])["dog"].mask.shape == (48, 64)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), "a.jpg", np.zeros((0, 4, 3), np.uint8)]
)
def test_other_images_are_refused(localizer, image):
    with pytest.raises(ImageError, match=r"must be|no pixels"):
        localizer.localize(image, ["dog"])


def test_competing_phrases_share_pixels_and_independent_ones_do_not(localizer, rgb_u8):
    together = localizer.localize(rgb_u8, ["dog", "cat", "bird"])
    drawn = np.stack([one.mask for one in together.phrases])
    assert (drawn.sum(axis=0) <= 1).all()
    assert np.array_equal(together.labels, (drawn * np.array([1, 2, 3])[:, None, None]).sum(axis=0))
    apart = localizer.localize(rgb_u8, ["dog", "cat", "bird"], independent=True)
    assert apart.labels is None
    for one, other in zip(together.phrases, apart.phrases, strict=True):
        assert np.array_equal(one.soft, other.soft)
    alone, _ = phrase_masks(
        rgb_u8, localizer.pipeline.phrase_maps([rgb_u8], [localizer.plan(["dog", "cat", "bird"])], [""])[0].soft, [1],
        replace_masks(localizer), independent=True,
    )  # fmt: skip
    assert np.array_equal(apart["cat"].mask, alone[1])


def replace_masks(localizer):
    from pseudolabel.config import mask_config

    return mask_config(localizer.config.generate_config)


def test_the_maps_are_those_of_classes_in_the_same_sentence(localizer, rgb_u8):
    """A phrase is read as a class of that phrase is, bit for bit."""
    classes = ClassSet(("x", "y"), ("dog", "a cat"), ((), ()))
    pipeline = Pipeline(localizer.pipeline.parts, localizer.config.generate_config, classes, cut=False)
    [soft] = pipeline.soft_maps([rgb_u8], [(1, 2)], ["id"])
    [maps] = localizer.pipeline.phrase_maps([rgb_u8], [localizer.plan(["dog", "a cat"])], ["id"])
    assert maps.soft.labels == (1, 2)
    assert np.allclose(soft.maps, maps.soft.maps, atol=1e-3)


def test_attention_is_what_the_tokens_have_of_each_cell(localizer, rgb_u8):
    plan = localizer.plan(["dog", "a cat"])
    [maps] = localizer.pipeline.phrase_maps([rgb_u8], [plan], ["id"])
    [prompt] = plan
    every = tuple((position,) for position in range(77))
    found = localizer.pipeline.explain(
        rgb_u8,
        tuple(range(1, 78)),
        image_id="id",
        spans=every,
        prompt_embeds=localizer.pipeline.reader.text(prompt.text),
    )
    grid = maps.attention[0].shape[-2:]
    tokens = torch.stack(
        [torch.nn.functional.interpolate(layer, grid, mode="bilinear") for layer in found.cross.values()]
    ).mean(dim=0)
    assert torch.allclose(tokens.sum(dim=1), torch.ones(()), atol=1e-4)
    for row, span in enumerate(prompt.spans):
        assert np.allclose(maps.attention[row], tokens[:, list(span)].sum(dim=1), atol=1e-5)
    idle = [position for position in range(77) if position not in prompt.content]
    assert np.allclose(maps.idle[0], tokens[:, idle].sum(dim=1), atol=1e-5)


def test_flips_and_scales_give_a_pass_each(localizer, rgb_u8):
    diffusion = replace(localizer.config.diffusion, flip=True, scales=(1.0, 0.75), timesteps=(100, 200))
    config = replace(localizer.config, diffusion=diffusion)
    other = Localizer.from_parts(localizer.pipeline.parts, config)
    [maps] = other.pipeline.phrase_maps([rgb_u8], [other.plan(["dog"])], [""])
    assert len(maps.attention[0]) == 2 * 2 * 2 * 2
    assert other.localize(rgb_u8, ["dog"])["dog"].mask.shape == (48, 64)


def test_the_padding_takes_no_part_in_presence(localizer):
    wide = np.zeros((20, 64, 3), np.uint8)
    [maps] = localizer.pipeline.phrase_maps([wide], [localizer.plan(["dog"])], [""])
    frame = localizer.pipeline.reader.frame((20, 64))
    grid = localizer.pipeline.phrase_maps([wide], [localizer.plan(["dog"])], [""])[0].soft.maps.shape[1:]
    assert maps.attention[0].shape[1:] == frame.valid_cells(grid)
    assert maps.attention[0].shape[1] < grid[0]


def test_what_is_below_the_presence_asked_for_gets_no_mask(localizer, rgb_u8):
    scores = [one.presence for one in localizer.localize(rgb_u8, ["dog", "cat"]).phrases]
    between = sum(scores) / 2
    found = match(localizer, presence_min=between).localize(rgb_u8, ["dog", "cat"])
    weak, strong = sorted(found.phrases, key=lambda one: one.presence)
    assert not weak.mask.any()
    alone = localizer.localize(rgb_u8, ["dog", "cat"], independent=True)
    assert np.array_equal(strong.mask, alone[strong.phrase].mask)  # it competes with the background alone


def test_layers_that_let_phrases_compete_are_not_asked_where_masks_may_overlap(ground_config, localizer, rgb_u8):
    attention = replace(ground_config.attention, naming_layers=("down:1/2",))
    named = Localizer.from_pretrained(config=replace(ground_config, attention=attention), device="cpu")
    for independent in (True, False):
        found = named.localize(rgb_u8, ["dog", "cat"], independent=independent)
        plain = localizer.localize(rgb_u8, ["dog", "cat"], independent=independent)
        assert np.array_equal(found["dog"].soft, plain["dog"].soft) == independent


# ------------------------------------------------------------------------------------------------------------ sentences


def test_phrases_are_found_in_a_sentence(localizer, rgb_u8):
    found = localizer.localize(rgb_u8, ["dog", "the tree"], sentence="A dog  beside the tree and a dog")
    assert found.sentences == ("A dog beside the tree and a dog",)
    ids = localizer.pipeline.parts.tokenizers[0](found.sentences[0], add_special_tokens=False)["input_ids"]
    words = localizer.pipeline.parts.tokenizers[0].convert_ids_to_tokens(ids)
    assert found["dog"].positions == tuple(place + 1 for place, word in enumerate(words) if word == "dog</w>")
    assert found["the tree"].words[-1] == "tree"


@pytest.mark.parametrize(
    ("phrases", "sentence", "words"),
    [
        (["cat"], "a dog", "phrase 'cat' is not in the sentence 'a dog'"),
        (["dogs"], "a dog", "'dogs' is not in the sentence"),
        (["do"], "a dog", "'do' is not in the sentence"),
        ([], None, "no phrase"),
        (["dog", " "], None, "Phrase 2 of 2 is empty"),
        (["dog", "a  cat", "A cat"], None, "'A cat' is given twice"),
        ([str(number) for number in range(255)], None, "at most 254"),
        (["dog"], "  ", "sentence is empty"),
        (["dog"], "dog " * 80, "has 80 tokens, the text encoder reads 75"),
        (["dog " * 80], None, "does not fit into the text encoder's 77 tokens"),
        ([","], None, "has no tokens"),
    ],
)
def test_faults_are_one_line(localizer, phrases, sentence, words):
    with pytest.raises(LabelError, match=words) as caught:
        localizer.plan(phrases, sentence)
    assert "\n" not in str(caught.value)


def test_a_long_sentence_is_cut_at_its_full_stops(localizer, rgb_u8):
    first, second = "a dog and " * 14 + "a cat.", "a bird and " * 14 + "a cat."
    tokenizer = localizer.pipeline.parts.tokenizers[0]
    plan = given_sentences(f"{first} {second}", ["dog", "bird", "cat"], tokenizer, 77)
    assert [prompt.text for prompt in plan] == [first, second]
    assert [prompt.rows for prompt in plan] == [(0, 2), (1, 2)]
    [maps] = localizer.pipeline.phrase_maps([rgb_u8], [plan], [""])
    assert [len(passes) for passes in maps.attention] == [2, 2, 4]  # two draws a sentence
    found = localizer.localize(rgb_u8, ["dog", "bird", "cat"], f"{first} {second}")
    assert len(found["cat"].positions) == 2


def test_short_sentences_stay_together(localizer):
    tokenizer = localizer.pipeline.parts.tokenizers[0]
    assert len(given_sentences("a dog. a cat. a bird.", ["dog", "bird"], tokenizer, 77)) == 1


def test_the_longer_phrase_has_the_tokens_that_two_claim(localizer):
    tokenizer = localizer.pipeline.parts.tokenizers[0]
    [prompt] = given_sentences("a cat and a tree cat", ["cat", "tree cat"], tokenizer, 77)
    assert prompt.spans == ((2,), (5, 6))
    [prompt] = given_sentences("a tree cat", ["cat", "tree cat"], tokenizer, 77)
    assert prompt.spans == ((3,), (2, 3))  # nothing else is left of it


def test_phrases_too_many_for_one_sentence_are_split(localizer):
    tokenizer = localizer.pipeline.parts.tokenizers[0]
    phrases = [f"{word} {other}" for word in ("dog", "cat", "bird", "tree", "plane") for other in ("x" * 9, "y" * 9)]
    plan = made_sentences(phrases, ("river",), localizer.config.prompt, tokenizer, 77)
    assert len(plan) > 1
    assert sorted(row for prompt in plan for row in prompt.rows) == list(range(10))


def test_background_words_are_in_the_sentence_and_not_read(localizer):
    [prompt] = match(localizer, background=("river", "tree")).plan(["dog", "tree"])
    assert prompt.text == "a photo including dog, tree, and river."
    assert len(prompt.spans) == 2


def test_tokens_weighted_by_likeness_to_the_last(localizer, rgb_u8):
    weighted = match(localizer, words="similarity")
    [prompt] = weighted.plan(["a dog", "cat"])
    text = localizer.pipeline.reader.text(prompt.text).tokens[0]
    [article, noun], [single] = prompt.shares
    likeness = float(torch.nn.functional.cosine_similarity(text[4], text[5], dim=0).clamp_min(0))
    assert (article, noun) == pytest.approx((likeness / (1 + likeness), 1 / (1 + likeness)))
    assert single == 1.0
    mean, other = localizer.localize(rgb_u8, ["a dog", "cat"]), weighted.localize(rgb_u8, ["a dog", "cat"])
    assert not np.array_equal(mean["a dog"].soft, other["a dog"].soft)
    assert np.allclose(mean["cat"].soft, other["cat"].soft, atol=1e-3)
    assert mean["a dog"].presence == pytest.approx(other["a dog"].presence, abs=1e-3)  # it sums over tokens


def test_shares_of_equal_tokens_are_their_mean():
    from pseudolabel.softmaps.prompt import Prompt

    prompt = Prompt("x", (0,), ((1, 2, 3),), (1, 2, 3))
    assert similarity_shares(prompt, torch.ones(5, 4)) == (pytest.approx((1 / 3, 1 / 3, 1 / 3)),)


# ----------------------------------------------------------------------------------------------------------------- many


def test_many_images(localizer, rgb_u8, capsys):
    images = [rgb_u8, Image.fromarray(rgb_u8[:32])]
    found = list(localizer.localize_many(iter(images), [["dog"], ["cat", "bird"]], image_ids=["a", "b"]))
    assert [len(one.phrases) for one in found] == [1, 2]
    assert "2/2" in capsys.readouterr().err
    one = localizer.localize(rgb_u8, ["dog"], image_id="a")
    assert np.array_equal(found[0]["dog"].soft, one["dog"].soft)  # whatever it is worked on with


def test_a_wrong_phrase_among_many_stops_before_any_image(localizer):
    def images():
        raise AssertionError("an image was read")
        yield

    with pytest.raises(LabelError, match="is empty"):
        localizer.localize_many(images(), [["dog"], [""]])
    with pytest.raises(ConfigError, match="one each is needed"):
        localizer.localize_many(images(), [["dog"]], sentences=[None, None])


def test_a_model_that_is_loaded_for_reading_alone_is_cut(ground_config):
    cut = Localizer.from_pretrained(ground_config.model.id, ground_config, "cpu")
    whole = Localizer.from_pretrained(config=ground_config, whole=True)
    parameters = [sum(p.numel() for p in one.pipeline.parts.denoiser.parameters()) for one in (cut, whole)]
    assert parameters[0] < parameters[1]
    assert cut.config.run.device == "cpu"
