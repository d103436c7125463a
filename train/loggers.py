"""Where a run's figures go: a CSV file, TensorBoard, and Weights & Biases where that is wanted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from data.errors import ConfigError


def run_loggers(output: Path, wandb: str | None) -> list[Logger]:
    """Return the loggers of a run in this folder.

    Args:
        output: the run's folder.
        wandb: a project of Weights & Biases, or None.

    Raises:
        ConfigError: the package of Weights & Biases is missing.

    """
    loggers: list[Logger] = [CSVLogger(output, "csv"), TensorBoardLogger(output, "tensorboard")]
    if wandb:
        try:
            from pytorch_lightning.loggers import WandbLogger

            loggers.append(WandbLogger(project=wandb, save_dir=str(output)))
        except ModuleNotFoundError as error:
            raise ConfigError("--wandb needs the package wandb: pip install 'text2mask-wsss[wandb]'.") from error
    return loggers


@contextmanager
def writers_silent() -> Iterator[None]:
    """Keep TensorBoard's writer thread from printing a traceback of what the training is going to be told anyway.

    The thread hands a full disk to the next call of its writer, which raises it where it ends the run with one line,
    and then raises it a second time in the thread itself.
    """
    former = threading.excepthook
    threading.excepthook = lambda args: None if issubclass(args.exc_type, OSError) else former(args)
    try:
        yield
    except OSError:
        for thread in threading.enumerate():
            if type(thread).__module__.startswith("tensorboard"):
                thread.join(timeout=1)  # it is about to end
        raise
    finally:
        threading.excepthook = former
