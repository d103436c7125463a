"""A particular thing among others of its kind, and whole data sets of phrases: masks, then figures.

A learned token and the word for its kind stand in one sentence, so that they compete for each cell's attention already
there; what is left to the token is max(0, A_token - lambda A_class). Personalised referring segmentation is the paper's
(arXiv 2309.04109), the contrast is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from data.errors import ConfigError, LabelError
from data.phrase_scores import Overlap, overlap_of
from data.readers.targets import Target
from data.store.softmaps import SoftMaps
from pseudolabel.config import mask_config
from pseudolabel.ground.localizer import Localizer, phrase_masks, soft_at_image
from pseudolabel.ground.presence import presence

Rule = Literal["contrast", "compete", "token", "class"]
# Cuts through the soft map at which masks are counted too; the best one is the oracle, which knows the truth.
CUTS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found of one target: its mask, its soft map at the image's size, and its presence."""

    mask: Bool[np.ndarray, "height width"]
    soft: Float32[np.ndarray, "height width"]
    presence: float


@dataclass(frozen=True)
class ReferOptions:
    """How particular things are asked for.

    Attributes:
        rule: contrast: the token's map less the class word's. compete: token and class word share the pixels. token,
            class: that one alone.
        token: the token, `{concept}` standing for the concept's name; None takes the data set's.
        class_word: the word for its kind, likewise.
        weight: lambda of the contrast.
        independent: phrases of one sentence do not share pixels.

    """

    rule: Rule = "contrast"
    token: str | None = None
    class_word: str | None = None
    weight: float = 0.5
    independent: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 10:
            raise ConfigError(f"--contrast is {self.weight}: it must be from 0 to 10; change --contrast")


def words_of(concept: str, known: dict[str, str], options: ReferOptions, tokenizer: Any) -> tuple[str, ...]:
    """Return what is asked for to find a concept: the token, the class word, or both in this order.

    Raises:
        ConfigError: one of them is not known, or the token is none of the model's.

    """
    token = known.get("token", "") if options.token is None else options.token.replace("{concept}", concept)
    class_word = options.class_word if options.class_word is not None else known.get("class_word", "")
    class_word = class_word.replace("{concept}", concept)
    asked = {"token": (token, "token"), "class": (class_word, "class_word")}
    wanted = [asked[options.rule]] if options.rule in asked else list(asked.values())
    for word, kind in wanted:
        if not word.strip():
            raise ConfigError(
                f"The concept {concept!r} has no {kind}; give --{kind}, put it into its concept.yaml, or choose "
                f"another --rule than {options.rule}."
            )
        if kind == "token" and word.startswith("<") and word not in tokenizer.get_added_vocab():
            raise ConfigError(
                f"The model has no token {word!r} (concept {concept!r}); name its file in --model.tokens, or give "
                "another --token."
            )
    return tuple(word.strip() for word, _ in wanted)


def find_particular(
    localizer: Localizer,
    rgb_u8: UInt8[np.ndarray, "height width 3"],
    words: tuple[str, ...],
    options: ReferOptions,
    image_id: str = "",
) -> Answer:
    """Find a particular thing.

    Args:
        localizer: the model, with the token learned.
        rgb_u8: the image.
        words: from `words_of`.
        options: rule and weight.
        image_id: the noise depends on it.

    """
    plan = localizer.plan(words)
    [maps] = localizer.pipeline.phrase_maps([rgb_u8], [plan], [image_id])
    # Against the class word too, where it is in the sentence: a distractor of its kind must not count for the token.
    score = presence(maps.attention[0], sum(maps.attention[1:], maps.idle[0]))
    soft, rows = maps.soft, list(range(len(words)))
    if options.rule == "contrast":
        soft, rows = contrast_map(maps.soft, options.weight), [0]
    kept = rows if score >= localizer.config.match.presence_min else []
    settings, device = mask_config(localizer.config.generate_config), str(localizer.pipeline.parts.device)
    masks, _ = phrase_masks(rgb_u8, soft, kept, settings, independent=False, device=device)
    return Answer(masks[0], soft_at_image(soft)[0], score)


def contrast_map(soft: SoftMaps, weight: float) -> SoftMaps:
    """Return max(0, first - weight * second) of two maps, scaled so that its highest value is 1; zero stays zero."""
    first, second = soft.maps.astype(np.float32)
    left = np.maximum(first - weight * second, 0)
    left /= max(float(left.max()), 1e-6)
    return replace(soft, maps=left[None].astype(np.float16), labels=soft.labels[:1])


def find_phrases(
    localizer: Localizer,
    rgb_u8: UInt8[np.ndarray, "height width 3"],
    targets: Sequence[Target],
    options: ReferOptions,
    image_id: str = "",
) -> list[Answer]:
    """Find the phrases of one image and sentence; equal phrases are read once and have one answer."""
    folded = [" ".join(target.phrase.split()).casefold() for target in targets]
    phrases = list(dict.fromkeys(folded))
    found = localizer.localize(rgb_u8, phrases, targets[0].sentence, options.independent, image_id)
    answers = [Answer(one.mask, one.soft, one.presence) for one in found.phrases]
    return [answers[phrases.index(phrase)] for phrase in folded]


def scored(target: Target, answer: Answer, truth: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """Return the line about a target: its presence, and what its mask shares with the truth, at every cut too."""
    overlap = overlap_of(answer.mask, truth)
    true = int(truth.sum())
    cuts = []
    for cut in CUTS:
        mask = answer.soft > cut
        both, predicted = int((mask & truth).sum()), int(mask.sum())
        cuts.append([both, predicted + true - both])
    return {
        "id": target.id,
        "phrase": target.phrase,
        "group": target.group,
        "tags": list(target.tags),
        "presence": round(answer.presence, 5),
        "overlap": [getattr(overlap, name) for name in Overlap.__dataclass_fields__],
        "cuts": cuts,
    }


def groups_of(targets: Sequence[Target]) -> list[list[Target]]:
    """Return targets that share an image and a sentence together, in the order in which they first come."""
    grouped: dict[Any, list[Target]] = {}
    for target in targets:
        alone = target.id if target.sentence is None else None
        grouped.setdefault((target.image_path, target.sentence, alone), []).append(target)
    return list(grouped.values())


def plan_all(localizer: Localizer, groups: Sequence[Sequence[Target]]) -> list[str]:
    """Check every sentence before any image is worked on.

    Returns:
        Ids of the targets whose phrase cannot be read in its sentence, which are left out and named.

    """
    left_out = []
    for group in groups:
        for target in group:
            try:
                localizer.plan([target.phrase], target.sentence)
            except LabelError:
                left_out.append(target.id)
    return left_out
