"""Stage one for images in memory: prompt, diffusion, attention, affinity, fuse, crf, labelmap. It does no I/O.

Source: arXiv 2309.04109. Every U-Net pass is one evaluation of the conditional model; the U-Net is cut after the last
layer read.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data.classes import ClassSet
from data.errors import ConfigError
from data.store.softmaps import Frame, SoftMaps
from pseudolabel.config import GenerateConfig
from pseudolabel.explain import Explanation, assemble, given_prompts, given_text
from pseudolabel.masks.crf import refine_scores
from pseudolabel.masks.fuse import before_crf, image_scores
from pseudolabel.masks.labelmap import label_map, mask_from_marginals
from pseudolabel.softmaps.attention import Layer, resolve_layers
from pseudolabel.softmaps.diffusion.encode import add_noise, draw_noise, encode_image, encode_text, seeded_generator
from pseudolabel.softmaps.diffusion.load import load_models
from pseudolabel.softmaps.diffusion.parts import Models, TextEmbedding, pick_device, pick_dtype
from pseudolabel.softmaps.diffusion.unet import cut_unet, list_layers
from pseudolabel.softmaps.frame import frame_image, frame_latent, long_side, resize_and_pad
from pseudolabel.softmaps.grids import common_grid, regrid
from pseudolabel.softmaps.passes import Pass
from pseudolabel.softmaps.prompt import Prompt, plan_prompts
from pseudolabel.softmaps.reading import Reading, read_batch

__all__ = ["Explanation", "Pipeline", "before_crf", "label_map"]

logger = logging.getLogger(__name__)

# Latent pixels in one batch under batch_size=auto; a GPU starts high and halves when memory runs out.
CPU_BATCH_PIXELS = 16_384
GPU_BATCH_PIXELS = 64 * 4096
TEXT_CACHE_SIZE = 64


class Pipeline:
    """A diffusion model, cut after the last layer that is read, with the settings it is read with.

    Attributes:
        models: the model's parts.
        config: all settings.
        classes: phrases and background words; None where spans are given.
        cross_layers: layers whose cross-attention is read.
        self_layers: layers whose self-attention spreads the maps.

    """

    def __init__(self, models: Models, config: GenerateConfig, classes: ClassSet | None, cut: bool = True) -> None:
        """Find the layers the config names and, with `cut`, remove from the U-Net (in place) what runs after them."""
        self.models, self.config, self.classes = models, config, classes
        available = list_layers(models.unet)
        attention = config.attention
        self.cross_layers = resolve_layers(available, attention.cross_layers, "attention.cross_layers")
        self.self_layers: tuple[Layer, ...] = ()
        if config.affinity.kind != "none":
            self.self_layers = resolve_layers(available, attention.self_layers, "attention.self_layers")
            if not self.self_layers:
                raise ConfigError("--attention.self_layers is empty: name a layer, or use --affinity.kind=none")
        if cut:
            cut_unet(models.unet, self.cross_layers, self.self_layers)
        if config.run.compile:
            models.unet.forward = torch.compile(models.unet.forward)
        self._batch_pixels = CPU_BATCH_PIXELS if models.device.type == "cpu" else GPU_BATCH_PIXELS
        self._texts: dict[str, TextEmbedding] = {}

    @classmethod
    def load(cls, config: GenerateConfig, classes: ClassSet) -> "Pipeline":
        """Load the model a config names.

        Raises:
            ModelError: it cannot be loaded, or has no such layers.

        """
        device = pick_device(config.run.device)
        models = load_models(config.model, device, pick_dtype(config.run.dtype, device))
        return cls(models, config, classes)

    @classmethod
    def from_unet(cls, unet: Any, config: GenerateConfig, classes: ClassSet | None = None, **parts: Any) -> "Pipeline":
        """Wrap a U-Net that is in memory and leave it whole.

        Args:
            unet: a diffusers UNet2DConditionModel.
            config: all settings; those of the model and the run are not used.
            classes: needed where prompts are to be made.
            parts: other attributes of `Models`; without tokenizers and text encoders `explain` needs spans= and
                prompt_embeds=, without an image encoder latents=.

        """
        device = next(unet.parameters()).device
        return cls(Models(unet=unet, device=device, **parts), config, classes, cut=False)

    def fingerprint(self) -> dict[str, str]:
        """Return the model's id and a hash of its weights, for the store's header."""
        return {"id": self.models.id, "fingerprint": self.models.fingerprint or _hash_parameters(self.models.unet)}

    def frame(self, image_hw: tuple[int, int], scale: float = 1.0) -> Frame:
        """Return the size an image is resized and padded to; images of equal padded size share batches."""
        cell_px = self.models.cell_px
        side_px = self.config.resize.long_side_px or long_side(image_hw, self.models.native_px, cell_px)
        if scale != 1.0:
            side_px = max(1, round(side_px * scale / cell_px)) * cell_px
        return frame_image(image_hw, cell_px, side_px)

    def plan(self, labels: Sequence[int]) -> tuple[Prompt, ...]:
        """Return the sentences for an image's classes."""
        if self.classes is None or not self.models.tokenizers:
            raise ConfigError("This pipeline has no classes or no tokenizer to make prompts with; give spans=")
        tokenizer = self.models.tokenizers[0]
        return plan_prompts(labels, self.classes, self.config.prompt, tokenizer, self.models.window)

    @property
    def shares_batches(self) -> bool:
        """Whether passes of several images run in one batch: on a GPU."""
        return self.models.device.type != "cpu"

    @torch.inference_mode()
    def soft_maps(
        self, images: Sequence[np.ndarray], labels: Sequence[tuple[int, ...]], ids: Sequence[str]
    ) -> list[SoftMaps]:
        """Return the class maps of some images (steps prompt to fuse); images of one padded size are quickest together.

        Args:
            images: uint8 RGB images (height, width, 3) of any sizes.
            labels: class ids of each image, ascending, at least one.
            ids: id of each image; its noise depends on it.

        """
        frames = [self.frame(image.shape[:2]) for image in images]
        passes: list[Pass] = []
        totals: list[Tensor] = []
        for index, (image, image_labels, image_id) in enumerate(zip(images, labels, ids, strict=True)):
            prompts = self.plan(image_labels)
            for scale, mirrored in product(self.config.diffusion.scales, self._mirrorings()):
                passes += self._passes(index, image, self.frame(image.shape[:2], scale), mirrored, prompts, image_id)
            grid_hw = common_grid(self.cross_layers, self.self_layers, self._latent_hw(frames[index]))
            totals.append(torch.zeros(len(image_labels), *grid_hw, device=self.models.device))
        for batch, reading in self._read_all(passes):
            for item, maps in zip(batch, reading.refined, strict=True):
                total, target = totals[item.image], frames[item.image]
                columns = maps[: len(item.prompt.rows)]
                grid_hw = (total.shape[1], total.shape[2])
                total[list(item.prompt.rows)] += regrid(columns, item.frame, item.mirrored, target, grid_hw)
        count = self._draws_a_class()
        return [
            SoftMaps(_to_half(total / count), tuple(row), False, frame.padded_hw, frame.resized_hw, frame.image_hw)
            for total, row, frame in zip(totals, labels, frames, strict=True)
        ]

    @torch.inference_mode()
    def explain(
        self,
        image: UInt8[np.ndarray, "height width 3"] | None,
        labels: tuple[int, ...],
        *,
        image_id: str = "",
        latents: Tensor | None = None,
        noise: Tensor | None = None,
        timestep: int | None = None,
        prompt_embeds: Tensor | TextEmbedding | None = None,
        spans: Sequence[Sequence[int]] | None = None,
    ) -> Explanation:
        """Make the mask of one image and return every quantity on the way, by name.

        What is given is used in place of what would be computed, so that a bare U-Net will do. Flips and scales of the
        config are not used: the maps are those of the image as it is.

        Args:
            image: RGB image; None needs `latents`, and then there is no refinement.
            labels: class ids, ascending.
            image_id: the noise depends on it.
            latents: scaled latent (channels, height, width), with or without a leading 1.
            noise: noise of each draw (draws, channels, height, width), or of one.
            timestep: used in place of the config's timesteps.
            prompt_embeds: embedding of the sentence (1, tokens, dim), or one with SDXL's pooled part.
            spans: token positions of each label, position 0 being the start token.

        """
        config = self.config
        # prompt
        prompts = self.plan(labels) if spans is None else given_prompts(spans, prompt_embeds)
        texts = [self._text(prompt.text) if prompt_embeds is None else given_text(prompt_embeds) for prompt in prompts]
        # diffusion
        frame = self._frame_of(image, latents)
        clean = self._latent(image, frame, image_id) if latents is None else latents.reshape(latents.shape[-3:])
        clean = clean.to(self.models.device, torch.float32)
        drawn = self._noise(clean, image_id) if noise is None else noise.reshape(-1, *clean.shape)
        timesteps = config.diffusion.timesteps if timestep is None else (timestep,)
        steps = [(step, self._noised(clean, draw, step)) for step in timesteps for draw in drawn]
        # attention and affinity
        readings = [
            self._read(
                [Pass(0, prompt, frame, noised, step) for step, noised in steps], stack_texts([text] * len(steps))
            )
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        # fuse
        result = assemble(prompts, readings, tuple(labels), frame, config.fuse)
        result = replace(result, latents=clean, noise=drawn, timesteps=tuple(step for step, _ in steps))
        if image is None:
            return result
        # crf
        marginals = refine_scores(image, image_scores(result.soft, config.fuse), config.crf)
        # labelmap
        mask, argmax = mask_from_marginals(marginals, result.soft.labels, config.ignore_below)
        return replace(result, marginals=marginals, mask=mask, argmax=argmax)

    def _mirrorings(self) -> tuple[bool, ...]:
        return (False, True) if self.config.diffusion.flip else (False,)

    def _draws_a_class(self) -> int:
        """Return over how many passes each class's map is averaged."""
        diffusion = self.config.diffusion
        return diffusion.draws * len(diffusion.timesteps) * len(diffusion.scales) * len(self._mirrorings())

    def _latent_hw(self, frame: Frame) -> tuple[int, int]:
        factor = self.models.vae_factor
        return frame.padded_hw[0] // factor, frame.padded_hw[1] // factor

    def _frame_of(self, image: np.ndarray | None, latents: Tensor | None) -> Frame:
        """Return an image's frame; given latents of another size are taken to show all of the image, unpadded."""
        if latents is None:
            if image is None:
                raise ConfigError("explain needs an image, or latents=")
            return self.frame(image.shape[:2])
        latent_hw = (latents.shape[-2], latents.shape[-1])
        if image is not None and self._latent_hw(self.frame(image.shape[:2])) == latent_hw:
            return self.frame(image.shape[:2])
        return frame_latent(latent_hw, self.models.vae_factor, None if image is None else image.shape[:2])

    def _latent(self, image: np.ndarray | None, frame: Frame, image_id: str, mirrored: bool = False) -> Tensor:
        """Encode an image; one at a time, so that its latent does not depend on its neighbours in a batch."""
        assert image is not None
        pixels = resize_and_pad(np.ascontiguousarray(image[:, ::-1]) if mirrored else image, frame)
        generator = seeded_generator(self.config.diffusion.seed, image_id, "posterior")
        return encode_image(self.models, pixels, self.config.diffusion.posterior, generator)

    def _noise(self, latent: Tensor, image_id: str) -> Float[Tensor, "draws channels height width"]:
        channels, height, width = latent.shape
        diffusion = self.config.diffusion
        shape = (channels, height, width)
        draws = [draw_noise(shape, diffusion.seed, image_id, draw) for draw in range(diffusion.draws)]
        return torch.stack(draws)

    def _noised(self, latent: Tensor, noise: Tensor, timestep: int) -> Tensor:
        return add_noise(latent, noise.to(latent.device, latent.dtype), float(self.models.alphas_cumprod[timestep]))

    def _passes(
        self, index: int, image: np.ndarray, frame: Frame, mirrored: bool, prompts: Sequence[Prompt], image_id: str
    ) -> Iterator[Pass]:
        """Yield all passes of one image at one scale, mirrored or not."""
        latent = self._latent(image, frame, image_id, mirrored)
        noise = self._noise(latent, image_id)
        for timestep, draw in product(self.config.diffusion.timesteps, noise):
            noised = self._noised(latent, draw, timestep)
            for prompt in prompts:
                yield Pass(index, prompt, frame, noised, timestep, mirrored)

    def _text(self, text: str) -> TextEmbedding:
        """Embed a sentence, alone so that it does not depend on others; recent ones are kept."""
        if text not in self._texts:
            if len(self._texts) >= TEXT_CACHE_SIZE:
                self._texts.pop(next(iter(self._texts)))
            self._texts[text] = encode_text(self.models, text)
        return self._texts[text]

    def _read_all(self, passes: Sequence[Pass]) -> Iterator[tuple[list[Pass], Reading]]:
        """Read passes in batches of equal size; under batch_size=auto batches are halved while GPU memory runs out.

        A matrix product's last bits depend on the size of the batch. On a CPU, where larger batches gain little, images
        therefore do not share one: an image's maps are the same bits whatever it is processed with.
        """
        groups: dict[tuple[int, torch.Size], list[Pass]] = {}
        for item in passes:
            groups.setdefault((0 if self.shares_batches else item.image, item.noised.shape), []).append(item)
        for (_, size), group in groups.items():
            start = 0
            while start < len(group):
                batch = group[start : start + self._batch_size(size[1] * size[2])]
                try:
                    reading = self._read(batch, stack_texts([self._text(item.prompt.text) for item in batch]))
                except torch.cuda.OutOfMemoryError as error:
                    self._halve_batch(len(batch), error)
                    continue
                yield batch, reading
                start += len(batch)

    def _batch_size(self, latent_pixels: int) -> int:
        chosen = self.config.run.batch_size
        if chosen == "auto" or not self.shares_batches:
            return max(1, self._batch_pixels // latent_pixels)
        return chosen

    def _halve_batch(self, tried: int, error: Exception) -> None:
        """Use smaller batches from now on, or say that it cannot be done."""
        if self.config.run.batch_size != "auto" or tried == 1:
            raise ConfigError(
                f"The GPU's memory does not hold {tried} passes at once; use --run.batch_size=auto or a lower number, "
                "or a smaller --resize.long_side_px"
            ) from error
        self._batch_pixels //= 2
        torch.cuda.empty_cache()
        logger.info("%d passes did not fit into GPU memory; trying half as many", tried)

    def _read(self, passes: Sequence[Pass], text: TextEmbedding) -> Reading:
        return read_batch(self.models, self.cross_layers, self.self_layers, self.config, passes, text)


def stack_texts(texts: Sequence[TextEmbedding]) -> TextEmbedding:
    """Put embeddings of single sentences into one batch."""
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return TextEmbedding(torch.cat([text.tokens for text in texts]), torch.cat(pooled) if pooled else None)


def _to_half(maps: Float[Tensor, "classes height width"]) -> np.ndarray:
    """Return maps as the store keeps them."""
    return maps.clamp(0, 1).cpu().numpy().astype(np.float16)


def _hash_parameters(model: Any) -> str:
    """Return a hash of a model's weights in memory: names, shapes, and the first values of each."""
    digest = blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()
