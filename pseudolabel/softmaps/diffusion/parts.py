"""The parts of a diffusion model in memory, and the device they are on."""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.console import count
from data.errors import ConfigError
from pseudolabel.config import Dtype


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
class Parts:
    """The parts of one diffusion model, on one device.

    Attributes:
        unet: the denoiser.
        vae: image encoder; None where latents are given.
        tokenizers: one for each text encoder; none where embeddings are given.
        text_encoders: one, or two for SDXL.
        alphas_cumprod: abar_t of the training schedule.
        id: folder or hub id.
        fingerprint: hash of the weight files (`load.files_digest`).
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

    def identity(self) -> dict[str, str]:
        """Return the model's id and a hash of its weights, for a store's header."""
        return {"id": self.id, "fingerprint": self.fingerprint or parameters_digest(self.unet)}


def parameters_digest(model: Any) -> str:
    """Return a hash of a model's weights in memory: names, shapes, and the first values of each."""
    digest = blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def scaled_linear_schedule(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Float[Tensor, "steps"]:
    """Return abar_t of Stable Diffusion's schedule: betas whose square roots grow linearly.

    >>> round(float(scaled_linear_schedule()[150]), 4)
    0.8278
    """
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, dim=0)


def pick_device(name: str, flag: str = "run.device") -> torch.device:
    """Return the device of that name; auto is the first GPU there is, else the CPU.

    Args:
        name: what the setting says.
        flag: the setting's name, for the error message.

    Raises:
        ConfigError: the machine has no such device.

    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--{flag} is {name!r}: it must be auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = count(torch.cuda.device_count(), "CUDA device")
        raise ConfigError(f"--{flag} is {name!r}, but this machine has {there}; use --{flag}=auto")
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


def window_size(tokenizer: Any, text_encoder: Any = None) -> int:
    """Return how many tokens the text encoder reads at once, start and end included (77 for CLIP)."""
    limits = [int(tokenizer.model_max_length)]
    if text_encoder is not None:
        limits.append(int(text_encoder.config.max_position_embeddings))
    return min(limits)
