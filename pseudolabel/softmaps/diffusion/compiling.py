"""Compiling a denoiser: what torch cannot compile is one line, not a traceback of the compiler."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from data.errors import ModelError


def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward pass that torch compiles when it is called, and anew where sizes ask for it.

    Raises:
        ModelError: on a call, where torch cannot (no compiler, or a model that this version of torch cannot trace).

    """
    run = torch.compile(forward)

    @wraps(forward)
    def reported(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

            if not isinstance(error, TorchDynamoException):
                raise
            reason = " ".join(str(error).split())[:160]
            raise ModelError(
                f"torch {torch.__version__} cannot compile here ({reason}): leave out --run.compile"
            ) from error

    return reported
