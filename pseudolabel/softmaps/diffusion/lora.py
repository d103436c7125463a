"""LoRA in the forms that are met (diffusers, PEFT as diffusers saves it, kohya), merged into a model's weights.

W <- W + s (alpha / r) B A (Hu et al., arXiv 2106.09685, section 4.1): after that nothing has to be computed that the
model would not compute anyway, and layers that are cut off or read by name are where they were.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data.errors import ModelError

METADATA = "lora_adapter_metadata"  # what diffusers writes of rank and alpha into a file's header
KOHYA = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
DOWN = ("lora_A.weight", "lora_down.weight", "lora.down.weight", "lora_linear_layer.down.weight", "down.weight")
UP = ("lora_B.weight", "lora_up.weight", "lora.up.weight", "lora_linear_layer.up.weight", "up.weight")
ROLES = {**dict.fromkeys(DOWN, "down"), **dict.fromkeys(UP, "up"), "alpha": "alpha"}
# Stability's names of a residual block's parts, which kohya uses for SDXL.
RESIDUAL = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


@dataclass(frozen=True)
class Target:
    """A weight that a LoRA changes: its layer, by component ("unet", "text_encoder") and dotted name."""

    component: str
    name: str
    layer: nn.Linear | nn.Conv2d


def merge_lora(
    source: str,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    scale: float,
    components: Mapping[str, nn.Module],
) -> None:
    """Merge a LoRA into a model's weights, in place; nothing is changed unless all of it fits.

    Args:
        source: the file's name, for error messages.
        tensors: the file's content.
        metadata: what the file says of itself; diffusers keeps alpha there.
        scale: strength; 1 is what it was trained for.
        components: the parts of the model, by the names diffusers gives them.

    Raises:
        ModelError: DoRA, or a tensor that has no place in this model; the message lists such tensors.

    """
    targets = name_targets(components)
    found: dict[int, dict[str, Any]] = {}
    owners: dict[int, Target] = {}
    odd = []
    for name, value in tensors.items():
        if "dora_scale" in name or "lora_magnitude_vector" in name:
            raise ModelError(f"{source} is a DoRA ({name}), which cannot be merged as a LoRA: change --model.lora")
        module, role = split_role(name)
        target = targets.get(module) if role else None
        if target is None or not isinstance(value, Tensor) or role in found.setdefault(id(target), {}):
            odd.append(name)
            continue
        owners[id(target)] = target
        found[id(target)][role] = value
    alphas = read_alphas(source, metadata)
    planned = []
    for key, target in owners.items():
        delta = layer_delta(found[key], target, alphas)
        if delta is None:
            odd.append(f"{target.component}.{target.name} ({_shapes(found[key])})")
        else:
            planned.append((target.layer.weight, delta))
    if odd or not planned:
        raise ModelError(
            f"{source} does not fit this model ({listed(odd) or 'it holds no weights'}): it was made for another one, "
            "or in a form that is not known; change --model.lora or --model.id"
        )
    with torch.no_grad():
        for weight, delta in planned:
            weight.copy_(weight.float() + scale * delta.to(weight.device))


def split_role(name: str) -> tuple[str, str]:
    """Split a tensor's name into its layer's canonical name and its role; the role is "" where there is none.

    >>> split_role("unet.mid_block.attentions.0.proj_in.lora_A.weight")
    ('unet.mid_block.attentions.0.proj_in', 'down')
    >>> split_role("mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight")
    ('unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0', 'up')
    """
    for ending, role in ROLES.items():
        if not name.endswith(f".{ending}"):
            continue
        module = name.removesuffix(f".{ending}")
        if ending in ("down.weight", "up.weight", "alpha"):  # attn1.processor.to_q_lora.down.weight
            short = re.fullmatch(r"(.+?)(\.processor)?\.(to_[qkv]|to_out|\w+_proj)_lora", module)
            if short is not None:
                part = "to_out.0" if short[3] == "to_out" else short[3]
                module = f"{short[1]}.{part}"
            elif ending != "alpha":
                continue
        return canonical(module), role
    return name, ""


def canonical(module: str) -> str:
    """Return one spelling of a layer's name for the several in use.

    transformers' plain CLIP text encoder lost its level `text_model` in version 5; old files of a U-Net alone name no
    part. A text encoder's queries and so on are q_proj in the model and to_q in old files.
    """
    if not module.startswith(("unet.", "text_encoder.", "text_encoder_2.", *(f"{prefix}_" for prefix in KOHYA))):
        module = f"unet.{module}"
    module = module.replace(".text_model.", ".").replace("_text_model_", "_", 1)
    if module.startswith("text_encoder"):
        module = re.sub(r"\.to_([qkv])$", r".\1_proj", module)
        module = re.sub(r"\.to_out\.0$", ".out_proj", module)
    return module


def name_targets(components: Mapping[str, nn.Module]) -> dict[str, Target]:
    """Return every linear layer and convolution of a model under each name that LoRA files give it."""
    targets: dict[str, Target] = {}
    for component, model in components.items():
        prefixes = [prefix for prefix, own in KOHYA.items() if own == component]
        stability = dict(stability_names(model)) if component == "unet" else {}
        for name, layer in model.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            target = Target(component, name, layer)
            plain = canonical(f"{component}.{name}")
            targets[plain] = target
            names = [plain.partition(".")[2], *([stability[name]] if name in stability else [])]
            targets |= {f"{prefix}_{each.replace('.', '_')}": target for prefix in prefixes for each in names}
    return targets


def stability_names(unet: Any) -> Iterator[tuple[str, str]]:
    """Yield the layers of a U-Net by diffusers' name, with Stability's name (`input_blocks.4.1. ...`)."""
    blocks: dict[str, str] = {}
    number = 1
    for index, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            blocks[f"down_blocks.{index}.resnets.{layer}"] = f"input_blocks.{number}.0"
            blocks[f"down_blocks.{index}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        blocks[f"down_blocks.{index}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1 if getattr(block, "downsamplers", None) else 0
    blocks |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    blocks["mid_block.resnets.1"] = "middle_block.2"
    number = 0
    for index, block in enumerate(unet.up_blocks):
        for layer in range(len(block.resnets)):
            blocks[f"up_blocks.{index}.resnets.{layer}"] = f"output_blocks.{number}.0"
            blocks[f"up_blocks.{index}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        place = 2 if getattr(block, "attentions", None) else 1
        blocks[f"up_blocks.{index}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
    for name, _ in unet.named_modules():
        if name in OUTER:
            yield name, OUTER[name]
            continue
        owner = next((block for block in blocks if name == block or name.startswith(f"{block}.")), None)
        if owner is not None:
            rest = name[len(owner) + 1 :]
            yield name, ".".join(filter(None, [blocks[owner], RESIDUAL.get(rest, rest)]))


def read_alphas(source: str, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Read rank and alpha of each component out of the header that diffusers writes; nothing where there is none.

    Raises:
        ModelError: the header is damaged, or says that this is a DoRA.

    """
    if METADATA not in metadata:
        return {}
    settings: dict[str, dict[str, Any]] = {}
    try:
        for key, value in json.loads(metadata[METADATA]).items():
            component, _, name = key.partition(".")
            settings.setdefault(component, {})[name] = value
        for own in settings.values():
            patterns = own.get("alpha_pattern") or {}
            own["patterns"] = [(re.compile(rf"(.*\.)?{each}"), float(alpha)) for each, alpha in patterns.items()]
            own["alpha"] = None if own.get("lora_alpha") is None else float(own["lora_alpha"])
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise ModelError(
            f"The header of {source} is damaged ({error}): fetch it again, or change --model.lora"
        ) from error
    if any(own.get("use_dora") for own in settings.values()):
        raise ModelError(f"{source} is a DoRA, which cannot be merged as a LoRA: change --model.lora")
    return settings


