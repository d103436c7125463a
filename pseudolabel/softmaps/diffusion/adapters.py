"""Customised generators: learned tokens, LoRA and Custom Diffusion, put into a model's own weights. No PEFT.

Strict where the usual loaders are silent: every tensor of a file is used, or an error lists those that did not fit; a
file is read with safetensors or, where it is a pickle, with `weights_only`, so that nothing in it runs. After loading
the model is an ordinary one, so that everything that reads attention works on it unchanged.
"""

import math
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data.errors import ConfigError, ModelError
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.lora import listed, merge_lora

CUSTOM = "custom_diffusion"
CUSTOM_TARGETS = {  # a tensor's name in a Custom Diffusion file, and the parameter of the attention layer it replaces
    f"to_k_{CUSTOM}.weight": "to_k.weight",
    f"to_v_{CUSTOM}.weight": "to_v.weight",
    f"to_q_{CUSTOM}.weight": "to_q.weight",
    f"to_out_{CUSTOM}.0.weight": "to_out.0.weight",
    f"to_out_{CUSTOM}.0.bias": "to_out.0.bias",
}
A1111_NOTES = {"string_to_token", "name", "step", "sd_checkpoint", "sd_checkpoint_name"}  # they hold no weights
SDXL_KEYS = ("clip_l", "clip_g")  # of the first and the second text encoder


@dataclass(frozen=True)
class LearnedToken:
    """A placeholder and what it stands for in one text encoder.

    Attributes:
        token: as in a sentence: "<my-mug>".
        vectors: one for each of its tokens.
        encoder: which text encoder they are for; None: the one whose width they have.

    """

    token: str
    vectors: Float[Tensor, "vectors width"]
    encoder: int | None = None


def apply_adapters(config: ModelConfig, unet: Any, tokenizers: Sequence[Any], encoders: Sequence[Any]) -> None:
    """Put everything a config adds to a model into its parts, in place: LoRA, Custom Diffusion, then tokens.

    Raises:
        ModelError: a file is missing, damaged or would run code, or holds a tensor that has no place in the model.
        ConfigError: a value of the wrong form.

    """
    for value in config.lora:
        path, scale = split_scale(value)
        metadata: dict[str, str] = {}
        weights = read_tensors(path, "model.lora", metadata)
        merge_lora(str(path), weights, metadata, scale, {"unet": unet, **_named(encoders)})
    if config.custom_diffusion is not None:
        load_custom_diffusion(config.custom_diffusion, unet)
    if config.tokens:
        learned = [token for value in config.tokens for token in read_tokens(*split_token(value))]
        add_tokens(learned, tokenizers, encoders)


def _named(encoders: Sequence[Any]) -> dict[str, Any]:
    return {f"text_encoder{f'_{index + 1}' if index else ''}": encoder for index, encoder in enumerate(encoders)}


def adapters_digest(config: ModelConfig, digest: str) -> str:
    """Return a model's fingerprint with what is added to it; the fingerprint itself where nothing is.

    Contents count, and the scale of a LoRA, not where a file lies.
    """
    parts = [f"lora:{scale!r}:{_hash(path)}" for path, scale in map(split_scale, config.lora)]
    if config.custom_diffusion is not None:
        parts.append(f"custom:{_hash(config.custom_diffusion)}")
    parts += [f"token:{token}:{_hash(path)}" for token, path in map(split_token, config.tokens)]
    return blake2b("\n".join([digest, *parts]).encode(), digest_size=16).hexdigest() if parts else digest


def _hash(path: Path) -> str:
    return blake2b(path.expanduser().read_bytes(), digest_size=16).hexdigest()


def split_token(value: str) -> tuple[str | None, Path]:
    """Split what `--model.tokens` is given: FILE, or TOKEN=FILE.

    >>> split_token("<mug>=mug.pt")[0]
    '<mug>'
    """
    token, separator, path = value.partition("=")
    if not separator or Path(value).expanduser().is_file():
        return None, Path(value)
    if not token or not path:
        raise ConfigError(f"--model.tokens is {value!r}: it must be FILE or TOKEN=FILE")
    return token, Path(path)


