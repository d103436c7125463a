"""The folder of a run: whose it is, what another run that begins in it takes away, and a folder that was moved."""

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from data.errors import ConfigError
from data.files import write_atomically
from train.checkpoint_io import remove_leftovers

CHECKPOINTS = "checkpoints"
LAST, BEST = "last.ckpt", "best.ckpt"


def last_checkpoint(output: Path) -> Path:
    """Return the file of a run's newest weights."""
    return output / CHECKPOINTS / LAST


def best_checkpoint(output: Path) -> Path:
    """Return the file of the weights that measured best; there is none without --data.val."""
    return output / CHECKPOINTS / BEST


def goes_on(output: Path, ckpt_path: Path | None) -> bool:
    """Return whether a checkpoint is one of the run in a folder, so that the run goes on there."""
    return ckpt_path is not None and ckpt_path.resolve().parent == (output / CHECKPOINTS).resolve()


def check_free(output: Path, ckpt_path: Path | None) -> None:
    """Raise ConfigError where checkpoints of another run lie in the folder, which this one would write over."""
    there = [path for path in (last_checkpoint(output), best_checkpoint(output)) if path.exists()]
    if there and not goes_on(output, ckpt_path):
        raise ConfigError(
            f"{output} holds a run already; go on with --ckpt_path {there[0]}, name another --output, or give "
            "--overwrite true."
        )


def is_first_process() -> bool:
    """Return whether this is the process that writes; before Lightning has counted them."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")  # torchrun's, Lightning's, SLURM's
    return all(os.environ.get(name, "0") == "0" for name in names)


class RunFolder(pl.Callback):
    """Makes the folder this run's once everything has been checked; what a run that does not start leaves is nothing.

    Args:
        output: the folder.
        config: content of its config.yaml.
        anew: whether the checkpoints of a former run go, so that none of them is taken for this run's.

    """

    def __init__(self, output: Path, config: str, anew: bool) -> None:
        self.output, self.config, self.anew = output, config, anew

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the best score so far count where its checkpoint lies, in a folder that was moved too, and else not.

        Lightning forgets it in a moved folder, and a worse checkpoint replaces the best.
        """
        states = checkpoint["callbacks"]
        for callback in trainer.checkpoint_callbacks:
            state, folder = states.get(callback.state_key), getattr(callback, "dirpath", None)
            if not isinstance(state, dict) or folder is None:
                continue
            if self.anew or not _came_along(state, Path(folder)):
                del states[callback.state_key]
            elif state.get("dirpath") != folder:
                states[callback.state_key] = in_folder(state, Path(folder))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take away what is not this run's, and keep the configuration beside the checkpoints."""
        if not trainer.is_global_zero:
            return
        self.output.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.output / CHECKPOINTS)
        if self.anew:
            for path in (best_checkpoint(self.output), last_checkpoint(self.output)):
                path.unlink(missing_ok=True)
        write_atomically(self.output / "config.yaml", self.config.encode())


def _came_along(state: dict[str, Any], folder: Path) -> bool:
    """Return whether a folder holds the file that a state of Lightning's ModelCheckpoint calls the best, if any."""
    name = Path(str(state.get("best_model_path") or "")).name
    return not name or (folder / name).is_file()


def in_folder(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the state of Lightning's ModelCheckpoint with the paths of its files in another folder.

    >>> in_folder({"dirpath": "/a", "best_model_path": "/a/best.ckpt", "kth_best_model_path": ""}, Path("/b"))
    {'dirpath': '/b', 'best_model_path': '/b/best.ckpt', 'kth_best_model_path': ''}

    """
    moved = state | {"dirpath": str(folder)}
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        if moved.get(name):
            moved[name] = str(folder / Path(moved[name]).name)
    if moved.get("best_k_models"):
        moved["best_k_models"] = {
            str(folder / Path(path).name): score for path, score in moved["best_k_models"].items()
        }
    return moved
