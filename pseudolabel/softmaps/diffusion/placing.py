"""Where the parts of a model lie while it runs: all on the device, or the large ones in main memory until needed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data.errors import ModelError
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.parts import Parts

ROOM_BYTES = 1 << 30  # that embedding a sentence may need beside the encoders' weights


def place(parts: Parts, config: ModelConfig) -> Parts:
    """Bring a model to its device, in place, and return it.

    A transformer's text encoders (T5 alone has 4.8 billion parameters) stay in main memory but for the moments in which
    sentences are embedded, unless they are to be kept; where they do not fit beside it, the denoiser leaves meanwhile.
    With `offload` the denoiser stays there too and one block of it at a time is on the device. What a pass reads is to
    have been cut before, so that the rest is never sent.

    Raises:
        ModelError: accelerate, which offloading needs, is not installed.

    """
    _lay_out(parts)
    parts.vae_in_stripes = config.vae_stripes
    parts.encoders_leave = parts.device.type != "cpu" and parts.family != "unet" and not config.keep_text_encoders
    if parts.vae is not None:
        parts.vae.to(parts.device)
    if not parts.encoders_leave:
        for encoder in parts.text_encoders:
            encoder.to(parts.device)
    parts.offloaded = config.offload
    if not config.offload:
        parts.denoiser.to(parts.device)
        return parts
    from diffusers.utils.import_utils import is_accelerate_available

    if not is_accelerate_available():
        raise ModelError("--model.offload needs accelerate: install the extra [large], or leave it out")
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        parts.denoiser, onload_device=parts.device, offload_type="block_level", num_blocks_per_group=1
    )
    return parts


def _lay_out(parts: Parts) -> None:
    """Put channels last in the memory of convolutions, in place, where that is quicker and changes no earlier store.

    On a core of an AMD EPYC Stable Diffusion's image encoder takes 0.83 of the time then (benchmarks/stage_one.md). It
    changes the last bits, so in float32 on a CPU a U-Net's usual image encoder stays as it was. On a GPU half precision
    is meant to have it (not measured here).
    """
    in_half = parts.device.type == "cuda" and parts.dtype != torch.float32
    newer = parts.family != "unet" or type(parts.vae).__name__ == "AutoencoderTiny"
    if parts.vae is not None and (in_half or newer):
        parts.vae.to(memory_format=torch.channels_last)
    if in_half and parts.family == "unet":
        parts.denoiser.to(memory_format=torch.channels_last)


@contextmanager
def encoders_at_hand(parts: Parts) -> Iterator[None]:
    """Have the text encoders on the device, and leave them where they were."""
    if not parts.encoders_leave:
        yield
        return
    crowded = not has_room(parts)
    if crowded:
        parts.denoiser.to("cpu")
    for encoder in parts.text_encoders:
        encoder.to(parts.device)
    try:
        yield
    finally:
        for encoder in parts.text_encoders:
            encoder.to("cpu")
        if crowded:
            torch.cuda.empty_cache()
            parts.denoiser.to(parts.device)


def has_room(parts: Parts) -> bool:
    """Whether the text encoders fit onto a GPU beside what lies there; what is offloaded does not lie there."""
    if parts.device.type != "cuda" or parts.offloaded:
        return True
    needed = sum(weight.numel() * weight.element_size() for each in parts.text_encoders for weight in each.parameters())
    free, _ = torch.cuda.mem_get_info(parts.device)
    idle = torch.cuda.memory_reserved(parts.device) - torch.cuda.memory_allocated(parts.device)
    return free + idle > needed + ROOM_BYTES