def split_scale(value: str) -> tuple[Path, float]:
    """Split what `--model.lora` is given: FILE, or FILE:SCALE.

    >>> split_scale("ink.safetensors:0.5")[1]
    0.5
    """
    path, separator, scale = value.rpartition(":")
    if not separator or Path(value).expanduser().is_file():
        return Path(value), 1.0
    try:
        strength = float(scale)
    except ValueError:
        return Path(value), 1.0  # a colon in a name; if there is no such file, reading it says so
    if not math.isfinite(strength):
        raise ConfigError(f"--model.lora is {value!r}: the scale must be a finite number, as in FILE:0.8")
    return Path(path), strength


def read_tensors(path: Path, flag: str, metadata: dict[str, str] | None = None) -> dict[str, Any]:
    """Read a file of weights without running anything in it; a bare tensor comes back under the name "".

    Args:
        path: a safetensors file, or a pickle (.bin, .pt, .pth, .ckpt), which is read with `weights_only`.
        flag: the setting that names it, for error messages.
        metadata: filled with what a safetensors file says of itself.

    Raises:
        ModelError: no such file, damaged, or a pickle with anything but weights in it.

    """
    path = path.expanduser()
    if not path.is_file():
        raise ModelError(f"There is no file {path}: --{flag} must name one")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as file:
                if metadata is not None:
                    metadata.update(file.metadata() or {})
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is damaged or holds more than weights, which is not run: --{flag} takes safetensors, or a .bin "
            "or .pt file of tensors alone; convert it where it comes from"
        ) from error
    except Exception as error:  # safetensors has its own exceptions; damaged zip files raise nearly anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ModelError(f"{path} cannot be read ({reason}): fetch it again, or change --{flag}") from error
    if isinstance(content, Tensor):
        return {"": content}
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not named tensors: change --{flag}")
    return content


def read_tokens(token: str | None, path: Path) -> list[LearnedToken]:
    """Read the tokens of a textual inversion in any of its four forms.

    `{token: vectors}` (diffusers), a bare tensor, A1111's `{"name", "string_to_param"}` or `{"emb_params"}`, and SDXL's
    `{"clip_l", "clip_g"}`.

    Args:
        token: what to call it; None: what the file says.
        path: the file.

    Raises:
        ModelError: the file cannot be read, names no token, or holds something else as well.

    """
    content = read_tensors(path, "model.tokens")
    source = f"{path} (--model.tokens)"
    if set(content) == set(SDXL_KEYS):
        return [_learned(source, token, content[key], index) for index, key in enumerate(SDXL_KEYS)]
    if "string_to_param" in content:
        vectors = content["string_to_param"]
        odd = sorted(set(content) - A1111_NOTES - {"string_to_param"})
        if odd or not isinstance(vectors, dict) or list(vectors) != ["*"]:
            raise ModelError(f"{source} holds what a textual inversion does not: {', '.join(odd) or 'several vectors'}")
        return [_learned(source, token or content.get("name"), vectors["*"])]
    if set(content) in ({""}, {"emb_params"}):
        return [_learned(source, token, next(iter(content.values())))]
    if token is not None and len(content) != 1:
        raise ModelError(
            f"{source} holds {len(content)} entries ({listed(list(content))}): TOKEN=FILE can name one alone"
        )
    return [_learned(source, token or name, value) for name, value in content.items()]


def _learned(source: str, token: Any, vectors: Any, encoder: int | None = None) -> LearnedToken:
    """Check what a file holds for one token."""
    if not token:
        raise ModelError(f"{source} does not say what its token is called: write TOKEN=FILE")
    if not isinstance(token, str):
        raise ModelError(f"{source} calls its token {token!r}: it must be a word; write TOKEN=FILE")
    good = isinstance(vectors, Tensor) and vectors.is_floating_point() and vectors.ndim in (1, 2) and vectors.numel()
    if not good:
        raise ModelError(f"{source} holds {_shape(vectors)} for {token!r}: it must be (width) or (vectors, width)")
    if not bool(torch.isfinite(vectors).all()):
        raise ModelError(f"{source} holds values that are not finite for {token!r}: learn it again")
    return LearnedToken(token, vectors.detach().reshape(-1, vectors.shape[-1]), encoder)


