"""First weights of an encoder out of a file: whose names they have, which of them fit, and nothing half-loaded.

A file is anything that torch.save or safetensors wrote of a state dict, alone or inside a training's checkpoint. Its
names are compared with the encoder's in one common spelling (`common_names`), below whatever prefix a program puts in
front of them (`network.encoder.`, `module.`), so that files of timm, torchvision, segmentation-models-pytorch,
EfficientNet-PyTorch (github.com/lukemelas/EfficientNet-PyTorch) and of `segtrain fit` all do.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import ModelError
from data.wording import count
from train.archive import verify_archive
from train.torchvision_names import conflict, family, in_timms_names

# Under what a training's checkpoint keeps its state dict; averaged weights first, as timm loads them.
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "teacher", "student")
_WRAPPERS = frozenset(["_orig_mod", "backbone", "encoder", "model", "module", "net", "network", "student", "teacher"])
_COUNTERS = "num_batches_tracked"  # of batch norm; older files have none, and nothing here reads them
_MBCONV = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_MBCONV |= {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand", "_project_conv": "conv_pwl", "_bn2": "bn3"}
_SEPARABLE = _MBCONV | {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # a first block does not widen
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


@dataclass(frozen=True)
class Loaded:
    """What became of a file of weights.

    Attributes:
        names: whose names the tensors have.
        taken: how many of the encoder's tensors came from the file.
        left_out: how many tensors of the file belong to other parts, by the part's name.
        mean, std: normalisation that the weights were trained with, of RGB in [0, 1], where the file says.

    """

    names: str
    taken: int
    left_out: dict[str, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def sentence(self, path: Path) -> str:
        """Return what to tell of it."""
        rest = ", ".join(f"{number} of {part}" for part, number in self.left_out.items())
        left = f"; not taken: {rest}" if rest else ""
        return f"{count(self.taken, 'tensor')} of the encoder from {path} ({self.names}){left}"


def load_encoder_weights(encoder: nn.Module, path: Path, whole: Iterable[str] = ()) -> Loaded:
    """Load a local file of weights (.safetensors, or a .pth read without unpickling code) into an encoder.

    Every tensor of the encoder must be there in its shape; what the file holds besides must belong to another part,
    such as a classifier or a decoder.

    Args:
        encoder: is changed only where everything fits.
        path: the file.
        whole: names of the tensors of the whole classifier whose front the encoder is, where they are known; what is
            among them and not in the encoder is another part.

    Raises:
        ModelError: no such file, unreadable, not finite, or weights of another encoder.

    """
    state = _read_weights(path)
    whose = _whose(state)
    torchvisions = family(state)
    if torchvisions is not None:
        whose, state = "names of torchvision", in_timms_names(state, *torchvisions)
    wanted = encoder.state_dict()
    prefix, found, missing, odd = _best_fit(state, wanted)
    known = set(common_names(_below(set(whole), _shared_prefix(whole))).values())
    taken = {source for source in found.values() if source is not None}
    left = [key for key in state if key not in taken and not key.endswith(_COUNTERS)]
    inside = {_first(key.removeprefix(prefix)) for key in taken}
    names = common_names({key.removeprefix(prefix) for key in state if key.startswith(prefix)})
    foreign = [
        key
        for key in left
        if key.startswith(prefix)
        and _first(key.removeprefix(prefix)) in inside
        and names[key.removeprefix(prefix)] not in known
    ]
    if missing or odd or foreign:
        raise ModelError(_misfit(path, wanted, state, found, missing, odd, foreign, whose))
    difference = None if torchvisions is None else conflict(torchvisions[0], encoder)
    if difference is not None:
        raise ModelError(f"{path} holds weights of torchvision's that do not fit: {difference}; nothing was loaded.")
    tensors = {key: wanted[key] if source is None else state[source] for key, source in found.items()}
    spoilt = next((key for key, value in tensors.items() if value.is_floating_point() and not _is_finite(value)), None)
    if spoilt is not None:
        raise ModelError(f"The weights {spoilt!r} in {path} are NaN or infinite; fetch or make the file anew.")
    encoder.load_state_dict(tensors)
    parts = Counter(_part(key, prefix) for key in sorted(left))
    return Loaded(whose, len(taken), dict(parts), *_own_normalisation(state))


def common_names(keys: Iterable[str]) -> dict[str, str]:
    """Return each tensor's name in a spelling that files and encoders of the same network share.

    EfficientNet-PyTorch's names become timm's; the blocks of such networks are counted through (timm counts them stage
    by stage, EfficientNet-PyTorch does not); and dots become underscores, as timm writes them where it gives an encoder
    without its classifier. Where two names would become the same, all stay as they are.
    """
    keys = set(keys)
    spelt = {key: _spell(key, keys) for key in keys}
    stages = sorted({block for name in spelt.values() if (block := _block(name)) is not None})
    order = {block: position for position, block in enumerate(stages)}
    common = {key: _flat(name, order).replace(".", "_") for key, name in spelt.items()}
    return common if len(set(common.values())) == len(common) else {key: key for key in keys}


def _spell(key: str, keys: set[str]) -> str:
    """Return a tensor's name as timm has it, where it is one of EfficientNet-PyTorch's."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if block:
        widens = f"_blocks.{block[1]}._expand_conv.weight" in keys
        return f"blocks.0.{block[1]}.{(_MBCONV if widens else _SEPARABLE)[block[2]]}.{block[3]}"
    layer, _, end = key.rpartition(".")
    return f"{_ENDS[layer]}.{end}" if layer in _ENDS else key


