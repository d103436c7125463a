"""Tiny real diffusion models, written to disk in diffusers' layout and loaded as any other."""

import json
import string
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from data.classes import COCO, VOC
from data.config import DataConfig
from pseudolabel.config import GenerateConfig, RunConfig
from pseudolabel.softmaps.config import AffinityConfig, AttentionConfig, DiffusionConfig, ModelConfig, ResizeConfig

SCHEDULE = {  # Stable Diffusion's
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False,
}  # fmt: skip
WORDS = ("a", "photo", "including", "and", "dog", "cat", "plane", "person", "tree", "river", "bird")


def make_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A byte-pair encoding, trained here, in which these words are one token each and any other is spelt."""
    alphabet = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=9999, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator([*sorted(words), *alphabet], trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    symbols = [*alphabet, *(f"{symbol}</w>" for symbol in alphabet), *("".join(pair) for pair in merges)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


@pytest.fixture(scope="session")
def word_tokenizer() -> CLIPTokenizer:
    """One token a word, as CLIP's own tokenizer has for common words, so that prompts are as long as real ones."""
    lists = [words for classes in (VOC, COCO) for row in classes.background_words for words in row]
    phrases = [phrase for classes in (VOC, COCO) for phrase in classes.phrases]
    return make_tokenizer({word for text in [*WORDS, *lists, *phrases] for word in text.replace(",", " ").split()})


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: `run("ground", ...)` returns its status, what it printed, and its errors."""
    from pseudolabel.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


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
    (root / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory) -> Path:
    """Stable Diffusion 1.x's shape: one text encoder, convolutions around the transformers."""
    root = tmp_path_factory.mktemp("models") / "sd"
    torch.manual_seed(0)
    tokenizer = make_tokenizer(WORDS)
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(_text_config(tokenizer, 16)),
        "vae": _vae(),
        "unet": tiny_unet(),
        "scheduler": DDIMScheduler(**SCHEDULE),
    }
    _save(root, parts, "StableDiffusionPipeline")
    return root


@pytest.fixture(scope="session")
def sd2_folder(tmp_path_factory) -> Path:
    """Stable Diffusion 2.x's shape: v-prediction, linear projections, a head width for each level."""
    root = tmp_path_factory.mktemp("models") / "sd2"
    torch.manual_seed(0)
    tokenizer = make_tokenizer(WORDS)
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(_text_config(tokenizer, 16)),
        "vae": _vae(),
        "unet": tiny_unet(use_linear_projection=True, attention_head_dim=(2, 4, 4), upcast_attention=True),
        "scheduler": DDIMScheduler(**SCHEDULE, prediction_type="v_prediction"),
    }
    _save(root, parts, "StableDiffusionPipeline")
    return root


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory) -> Path:
    """SDXL's shape: two text encoders, added conditions, several transformer blocks a layer."""
    root = tmp_path_factory.mktemp("models") / "sdxl"
    torch.manual_seed(0)
    tokenizer = make_tokenizer(WORDS)
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
        "scheduler": DDIMScheduler(**SCHEDULE),
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


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A small demo world: six scenes to label, two with masks."""
    from data.demo.world import write_world

    root = tmp_path_factory.mktemp("data") / "world"
    write_world(root, train=6, val=2, personal=0)
    return root


@pytest.fixture(scope="session")
def tiny_options(sd_folder: Path) -> list[str]:
    """The command line's options for the tiny Stable Diffusion."""
    return [
        f"--model.id={sd_folder}", "--resize.long_side_px=64", "--diffusion.draws=2", "--device=cpu", "--workers=0",
        "--attention.cross_layers=[1/2,mid]", "--attention.self_layers=[up_blocks.1.attentions.1]",
        "--affinity.theta=0.5", "--crf.iterations=2",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def made_store(world: Path, tiny_options: list[str], tmp_path_factory) -> Path:
    """A store that `pseudolabel generate` made from the small world; not to be changed."""
    from pseudolabel.cli import main

    store = tmp_path_factory.mktemp("stores") / "masks"
    assert main(["generate", "--root", str(world), "--store", str(store), *tiny_options]) == 0
    return store


@pytest.fixture
def store_bytes():
    """Return the content of a store's masks, argmax masks and soft maps by file name."""

    def read(store: Path) -> dict[str, bytes]:
        folders = ("masks", "argmax", "scores")
        return {f"{folder}/{path.name}": path.read_bytes() for folder in folders for path in (store / folder).iterdir()}

    return read


@pytest.fixture(scope="session")
def tiny_sam_folder(tmp_path_factory) -> Path:
    """A tiny SAM on disk, as transformers saves it."""
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
        "window_size": 4, "global_attn_indexes": [1], "output_channels": 16, "mlp_dim": 64, "num_pos_feats": 8,
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    target = tmp_path_factory.mktemp("sam") / "sam"
    model.save_pretrained(target)
    return target
