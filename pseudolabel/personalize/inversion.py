"""Textual inversion: a new word whose embedding is learned, everything else stays as it is.

Source: Gal et al., arXiv 2208.01618, equation 2. The file is the one diffusers writes and reads.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from data.errors import ConfigError
from data.files import write_atomically
from pseudolabel.softmaps.diffusion.adapters import SDXL_KEYS, LearnedToken, add_tokens, token_names
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.tokens import token_ids

SPREAD = 0.1  # of the vocabulary's embeddings: by how much further vectors of a token start apart


def start_token(parts: Parts, token: str, init_word: str, vectors: int, seed: int) -> list[nn.Parameter]:
    """Add a token to a model and return what is to be learned: its vectors, for each text encoder.

    The first vector starts as the word's embedding, further ones beside it. Within the text encoders the returned
    parameters take the place of the rows; `settle_token` writes them there.

    Raises:
        ConfigError: the word is not one token of the vocabulary.
        ModelError: the token is in the vocabulary already.

    """
    generator = torch.Generator().manual_seed(seed)
    starts = []
    for index, (tokenizer, encoder) in enumerate(zip(parts.tokenizers, parts.text_encoders, strict=True)):
        pieces = token_ids(init_word, tokenizer)
        if len(pieces) != 1:
            spelt = f"spelt in {len(pieces)} pieces" if pieces else "empty"
            raise ConfigError(f"--init_word is {init_word!r}, which this model's tokenizer has not ({spelt}): name its "
                              "kind by one word that the model knows, as in mug")  # fmt: skip
        weights = encoder.get_input_embeddings().weight
        noise = torch.randn(vectors, weights.shape[1], generator=generator) * (torch.arange(vectors) > 0)[:, None]
        start = weights[pieces[0]].float().cpu() + noise * SPREAD * weights.float().std().cpu()
        starts.append(LearnedToken(token, start.detach(), index))
    add_tokens(starts, parts.tokenizers, parts.text_encoders)
    learned = []
    for start, tokenizer, encoder in zip(starts, parts.tokenizers, parts.text_encoders, strict=True):
        parameter = nn.Parameter(start.vectors.to(parts.device).clone())
        ids = tokenizer.convert_tokens_to_ids(token_names(token, vectors))
        encoder.requires_grad_(False)  # its enlarged matrix is a new one
        encoder.get_input_embeddings().register_forward_hook(rows_from(ids, parameter))
        learned.append(parameter)
    return learned


def rows_from(ids: Sequence[int], rows: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a forward hook of an embedding layer that puts other rows where these ids stand."""

    def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        for row, own in zip(rows, ids, strict=True):
            output = torch.where((inputs[0] == own)[..., None], row.to(output.dtype), output)
        return output

    return hook


@torch.no_grad()
def settle_token(parts: Parts, token: str, learned: Sequence[Tensor]) -> None:
    """Write learned vectors into the text encoders' own embeddings."""
    for rows, tokenizer, encoder in zip(learned, parts.tokenizers, parts.text_encoders, strict=True):
        weights = encoder.get_input_embeddings().weight
        weights[tokenizer.convert_tokens_to_ids(token_names(token, len(rows)))] = rows.to(weights)


def write_token(path: Path, token: str, learned: Sequence[Tensor]) -> str:
    """Write a token's file, atomically, and return what `--model.tokens` is to be given.

    A model of two text encoders gets SDXL's form, which does not hold the token's name.
    """
    rows = [vectors.detach().float().cpu().contiguous() for vectors in learned]
    named = {token: rows[0]} if len(rows) == 1 else dict(zip(SDXL_KEYS, rows, strict=True))
    write_atomically(path, save(named, metadata={"format": "pt"}))
    return str(path) if len(rows) == 1 else f"{token}={path}"
