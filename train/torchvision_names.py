"""torchvision's EfficientNet, ConvNeXt and MobileNetV3 in timm's names; its other networks have timm's names already.

The networks are the same layer for layer, but torchvision numbers what timm names. What a state dict cannot say is
checked on the encoder (`conflict`): batch norm's epsilon, which differs between the families, and TensorFlow's padding.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor, nn

Family = Literal["efficientnet", "efficientnet_large", "convnext", "mobilenetv3"]
# Parts of a block by their number: what timm calls convolution and norm. Squeeze-and-excitation stands in between.
_WIDENING = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
_PLAIN = (("conv_dw", "bn1"), ("conv_pw", "bn2"))  # a first block, which does not widen
_SQUEEZE = {"fc1": "se.conv_reduce", "fc2": "se.conv_expand"}
_CONVNEXT = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}
_HEADS: dict[Family, dict[str, str]] = {
    "efficientnet": {"1": "classifier"},
    "efficientnet_large": {"1": "classifier"},
    "convnext": {"0": "head.norm", "2": "head.fc"},
    "mobilenetv3": {"0": "conv_head", "3": "classifier"},
}
_EPSILON: dict[Family, float] = {"efficientnet": 1e-5, "efficientnet_large": 1e-3, "mobilenetv3": 1e-3}


def family(state: Iterable[str]) -> tuple[Family, str] | None:
    """Return which of these networks of torchvision a file holds, and what stands in front of its names; else None."""
    keys = set(state)
    prefix = next((key.removesuffix("features.0.0.weight") for key in keys if key.endswith("features.0.0.weight")), "")
    if f"{prefix}features.1.0.layer_scale" in keys:
        return "convnext", prefix
    if f"{prefix}features.1.block.0.0.weight" in keys:
        return "mobilenetv3", prefix
    if f"{prefix}features.1.0.block.0.0.weight" in keys:  # B5 to B7 repeat their first block three times or more
        large = f"{prefix}features.1.2.block.0.0.weight" in keys
        return ("efficientnet_large" if large else "efficientnet"), prefix
    return None


def in_timms_names(state: Mapping[str, Tensor], kind: Family, prefix: str) -> dict[str, Tensor]:
    """Return a state dict with timm's names; tensors that have no counterpart keep theirs.

    Args:
        state: torchvision's.
        kind: which network, as `family` says.
        prefix: what stands in front of its names.

    """
    inner = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    found = {}
    for key, value in state.items():
        name = key.removeprefix(prefix)
        spelt = _convnext(name) if kind == "convnext" else _mobile(name, kind, inner)
        value = value.flatten() if name.endswith(".layer_scale") else value
        found[key if spelt is None or not key.startswith(prefix) else prefix + spelt] = value
    return found


def conflict(kind: Family, encoder: nn.Module) -> str | None:
    """Return why an encoder computes something else with these weights than torchvision does, or None."""
    wanted = _EPSILON.get(kind)
    found = {layer.eps for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d)}
    if wanted is not None and found - {wanted}:
        return (
            f"they were trained with batch norm's epsilon {wanted:g}, this encoder has {max(found - {wanted}):g}; take "
            f"a tu- encoder with --model.network.encoder_args '{{bn_eps: {wanted:g}}}'"
        )
    if any("Same" in type(layer).__name__ for layer in encoder.modules()):
        return "they were trained with symmetric padding, this encoder pads as TensorFlow does; take one without tf_"
    return None


def _convnext(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] == "classifier":
        return _head(name, "convnext")
    if parts[0] != "features":
        return None
    stage, rest = int(parts[1]), parts[2:]
    if stage == 0:
        return ".".join(["stem", *rest])
    if stage % 2 == 0:
        return ".".join(["stages", str(stage // 2), "downsample", *rest])
    block = f"stages.{stage // 2}.blocks.{rest[0]}"
    if rest[1] == "layer_scale":
        return f"{block}.gamma"
    return f"{block}.{_CONVNEXT[rest[2]]}.{rest[3]}" if rest[1] == "block" and rest[2] in _CONVNEXT else None


def _mobile(name: str, kind: Family, keys: set[str]) -> str | None:
    """Return the name of a tensor of EfficientNet (features.stage.block) or MobileNetV3 (features.block)."""
    if name.startswith("classifier."):
        return _head(name, kind)
    ends = re.fullmatch(r"features\.(\d+)\.([01])\.(\w+)", name)
    if ends:
        return f"{_end(int(ends[1]), kind)[int(ends[2])]}.{ends[3]}"
    found = re.fullmatch(r"(features\.(\d+)\.(?:(\d+)\.)?block)\.(\d+)\.(\w+)\.(\w+)", name)
    if not found:
        return None
    block, number = found[1], int(found[4])
    if found[5] in _SQUEEZE:
        inner = f"{_SQUEEZE[found[5]]}.{found[6]}"
    else:
        convolutions = [part for part in range(4) if f"{block}.{part}.0.weight" in keys]
        layers = _WIDENING if len(convolutions) == 3 else _PLAIN
        inner = f"{layers[convolutions.index(number)][int(found[5])]}.{found[6]}"
    first = int(found[2]) - 1
    return f"blocks.{first}.{found[3]}.{inner}" if found[3] else f"blocks.0.{first}.{inner}"


def _end(number: int, kind: Family) -> tuple[str, str]:
    """Return the layers of a convolution with its norm outside the blocks: the first one, or the last."""
    if number == 0:
        return "conv_stem", "bn1"
    last = f"blocks.0.{number - 1}"  # timm counts MobileNetV3's among the blocks
    return (f"{last}.conv", f"{last}.bn1") if kind == "mobilenetv3" else ("conv_head", "bn2")


def _head(name: str, kind: Family) -> str | None:
    _, number, end = name.split(".")
    return f"{_HEADS[kind][number]}.{end}" if number in _HEADS[kind] else None
