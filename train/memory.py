"""What to say when a device's memory runs out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from data.errors import ConfigError, ImageError

STEP_REMEDY = (
    "lower --data.batch_size (--trainer.accumulate_grad_batches makes up for it) or --data.augment.crop, leave out "
    "scales of --model.loss.scales, or on a GPU give --trainer.precision bf16-mixed"
)


def ran_out(error: BaseException) -> bool:
    """Return whether an error of torch says that a GPU's or the machine's memory is full."""
    kinds = (torch.OutOfMemoryError, MemoryError)  # the second is numpy's
    return isinstance(error, kinds) or "DefaultCPUAllocator: can't allocate memory" in str(error)


@contextmanager
def image_in_memory(size_hw: Sequence[int], window: int | None, training: bool = False) -> Iterator[None]:
    """Turn memory that runs out over an image into an ImageError that says what to do.

    Args:
        size_hw: height and width of the image.
        window: side of the windows in which it is shown, None: it is shown whole.
        training: whether it is measured during a training, which does not know windows.

    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        height, width = size_hw
        remedy = f"give a smaller --inference.window than {window}" if window else "give --inference.window 513"
        if training:
            remedy = "train without --data.val.root, and measure with `segtrain test --inference.window 513`"
        reason = f"memory ran out over {width} x {height} pixels; {remedy}"
        raise ImageError(f"Memory ran out over an image of {width} x {height} pixels: {remedy}.", reason) from error


@contextmanager
def step_in_memory(training: bool) -> Iterator[None]:
    """Turn memory that runs out in a run of the trainer into a ConfigError that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        done, remedy = ("a training step", STEP_REMEDY) if training else ("an image", "give --inference.window 513")
        raise ConfigError(f"Memory ran out over {done}: {remedy}.") from error
