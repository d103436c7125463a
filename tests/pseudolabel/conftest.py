"""Tiny real diffusion models, written to disk in diffusers' layout and loaded as any other."""

import string
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from data.classes import VOC
from data.samples import DataConfig
from pseudolabel.config import (
    AffinityConfig,
    AttentionConfig,
    DiffusionConfig,
    GenerateConfig,
    ModelConfig,
    ResizeConfig,
    RunConfig,
)

WORDS = ("photo", "including", "and", "dog", "cat", "aero", "plane", "person", "tree", "river", "bird")


def tiny_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE that knows a few words and spells the others: "aeroplane" is "aero" + "plane</w>"."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    vocab = {symbol: index for index, symbol in enumerate([*characters, *(f"{c}</w>" for c in characters)])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"] if word != "aero" else list(word)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            pieces = ["".join(pair), *pieces[2:]]
            if pair not in merges:
                merges.append(pair)
            vocab.setdefault(pieces[0], len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, projection_dim=8,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _vae() -> AutoencoderKL:
    blocks = 3
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=4, block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
    )  # fmt: skip


def tiny_unet(text_width: int = 16, **kwargs) -> UNet2DConditionModel:
    """A U-Net of three levels and 15 layers at most, in Stable Diffusion's shape."""
    settings = {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 4,
        "block_out_channels": (8, 16, 16), "cross_attention_dim": text_width, "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**(settings | kwargs)).eval()
    with torch.no_grad():  # Larger projections than at the start of training, so that attention is not uniform.
        for name, parameter in unet.named_parameters():
            if "to_q" in name or "to_k" in name:
                parameter.mul_(4)
    return unet


def _save(root: Path, parts: dict[str, object], pipeline: str) -> None:
    for name, part in parts.items():
        part.save_pretrained(root / name)
    index = {"_class_name": pipeline, "_diffusers_version": "0.31.0"}
    index |= {
        name: ["transformers" if "text" in name or "token" in name else "diffusers", type(part).__name__]
        for name, part in parts.items()
    }
    import json

    (root / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory) -> Path:
    """Stable Diffusion 1.x's shape: one text encoder, convolutions around the transformers."""
    root = tmp_path_factory.mktemp("models") / "sd"
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(_text_config(tokenizer, 16)),
        "vae": _vae(),
        "unet": tiny_unet(),
        "scheduler": DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    }
    _save(root, parts, "StableDiffusionPipeline")
    return root


@pytest.fixture(scope="session")
def sd2_folder(tmp_path_factory) -> Path:
    """Stable Diffusion 2.x's shape: v-prediction, linear projections, a head width for each level."""
    root = tmp_path_factory.mktemp("models") / "sd2"
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(_text_config(tokenizer, 16)),
        "vae": _vae(),
        "unet": tiny_unet(use_linear_projection=True, attention_head_dim=(2, 4, 4), upcast_attention=True),
        "scheduler": DDIMScheduler(**schedule, prediction_type="v_prediction"),
    }
    _save(root, parts, "StableDiffusionPipeline")
    return root


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory) -> Path:
    """SDXL's shape: two text encoders, added conditions, several transformer blocks a layer."""
    root = tmp_path_factory.mktemp("models") / "sdxl"
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    unet = tiny_unet(
        text_width=32, use_linear_projection=True, transformer_layers_per_block=(1, 2, 3), attention_head_dim=(2, 4, 4),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    parts = {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "text_encoder": CLIPTextModel(_text_config(tokenizer, 16)),
        "text_encoder_2": CLIPTextModelWithProjection(_text_config(tokenizer, 16)),
        "vae": _vae(),
        "unet": unet,
        "scheduler": DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    }
    _save(root, parts, "StableDiffusionXLPipeline")
    return root


@pytest.fixture
def tiny_config(sd_folder: Path) -> GenerateConfig:
    """Settings for the tiny Stable Diffusion: cells of 16 px, 64 px images."""
    return GenerateConfig(
        data=DataConfig(root=Path()),
        model=ModelConfig(id=str(sd_folder)),
        resize=ResizeConfig(long_side_px=64),
        diffusion=DiffusionConfig(draws=2),
        attention=AttentionConfig(cross_layers=("1/2", "mid"), self_layers=("up_blocks.1.attentions.1",)),
        affinity=AffinityConfig(theta=0.5),
        run=RunConfig(device="cpu", workers=0),
    )


@pytest.fixture
def classes():
    return VOC


@pytest.fixture
def bare_unet() -> UNet2DConditionModel:
    return tiny_unet()


@pytest.fixture
def with_settings():
    """Change one group of settings: with_settings(config, "affinity", kind="none")."""

    def change(config: GenerateConfig, group: str, **values) -> GenerateConfig:
        return replace(config, **{group: replace(getattr(config, group), **values)})

    return change
