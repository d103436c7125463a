"""The models that stage one reads at their true width, and which card takes which: computed, nothing is loaded.

    python -m benchmarks.backbones            # counts parameters and writes backbones.md

Parts are built without weights (torch's meta device) from the settings their publishers give (`source`: where each was
compared with them; many are copies that others have made public, as the originals are gated or have moved), the
denoiser is cut after the last layer that the shipped configuration reads, and the parameters are counted.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import HERE, load_config, machine, table, write_text
from data.config import DataConfig
from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.diffusion.families import cut_denoiser, family_in_memory, list_layers
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.layers import resolve_layers

CARDS_GB = (4, 6, 8, 12, 16, 24, 32, 48, 80)
BESIDE_GB = 2.0  # assumed for what a pass needs beside the weights, at the configurations' sizes; not measured
BYTES = 2  # float16 and bfloat16
CONFIGS = HERE.parent / "configs" / "pseudolabel"

_SD3 = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
_SDXL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


@dataclass(frozen=True)
class Backbone:
    """A published model.

    Attributes:
        title: what it is called.
        kind: diffusers' class of its denoiser.
        shape: settings of the denoiser.
        encoders: its text encoders that are read, of `TEXT_ENCODERS`.
        channels: of a latent.
        config: the configuration that says which layers are read; None: the defaults'.
        layer: read in the place of the configuration's.
        source: where its shape is from.
        licence: as its card names it.

    """

    title: str
    kind: str
    shape: dict[str, Any] = field(repr=False)
    encoders: tuple[str, ...] = ("clip_l",)
    channels: int = 4
    config: str | None = None
    layer: str | None = None
    source: str = ""
    licence: str = ""


@dataclass(frozen=True)
class TextEncoder:
    """A published text encoder.

    Attributes:
        title: what it is called.
        kind: transformers' class of it.
        shape: its settings.
        source: where they are from.

    """

    title: str
    kind: str
    shape: dict[str, Any] = field(repr=False)
    source: str = ""


# The models' windows are the defaults of diffusers 0.42.1's pipelines (max_sequence_length: SD3 256, Flux 512, of which
# schnell reads 256 at most (huggingface.co/docs/diffusers/v0.31.0/api/pipelines/flux), PixArt-alpha 120, -Sigma 300,
# Flux.2 klein 512 and hidden states 9, 18 and 27). The image encoder's widths:
# shivi/stable-diffusion-3-medium-diffusers/blob/main/vae/config.json.
_HUB = "https://huggingface.co"
_GITHUB = "https://github.com"
_FILE = "blob/main/transformer/config.json"
_STABILITY = "Stability AI Community License"
_SD3_LICENCE = f"{_STABILITY} (first the Non-Commercial Research Community License, which copies still name)"
_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP = {"vocab_size": 49408, "max_position_embeddings": 77}
TEXT_ENCODERS = {
    "clip_l": TextEncoder(
        "CLIP ViT-L/14 (Stable Diffusion 1.x, SDXL's first, Flux.1)", "CLIPTextModel",
        _CLIP | _L | {"hidden_act": "quick_gelu", "projection_dim": 768},
        f"{_GITHUB}/bigdataai-lab/stable-diffusion-v1-5/blob/main/text_encoder/config.json",
    ),
    "clip_l_projected": TextEncoder(
        "the same with its projection (SD3's first)", "CLIPTextModelWithProjection",
        _CLIP | _L | {"hidden_act": "quick_gelu", "projection_dim": 768},
        f"{_HUB}/ozgung/red-bowl-5-SD3/blob/main/text_encoder/config.json",
    ),
    "clip_h": TextEncoder(
        "OpenCLIP ViT-H/14 without its last layer (Stable Diffusion 2.x)", "CLIPTextModel",
        _CLIP | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
                 "hidden_act": "gelu", "projection_dim": 512},
        f"{_GITHUB}/jack-op11/stable-diffusion-2-1-base/blob/main/text_encoder/config.json",
    ),
    "clip_g": TextEncoder(
        "OpenCLIP ViT-bigG/14 with its projection (SDXL's and SD3's second)", "CLIPTextModelWithProjection",
        _CLIP | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
                 "hidden_act": "gelu", "projection_dim": 1280},
        f"{_HUB}/bhoomikagp/sd3-interior-model/blob/main/text_encoder_2/config.json",
    ),
    "t5": TextEncoder(
        "T5 v1.1 XXL (SD3's third, Flux.1's second, PixArt)", "T5EncoderModel",
        {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
         "feed_forward_proj": "gated-gelu"},
        f"{_HUB}/google/t5-v1_1-xxl/blob/main/config.json",
    ),
    "qwen": TextEncoder(
        "Qwen3-4B (Flux.2 klein 4B)", "Qwen3ForCausalLM",
        {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
         "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
        f"{_HUB}/zenlm/zen3-embedding/blob/main/config.json",
    ),
}  # fmt: skip
_SD3_ENCODERS = ("clip_l_projected", "clip_g")
BACKBONES = {
    "sd15": Backbone(
        "Stable Diffusion 1.5", "UNet2DConditionModel",
        {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
         "attention_head_dim": 8},
        source=f"{_HUB}/Norod78/sd15-muppet-blip/blob/main/unet/config.json", licence="CreativeML OpenRAIL-M",
    ),
    "sd21": Backbone(
        "Stable Diffusion 2.1 base", "UNet2DConditionModel",
        {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024,
         "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        ("clip_h",), source=f"{_GITHUB}/jack-op11/stable-diffusion-2-1-base/blob/main/unet/config.json",
        licence="CreativeML Open RAIL++-M",
    ),
    "sdxl": Backbone(
        "SDXL", "UNet2DConditionModel", _SDXL, ("clip_l", "clip_g"),
        source=f"{_HUB}/jffacevedo/flax_lcm_unet/blob/main/config.json", licence="CreativeML Open RAIL++-M",
    ),
    "pixart_sigma": Backbone(
        "PixArt-Sigma", "PixArtTransformer2DModel",
        {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
         "cross_attention_dim": 1152, "caption_channels": 4096, "sample_size": 128, "patch_size": 2,
         "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000, "use_additional_conditions": False},
        ("t5",), 4, "pixart_sigma_voc12",
        source=f"{_HUB}/PixArt-alpha/PixArt-Sigma-XL-2-1024-MS/commit/edfd592c29a4bd296030990d87808fc86c804859",
        licence="OpenRAIL++",
    ),
    "sd3": Backbone(
        "SD3 medium", "SD3Transformer2DModel", _SD3, _SD3_ENCODERS, 16, "sd3_voc12",
        source=f"{_HUB}/jatr96/trained-sd3/{_FILE}", licence=_SD3_LICENCE,
    ),
    "sd3_t5": Backbone(
        "SD3 medium, T5 too", "SD3Transformer2DModel", _SD3, (*_SD3_ENCODERS, "t5"), 16, "sd3_voc12",
        source=f"{_HUB}/jatr96/trained-sd3/{_FILE}", licence=_SD3_LICENCE,
    ),
    "sd35_medium": Backbone(
        "SD3.5 medium", "SD3Transformer2DModel",
        _SD3 | {"dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm", "pos_embed_max_size": 384},
        _SD3_ENCODERS, 16, "sd35_medium_voc12",
        source=f"{_HUB}/Prgckwb/trpfrog-sd3.5-medium/{_FILE}", licence=_STABILITY,
    ),
    "sd35_large": Backbone(
        "SD3.5 large, block:14", "SD3Transformer2DModel",
        _SD3 | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"},
        _SD3_ENCODERS, 16, "sd35_medium_voc12", "block:14",
        source=f"{_HUB}/frankjoshua/stable-diffusion-3.5-large/{_FILE}", licence=_STABILITY,
    ),
    "flux": Backbone(
        "Flux.1 schnell, dev", "FluxTransformer2DModel",
        {"patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
         "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
         "guidance_embeds": False},
        ("clip_l", "t5"), 16, "flux_schnell_voc12",
        source=f"{_HUB}/YuCollection/FLUX.1-schnell-Diffusers/{_FILE}",
        licence="schnell Apache-2.0, dev FLUX.1 [dev] Non-Commercial",
    ),
    "flux2_klein": Backbone(
        "Flux.2 klein 4B", "Flux2Transformer2DModel",
        {"patch_size": 1, "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "attention_head_dim": 128,
         "num_attention_heads": 24, "joint_attention_dim": 7680, "timestep_guidance_channels": 256, "mlp_ratio": 3.0,
         "axes_dims_rope": (32, 32, 32, 32), "rope_theta": 2000, "guidance_embeds": False},
        ("qwen",), 32, "flux2_klein_voc12",
        source="https://github.com/huggingface/diffusers/blob/main/scripts/convert_flux2_to_diffusers.py",
        licence="Apache-2.0 (9B: non-commercial)",
    ),
}  # fmt: skip


def build_denoiser(backbone: Backbone, **changes: Any) -> Any:
    """Return a model's denoiser; `changes` of its settings make it smaller; on torch's meta device without weights."""
    import diffusers

    return getattr(diffusers, backbone.kind)(**(backbone.shape | changes))


def build_text_encoder(name: str) -> nn.Module:
    """Return a text encoder of `TEXT_ENCODERS`."""
    import transformers

    encoder = TEXT_ENCODERS[name]
    kind = getattr(transformers, encoder.kind)
    built: nn.Module = kind(kind.config_class(**encoder.shape))
    return built


def build_image_encoder(channels: int, tiny: bool = False) -> Any:
    """Return an image encoder and decoder at the width that all of these models have, or TAESD's."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    if tiny:
        return AutoencoderTiny(latent_channels=channels)
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def settings_of(backbone: Backbone) -> GenerateConfig:
    """Return the settings a model is read with."""
    if backbone.config is None:
        return GenerateConfig(data=DataConfig(root=Path()))
    return load_config(CONFIGS / f"{backbone.config}.yaml")


