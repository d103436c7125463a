"""Tiny real transformers of every family, saved as whole pipeline folders and loaded as any other."""

import json
import string
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.load import load_parts

WHOLE = ("a", "photo", "including", "and", "dog", "cat", "person", "tree", "river", "bird")
PIECES = ("plane", "aero", "s")  # they stand behind others: "aeroplanes" is a mark and three of them


def t5_tokenizer() -> T5TokenizerFast:
    """SentencePiece's kind: whole words, pieces, and letters for the rest."""
    words = [(f"\N{LOWER ONE EIGHTH BLOCK}{word}", -2.0) for word in WHOLE]
    signs = [(sign, -9.0) for sign in (*string.ascii_letters, *string.digits, *string.punctuation) if sign not in "s"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\N{LOWER ONE EIGHTH BLOCK}", -3.0), *words]
    return T5TokenizerFast(vocab=[*vocab, *((piece, -3.0) for piece in PIECES), *signs], extra_ids=0)


def t5_encoder(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
        relative_attention_num_buckets=8, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config)


def clip_encoder(tokenizer, width: int, projection: int | None = None):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, projection_dim=projection or width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)


def image_encoder(channels: int, **more) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=channels, norm_num_groups=4, block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, **more,
    )  # fmt: skip


def sharpened(transformer):
    """Larger queries and keys than at the start of training, so that attention is not uniform."""
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if any(part in name for part in ("to_q.weight", "to_k.weight", "add_q_proj.w", "add_k_proj.w", "norm_q.w")):
                parameter.mul_(4)
    return transformer.eval()


def save(root: Path, parts: dict[str, object], pipeline: str) -> Path:
    for name, part in parts.items():
        part.save_pretrained(root / name)
    own = ("text", "token")
    index = {
        name: ["transformers" if name.startswith(own) else "diffusers", type(p).__name__] for name, p in parts.items()
    }
    (root / "model_index.json").write_text(
        json.dumps({"_class_name": pipeline, "_diffusers_version": "0.31.0"} | index)
    )
    return root


def sd3_parts(tokenizer, **settings) -> dict[str, object]:
    """SD3's shape with a true third encoder; its transformer's settings can be changed."""
    torch.manual_seed(0)
    third = t5_tokenizer()
    shape = {
        "sample_size": 16, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 4,
        "attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 32, "caption_projection_dim": 32,
        "pooled_projection_dim": 24, "pos_embed_max_size": 32,
    }  # fmt: skip
    flow = {"scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False}
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "tokenizer_3": third,
        "text_encoder": clip_encoder(tokenizer, 8, 8),
        "text_encoder_2": clip_encoder(tokenizer, 16, 16),
        "text_encoder_3": t5_encoder(third),
        "vae": image_encoder(16, **flow),
        "transformer": sharpened(SD3Transformer2DModel(**(shape | settings))),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


@pytest.fixture(scope="session")
def sd3_folder(word_tokenizer, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("families") / "sd3"
    return save(root, sd3_parts(word_tokenizer), "StableDiffusion3Pipeline")


@pytest.fixture(scope="session")
def sd35_folder(word_tokenizer, tmp_path_factory) -> Path:
    """SD3.5 medium's shape: image attention beside in the first blocks, norms on queries and keys."""
    root = tmp_path_factory.mktemp("families") / "sd35"
    parts = sd3_parts(word_tokenizer, dual_attention_layers=(0, 1), qk_norm="rms_norm")
    return save(root, parts, "StableDiffusion3Pipeline")


def flux_parts(tokenizer, guidance: bool) -> dict[str, object]:
    torch.manual_seed(0)
    second = t5_tokenizer()
    flow = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=24, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance,
    )  # fmt: skip
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": second,
        "text_encoder": clip_encoder(tokenizer, 24),
        "text_encoder_2": t5_encoder(second),
        "vae": image_encoder(4, **flow),
        "transformer": sharpened(transformer),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


@pytest.fixture(scope="session")
def flux_folder(word_tokenizer, tmp_path_factory) -> Path:
    """Flux.1 schnell's shape."""
    return save(tmp_path_factory.mktemp("families") / "flux", flux_parts(word_tokenizer, False), "FluxPipeline")


@pytest.fixture(scope="session")
def flux_dev_folder(word_tokenizer, tmp_path_factory) -> Path:
    """Flux.1 dev's shape: guidance is an input."""
    return save(tmp_path_factory.mktemp("families") / "dev", flux_parts(word_tokenizer, True), "FluxPipeline")


def pixart_parts(**settings) -> dict[str, object]:
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    shape = {
        "num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3,
        "cross_attention_dim": 24, "sample_size": 16, "patch_size": 2, "caption_channels": 32,
        "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000, "use_additional_conditions": False,
    }  # fmt: skip
    return {
        "tokenizer": tokenizer,
        "text_encoder": t5_encoder(tokenizer),
        "vae": image_encoder(4),
        "transformer": sharpened(PixArtTransformer2DModel(**(shape | settings))),
        "scheduler": DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    }


@pytest.fixture(scope="session")
def pixart_folder(tmp_path_factory) -> Path:
    """PixArt-Sigma's shape."""
    return save(tmp_path_factory.mktemp("families") / "sigma", pixart_parts(), "PixArtSigmaPipeline")


@pytest.fixture(scope="session")
def alpha_folder(tmp_path_factory) -> Path:
    """PixArt-alpha's shape at 1024 px: sizes are conditions."""
    parts = pixart_parts(use_additional_conditions=True)
    return save(tmp_path_factory.mktemp("families") / "alpha", parts, "PixArtAlphaPipeline")


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)  # Qwen3's, as far as it matters here


def qwen_tokenizer() -> Qwen2TokenizerFast:
    """Qwen's kind: pairs of bytes, a space belonging to the word behind it."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = iter(range(256, 512))
    letters = [chr(byte) if byte in shown else chr(next(moved)) for byte in range(256)]
    merges = [("d", "o"), ("do", "g"), ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "dog"), ("c", "a"), ("ca", "t")]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {piece: index for index, piece in enumerate([*letters, *map("".join, merges), *special])}
    return Qwen2TokenizerFast(
        vocab=vocab, merges=merges, chat_template=CHAT, pad_token="<|endoftext|>", unk_token=None,
        eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"],
    )  # fmt: skip


@pytest.fixture(scope="session")
def flux2_folder(tmp_path_factory) -> Path:
    """Flux.2 klein's shape."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    encoder = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=28, head_dim=8,
                    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024)
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        latent_channels=4, norm_num_groups=4, block_out_channels=(8, 8, 8), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "vae": vae,
        "transformer": sharpened(transformer),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }
    return save(tmp_path_factory.mktemp("families") / "klein", parts, "Flux2KleinPipeline")


FAMILIES = ("sd3", "sd3_t5", "sd35", "flux", "flux_dev", "pixart", "alpha", "flux2")


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def load_family(request):
    """Return a function that gives a family's tiny model, whole; `anew` where the test changes it."""
    kept = {}

    def load(name: str, anew: bool = False):
        if name in kept and not anew:
            return kept[name]
        folder = request.getfixturevalue(f"{name.removesuffix('_t5')}_folder")
        config = ModelConfig(id=str(folder), t5=name.endswith("_t5"))
        found = load_parts(config, torch.device("cpu"), torch.float32)
        return found if anew else kept.setdefault(name, found)

    return load
