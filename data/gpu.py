"""Whether a GPU can be there at all, found out without torch, whose import takes seconds."""

import ctypes
import functools
import sys
from pathlib import Path

AMD_DRIVER = Path("/dev/kfd")  # of ROCm, whose GPUs torch calls cuda too


@functools.cache
def may_have_gpu() -> bool:
    """Return whether the driver of a GPU that torch calls cuda is installed; without one torch need not be asked.

    True says no more than that torch has to be asked: the driver may lack a device, or torch support for it. The
    driver's library is looked up as torch's own does (Linux, the ones of containers, WSL and Jetson among it, and
    Windows) and nothing in it is called, so that processes may still be forked. macOS has no such driver.
    """
    match sys.platform:
        case "darwin":
            return False
        case "win32":
            return _loads("nvcuda.dll")
        case _:
            return AMD_DRIVER.exists() or _loads("libcuda.so.1")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