def parameters(module: nn.Module) -> int:
    """Return how many values a module has: its parameters, and tables of positions that are stored with them."""
    values = {id(value): value.numel() for value in module.state_dict(keep_vars=True).values()}  # tied ones once
    return sum(values.values())


def cut(backbone: Backbone) -> tuple[int, int]:
    """Return a denoiser's parameters, whole and as far as its configuration reads."""
    config = settings_of(backbone)
    with torch.device("meta"):
        denoiser = build_denoiser(backbone)
        parts = Parts(denoiser=denoiser, family=family_in_memory(denoiser))
    whole = parameters(parts.denoiser)
    names = (config.attention.cross_layers, config.attention.self_layers)
    if backbone.shape is _SDXL:
        return whole, whole  # the default layers are Stable Diffusion 1.x's
    if backbone.layer is not None:
        names = ((backbone.layer,), (backbone.layer,))
    layers = [resolve_layers(list_layers(parts), each, "layers") for each in names]
    cut_denoiser(parts, *layers)
    return whole, parameters(parts.denoiser)


def rows() -> list[tuple[str, ...]]:
    """Return a row for each model."""
    found = []
    for backbone in BACKBONES.values():
        whole, read = cut(backbone)
        with torch.device("meta"):
            image = build_image_encoder(backbone.channels)
            text = sum(parameters(build_text_encoder(name)) for name in backbone.encoders)
        unet = backbone.kind == "UNet2DConditionModel"
        seen = parameters(image) if unet else parameters(image.encoder)
        gigabytes = [count * BYTES / 1e9 for count in (read, seen, text)]
        leaving = gigabytes[1] + (gigabytes[0] + gigabytes[2] if unet else max(gigabytes[0], gigabytes[2]))
        card = next(size for size in CARDS_GB if size >= leaving + BESIDE_GB)
        figures = [f"{count / 1e9:.2f}" for count in (whole, read, text)] + [f"{leaving:.1f}", f"{sum(gigabytes):.1f}"]
        found.append((backbone.title, *figures, f"{card} GB"))
    return found


