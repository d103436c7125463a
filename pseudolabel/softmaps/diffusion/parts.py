"""The parts of a diffusion model in memory, and the device they are on."""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.errors import ConfigError
from data.wording import count
from pseudolabel.config import Dtype
from pseudolabel.softmaps.tokens import TextWindow

# Classes of text encoders in transformers.
CLIP, PROJECTED, T5, QWEN = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "Qwen3ForCausalLM"


@dataclass
class TextEmbedding:
    """What the denoiser is conditioned on.

    Attributes:
        tokens: embedding of every token, encoders side by side (SDXL) or one behind the other (SD3).
        pooled: embedding of the whole sentence (SDXL, SD3, Flux), or None.
        mask: 1 for tokens that take part in attention, 0 for filler (PixArt); None where all do.

    """

    tokens: Float[Tensor, "batch tokens dim"]
    pooled: Float[Tensor, "batch pooled"] | None = None
    mask: Int[Tensor, "batch tokens"] | None = None


@dataclass
class Parts:
    """The parts of one diffusion model, on one device.

    Attributes:
        denoiser: a U-Net, or a transformer.
        vae: image encoder; None where latents are given.
        tokenizers: one for each text encoder; none where embeddings are given.
        text_encoders: one, or two for SDXL and Flux, or two or three for SD3.
        alphas_cumprod: abar_t of the training schedule; without meaning for models of flow matching.
        id: folder or hub id.
        fingerprint: hash of the weight files (`load.files_digest`).
        device: where the parts are.
        windows: of the sentence's tokens that the denoiser sees, by encoder; without any those of U-Nets, whose
            encoders stand side by side.
        family: the file of this folder that reads the denoiser (`families.FILES`).
        encoders_leave: the text encoders are on the device only while sentences are embedded (`placing`).
        offloaded: one block of the denoiser at a time is on the device.
        vae_in_stripes: the image encoder works through an image a few rows at a time (`stripes`).

    """

    denoiser: Any
    vae: Any = None
    tokenizers: tuple[Any, ...] = ()
    text_encoders: tuple[Any, ...] = ()
    alphas_cumprod: Tensor = field(default_factory=lambda: scaled_linear_schedule())
    id: str = "unnamed"
    fingerprint: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    windows: tuple[TextWindow, ...] = ()
    family: str = "unet"
    encoders_leave: bool = False
    offloaded: bool = False
    vae_in_stripes: bool = False

    def __post_init__(self) -> None:
        """Fill in the window of U-Nets."""
        if self.tokenizers and not self.windows:
            pairs = zip(self.tokenizers, self.text_encoders, strict=True)
            size = min(window_size(tokenizer, encoder) for tokenizer, encoder in pairs)
            self.windows = (TextWindow(self.tokenizers[0], size),)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the denoiser's weights."""
        return next(self.denoiser.parameters()).dtype

    @property
    def vae_factor(self) -> int:
        """Side of the image divided by the side of the latent; 8 where there is no image encoder."""
        return 8 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def window(self) -> int:
        """Tokens of the first window: a sentence must fit there; others may cut it off."""
        return self.windows[0].size

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the first window, by which sentences are planned."""
        return self.windows[0].tokenizer

    def identity(self) -> dict[str, str]:
        """Return the model's id and a hash of its weights, for a store's header."""
        return {"id": self.id, "fingerprint": self.fingerprint or parameters_digest(self.denoiser)}


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


def pick_dtype(name: Dtype, device: torch.device, family: str = "unet") -> torch.dtype:
    """Return the networks' number format.

    auto is, on a GPU, float16 for U-Nets and bfloat16 for transformers, which were trained in it: T5 and Flux have
    values that float16 does not hold. On a CPU it is for transformers bfloat16 where the CPU multiplies it
    (`multiplies_bfloat16`), in half of the memory; and float32 for U-Nets, whose stores would change otherwise, though
    there bfloat16 took 0.53 of the time of a pass and 0.51 of an image's encoding (an AMD EPYC with AVX-512 BF16;
    benchmarks/stage_one.md).
    """
    match name:
        case "auto" if device.type == "cuda":
            return torch.float16 if family == "unet" else torch.bfloat16
        case "auto":
            quick = device.type == "cpu" and family != "unet" and multiplies_bfloat16()
            return torch.bfloat16 if quick else torch.float32
        case "float32":
            return torch.float32
        case "float16":
            return torch.float16
        case "bfloat16":
            return torch.bfloat16


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16 (AVX-512 BF16 or AMX); False where torch cannot say."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in asked)


def window_size(tokenizer: Any, text_encoder: Any = None) -> int:
    """Return how many tokens the text encoder reads at once, start and end included (77 for CLIP)."""
    limits = [int(tokenizer.model_max_length)]
    if text_encoder is not None:
        limits.append(int(text_encoder.config.max_position_embeddings))
    return min(limits)
