"""Sentences to pictures: the model draws, by diffusers' own pipeline, scheduler and guidance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from data.errors import ConfigError, ModelError
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.families import cell_px, native_px
from pseudolabel.softmaps.diffusion.fetch import find_model, read_settings
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.prompt import expand_placeholders
from pseudolabel.softmaps.tokens import token_ids


def painter_of(parts: Parts, model: ModelConfig) -> Any:
    """Return diffusers' text-to-image pipeline over parts that are in memory; its U-Net must not have been cut.

    Args:
        parts: with image encoder, tokenizers and text encoders.
        model: where they came from: its scheduler's configuration is read; the sampler is DDIM.

    Raises:
        ModelError: parts are missing, the folder has no scheduler, or it is a transformer.

    """
    if parts.family != "unet":
        raise ModelError(f"{parts.id} is a transformer: only U-Nets draw here (Stable Diffusion, SDXL); see --model.id")
    if parts.vae is None or not parts.text_encoders:
        raise ModelError("Drawing needs a whole model: U-Net, image decoder and text encoder; see --model.id")
    path = find_model(model) / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise ModelError(f"{path} is missing, which says how the model draws; download the model again")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    several = len(parts.text_encoders) > 1
    # The pipeline of Stable Diffusion sets these two itself, with a warning, whatever an older configuration says.
    fixed = {} if several else {"steps_offset": 1, "clip_sample": False}
    shared = {
        "vae": parts.vae,
        "text_encoder": parts.text_encoders[0],
        "tokenizer": parts.tokenizers[0],
        "unet": parts.denoiser,
        "scheduler": DDIMScheduler.from_config(read_settings(path), **fixed),
    }
    if several:
        second = {"text_encoder_2": parts.text_encoders[1], "tokenizer_2": parts.tokenizers[1]}
        painter = StableDiffusionXLPipeline(**shared, **second)
    else:
        without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        painter = StableDiffusionPipeline(**shared, **without)
    painter.set_progress_bar_config(disable=True)
    return painter


def check_drawing(
    parts: Parts, prompts: Sequence[str], steps: int, guidance: float, size: int | tuple[int, int] | None
) -> tuple[int, int]:
    """Return height and width of the pictures to be drawn.

    Args:
        parts: the model.
        prompts: what is to be drawn.
        steps: denoising steps.
        guidance: how far the sentence is exaggerated.
        size: side, or height and width, in pixels; the model's own if not given.

    Raises:
        ConfigError: a number that is out of range, an empty prompt, or one that is longer than the window.

    """
    if not 1 <= steps <= len(parts.alphas_cumprod):
        raise ConfigError(f"--steps is {steps}: it must be from 1 to {len(parts.alphas_cumprod)}; change --steps")
    if not 0 <= guidance <= 100:
        raise ConfigError(f"--guidance is {guidance}: it must be from 0 to 100, 1 being none; change --guidance")
    height, width = (size, size) if isinstance(size, int) else size or (native_px(parts), native_px(parts))
    cell = cell_px(parts)
    if min(height, width) < cell or height % cell or width % cell:
        raise ConfigError(
            f"--size is {height} x {width}: both must be multiples of {cell} px with this model, such as "
            f"{max(1, round(height / cell)) * cell} x {max(1, round(width / cell)) * cell}; change --size"
        )
    tokenizer = parts.tokenizers[0]
    for prompt in prompts:
        if not prompt.strip():
            raise ConfigError("--prompt is empty: it must say what to draw")
        length = len(token_ids(expand_placeholders(prompt, tokenizer), tokenizer))
        if length + 2 > parts.window:
            raise ConfigError(
                f"The prompt {prompt[:60]!r} has {length} tokens, the text encoder reads {parts.window - 2}: shorten it"
            )
    return height, width


@torch.inference_mode()
def draw(
    painter: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    size_hw: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "pictures height width 3"]:
    """Draw a picture of each prompt; it depends on its own prompt and seed alone (up to rounding within a batch).

    Args:
        painter: from `painter_of`, or any of diffusers' text-to-image pipelines.
        prompts: one a picture; learned placeholders are spelt out here.
        seeds: of the noise each starts from.
        steps: denoising steps.
        guidance: classifier-free guidance; 1 is none.
        size_hw: in pixels, multiples of the model's cell; the model's own if not given.

    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    sizes = {} if size_hw is None else {"height": size_hw[0], "width": size_hw[1]}
    spelt = [expand_placeholders(prompt, painter.tokenizer) for prompt in prompts]
    drawn = painter(
        spelt,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        output_type="np",
        **sizes,
    )
    return (drawn.images * 255).round().astype(np.uint8)
