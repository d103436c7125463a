"""How Lightning's checkpoints get to the disk and back."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from data.files import write_atomically
from train.archive import verify_archive


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are on the disk whole or not at all, and are checked before they are read.

    Lightning's own writes to the system's temporary folder and moves the file from there: on another file system that
    is a copy over the former checkpoint, and a kill or a full disk in the middle of it leaves neither.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint beside the former one, which stays until the new one is on the disk."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Into memory first, as Lightning does: torch's own writer of files ends the process where a disk is full.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(target, buffer.getbuffer(), durable=True)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, once every byte of it is known to be as it was written."""
        verify_archive(Path(path))
        return super().load_checkpoint(Path(path), map_location, weights_only)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left of checkpoints that it was writing; the folder belongs to one run."""
    for leftover in folder.glob(".*.ckpt.*.tmp"):
        leftover.unlink(missing_ok=True)