HEADER = ("model", "denoiser, billions", "of these read", "text encoders, billions", "GB at once", "GB if all stays",
          "smallest card")  # fmt: skip


def report() -> str:
    """Return the Markdown page."""
    text = f"""# Which card takes which model: computed

Commit {machine()["commit"]}; written by `python -m benchmarks.backbones`.
Counted from the parameters, not measured on any card: float16 or bfloat16, the denoiser as far as the shipped
configuration reads, text encoders of transformers on the card only while sentences are embedded. The smallest card is
the first of 4, 6, 8, 12, 16, 24 ... GB that has {BESIDE_GB:g} GB more, which is assumed for a pass.

"""
    sources = [f"- {each.title}: {each.licence}; {each.source}" for each in BACKBONES.values()]
    ending = "Licences as their cards name them, and where each shape was compared with its publisher's settings:"
    encoders = "The text encoders, and where their settings are from:"
    theirs = [f"- {each.title}: {each.source}" for each in TEXT_ENCODERS.values()]
    parts = [text.rstrip(), table(HEADER, rows()), ending, "\n".join(sources), encoders, "\n".join(theirs)]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backbones", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE / "backbones.md")
    options = parser.parse_args(arguments)
    write_text(options.output, report())
    print(report())


if __name__ == "__main__":
    main()