def _shape(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def token_names(token: str, count: int) -> list[str]:
    """Return the names of a placeholder's tokens, as diffusers gives them.

    >>> token_names("<mug>", 3)
    ['<mug>', '<mug>_1', '<mug>_2']
    """
    return [token, *(f"{token}_{index}" for index in range(1, count))]


def add_tokens(learned: Sequence[LearnedToken], tokenizers: Sequence[Any], encoders: Sequence[Any]) -> None:
    """Add learned tokens to the vocabularies, and their vectors to the text encoders, in place.

    A token's n vectors become n tokens; `prompt.expand_placeholders` spells "<t>" in a sentence "<t> <t>_1 ...".

    Raises:
        ModelError: a token is not one word or is in the vocabulary already, a vector has another width than every text
            encoder, or one of the text encoders is left without.

    """
    widths = [int(encoder.get_input_embeddings().weight.shape[1]) for encoder in encoders]
    found: dict[str, dict[int, Tensor]] = {}
    for item in learned:
        places = found.setdefault(item.token, {})
        places[_encoder_of(item, widths, places)] = item.vectors
    for token, places in found.items():
        counts = {index: len(vectors) for index, vectors in places.items()}
        if len(counts) < len(encoders) or len(set(counts.values())) > 1:
            raise ModelError(
                f"The token {token!r} has {counts or 'no'} vectors by text encoder, but this model has "
                f"{len(encoders)} text encoders, and each needs as many; name the missing file in --model.tokens"
            )
        names = token_names(token, next(iter(counts.values())))
        for index, (tokenizer, encoder) in enumerate(zip(tokenizers, encoders, strict=True)):
            _refuse_unfit(names, tokenizer)
            tokenizer.add_tokens(names)
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            weights = encoder.get_input_embeddings().weight
            with torch.no_grad():
                weights[tokenizer.convert_tokens_to_ids(names)] = places[index].to(weights)


def _encoder_of(item: LearnedToken, widths: list[int], taken: dict[int, Tensor]) -> int:
    """Return which text encoder a token's vectors are for."""
    width = int(item.vectors.shape[1])
    fitting = [index for index, own in enumerate(widths) if own == width and item.encoder in (None, index)]
    free = [index for index in fitting if index not in taken]
    if free:
        return free[0]
    if fitting:
        raise ModelError(f"The token {item.token!r} is given twice in --model.tokens: call one of them TOKEN=FILE")
    raise ModelError(
        f"The token {item.token!r} has vectors of width {width}, but this model's text encoder reads "
        f"{' and '.join(map(str, widths))}: it was learned for another model; change --model.tokens or --model.id"
    )


def _refuse_unfit(names: Iterable[str], tokenizer: Any) -> None:
    """Refuse tokens that are not one word, and those the vocabulary has: a word would lose its meaning everywhere."""
    vocabulary = tokenizer.get_vocab()
    for name in names:
        if len(name.split()) != 1 or name != name.strip() or set(name) & set(",{}"):
            raise ModelError(
                f"The token {name!r} must be one word without spaces, commas and braces: give it another name, as in "
                "<my-mug>"
            )
        if name in vocabulary or f"{name.lower()}</w>" in vocabulary or name.lower() in vocabulary:
            raise ModelError(
                f"The token {name!r} is in the tokenizer's vocabulary already: give it another name, as in"
                " --model.tokens <my-mug>=FILE"
            )


def load_custom_diffusion(path: Path, unet: Any) -> None:
    """Copy the trained keys, values (and queries, outputs) of a Custom Diffusion file over the U-Net's own, in place.

    diffusers' loader of such files does nothing, silently, without a pipeline.

    Raises:
        ModelError: the file cannot be read, or a tensor in it has no place in this U-Net.

    """
    content = read_tensors(path, "model.custom_diffusion")
    modules = dict(unet.named_modules())
    planned, odd = [], []
    for name, value in content.items():
        layer, separator, rest = name.removeprefix("unet.").partition(".processor.")
        target = modules.get(layer)
        parameter = parameter_of(target, CUSTOM_TARGETS[rest]) if target and rest in CUSTOM_TARGETS else None
        fits = isinstance(value, Tensor) and parameter is not None and parameter.shape == value.shape
        if not separator or parameter is None or not fits or not bool(torch.isfinite(value).all()):
            odd.append(f"{name} ({_shape(value)})")
        else:
            planned.append((parameter, value))
    if odd or not planned:
        raise ModelError(
            f"{path} (--model.custom_diffusion) does not fit this U-Net: {listed(odd) or 'it holds no weights'}"
        )
    with torch.no_grad():
        for parameter, value in planned:
            parameter.copy_(value.to(parameter))


def parameter_of(module: nn.Module, name: str) -> nn.Parameter | None:
    """Return a parameter of a module by its dotted name, or None where it has none."""
    return dict(module.named_parameters()).get(name)
