"""Where phrases are in an image: soft maps, masks and whether the thing is there at all.

    from pseudolabel.ground.localizer import Localizer

    localizer = Localizer.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    found = localizer.localize(image, ["a brown dog", "the red car"])
    found["a brown dog"].mask, found["a brown dog"].soft, found["a brown dog"].presence

Source: arXiv 2309.04109, section 3: what is read for a class there is read for any phrase here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from data.console import progress_bar
from data.errors import ConfigError, ImageError
from data.images import to_rgb
from data.store.softmaps import SoftMaps, upsample
from data.wording import count
from pseudolabel.config import mask_config
from pseudolabel.ground.config import GroundConfig
from pseudolabel.ground.presence import presence
from pseudolabel.ground.sentences import check_phrases, given_sentences, made_sentences, similarity_shares
from pseudolabel.masks.config import MaskConfig
from pseudolabel.masks.labelmap import label_map
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.prompt import Prompt
from pseudolabel.softmaps.shares import PhraseMaps
from pseudolabel.softmaps.windows import in_every_window, spelt_tokens

RGB = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True, eq=False)
class Found:
    """One phrase in one image.

    Attributes:
        phrase: the phrase.
        soft: how much each pixel looks like it, 0 to 1, at the image's size; scaled, so that its highest value is near
            1 whether the thing is there or not.
        mask: where it is.
        presence: how likely it is there at all, 0 to 1 (`ground.presence`).
        words: the tokens that were read, as the tokenizer spells them.
        positions: their positions in their sentences; position 0 is the start token.

    """

    phrase: str
    soft: Float32[np.ndarray, "height width"]
    mask: Bool[np.ndarray, "height width"]
    presence: float
    words: tuple[str, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Localization:
    """What was found in one image.

    Attributes:
        phrases: one for each phrase, in the order in which they were asked for; also by name: `found["a brown dog"]`.
        labels: 0 for the background and k for the k-th phrase at each pixel; None where phrases do not compete, as
            their masks may overlap then.
        sentences: what the text encoder read.
        dropped: background words for which the sentence had no room.

    """

    phrases: tuple[Found, ...]
    labels: UInt8[np.ndarray, "height width"] | None
    sentences: tuple[str, ...]
    dropped: tuple[str, ...] = ()

    def __getitem__(self, phrase: str) -> Found:
        for found in self.phrases:
            if found.phrase.casefold() == " ".join(phrase.split()).casefold():
                return found
        raise KeyError(phrase)


class Localizer:
    """A diffusion model that finds phrases in images.

    Attributes:
        config: all settings.
        pipeline: the model with its layers.

    """

    def __init__(self, pipeline: Pipeline, config: GroundConfig) -> None:
        """Use a pipeline that was made of these settings; `from_pretrained` and `from_parts` make one."""
        self.pipeline, self.config = pipeline, config

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        config: GroundConfig | None = None,
        device: str | None = None,
        whole: bool = False,
    ) -> "Localizer":
        """Load a model.

        Args:
            model: a folder in diffusers' layout, or a hub id; the config's if not given.
            config: all settings; the defaults if not given. Settings for a model and its images come from
                `pseudolabel calibrate`.
            device: "auto", "cpu", "cuda", "cuda:1" or "mps"; the config's if not given.
            whole: keep what only drawing needs; otherwise it is cut off and its memory released.

        Raises:
            ModelError: it cannot be loaded, or has no such layers.

        """
        config = config or GroundConfig()
        if model is not None:
            config = replace(config, model=replace(config.model, id=str(model)))
        if device is not None:
            config = replace(config, run=replace(config.run, device=device))
        return cls(Pipeline.load(config.generate_config, None, cut=not whole), config)

    @classmethod
    def from_parts(cls, parts: Parts, config: GroundConfig) -> "Localizer":
        """Use a model that is in memory and leave it whole, so that it can draw images too."""
        return cls(Pipeline(parts, config.generate_config, None, cut=False), config)

    def localize(
        self,
        image: Image.Image | RGB,
        phrases: Sequence[str],
        sentence: str | None = None,
        independent: bool = False,
        image_id: str = "",
        watch: Callable[[int, int], None] | None = None,
    ) -> Localization:
        """Find phrases in an image.

        Args:
            image: a PIL image, or uint8 RGB (height, width, 3), upright.
            phrases: what to look for; no two alike.
            sentence: the sentence to read them in, which holds their very words; one is made of them if not given
                (`PromptConfig.template`).
            independent: each phrase has its own threshold against the background, and masks may overlap; otherwise
                every pixel goes to one phrase or to the background.
            image_id: the noise depends on it; an image's masks are the same whatever it is worked on with.
            watch: is called as the work goes on; see `Pipeline.phrase_maps`.

        Raises:
            LabelError: an empty phrase, two alike, one that is not in the sentence, or too long a sentence.
            ImageError: not such an image.

        """
        plan = self.plan(phrases, sentence)
        rgb_u8 = as_rgb(image)
        [maps] = self.pipeline.phrase_maps([rgb_u8], [plan], [image_id], watch, independent)
        return self._masked(rgb_u8, check_phrases(phrases), plan, maps, independent)

    def localize_many(
        self,
        images: Iterable[Image.Image | RGB],
        phrases: Sequence[Sequence[str]],
        sentences: Sequence[str | None] | None = None,
        independent: bool = False,
        image_ids: Sequence[str] | None = None,
        progress: bool = True,
    ) -> Iterator[Localization]:
        """Find each image's phrases, one image after the other, with a progress bar; images are taken when needed.

        Args:
            images: as in `localize`.
            phrases: of each image.
            sentences: of each image.
            independent: as in `localize`.
            image_ids: of each image; their numbers from 0 if not given.
            progress: show a bar on stderr.

        Raises:
            LabelError: a phrase or sentence is wrong; before any image is worked on.
            ImageError: an image is wrong.

        """
        given = list(sentences) if sentences is not None else [None] * len(phrases)
        ids = list(image_ids) if image_ids is not None else [str(number) for number in range(len(phrases))]
        if not len(given) == len(ids) == len(phrases):
            raise ConfigError(
                f"Phrases for {count(len(phrases), 'image')}, sentences for {len(given)}, ids for {len(ids)}: "
                "one each is needed."
            )
        for row, sentence in zip(phrases, given, strict=True):
            self.plan(row, sentence)
        return self._many(images, phrases, given, ids, independent, progress)

    def _many(
        self,
        images: Iterable[Image.Image | RGB],
        phrases: Sequence[Sequence[str]],
        sentences: Sequence[str | None],
        ids: Sequence[str],
        independent: bool,
        progress: bool,
    ) -> Iterator[Localization]:
        jobs = zip(images, phrases, sentences, ids, strict=True)
        for image, row, sentence, image_id in progress_bar(
            jobs, total=len(phrases), unit="image", disable=not progress
        ):
            yield self.localize(image, row, sentence, independent, image_id)

    def plan(self, phrases: Sequence[str], sentence: str | None = None) -> tuple[Prompt, ...]:
        """Return the sentences that phrases are read in, and where in them they are; see `localize`."""
        checked = check_phrases(phrases)
        parts, match = self.pipeline.parts, self.config.match
        if not parts.tokenizers:
            raise ConfigError("This model has no tokenizer to read phrases with; load a whole model folder.")
        tokenizer, window = parts.tokenizer, parts.window
        if sentence is not None:
            prompts = given_sentences(sentence, checked, tokenizer, window)
        else:
            words = match.background if self.config.prompt.background_words else ()
            prompts = made_sentences(checked, words, self.config.prompt, tokenizer, window)
        prompts = in_every_window(prompts, parts.windows)
        if match.words == "mean":
            return prompts
        self.pipeline.reader.embed(prompt.text for prompt in prompts)
        embedded = [self.pipeline.reader.text(prompt.text).tokens[0] for prompt in prompts]
        pairs = zip(prompts, embedded, strict=True)
        starts = [window.offset for window in parts.windows]
        return tuple(replace(prompt, shares=similarity_shares(prompt, text, starts)) for prompt, text in pairs)

    def _masked(
        self, rgb_u8: RGB, phrases: tuple[str, ...], plan: tuple[Prompt, ...], maps: PhraseMaps, independent: bool
    ) -> Localization:
        """Turn what was read into masks."""
        scores = [round(presence(own, idle), 4) for own, idle in zip(maps.attention, maps.idle, strict=True)]
        kept = [row for row, score in enumerate(scores) if score >= self.config.match.presence_min]
        settings, device = mask_config(self.config.generate_config), str(self.pipeline.parts.device)
        masks, labels = phrase_masks(rgb_u8, maps.soft, kept, settings, independent, device)
        soft = soft_at_image(maps.soft)
        found = []
        for row, phrase in enumerate(phrases):
            words, positions = self._tokens(plan, row)
            found.append(Found(phrase, soft[row], masks[row], scores[row], words, positions))
        dropped = tuple(dict.fromkeys(word for prompt in plan for word in prompt.dropped))
        return Localization(tuple(found), labels, tuple(prompt.text for prompt in plan), dropped)

    def _tokens(self, plan: Sequence[Prompt], row: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the tokens of a phrase in its sentences, spelt out, and their positions."""
        words: list[str] = []
        positions: list[int] = []
        for prompt in plan:
            if row in prompt.rows:
                span = prompt.spans[prompt.rows.index(row)]
                words += spelt_tokens(prompt, span, self.pipeline.parts.windows)
                positions += span
        return tuple(words), tuple(positions)


