"""Where the parts of a model lie while it runs: all on the device, or the large ones in main memory until needed."""

from collections.abc import Iterator
from contextlib import contextmanager

from data.errors import ModelError
from pseudolabel.config import ModelConfig
from pseudolabel.softmaps.diffusion.parts import Parts


def place(parts: Parts, config: ModelConfig) -> Parts:
    """Bring a model to its device, in place, and return it.

    A transformer's text encoders (T5 alone has 4.8 billion parameters) stay in main memory but for the moments in which
    sentences are embedded, unless they are to be kept. With `offload` the denoiser stays there too and one block of it
    at a time is on the device. What a pass reads is to have been cut before, so that the rest is never sent.

    Raises:
        ModelError: accelerate, which offloading needs, is not installed.

    """
    parts.encoders_leave = parts.device.type != "cpu" and parts.family != "unet" and not config.keep_text_encoders
    if parts.vae is not None:
        parts.vae.to(parts.device)
    if not parts.encoders_leave:
        for encoder in parts.text_encoders:
            encoder.to(parts.device)
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


@contextmanager
def encoders_at_hand(parts: Parts) -> Iterator[None]:
    """Have the text encoders on the device, and leave them where they were."""
    if not parts.encoders_leave:
        yield
        return
    for encoder in parts.text_encoders:
        encoder.to(parts.device)
    try:
        yield
    finally:
        for encoder in parts.text_encoders:
            encoder.to("cpu")
