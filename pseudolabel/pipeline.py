"""Stage one for images in memory: prompt, diffusion, attention, affinity, fuse, crf, labelmap. It does no I/O.

Source: arXiv 2309.04109. Every pass is one evaluation of the conditional model; the denoiser is cut after the last
layer that is read.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data.classes import ClassSet
from data.errors import ConfigError, ModelError
from data.store.softmaps import Frame, SoftMaps
from pseudolabel.config import GenerateConfig, mask_config
from pseudolabel.explain import Explanation, Readings, assemble, given_prompts, given_text
from pseudolabel.masks.labelmap import decided, image_marginals
from pseudolabel.masks.working import shrunk_to, working_size
from pseudolabel.softmaps.chosen import choose_layers
from pseudolabel.softmaps.diffusion.compiling import compiled
from pseudolabel.softmaps.diffusion.families import cut_denoiser, family_in_memory, list_layers
from pseudolabel.softmaps.diffusion.load import load_model
from pseudolabel.softmaps.diffusion.parts import Parts, TextEmbedding
from pseudolabel.softmaps.diffusion.placing import place
from pseudolabel.softmaps.grids import common_grid
from pseudolabel.softmaps.means import mean_maps, to_soft_maps
from pseudolabel.softmaps.passes import Pass, Reader
from pseudolabel.softmaps.prompt import Prompt
from pseudolabel.softmaps.reading import Reading, number_fault, read_batch
from pseudolabel.softmaps.shares import AttentionShares, PhraseMaps

Found = TypeVar("Found")


class Pipeline:
    """A diffusion model, cut after the last layer that is read, with the settings it is read with.

    Attributes:
        parts: the model.
        config: all settings.
        reader: makes passes of images and runs them in batches.
        cross_layers: layers whose cross-attention is read; this and what follows as in `ChosenLayers`.
        naming_layers: layers whose cross-attention tells classes apart.
        self_layers: layers whose self-attention spreads the maps.
        reference: the layer that others are weighed by.

    """

    def __init__(self, parts: Parts, config: GenerateConfig, classes: ClassSet | None, cut: bool = True) -> None:
        """Find the layers the config names and, with `cut`, remove from the model (in place) what runs after them.

        Args:
            parts: the model.
            config: all settings.
            classes: phrases and background words; None where spans are given.
            cut: False leaves the model whole, so that other pipelines can read it.

        Raises:
            ConfigError: no layers to spread the maps by; blocks that come and go are to be compiled.
            ModelError: a layer that the model does not have.

        """
        self.parts, self.config = parts, config
        self.reader = Reader(parts, classes, config.prompt, config.diffusion, config.resize, config.run)
        chosen = choose_layers(list_layers(parts), config.attention, config.affinity)
        self.cross_layers, self.naming_layers, self.self_layers = chosen.cross, chosen.naming, chosen.cells
        self.reference = chosen.reference
        if cut:
            reference = () if self.reference is None else (self.reference,)
            cut_denoiser(parts, (*self.cross_layers, *self.naming_layers, *reference), self.self_layers)
        if config.run.compile and config.model.offload:
            raise ConfigError("--model.offload and --run.compile do not go together: leave one out")
        if config.run.compile:
            parts.denoiser.forward = compiled(parts.denoiser.forward)

    @classmethod
    def load(cls, config: GenerateConfig, classes: ClassSet | None, cut: bool = True) -> "Pipeline":
        """Load the model a config names; the arguments are those of `Pipeline`.

        Raises:
            ModelError: it cannot be loaded, or has no such layers.

        """
        parts = load_model(config.model, config.run, placed=False)
        pipeline = cls(parts, config, classes, cut)
        place(parts, config.model)  # what has been cut is never sent there
        return pipeline

    @classmethod
    def from_unet(cls, unet: Any, config: GenerateConfig, classes: ClassSet | None = None, **parts: Any) -> "Pipeline":
        """Wrap a U-Net that is in memory and leave it whole.

        Args:
            unet: a diffusers UNet2DConditionModel.
            config: all settings; those of the model and the run are not used.
            classes: needed where prompts are to be made.
            parts: other attributes of `Parts`; without tokenizers and text encoders `explain` needs spans= and
                prompt_embeds=, without an image encoder latents=.

        """
        device = next(unet.parameters()).device
        loaded = Parts(denoiser=unet, device=device, family=family_in_memory(unet), **parts)
        return cls(loaded, config, classes, cut=False)

    @torch.inference_mode()
    def soft_maps(
        self, images: Sequence[np.ndarray], labels: Sequence[tuple[int, ...]], ids: Sequence[str]
    ) -> list[SoftMaps]:
        """Return the class maps of some images (steps prompt to fuse); images of one padded size are quickest together.

        Args:
            images: uint8 RGB images (height, width, 3) of any sizes.
            labels: class ids of each image, ascending, at least one.
            ids: id of each image; its noise depends on it.

        Raises:
            ModelError: NaN or infinite values; the message names the image, the model and its number format.

        """
        found = self._class_maps(images, labels, ids, lambda soft, _: soft)
        for each in found:
            if isinstance(each, ModelError):
                raise each
        return [each for each in found if isinstance(each, SoftMaps)]

    @torch.inference_mode()
    def maps_and_shares_or_faults(
        self, images: Sequence[np.ndarray], labels: Sequence[tuple[int, ...]], ids: Sequence[str]
    ) -> list[PhraseMaps | ModelError]:
        """Return as `soft_maps`, with how much of the attention each label's tokens have.

        In the place of an image whose values are not finite stands the error, so that it does not spoil its batch.
        """
        frames = [self.reader.frame((image.shape[0], image.shape[1])) for image in images]
        shares = AttentionShares(frames, [self._grid(frame) for frame in frames], [len(row) for row in labels])
        return self._class_maps(images, labels, ids, lambda soft, i: PhraseMaps(soft, *shares.of(i)), shares.add)

    def _class_maps(
        self,
        images: Sequence[np.ndarray],
        labels: Sequence[tuple[int, ...]],
        ids: Sequence[str],
        finished: Callable[[SoftMaps, int], Found],
        watch: Callable[[Sequence[Pass], Reading], None] | None = None,
    ) -> list[Found | ModelError]:
        """Return what `finished` makes of each image's soft maps and its position, or the error in its place."""
        plans, counts = [self.reader.plan(row) for row in labels], [len(row) for row in labels]
        passes, frames = self._passes(images, plans, ids)
        maps = self._mean_maps(passes, plans, counts, frames, watch, attention=watch is not None)
        return [
            number_fault(self.parts, image_id, [each])
            or finished(to_soft_maps(each, row, frame, self.reads_words), index)
            for index, (image_id, each, row, frame) in enumerate(zip(ids, maps, labels, frames, strict=True))
        ]

    @torch.inference_mode()
    def phrase_maps(
        self,
        images: Sequence[np.ndarray],
        plans: Sequence[Sequence[Prompt]],
        ids: Sequence[str],
        watch: Callable[[int, int], None] | None = None,
        independent: bool = False,
    ) -> list[PhraseMaps]:
        """Return the maps of phrases, each image's in sentences of its own, and how much attention they draw.

        The pipeline needs no classes for it.

        Args:
            images: uint8 RGB images (height, width, 3) of any sizes.
            plans: sentences of each image; their `Prompt.rows` number the image's phrases, none left out.
            ids: id of each image; its noise depends on it.
            watch: is called after every batch with the number of passes that are done and that there are; what it
                raises ends the work.
            independent: phrases do not compete for a cell: the layers that tell classes apart are not asked.

        """
        passes, frames = self._passes(images, plans, ids)
        counts = [1 + max(row for prompt in plan for row in prompt.rows) for plan in plans]
        shares = AttentionShares(frames, [self._grid(frame) for frame in frames], counts)
        done = 0

        def seen(batch: Sequence[Pass], reading: Reading) -> None:
            nonlocal done
            shares.add(batch, reading)
            done += len(batch)
            if watch is not None:
                watch(done, len(passes))

        maps = self._mean_maps(passes, plans, counts, frames, seen, attention=True, compete=not independent)
        return [
            PhraseMaps(to_soft_maps(each, tuple(range(1, count + 1)), frame, self.reads_words), *shares.of(index))
            for index, (each, count, frame) in enumerate(zip(maps, counts, frames, strict=True))
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

        Raises:
            ModelError: NaN or infinite values.

        """
        reader, masks = self.reader, mask_config(self.config)
        image_hw = None if image is None else (image.shape[0], image.shape[1])
        if image is not None and image_hw is not None:
            image = shrunk_to(image, working_size(image_hw, masks.crf))
        # prompt
        prompts = reader.plan(labels) if spans is None else given_prompts(spans)
        texts = [reader.text(prompt.text) if prompt_embeds is None else given_text(prompt_embeds) for prompt in prompts]
        # diffusion
        frame, clean = self._latent(image, latents, image_id)
        frame = replace(frame, image_hw=image_hw or frame.image_hw)
        drawn = reader.noise(clean, image_id) if noise is None else noise.reshape(-1, *clean.shape)
        timesteps = None if timestep is None else (timestep,)
        passes = list(reader.noised_passes(0, frame, clean, drawn, prompts, texts, timesteps))
        # attention, affinity and fuse
        kept: Readings = []
        [maps] = self._mean_maps(passes, [prompts], [len(labels)], [frame], lambda *found: kept.append(found))
        fault = number_fault(self.parts, image_id, [maps])
        if fault is not None:
            raise fault
        soft = to_soft_maps(maps, labels, frame, self.reads_words)
        result = assemble(prompts, kept, maps[: len(labels)], soft, frame, masks)
        steps = tuple(item.timestep for item in passes if item.prompt is prompts[0])
        result = replace(result, latents=clean, noise=drawn, timesteps=steps)
        if image is None:
            return result
        # crf
        device = str(self.parts.device)
        marginals = image_marginals(image, result.soft, masks, device)
        # labelmap
        found = decided(image, marginals, result.soft, masks, device)
        return replace(result, marginals=marginals, mask=found.mask, argmax=found.argmax)

    def _latent(
        self, image: UInt8[np.ndarray, "height width 3"] | None, latents: Tensor | None, image_id: str
    ) -> tuple[Frame, Float[Tensor, "channels height width"]]:
        """Return the frame and the latent of an image, or of the latent that is given in its place.

        Raises:
            ConfigError: neither of them is there.

        """
        image_hw = None if image is None else (image.shape[0], image.shape[1])
        frame = self.reader.frame_of(image_hw, None if latents is None else (latents.shape[-2], latents.shape[-1]))
        if latents is not None:
            clean = latents.reshape(latents.shape[-3:])
        else:
            assert image is not None
            clean = self.reader.latent(image, frame, image_id)
        return frame, clean.to(self.parts.device, torch.float32)

    def _passes(
        self, images: Sequence[np.ndarray], plans: Sequence[Sequence[Prompt]], ids: Sequence[str]
    ) -> tuple[list[Pass], list[Frame]]:
        """Return all passes of some images with their sentences, and the frame of each image."""
        self.reader.embed(prompt.text for plan in plans for prompt in plan)
        subjects = enumerate(zip(images, plans, ids, strict=True))
        passes = [item for index, subject in subjects for item in self.reader.passes(index, *subject)]
        return passes, [self.reader.frame((image.shape[0], image.shape[1])) for image in images]

    def _mean_maps(
        self,
        passes: Sequence[Pass],
        plans: Sequence[Sequence[Prompt]],
        n_labels: Sequence[int],
        frames: Sequence[Frame],
        watch: Callable[[Sequence[Pass], Reading], None] | None = None,
        attention: bool = False,
        compete: bool = True,
    ) -> list[Float[Tensor, "classes grid_h grid_w"]]:
        """Return each image's maps: attention and affinity of every pass, then their mean on the image's grid.

        Those of its background words follow, where they are read.

        Args:
            passes: of some images, in any order.
            plans: sentences of each image.
            n_labels: number of classes of each image.
            frames: frame of each image; its maps are on this frame's grid.
            watch: is called with every batch and what it showed.
            attention: whether `Reading.attention` is wanted.
            compete: whether the layers that tell classes apart are asked.

        """
        return mean_maps(
            self.reader.batches(passes, partial(self._read, attention=attention, compete=compete)),
            n_labels,
            [self._words(plan) for plan in plans],
            frames,
            [self._grid(frame) for frame in frames],
            self.parts.device,
            watch,
        )

    @property
    def reads_words(self) -> bool:
        """Whether background words have maps of their own, which compete with the classes'."""
        return self.config.fuse.background == "words"

    def _words(self, prompts: Sequence[Prompt]) -> dict[str, int]:
        """Number the background words of an image's sentences, each once; none where they are not read."""
        found = (word for prompt in prompts for word, _ in prompt.words) if self.reads_words else ()
        return {word: number for number, word in enumerate(dict.fromkeys(found))}

    def _grid(self, frame: Frame) -> tuple[int, int]:
        """Return the grid an image's maps are kept on."""
        return common_grid(self.cross_layers, self.self_layers, self.reader.latent_hw(frame))

    def _read(self, passes: Sequence[Pass], attention: bool = False, compete: bool = True) -> Reading:
        return read_batch(
            self.parts,
            self.cross_layers,
            self.self_layers,
            passes,
            settings=self.config.attention,
            valid_only=self.config.resize.valid_only,
            affinity=self.config.affinity,
            attention=attention,
            words=self.reads_words,
            reference=self.reference,
            naming_layers=self.naming_layers if compete else (),
        )
