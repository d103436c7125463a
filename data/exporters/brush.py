"""Label Studio's brush masks: the bit stream its front end draws with.

The stream is that of @thi.ng/rle-pack (github.com/thi-ng/umbrella, packages/rle-pack), which Label Studio's own
converter (HumanSignal/label-studio-converter, brush.py) reads and writes too. Most significant bit first:

    32 bits     number of values: height * width * 4, because the picture is RGBA
    5 bits      bits a value, less one (7)
    4 x 4 bits  the four lengths' sizes in bits, less one (2, 3, 7, 15)
    then runs:  1 bit "a run", 2 bits which size, the run's length less one, 8 bits the value
    zeros up to a whole byte

A pixel of the mask is four values of 255, another one four zeros; readers look at the fourth, alpha.
"""

import numpy as np
from jaxtyping import Bool

_LENGTH_BITS = (3, 4, 8, 16)


def encode_brush(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """Return a mask as the list of byte values that Label Studio keeps under "rle"."""
    values = np.repeat(mask.ravel(), 4)
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.concatenate([[0], edges]).astype(np.int64)
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    header = f"{len(values):032b}{7:05b}" + "".join(f"{bits - 1:04b}" for bits in _LENGTH_BITS)
    runs = (_run_bits(int(length), bool(values[start])) for start, length in zip(starts, lengths, strict=True))
    bits = header + "".join(runs)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def _run_bits(length: int, value: bool) -> str:
    """Return the bits of a run, in pieces of at most 65,536 values."""
    byte = "11111111" if value else "00000000"
    full, rest = divmod(length, 2 ** _LENGTH_BITS[-1])
    pieces = f"111{2 ** _LENGTH_BITS[-1] - 1:016b}{byte}" * full
    if not rest:
        return pieces
    size = next(index for index, bits in enumerate(_LENGTH_BITS) if rest <= 2**bits)
    return f"{pieces}1{size:02b}{rest - 1:0{_LENGTH_BITS[size]}b}{byte}"
