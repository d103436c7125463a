"""The diffusion model in training, and what its trainings do with scenes and captions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from pseudolabel.demo.training.captions import caption
from pseudolabel.demo.training.loop import warming_average
from pseudolabel.demo.training.model_parts import build_text_encoder, build_unet
from pseudolabel.demo.training.recipe import Recipe
from pseudolabel.demo.training.word_presence import record_queries
from pseudolabel.personalize.steps import restore, save_state


class Trained:
    """The diffusion model in training: weights, their running average, optimiser, and what has been spent."""

    def __init__(self, recipe: Recipe, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.unet = build_unet().to(device)
        if device.type == "cpu":  # the fused kernel's backward pass takes a third longer than plain products here
            self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = build_text_encoder(tokenizer).to(device)
        self.models = torch.nn.ModuleList([self.unet, self.text_encoder])
        self.average = torch.optim.swa_utils.AveragedModel(self.models, multi_avg_fn=warming_average(recipe.ema))
        self.queries = record_queries(self.unet)
        self.optimizer = torch.optim.AdamW(
            self.models.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step, self.steps, self.seconds = 0, recipe.steps + recipe.portrait_steps, 0.0

    def parts(self) -> dict[str, Any]:
        """Return what a checkpoint holds, by name."""
        return {"models": self.models, "average": self.average, "optimizer": self.optimizer}

    def save(self, work_dir: Path) -> None:
        """Write a checkpoint."""
        (work_dir / "progress.json").write_text(
            json.dumps({"seconds": self.seconds, "steps": self.steps}), encoding="utf-8"
        )
        save_state(work_dir / "diffusion_state.pt", self.step, **self.parts())

    def restore(self, work_dir: Path) -> None:
        """Go on from a checkpoint when there is one."""
        device = next(self.unet.parameters()).device
        self.step = restore(work_dir / "diffusion_state.pt", device, **self.parts())
        if self.step:
            saved = json.loads((work_dir / "progress.json").read_text(encoding="utf-8"))
            self.seconds, self.steps = saved["seconds"], saved["steps"]

    def averaged(self) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        """Return the averaged U-Net and text encoder: what is measured and shipped."""
        parts = list(self.average.module.children())
        return parts[0], parts[1]


def noise_and_velocity(
    latents: Float[Tensor, "batch channels height width"], kept: Float[Tensor, " batch"], generator: torch.Generator
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch channels height width"]]:
    """Return noised latents and the velocity to be predicted from them, v = sqrt(abar) eps - sqrt(1 - abar) z.

    Args:
        latents: z.
        kept: abar of each, the share of the signal's variance that is left.
        generator: of the noise eps.

    """
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    signal, sigma = kept.sqrt()[:, None, None, None], (1 - kept).sqrt()[:, None, None, None]
    return signal * latents + sigma * noise, signal * noise - sigma * latents


def captions_of(recipe: Recipe, step: int, labels: list[tuple[int, ...]], grounds: list[tuple[str, ...]]) -> list[str]:
    """Return a caption for each scene of a step's batch."""
    random = np.random.default_rng([recipe.seed, 2, step])
    return [caption(present, ground, random) for present, ground in zip(labels, grounds, strict=True)]


def padded_ids(tokenizer: CLIPTokenizer, texts: list[str], device: torch.device) -> Int[Tensor, "batch tokens"]:
    """Return token ids, padded to the text encoder's window as Stable Diffusion does."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
