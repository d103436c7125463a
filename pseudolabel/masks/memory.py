"""A GPU's memory that runs out while masks are made: one line that says what did not fit and what would."""

from collections.abc import Iterator
from contextlib import contextmanager

from data.errors import ConfigError


@contextmanager
def gpu_memory_for(what: str, remedy: str) -> Iterator[None]:
    """Turn torch's error inside the `with` block into one of settings; torch is not imported for it.

    Raises:
        ConfigError: the GPU's memory did not hold it.

    """
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise ConfigError(f"The GPU's memory does not hold {what}; use {remedy}") from error
