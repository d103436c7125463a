"""How well the attention of a text-to-image model names what it looks at, on drawn scenes with masks.

Masks are read here and nowhere in the training; see `class_accuracy`.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

import data
from data.demo.world import Scene, write_world
from data.images import read_image
from data.masks import read_truth
from data.readers.layout import open_samples

CLASSES = Path(data.__file__).parent / "demo" / "classes.yaml"


def class_accuracy(
    maps: Float[np.ndarray, "classes height width"], labels: tuple[int, ...], mask: np.ndarray
) -> tuple[int, int]:
    """Return on how many object pixels the right class's map is the highest, and how many object pixels there are.

    Each map is divided by its mean first. Only scenes with two or more classes say anything; chance is about 0.45 on
    `val`.

    Args:
        maps: class maps at the image's size, in the order of `labels`.
        labels: class ids of the scene.
        mask: class id of each pixel, 0 for background.

    """
    relative = maps / np.maximum(maps.mean((1, 2), keepdims=True), 1e-12)
    objects = np.isin(mask, labels)
    right = np.asarray(labels)[relative.argmax(0)] == mask
    return int((right & objects).sum()), int(objects.sum())


@contextmanager
def recorded_cross_attention(unet: Any) -> Iterator[dict[str, Tensor]]:
    """Within the context a forward pass leaves attention by layer: (batch, cells, tokens), the mean over heads."""
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
    """Return where the tokens of a phrase stand in a prompt, for the first time.

    Raises:
        ValueError: they are not in it.

    """
    for start in range(len(ids) - len(phrase) + 1):
        if ids[start : start + len(phrase)] == phrase:
            return list(range(start, start + len(phrase)))
    raise ValueError(f"tokens {phrase} are not in the prompt {ids}")


class ClassAccuracy:
    """Class accuracy of every cross-attention layer on a fixed set of scenes: the figure that is logged in training."""

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
    def by_layer(self, unet: Any, text_encoder: Any, class_word: Callable[[int], str]) -> dict[str, float]:
        """Return the accuracy of every layer by name, first layer first, at one timestep and one noise draw."""
        from pseudolabel.demo.training.model_parts import build_scheduler

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


def evaluate_model(model: Path, config_file: Path, scenes: int = 200) -> dict[str, Any]:
    """Measure a model on `val` with stage one as a user runs it.

    Args:
        model: Directory in diffusers' layout.
        config_file: Settings of stage one, layers and timestep among them, calibrated on other scenes than these.
        scenes: How many.

    Returns:
        `class_accuracy` of the mean map over the config's cross-attention layers, before any affinity, on scenes with
        two or more classes; `miou_before_crf` and `miou_after_crf`, each of one confusion matrix over all scenes and
        21 classes, without the ignore band.

    """
    from data.scoring import confusion_matrix, score
    from pseudolabel.config import mask_config
    from pseudolabel.masks.fuse import before_crf
    from pseudolabel.masks.labelmap import label_map
    from pseudolabel.pipeline import Pipeline

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "world"
        write_world(root, train=0, val=scenes, personal=0)
        config = read_config(config_file, model, root)
        samples = open_samples(config.data)
        pipeline, masks = Pipeline.load(config, samples.classes), mask_config(config)
        counts, before, after = np.zeros(2, int), np.zeros((21, 21), np.int64), np.zeros((21, 21), np.int64)
        for sample in tqdm(samples.samples, "evaluate", unit="scene"):
            image = read_image(sample.image_path)
            truth = read_truth(sample.truth_path or root, image.shape[:2])
            if len(sample.labels) > 1:
                found = pipeline.explain(image, sample.labels, image_id=sample.id)
                counts += class_accuracy(mean_map(found.cross.values(), truth.shape), sample.labels, truth)
            [soft] = pipeline.soft_maps([image], [sample.labels], [sample.id])  # every image size, as `generate` does
            before += confusion_matrix(truth, before_crf(soft, masks.fuse), 21)
            after += confusion_matrix(truth, label_map(image, soft, masks)[1], 21)
    return {
        "scenes": scenes,
        "class_accuracy": round(float(counts[0] / counts[1]), 4),
        "miou_before_crf": round(float(score(before).miou), 4),
        "miou_after_crf": round(float(score(after).miou), 4),
        "settings": {"timesteps": config.diffusion.timesteps, "cross_layers": config.attention.cross_layers},
    }


def mean_map(layers: Iterable[Tensor], size_hw: tuple[int, ...]) -> Float[np.ndarray, "classes height width"]:
    """Return the mean over draws and layers of (draws, classes, h, w) maps, each bilinear to the image's size."""
    maps = [F.interpolate(layer.float().mean(0)[None], size_hw, mode="bilinear")[0] for layer in layers]
    return torch.stack(maps).mean(0).cpu().numpy()


def read_config(config_file: Path, model: Path, root: Path, vae: Path | None = None) -> Any:
    """Return stage one's settings from a YAML file, for a model (with another image encoder, if given) and a world."""
    from jsonargparse import ArgumentParser

    from pseudolabel.config import GenerateConfig

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(GenerateConfig, "settings")
    text = yaml.safe_load(config_file.read_text(encoding="utf-8")) or {}
    text["data"] = text.get("data", {}) | {"root": str(root), "split": "val", "classes": str(CLASSES)}
    text["model"] = text.get("model", {}) | {"id": str(model), "vae": None if vae is None else str(vae)}
    return parser.instantiate(parser.parse_object({"settings": text})).settings
