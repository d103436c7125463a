"""From a folder or hub id to the parts that are needed, out of safetensors alone; no code of the model runs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import ModelError
from data.files import file_sha256
from pseudolabel.config import ADAPTERS, RunConfig
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion import unet
from pseudolabel.softmaps.diffusion.adapters import adapters_digest, apply_adapters
from pseudolabel.softmaps.diffusion.families import FILES, FamilyFile
from pseudolabel.softmaps.diffusion.fetch import (
    class_of,
    files_digest,
    find_model,
    load_whole,
    loading,
    read_family,
    read_index,
    read_settings,
    tokenizer_of,
    weight_parts,
)
from pseudolabel.softmaps.diffusion.image_encoder import load_vae, vae_digest
from pseudolabel.softmaps.diffusion.parts import (
    CLIP,
    PROJECTED,
    QWEN,
    T5,
    Parts,
    pick_device,
    pick_dtype,
    scaled_linear_schedule,
)
from pseudolabel.softmaps.diffusion.placing import place

CARD = "training.json"  # what our own trainings write beside a model


def load_model(config: ModelConfig, run: RunConfig, placed: bool = True) -> Parts:
    """Load a model for the device and in the number format of a run.

    Args:
        config: the model.
        run: device and number format.
        placed: False leaves the weights in main memory, to be cut before `placing.place` brings them to the device.

    Raises:
        ModelError: as `load_parts`.
        ConfigError: the machine has no such device.

    """
    device = pick_device(run.device)
    return load_parts(config, device, pick_dtype(run.dtype, device, read_family(config)), placed)


def load_parts(config: ModelConfig, device: torch.device, dtype: torch.dtype, placed: bool = True) -> Parts:
    """Load the parts of a model that are needed, from safetensors alone and without running code from the model.

    Raises:
        ModelError: no such model, a part is missing or unreadable, it is of a kind that cannot be read, or what is to
            be added to it (`adapters`) does not fit.

    """
    folder = find_model(config)
    index, family = read_index(folder)
    file = FILES[family]
    changed = [name for name in ADAPTERS if getattr(config, name)]
    if family != "unet" and changed:
        raise ModelError(
            f"--model.{changed[0]} can be put into U-Nets alone (Stable Diffusion 1.x, 2.x, SDXL); {folder} holds a "
            f"{index['_class_name']}: leave it out, or change --model.id"
        )
    verify_weights(folder)
    variant = config.variant
    vae = load_vae(config, folder, family, dtype)
    denoiser = _load_denoiser(folder, file, variant, dtype, vae)
    tokenizers, encoders = _load_text(folder, index, file.encoder_classes(config.t5), variant, dtype)
    if family == "unet":
        apply_adapters(config, denoiser, tokenizers, encoders)
    for part in (denoiser, vae, *encoders):
        part.eval().requires_grad_(False)
    alphas = scaled_linear_schedule() if file.FLOW else _load_schedule(folder)
    weights = tuple(part for part in weight_parts(family, config.t5) if part != "vae" or config.vae is None)
    fingerprint = vae_digest(config, adapters_digest(config, files_digest(folder, variant, weights)))
    windows = file.text_windows(tokenizers, encoders, denoiser, str(index.get("_class_name")))
    parts = Parts(denoiser, vae, tokenizers, encoders, alphas, config.id, fingerprint, device, windows, family)
    return place(parts, config) if placed else parts


def _load_denoiser(folder: Path, file: FamilyFile, variant: str | None, dtype: torch.dtype, vae: Any) -> Any:
    """Load the denoiser; with accelerate a transformer's weights go straight into place, not over a random copy.

    Raises:
        ModelError: missing or unreadable, or it reads more than a latent.

    """
    from diffusers.utils.import_utils import is_accelerate_available

    part = "unet" if file is unet else "transformer"
    with loading(folder / part):  # some classes need a newer diffusers than the rest
        kind = file.denoiser_class()
    sparing = file is not unet and is_accelerate_available()
    denoiser = _load_part(kind, folder, part, variant, torch_dtype=dtype, low_cpu_mem_usage=sparing)
    is_sdxl = getattr(denoiser.config, "addition_embed_type", None) == "text_time"
    if is_sdxl and getattr(vae.config, "force_upcast", False):
        vae.to(torch.float32)  # SDXL's image encoder overflows in half precision.
    read = denoiser.config.in_channels // file.PACKED**2
    if read != vae.config.latent_channels:
        raise ModelError(
            f"The {'U-Net' if file is unet else part} of {folder} reads {read} channels but a latent has "
            f"{vae.config.latent_channels} (inpainting and upscaling models do that); "
            "name a text-to-image model in --model.id"
        )
    return denoiser


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
    from transformers import (
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPTokenizerFast,
        Qwen2TokenizerFast,
        T5EncoderModel,
        T5TokenizerFast,
    )
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar over images is enough
    classes = {CLIP: CLIPTextModel, PROJECTED: CLIPTextModelWithProjection, T5: T5EncoderModel}
    if any(QWEN in allowed for allowed in wanted.values()):
        with loading(folder / "text_encoder"):  # a newer transformers than the rest needs
            from transformers import Qwen3ForCausalLM
        classes[QWEN] = Qwen3ForCausalLM
    tokenizers, encoders = [], []
    for part, allowed in wanted.items():
        name = class_of(index, part)
        if name is None and part == "text_encoder_2" and class_of(index, "unet"):
            continue
        if name not in allowed:
            has = f"no {part}" if name is None else f"a {part} of class {name}"
            raise ModelError(
                f"{folder} has {has}; it must be one of {', '.join(allowed)}: download the whole model, or change "
                "--model.id"
            )
        encoders.append(_load_part(classes[name], folder, part, variant, dtype=dtype))
        if name == T5:
            _need_sentencepiece(folder / tokenizer_of(part))
        # A fast tokenizer says where in the sentence a token is, which a second window's words are found by.
        clip = CLIPTokenizerFast if len(wanted) > 2 else CLIPTokenizer
        tokenizer = {T5: T5TokenizerFast, QWEN: Qwen2TokenizerFast}.get(str(name), clip)
        tokenizers.append(_load_part(tokenizer, folder, tokenizer_of(part), None))
    return tuple(tokenizers), tuple(encoders)


def _need_sentencepiece(folder: Path) -> None:
    """Refuse a tokenizer that is there as SentencePiece's file alone where what reads that file is not installed."""
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    if not (folder / "spiece.model").is_file() or (folder / "tokenizer.json").is_file():
        return
    there = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
    if missing := [name for name, found in there.items() if not found]:
        raise ModelError(
            f"{folder} holds a file of SentencePiece's, for which {' and '.join(missing)} must be installed: install "
            "the extra [large], or change --model.id"
        )


def _load_part(part_class: Any, folder: Path, part: str, variant: str | None, **kwargs: Any) -> Any:
    """Load one part of a model from its subfolder."""
    subfolder = folder / part
    if not subfolder.is_dir():
        raise ModelError(f"{folder} has no folder {part}: download the whole model again, or change --model.id")
    if (subfolder / "config.json").is_file():
        read_settings(subfolder / "config.json")
    if "tokenizer" not in part:
        return load_whole(part_class, subfolder, variant=variant, **kwargs)
    with loading(subfolder):
        return part_class.from_pretrained(str(subfolder), local_files_only=True, **kwargs)


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
