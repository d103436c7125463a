"""The untrained parts of the shipped text-to-image model, in Stable Diffusion's shape at a thousandth of its size."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from data.demo.world import GROUNDS
from pseudolabel.demo.training.captions import TEMPLATES, class_word

END = "</w>"  # CLIP's mark of a piece that ends a word
WINDOW = 48  # tokens; three classes, eight grounds and their commas take 40


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a CLIP tokenizer with one token for every word of the world, which spells out others; kept in a folder."""
    if (folder / "tokenizer_config.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    words = sorted({w for text in (*TEMPLATES, *GROUNDS, *map(class_word, range(1, 21)), "and") for w in text.split()})
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,'-")
    merges = learn_merges(words)
    pieces = [*alphabet, *(letter + END for letter in alphabet), *map("".join, merges)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=WINDOW)
    tokenizer.save_pretrained(folder)
    return tokenizer


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges, the most frequent pair first, until every word is one piece.

    Equal counts are decided by the alphabet: the tokenizers library leaves them to chance, and then a training that
    is resumed, or repeated, gives other ids to the same words.
    """
    split = [[*word[:-1], word[-1] + END] for word in words]
    merges = []
    while counts := Counter(pair for pieces in split for pair in pairwise(pieces)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = [merge_pair(pieces, best) for pieces in split]
    return merges


def merge_pair(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Return a word's pieces with every occurrence of a pair joined, from the left."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def build_autoencoder() -> AutoencoderKL:
    """Return the autoencoder: four pixels to a cell, four channels, so that 128 x 128 x 3 becomes 32 x 32 x 4.

    At eight pixels to a cell and equal training time objects lost their colours and most of their shape.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
    )


def build_unet() -> UNet2DConditionModel:
    """Return a U-Net of three levels (32, 16, 8 cells a side), with cross-attention at the lower two and in the middle.

    Cross-attention starts with larger queries and keys than usual, so that words matter from the first step. The first
    self-attention starts at zero: what the first cross-attention reads at a place is, at first, what lies around it.
    """
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )
    with torch.no_grad():
        for name, layer in unet.named_modules():
            if name.endswith("attn2"):
                layer.to_q.weight.mul_(2)
                layer.to_k.weight.mul_(2)
            elif name.startswith("down_blocks.1.") and name.endswith("attn1"):
                for parameter in layer.to_out[0].parameters():
                    parameter.zero_()
    return unet


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return one transformer layer that starts as (almost) the identity: its residual branches give zero at first."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        projection_dim=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "out_proj" in name or "fc2" in name:
                weight.zero_()
            elif "token_embedding" in name:
                weight.normal_(0, 1)
            elif "position_embedding" in name:
                weight.normal_(0, 0.1)
    return model


def build_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's scaled-linear betas with v-prediction."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