def phrase_masks(
    rgb_u8: RGB, soft: SoftMaps, kept: Sequence[int], masks: MaskConfig, independent: bool, device: str = "cpu"
) -> tuple[Bool[np.ndarray, "phrases height width"], UInt8[np.ndarray, "height width"] | None]:
    """Return the mask of each phrase and, where they compete, the label map they are cut from.

    Args:
        rgb_u8: the image.
        soft: the phrases' maps.
        kept: rows of the phrases that get a mask; the others' are empty and take part in nothing.
        masks: threshold and refinement.
        independent: each phrase against the background alone.
        device: where PAMR runs.

    """
    drawn = np.zeros((len(soft.labels), *rgb_u8.shape[:2]), bool)
    groups = [[row] for row in kept] if independent else [list(kept)]
    labels = None if independent else np.zeros(rgb_u8.shape[:2], np.uint8)
    for rows in groups:
        if not rows:
            continue
        part = replace(soft, maps=soft.maps[rows], labels=tuple(soft.labels[row] for row in rows))
        _, argmax = label_map(rgb_u8, part, masks, device)
        for row in rows:
            drawn[row] = argmax == soft.labels[row]
        labels = labels if labels is None else argmax
    return drawn, labels


def soft_at_image(soft: SoftMaps) -> Float32[np.ndarray, "phrases height width"]:
    """Return soft maps at the image's size, 0 to 1."""
    return np.clip(upsample(soft.maps.astype(np.float32), soft), 0, 1).astype(np.float32)


def as_rgb(image: Any) -> RGB:
    """Return an image as uint8 RGB.

    Raises:
        ImageError: neither a PIL image nor such an array.

    """
    if isinstance(image, Image.Image):
        return np.array(to_rgb(image, Path("the image")))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        if 0 in image.shape:
            raise ImageError(f"The image has no pixels: its shape is {image.shape}.")
        return np.ascontiguousarray(image)
    what = f"an array {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ImageError(f"The image is {what}; it must be a PIL image or a uint8 RGB array (height, width, 3).")
