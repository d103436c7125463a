"""How much memory a model's weights need, from the headers of its files: nothing is loaded."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch

from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.diffusion.blocks import BLOCKS, list_blocks
from pseudolabel.softmaps.diffusion.families import FILES
from pseudolabel.softmaps.diffusion.fetch import loading, read_index
from pseudolabel.softmaps.diffusion.image_encoder import find_vae
from pseudolabel.softmaps.layers import resolve_layers

_BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.")


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of the weights that a run reads.

    Attributes:
        denoiser: up to the last layer that is read (of a U-Net: all of it, which is more).
        block: the largest of its blocks; of a U-Net all of it.
        image_encoder: without the decoder where that is freed.
        text_encoders: all that are read.

    """

    denoiser: int
    block: int
    image_encoder: int
    text_encoders: int

    def on_device(self, leaving: bool, offload: bool) -> int:
        """Return the most that lies on the device at once.

        Args:
            leaving: the text encoders are there only while sentences are embedded, the denoiser leaving for them.
            offload: one block of the denoiser at a time is there.

        """
        denoiser = self.block if offload else self.denoiser
        if leaving:
            return self.image_encoder + max(denoiser, self.text_encoders)
        return self.image_encoder + denoiser + self.text_encoders


def weight_bytes(config: GenerateConfig, folder: Path, dtype: torch.dtype) -> WeightBytes:
    """Read the sizes of a model's weights.

    Args:
        config: model and layers.
        folder: where the model is.
        dtype: number format of the run.

    Raises:
        ModelError: no readable model, or a layer that it does not have.

    """
    _, family = read_index(folder)
    variant, size = config.model.variant, dtype.itemsize
    own = dict(tensor_counts(folder / ("unet" if family == "unet" else "transformer"), variant))
    vae_folder = folder / "vae" if config.model.vae is None else find_vae(config.model)
    decoder = () if family == "unet" else ("decoder.", "post_quant_conv.")
    image = sum(n for name, n in tensor_counts(vae_folder, variant) if not name.startswith(decoder or "\0"))
    encoders = FILES[family].encoder_classes(config.model.t5)
    text = sum(n for part in encoders if (folder / part).is_dir() for _, n in tensor_counts(folder / part, variant))
    if family == "unet":
        whole = sum(own.values())
        return WeightBytes(whole * size, whole * size, image * size, text * size)
    kept = _blocks_read(config, own, family)
    blocks: dict[str, int] = {}
    outside = 0
    for name, n in own.items():
        found = _BLOCK.match(name)
        if found is None:
            outside += 0 if name.startswith(("norm_out.", "proj_out.")) else n
        elif (block := f"{found[1]}.{found[2]}") in kept:
            blocks[block] = blocks.get(block, 0) + n
    return WeightBytes(
        (outside + sum(blocks.values())) * size, (outside + max(blocks.values())) * size, image * size, text * size
    )


def _blocks_read(config: GenerateConfig, names: dict[str, int], family: str) -> set[str]:
    """Return the blocks up to the last one that is read; there is no model, only the names of its tensors."""
    found = [match for match in map(_BLOCK.match, names) if match is not None]
    counts = {owner: 1 + max((int(m[2]) for m in found if m[1] == owner), default=-1) for owner, _ in BLOCKS}
    shape = SimpleNamespace(**{owner: range(count) for owner, count in counts.items()})
    beside = {name.partition(".attn2.")[0] for name in names if family == "sd3" and ".attn2." in name}
    layers = [
        replace(layer, beside="attn2" if layer.name in beside else None)
        for layer in list_blocks(shape, 2, "attn", "attn", "all")  # which modules of a block are read is no matter here
    ]
    attention = config.attention
    read = [*resolve_layers(layers, attention.cross_layers, "attention.cross_layers")]
    if config.affinity.kind != "none":
        read += resolve_layers(layers, attention.self_layers, "attention.self_layers")
    order = [layer.name for layer in layers]
    return set(order[: 1 + max(order.index(layer.blocks[0]) for layer in read)])


def tensor_counts(folder: Path, variant: str | None) -> Iterator[tuple[str, int]]:
    """Yield name and number of values of every tensor in a folder's safetensors files."""
    from safetensors import safe_open

    paths = sorted(folder.glob("*.safetensors"))
    chosen = [path for path in paths if variant is not None and f".{variant}" in path.name]
    plain = [path for path in paths if path.name.count(".") == 1]
    for path in chosen or plain:
        with loading(path), safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                yield name, math.prod(file.get_slice(name).get_shape())
