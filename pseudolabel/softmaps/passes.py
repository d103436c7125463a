"""From images to passes: sentences, latents, noise, and batches that fit into memory.

Source: arXiv 2309.04109, section 3.1. A pass is one evaluation of the conditional model; what it looked at is the
affair of `reading`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data.classes import ClassSet
from data.errors import ConfigError
from data.store.softmaps import Frame
from data.wording import count
from pseudolabel.config import RunConfig
from pseudolabel.softmaps.config import DiffusionConfig, PromptConfig, ResizeConfig
from pseudolabel.softmaps.diffusion.encode import draw_noise, encode_image, noised_latent, seeded_generator
from pseudolabel.softmaps.diffusion.families import cell_px, encode_text, largest_px, native_px
from pseudolabel.softmaps.diffusion.parts import Parts, TextEmbedding
from pseudolabel.softmaps.diffusion.placing import encoders_at_hand
from pseudolabel.softmaps.frame import frame_image, frame_latent, long_side, resize_and_pad
from pseudolabel.softmaps.prompt import Prompt, plan_prompts
from pseudolabel.softmaps.windows import in_every_window

logger = logging.getLogger(__name__)

# Latent pixels in one batch under batch_size=auto; a GPU starts high and halves when memory runs out.
CPU_BATCH_PIXELS = 16_384
GPU_BATCH_PIXELS = 64 * 4096
REMEMBERED = 64  # sentences and plans kept: images of one data set share a few

Key = TypeVar("Key")
Value = TypeVar("Value")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pass:
    """One evaluation of the model: a noised latent of one image, read for the classes of one sentence.

    Attributes:
        image: position of the image among those worked on.
        prompt: the sentence and its classes' tokens.
        text: the sentence's embedding.
        frame: sizes of the image.
        noised: z_t.
        timestep: t.
        mirrored: the image was mirrored, left to right, before it was padded.

    """

    image: int
    prompt: Prompt
    text: TextEmbedding
    frame: Frame
    noised: Float[Tensor, "channels height width"]
    timestep: int
    mirrored: bool = False

    @property
    def latent_hw(self) -> tuple[int, int]:
        """Height and width of the latent."""
        return self.noised.shape[-2], self.noised.shape[-1]


class Reader:
    """Makes the passes of images and runs them in batches; what it computes for an image depends on that image alone.

    Attributes:
        parts: the diffusion model.
        classes: phrases and background words; None where prompts are given.
        prompt: how sentences are made.
        diffusion: noise and ensembles.
        resize: image size.
        run: batch size.

    """

    def __init__(
        self,
        parts: Parts,
        classes: ClassSet | None,
        prompt: PromptConfig,
        diffusion: DiffusionConfig,
        resize: ResizeConfig,
        run: RunConfig,
        latents: dict[tuple[str, Frame, bool], Tensor] | None = None,
    ) -> None:
        """Keep the settings; latents are kept in `latents` too, where it is given, for readers that share it."""
        self.parts, self.classes = parts, classes
        self.prompt, self.diffusion, self.resize, self.run = prompt, diffusion, resize, run
        self._latents = latents
        self._texts: dict[str, TextEmbedding] = {}
        self._plans: dict[tuple[int, ...], tuple[Prompt, ...]] = {}
        self._batch_pixels = GPU_BATCH_PIXELS if self.shares_batches else CPU_BATCH_PIXELS

    @property
    def shares_batches(self) -> bool:
        """Whether passes of several images run in one batch: on a GPU.

        A matrix product's last bits depend on the size of the batch. On a CPU, where larger batches gain little, images
        therefore do not share one: an image's maps are the same bits whatever it is processed with.
        """
        return self.parts.device.type != "cpu"

    def frame(self, image_hw: tuple[int, int], scale: float = 1.0) -> Frame:
        """Return the size an image is resized and padded to; images of equal padded size share batches.

        Raises:
            ConfigError: larger than the model can read.

        """
        cell = cell_px(self.parts)
        side_px = self.resize.long_side_px or long_side(image_hw, native_px(self.parts), cell)
        if scale != 1.0:
            side_px = max(1, round(side_px * scale / cell)) * cell
        frame, largest = frame_image(image_hw, cell, side_px), largest_px(self.parts)
        if largest is not None and max(frame.padded_hw) > largest:
            raise ConfigError(
                f"An image would be {max(frame.padded_hw)} px long, but this model has places for {largest} px at "
                "most; use a smaller --resize.long_side_px or smaller --diffusion.scales"
            )
        return frame

    def frame_of(self, image_hw: tuple[int, int] | None, latent_hw: tuple[int, int] | None) -> Frame:
        """Return an image's frame; latents of another size than its own are taken to show all of it, unpadded.

        Raises:
            ConfigError: there is neither an image nor a latent.

        """
        if latent_hw is None and image_hw is None:
            raise ConfigError("explain needs an image, or latents=")
        own = None if image_hw is None else self.frame(image_hw)
        if own is not None and latent_hw in (None, self.latent_hw(own)):
            return own
        assert latent_hw is not None
        return frame_latent(latent_hw, self.parts.vae_factor, image_hw)

    def latent_hw(self, frame: Frame) -> tuple[int, int]:
        """Return height and width of the latent of a padded image."""
        factor = self.parts.vae_factor
        return frame.padded_hw[0] // factor, frame.padded_hw[1] // factor

    def plan(self, labels: Sequence[int]) -> tuple[Prompt, ...]:
        """Return the sentences for an image's classes.

        Raises:
            ConfigError: there are no classes, or no tokenizer.
            LabelError: no labels, or a phrase that is too long.

        """
        if self.classes is None or not self.parts.tokenizers:
            raise ConfigError("This pipeline has no classes or no tokenizer to make prompts with; give spans=")
        classes, parts = self.classes, self.parts
        return _remembered(
            self._plans,
            tuple(labels),
            lambda row: in_every_window(
                plan_prompts(row, classes, self.prompt, parts.tokenizer, parts.window), parts.windows
            ),
        )

    def dropped_words(self, labels: Sequence[int]) -> tuple[str, ...]:
        """Return the background words for which an image's sentences had no room, each once."""
        return tuple(dict.fromkeys(word for prompt in self.plan(labels) for word in prompt.dropped))

    def text(self, sentence: str) -> TextEmbedding:
        """Embed a sentence, alone so that it does not depend on others."""
        self.embed([sentence])
        return self._texts[sentence]

    def embed(self, sentences: Iterable[str]) -> None:
        """Embed sentences and remember them, the text encoders being brought to the device once for all of them."""
        wanted = dict.fromkeys(sentences)
        missing = [sentence for sentence in wanted if sentence not in self._texts]
        if not missing:
            return
        for old in list(self._texts):
            if len(self._texts) + len(missing) > REMEMBERED and old not in wanted:
                del self._texts[old]
        with encoders_at_hand(self.parts):
            self._texts |= {sentence: encode_text(self.parts, sentence) for sentence in missing}

    def latent(
        self, image: UInt8[np.ndarray, "height width 3"], frame: Frame, image_id: str, mirrored: bool = False
    ) -> Float[Tensor, "channels latent_h latent_w"]:
        """Encode an image; one at a time, so that its latent does not depend on its neighbours in a batch."""
        key = (image_id, frame, mirrored)
        if self._latents is not None and key in self._latents:
            return self._latents[key]
        pixels = resize_and_pad(np.ascontiguousarray(image[:, ::-1]) if mirrored else image, frame)
        generator = seeded_generator(self.diffusion.seed, image_id, "posterior")
        latent = encode_image(self.parts, pixels, self.diffusion.posterior, generator)
        if self._latents is not None:
            self._latents[key] = latent
        return latent

    def noise(
        self, latent: Float[Tensor, "channels height width"], image_id: str
    ) -> Float[Tensor, "draws channels height width"]:
        """Return the noise of each draw; it depends on the seed, the image's id and the draw alone."""
        channels, height, width = latent.shape
        shape, seed = (channels, height, width), self.diffusion.seed
        return torch.stack([draw_noise(shape, seed, image_id, draw) for draw in range(self.diffusion.draws)])

    def passes(
        self, index: int, image: UInt8[np.ndarray, "height width 3"], prompts: Sequence[Prompt], image_id: str
    ) -> Iterator[Pass]:
        """Yield the passes of an image: every scale, mirrored or not, timestep, noise draw and sentence.

        Args:
            index: what `Pass.image` is to say.
            image: RGB image.
            prompts: its sentences (`plan` makes those of classes).
            image_id: the noise depends on it.

        """
        texts = [self.text(prompt.text) for prompt in prompts]
        for scale, mirrored in product(self.diffusion.scales, (False, True) if self.diffusion.flip else (False,)):
            frame = self.frame((image.shape[0], image.shape[1]), scale)
            latent = self.latent(image, frame, image_id, mirrored)
            noise = self.noise(latent, image_id)
            yield from self.noised_passes(index, frame, latent, noise, prompts, texts, mirrored=mirrored)

    def noised_passes(
        self,
        index: int,
        frame: Frame,
        latent: Float[Tensor, "channels height width"],
        noise: Float[Tensor, "draws channels height width"],
        prompts: Sequence[Prompt],
        texts: Sequence[TextEmbedding],
        timesteps: Sequence[int] | None = None,
        mirrored: bool = False,
    ) -> Iterator[Pass]:
        """Yield the passes of one latent: every timestep (the configured ones if not given), draw and sentence."""
        for timestep, draw in product(self.diffusion.timesteps if timesteps is None else timesteps, noise):
            noised = noised_latent(self.parts, latent, draw.to(latent.device, latent.dtype), timestep)
            for prompt, text in zip(prompts, texts, strict=True):
                yield Pass(index, prompt, text, frame, noised, timestep, mirrored)

    def batches(
        self, passes: Sequence[Pass], read: Callable[[Sequence[Pass]], Result]
    ) -> Iterator[tuple[Sequence[Pass], Result]]:
        """Read passes in batches of equal size; under batch_size=auto batches are halved while GPU memory runs out.

        Args:
            passes: in any order; those of one batch come from it in this order.
            read: runs a batch and returns what it showed.

        Raises:
            ConfigError: memory does not hold the batch size asked for, or not even one pass.

        """
        groups: dict[tuple[int, torch.Size], list[Pass]] = {}
        for item in passes:
            groups.setdefault((0 if self.shares_batches else item.image, item.noised.shape), []).append(item)
        for (_, size), group in groups.items():
            start = 0
            while start < len(group):
                batch = group[start : start + self.batch_size(size[1] * size[2])]
                result = self._read_or_halve(batch, read)
                if result is not None:
                    yield batch, result
                    start += len(batch)
                del result  # the next batch needs its memory

    def batch_size(self, latent_pixels: int) -> int:
        """Return how many passes run at once for latents of this many pixels."""
        chosen = self.run.batch_size
        if chosen == "auto" or not self.shares_batches:
            return max(1, self._batch_pixels // latent_pixels)
        return chosen

    def _read_or_halve(self, batch: Sequence[Pass], read: Callable[[Sequence[Pass]], Result]) -> Result | None:
        """Return what a batch showed, or None where the GPU's memory did not hold it: half as many are to be tried."""
        try:
            return read(batch)
        except torch.cuda.OutOfMemoryError as error:
            tried = count(len(batch), "pass")
            if self.run.batch_size != "auto" or len(batch) == 1:
                raise ConfigError(
                    f"The GPU's memory does not hold {tried} at once; use --run.batch_size=auto or a lower number, or "
                    "a smaller --resize.long_side_px"
                ) from error
        torch.cuda.empty_cache()  # out of the except clause, which holds what the batch had in hand
        height, width = batch[0].latent_hw
        self._batch_pixels = len(batch) // 2 * height * width
        logger.info("%s did not fit into GPU memory; trying half as many", tried)
        return None


def stack_texts(texts: Sequence[TextEmbedding]) -> TextEmbedding:
    """Put embeddings of single sentences into one batch."""
    pooled = [text.pooled for text in texts if text.pooled is not None]
    masks = [text.mask for text in texts if text.mask is not None]
    tokens = torch.cat([text.tokens for text in texts])
    return TextEmbedding(tokens, torch.cat(pooled) if pooled else None, torch.cat(masks) if masks else None)


def _remembered(cache: dict[Key, Value], key: Key, make: Callable[[Key], Value]) -> Value:
    """Return what was made for a key, or make it and forget the oldest of too many."""
    if key not in cache:
        if len(cache) >= REMEMBERED:
            cache.pop(next(iter(cache)))
        cache[key] = make(key)
    return cache[key]