def _block(name: str) -> tuple[int, int] | None:
    found = re.match(r"blocks\.(\d+)\.(\d+)\.", name)
    return (int(found[1]), int(found[2])) if found else None


def _flat(name: str, order: Mapping[tuple[int, int], int]) -> str:
    block = _block(name)
    return name if block is None else f"blocks.{order[block]}.{name.split('.', 3)[3]}"


Fit = tuple[str, dict[str, str | None], list[str], list[str]]


def _best_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Fit:
    """Return the prefix under which most of an encoder's tensors are found, and what was found there.

    Returns:
        The prefix; the file's name of each of the encoder's tensors, None for a counter that it lacks; the encoder's
        tensors that are missing; those of another shape.

    Raises:
        ModelError: two prefixes under which everything is found.

    """
    fits = [_fit(prefix, state, wanted) for prefix in sorted(_prefixes(state))]
    best = min(fits, key=lambda fit: len(fit[2]) + len(fit[3]))
    whole = [prefix for prefix, _, missing, odd in fits if not missing and not odd]
    if len(whole) > 1:
        raise ModelError(
            f"The file of --model.network.weights holds this encoder more than once, below {' and '.join(whole)}: save "
            "the one that is meant alone."
        )
    return best


def _fit(prefix: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Fit:
    own = _shared_prefix(wanted)
    there = {name: prefix + key for key, name in common_names(_below(state, prefix)).items()}
    found: dict[str, str | None] = {}
    missing, odd = [], []
    for key, name in common_names(_below(wanted, own)).items():
        source = there.get(name)
        if source is None and key.endswith(_COUNTERS):
            found[own + key] = None
        elif source is None:
            missing.append(own + key)
        elif state[source].shape != wanted[own + key].shape:
            odd.append(own + key)
            found[own + key] = source
        else:
            found[own + key] = source
    return prefix, found, missing, odd


def _prefixes(state: Iterable[str]) -> set[str]:
    """Return what programs may have put in front of an encoder's names, nothing among it."""
    prefixes = {""}
    for key in state:
        parts = key.split(".")
        for depth, part in enumerate(parts[:-1], start=1):
            if part not in _WRAPPERS:
                break
            prefixes.add(".".join(parts[:depth]) + ".")
    return prefixes


def _shared_prefix(keys: Iterable[str]) -> str:
    """Return the wrappers that stand in front of all names, such as `model.` of timm's encoders in smp."""
    keys = list(keys)
    shared = (prefix for prefix in _prefixes(keys[:1]) if all(key.startswith(prefix) for key in keys))
    return max(shared, key=len, default="")


def _below(keys: Iterable[str], prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]


def _first(key: str) -> str:
    return key.partition(".")[0]


def _part(key: str, prefix: str) -> str:
    """Return what to call the part of a network that a tensor of a file belongs to."""
    inner = key.removeprefix(prefix)
    if inner != key:
        return _first(inner)
    parts = key.split(".")
    return ".".join(parts[:2]) if parts[0] in _WRAPPERS else parts[0]


def _whose(state: Iterable[str]) -> str:
    """Return whose names a file's tensors have, for people."""
    keys = set(state)
    if any(key.startswith("network.encoder.") for key in keys):
        return "a checkpoint of segtrain"
    if any("segmentation_head." in key for key in keys):
        return "a network of segmentation-models-pytorch"
    if any("_conv_stem." in key for key in keys):
        return "names of EfficientNet-PyTorch"
    return "names of timm or torchvision"


def _own_normalisation(state: Mapping[str, Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[()]:
    """Return mean and deviation of a checkpoint of segtrain, of RGB in [0, 1]; nothing of any other file."""
    if "network.mean" not in state or "network.std" not in state:
        return ()
    mean, std = ((state[name].double().flatten() / 255).tolist() for name in ("network.mean", "network.std"))
    return tuple(mean), tuple(std)


def _is_finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())


def _misfit(
    path: Path,
    wanted: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    found: Mapping[str, str | None],
    missing: list[str],
    odd: list[str],
    foreign: list[str],
    whose: str,
) -> str:
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing ({_some(missing)})")
    if odd:
        shapes = (f"{key} {_size(state[found[key] or ''])} instead of {_size(wanted[key])}" for key in odd)
        faults.append(f"{len(odd)} of another shape ({_some(list(shapes))})")
    if foreign:
        faults.append(f"{count(len(foreign), 'tensor')} too many ({_some(foreign)})")
    of = f"of {count(len(wanted), 'tensor')} "
    return (
        f"{path} does not hold the weights of this encoder ({whose}): {of}{', '.join(faults)}; nothing was "
        "loaded; check --model.network.encoder and --model.network.weights."
    )


def _some(names: list[str]) -> str:
    more = len(names) - 4
    return ", ".join(names[:4]) + (f", and {more} more" if more > 0 else "")


def _size(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "1"


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(
            f"There is no file {path}; --model.network.weights takes imagenet, a file, or null (from scratch)."
        )
    if zipfile.is_zipfile(path):  # torch.save's older form has no checksums
        verify_archive(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"Cannot read the weights {path}: {reason}; save them as .safetensors.") from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict of a file: what it holds, or what it keeps under one of the usual names."""
    held = content if isinstance(content, dict) else {}
    inner = next((held[name] for name in _CONTAINERS if isinstance(held.get(name), dict)), held)
    tensors = {key: value for key, value in inner.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        kinds = ", ".join(sorted({type(value).__name__ for value in inner.values()})) or type(content).__name__
        raise ModelError(
            f"{path} holds no tensors by name (but {kinds}); --model.network.weights takes a state dict, "
            "alone or in a checkpoint."
        )
    return tensors
