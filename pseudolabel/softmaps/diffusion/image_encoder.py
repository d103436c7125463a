"""The image encoder: the model's own, or another in its place that makes the same latents for less.

Tiny autoencoders (TAESD and its kin) were trained to give the latents of one model's own encoder; reading attention
needs no more. Their latents are scaled already: their own scaling and shift say so.
"""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from data.errors import ModelError
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.fetch import add_samples, fetch, load_whole, loading, read_settings

KINDS = ("AutoencoderTiny", "AutoencoderKL")


def load_vae(config: ModelConfig, folder: Path, family: str, dtype: torch.dtype) -> Any:
    """Load the image encoder, from the model's folder or from where `--model.vae` says.

    The decoder, with which U-Nets alone draw here, is freed.

    Raises:
        ModelError: it is missing, cannot be read, or makes latents of another size than the model's own.

    """
    own = folder / "vae"
    if not own.is_dir():
        raise ModelError(f"{folder} has no folder vae: download the whole model again, or change --model.id")
    settings = read_settings(own / "config.json")
    if config.vae is None:
        vae = _from(own, "AutoencoderKLFlux2" if family == "flux2" else "AutoencoderKL", config.variant, dtype)
    elif family == "flux2":
        raise ModelError("--model.vae has no place in Flux.2, whose own encoder normalises its latents: leave it out")
    else:
        place = find_vae(config)
        found = read_settings(place / "config.json")
        name = found.get("_class_name")
        if name not in KINDS:
            raise ModelError(f"{place} holds a {name}: --model.vae takes {' or '.join(KINDS)}")
        vae = _from(place, str(name), None, dtype)
        _refuse_other_latents(place, vae, settings)
    if family != "unet":
        vae.decoder = None
        if hasattr(vae, "post_quant_conv"):
            vae.post_quant_conv = None
    return vae


def find_vae(config: ModelConfig) -> Path:
    """Return the folder that `--model.vae` names, or the hub's files of that id.

    Raises:
        ModelError: neither a folder with a config.json nor an id the hub has.

    """
    assert config.vae is not None
    place = config.vae_folder or fetch(
        config.vae, None, ["config.json", "diffusion_pytorch_model*.safetensors"], "model.vae"
    )
    if not (place / "config.json").is_file():
        raise ModelError(f"{place} has no config.json: --model.vae must name the folder of an AutoencoderTiny")
    return place


def vae_digest(config: ModelConfig, digest: str) -> str:
    """Return a model's fingerprint with the image encoder that is put in; the fingerprint itself without one."""
    if config.vae is None:
        return digest
    found = blake2b(digest.encode(), digest_size=16)
    for path in sorted(find_vae(config).glob("*.safetensors")):
        add_samples(found, f"vae/{path.name}", path)
    return found.hexdigest()


def _from(place: Path, name: str, variant: str | None, dtype: torch.dtype) -> Any:
    """Load one image encoder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.utils import logging as diffusers_logging

    kind = AutoencoderTiny if name == "AutoencoderTiny" else AutoencoderKL
    if name == "AutoencoderKLFlux2":
        with loading(place):  # a newer diffusers than the rest needs
            from diffusers import AutoencoderKLFlux2
        kind = AutoencoderKLFlux2
    shown = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # it warns of a setting that it has saved itself
    try:
        return load_whole(kind, place, variant=variant, torch_dtype=dtype, low_cpu_mem_usage=False)
    finally:
        diffusers_logging.set_verbosity(shown)


def _refuse_other_latents(place: Path, vae: Any, own: dict[str, Any]) -> None:
    """Refuse an encoder whose latents have other channels or another size than those of the model's own."""
    expected = (own.get("latent_channels", 4), len(own.get("block_out_channels", (64,))))
    if expected != (vae.config.latent_channels, len(vae.config.block_out_channels)):
        found = f"{vae.config.latent_channels} channels at 1/{2 ** (len(vae.config.block_out_channels) - 1)}"
        raise ModelError(
            f"{place} (--model.vae) makes latents of {found} of the image's side, the model reads {expected[0]} at "
            f"1/{2 ** (expected[1] - 1)}: name the encoder made for it, such as madebyollin/taesd (Stable Diffusion 1 "
            "and 2, PixArt-alpha), taesdxl (SDXL, PixArt-Sigma), taesd3 or taef1 (Flux)"
        )