def layer_delta(
    parts: Mapping[str, Tensor], target: Target, settings: Mapping[str, Mapping[str, Any]]
) -> Float[Tensor, "..."] | None:
    """Return what a LoRA adds to one layer's weight at strength 1, or None where its tensors do not fit the layer.

    A convolution's A has the kernel's size and B is 1 x 1; for 1 x 1 convolutions either may be flat.
    """
    if "down" not in parts or "up" not in parts:
        return None
    down, up, weight = parts["down"].float(), parts["up"].float(), target.layer.weight
    rank = down.shape[0]
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1] != rank or up.shape[2:] not in ((), (1, 1)):
        return None
    if (
        down.shape[1:2].numel() * down.shape[2:].numel() * up.shape[0] != weight.numel()
        or up.shape[0] != weight.shape[0]
    ):
        return None
    if weight.ndim == 4 and down.ndim == 4 and down.shape[1:] != weight.shape[1:]:
        return None
    delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * strength(rank, parts, target, settings)
    return delta if bool(torch.isfinite(delta).all()) else None


def strength(
    rank: int, parts: Mapping[str, Tensor], target: Target, settings: Mapping[str, Mapping[str, Any]]
) -> float:
    """Return alpha / r, or alpha / sqrt(r) where the header asks for it; 1 where the file names no alpha."""
    if "alpha" in parts:
        return float(parts["alpha"]) / rank
    own = settings.get(target.component, {})
    alpha = float(rank) if own.get("alpha") is None else own["alpha"]
    for pattern, value in own.get("patterns", ()):
        if pattern.fullmatch(target.name):  # as PEFT reads it
            alpha = value
    return float(alpha / (rank**0.5 if own.get("use_rslora") else rank))


def listed(names: Sequence[str], limit: int = 6) -> str:
    """Name the first of many.

    >>> listed(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _shapes(parts: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{role} {tuple(value.shape)}" for role, value in parts.items())
