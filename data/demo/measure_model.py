"""Measures how well the attention of a text-to-image model names what it looks at, on drawn scenes with masks.

Masks are read here and nowhere in the training; see `class_accuracy`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from data.demo.world import Scene


def class_accuracy(
    maps: Float[np.ndarray, "classes height width"], labels: tuple[int, ...], mask: np.ndarray
) -> tuple[int, int]:
    """Object pixels whose highest class map, each divided by its mean, is that of the right class: (right, all).

    `maps` are at the image's size, in the order of `labels`; `mask` holds class ids, 0 for background. Only scenes
    with two or more classes say anything; chance is about 0.45 on `val`.
    """
    relative = maps / np.maximum(maps.mean((1, 2), keepdims=True), 1e-12)
    objects = np.isin(mask, labels)
    right = np.asarray(labels)[relative.argmax(0)] == mask
    return int((right & objects).sum()), int(objects.sum())


@contextmanager
def recorded_cross_attention(unet: Any) -> Iterator[dict[str, Tensor]]:
    """Within the context, a forward pass leaves (batch, positions, tokens), the mean over heads, for every layer."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    found: dict[str, Tensor] = {}
    processors = dict(unet.attn_processors)

    def recorder(name: str, attention: Any) -> Callable[..., Tensor]:
        def scores(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
            probabilities = Attention.get_attention_scores(attention, query, key, mask)
            found[name] = probabilities.unflatten(0, (-1, attention.heads)).float().mean(1)
            return probabilities

        return scores

    layers = {name: module for name, module in unet.named_modules() if name.endswith("attn2")}
    for name, layer in layers.items():
        layer.set_processor(AttnProcessor())
        layer.get_attention_scores = recorder(name, layer)
    try:
        yield found
    finally:
        for layer in layers.values():
            del layer.get_attention_scores
        unet.set_attn_processor(processors)


def phrase_positions(ids: list[int], phrase: list[int]) -> list[int]:
    """Where the tokens of a phrase stand in a prompt (first occurrence)."""
    for start in range(len(ids) - len(phrase) + 1):
        if ids[start : start + len(phrase)] == phrase:
            return list(range(start, start + len(phrase)))
    raise ValueError(f"tokens {phrase} are not in the prompt {ids}")


class Localisation:
    """Class accuracy of the best single layer on a fixed set of `val` scenes: the figure printed while training."""

    def __init__(
        self, vae: Any, tokenizer: Any, device: torch.device, scenes: Iterable[Scene], timestep: int = 200
    ) -> None:
        chosen = [scene for scene in scenes if len(scene.labels) > 1]
        self.device, self.timestep = device, timestep
        self.labels = [scene.labels for scene in chosen]
        self.masks = [scene.mask for scene in chosen]
        pixels = torch.from_numpy(np.stack([scene.rgb for scene in chosen])).permute(0, 3, 1, 2)
        self.pixels, self.vae, self.tokenizer = pixels.float() / 127.5 - 1, vae, tokenizer

    @torch.no_grad()
    def class_accuracy(self, unet: Any, text_encoder: Any, class_word: Callable[[int], str]) -> dict[str, float]:
        """Accuracy of every cross-attention layer, at one timestep and one noise draw."""
        from data.demo.train_model import build_scheduler

        words = [[class_word(label) for label in labels] for labels in self.labels]
        prompts = ["a photo including " + ", ".join(w[:-1]) + ", and " + w[-1] + "." for w in words]
        ids = self.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
        text = text_encoder(ids.to(self.device)).last_hidden_state
        latents = self.vae.encode(self.pixels.to(self.device)).latent_dist.mode() * self.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        timesteps = torch.full((len(latents),), self.timestep, device=self.device)
        with recorded_cross_attention(unet) as found:
            unet(build_scheduler().add_noise(latents, noise, timesteps), timesteps, text)
        result = {}
        for name, attention in found.items():
            side = math.isqrt(attention.shape[1])  # the drawn scenes are square
            counts = np.zeros(2, int)
            for i, labels in enumerate(self.labels):
                maps = []
                for word in words[i]:
                    where = phrase_positions(ids[i].tolist(), self.tokenizer(word).input_ids[1:-1])
                    maps.append(attention[i][:, where].mean(-1).unflatten(0, (-1, side)))
                image = F.interpolate(torch.stack(maps)[None], self.masks[i].shape, mode="bilinear")[0].cpu().numpy()
                counts += class_accuracy(image, labels, self.masks[i])
            result[name] = round(float(counts[0] / counts[1]), 4)
        return result


def evaluate_model(model: Path) -> None:
    """Not yet."""
    raise NotImplementedError
