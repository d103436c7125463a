"""The grounds of the demo world: textures made of few random numbers, exact on every machine.

Whole numbers throughout: noise is interpolated with weights of six bits, and sines come from a table. No matrix
product either, whose threads would cost more than they gain where several processes draw.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from jaxtyping import Int32, UInt8

GROUNDS = ("grass", "sky", "water", "sand", "road", "brick wall", "snow", "rock")
OTHER_GROUNDS = ("planks", "tiles", "carpet", "gravel", "dusk", "leaves")  # No split shows these; the arena does.
UPPER_GROUNDS = ("sky", "brick wall", "dusk", "planks")  # Where two grounds meet, these lie above.
T = TypeVar("T")
SINE = np.array([round(256 * math.sin(2 * math.pi * step / 256)) for step in range(256)], dtype=np.int32)
RGB = tuple[int, int, int]

# Pairs of colours between which the noise of a ground moves.
COLOURS: dict[str, tuple[RGB, RGB]] = {
    "grass": ((40, 92, 28), (116, 168, 62)),
    "sky": ((84, 156, 226), (196, 226, 248)),
    "water": ((8, 66, 122), (52, 138, 184)),
    "sand": ((196, 168, 112), (234, 212, 162)),
    "road": ((74, 74, 80), (116, 114, 116)),
    "brick wall": ((150, 76, 66), (196, 112, 96)),
    "snow": ((214, 226, 236), (252, 254, 255)),
    "rock": ((70, 54, 44), (166, 142, 118)),
    "planks": ((112, 72, 40), (186, 134, 84)),
    "tiles": ((168, 176, 172), (222, 228, 222)),
    "carpet": ((98, 32, 52), (168, 84, 96)),
    "gravel": ((88, 84, 80), (202, 196, 186)),
    "dusk": ((70, 48, 106), (250, 168, 112)),
    "leaves": ((92, 62, 20), (206, 128, 40)),
}
MORTAR = (206, 192, 180)


def draw_ground(name: str, rng: np.random.Generator, size_px: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return one ground, filling a square of `size_px`; `name` is one of GROUNDS or OTHER_GROUNDS.

    Raises:
        ValueError: there is no such ground.

    """
    match name:
        case "grass":
            light = _noise(rng, size_px, ((4, 4), (16, 16), (64, 32)), (3, 3, 2))
        case "sky":
            rows = np.arange(size_px, dtype=np.int32)[:, None] * 150 // size_px
            light = rows + _noise(rng, size_px, ((4, 3), (8, 6)), (2, 1)) * 105 // 255
        case "water":
            light = _ripples(rng, size_px)
        case "sand":
            light = _noise(rng, size_px, ((3, 3), (64, 64)), (2, 1))
        case "road":
            light = _noise(rng, size_px, ((3, 3), (32, 32), (64, 64)), (1, 1, 2))
        case "brick wall":
            return _bricks(rng, size_px)
        case "snow":
            light = _noise(rng, size_px, ((3, 3), (8, 8)), (3, 1))
        case "rock":
            folded = np.abs(_noise(rng, size_px, ((5, 5), (10, 10), (24, 24)), (3, 2, 1)) - 128)
            light = 3 * folded + _noise(rng, size_px, ((8, 8), (40, 40)), (1, 1)) // 3 - 16  # The folds are cracks.
        case "planks" | "tiles" | "carpet":
            light = _pattern(name, rng, size_px)
        case "gravel":
            light = _noise(rng, size_px, ((24, 24), (48, 48), (64, 64)), (3, 2, 2))
        case "dusk":
            rows = np.arange(size_px, dtype=np.int32)[:, None] * 190 // size_px
            light = rows + _noise(rng, size_px, ((6, 2), (12, 4)), (2, 1)) * 65 // 255
        case "leaves":
            folded = np.abs(_noise(rng, size_px, ((10, 10), (20, 20)), (2, 1)) - 128)
            light = 4 * folded + _noise(rng, size_px, ((40, 40),), (1,)) // 4
        case _:
            raise ValueError(f"no ground is called {name!r}: choose one of {', '.join((*GROUNDS, *OTHER_GROUNDS))}")
    return _between(name, light, rng)


def blend_grounds(
    upper: UInt8[np.ndarray, "size size 3"], lower: UInt8[np.ndarray, "size size 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Put one ground above another, parted by a tilted, wavy line with a soft edge of one pixel."""
    size_px = upper.shape[0]
    middle = size_px * (30 + uniform_int(rng, 0, 41)) * 256 // 100
    tilt = uniform_int(rng, -64, 65)
    height, waves, phase = uniform_int(rng, 2, 7), uniform_int(rng, 1, 4), uniform_int(rng, 0, 256)
    columns = np.arange(size_px, dtype=np.int32)
    wave = SINE[(columns * waves * 256 // size_px + phase) & 255] * height * size_px // 128
    line = middle + (columns - size_px // 2) * tilt + wave
    share = np.clip(np.arange(size_px, dtype=np.int32)[:, None] * 256 - line, 0, 256)[..., None]
    return ((upper * (256 - share) + lower * share) >> 8).astype(np.uint8)


def generator(*key: int) -> np.random.Generator:
    """Return the random stream of a key of whole numbers: other keys have other streams, the same on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Return one of some items, each as likely as any other."""
    return items[uniform_int(rng, 0, len(items))]


def uniform_int(rng: np.random.Generator, low: int, high: int) -> int:
    """Draw a whole number in [low, high) from one double: the stream numpy is least likely ever to change."""
    return low + int(rng.random() * (high - low))


def random_bytes(rng: np.random.Generator, *shape: int) -> UInt8[np.ndarray, "..."]:
    """Independent bytes, uniform in 0 ... 255."""
    return np.frombuffer(rng.bytes(math.prod(shape)), dtype=np.uint8).reshape(shape)


@lru_cache(maxsize=64)
def _interpolation(cells: int, size_px: int) -> tuple[Int32[np.ndarray, " size"], Int32[np.ndarray, " size"]]:
    """Return for each pixel the cell it lies in, and how far it is towards the far knot: smoothstep, 0 ... 64."""
    cell, rest = np.divmod(np.arange(size_px) * cells, size_px)
    share = rest / size_px
    return cell.astype(np.int32), np.rint(64 * share * share * (3 - 2 * share)).astype(np.int32)


def _noise(
    rng: np.random.Generator, size_px: int, cells: tuple[tuple[int, int], ...], weights: tuple[int, ...]
) -> Int32[np.ndarray, "size size"]:
    """Value noise in 0 ... 255: octaves of (rows, columns) cells, added with the weights."""
    total = np.zeros((size_px, size_px), dtype=np.int32)
    for (rows, columns), weight in zip(cells, weights, strict=True):
        knots = random_bytes(rng, rows + 1, columns + 1).astype(np.int32) * weight
        column, across = _interpolation(columns, size_px)
        wide = knots[:, column] * (64 - across) + knots[:, column + 1] * across
        row, down = _interpolation(rows, size_px)
        total += wide[row] * (64 - down)[:, None] + wide[row + 1] * down[:, None]
    return total // (4096 * sum(weights))


def _ripples(rng: np.random.Generator, size_px: int) -> Int32[np.ndarray, "size size"]:
    """Waves of water in 0 ... 255: rows of a sine, bent by noise."""
    bend = _noise(rng, size_px, ((4, 3), (8, 8)), (2, 1))
    rows = np.arange(size_px, dtype=np.int32)[:, None] * 256 * uniform_int(rng, 8, 14) // size_px
    return 96 + SINE[(rows + 2 * bend) & 255] * 64 // 256 + bend // 3


def _pattern(name: str, rng: np.random.Generator, size_px: int) -> Int32[np.ndarray, "size size"]:
    """Upright planks, square tiles in two shades, or a carpet of slanting stripes, in 0 ... 255, with some grain."""
    pixels = np.arange(size_px, dtype=np.int32)
    step = max(6, size_px // uniform_int(rng, 6, 11))
    across = pixels + uniform_int(rng, 0, step)
    shades = random_bytes(rng, size_px // step + 2).astype(np.int32)
    grain = _noise(rng, size_px, ((4, 48), (32, 32)), (2, 1))
    match name:
        case "planks":
            base = np.where(across % step < 1, 0, 64 + shades[across // step] // 2)[None, :]
        case "tiles":
            checked = (across[:, None] // step + across[None, :] // step) % 2
            base = np.where((across[:, None] % step < 2) | (across[None, :] % step < 2), 0, 110 + 110 * checked)
        case _:
            base = 96 + SINE[((across[:, None] + 2 * across[None, :]) * 256 // (2 * step)) & 255] * 80 // 256
    return (3 * base + grain) // 4


def _between(name: str, light: Int32[np.ndarray, "size size"], rng: np.random.Generator) -> UInt8[np.ndarray, "..."]:
    """Colour a field of 0 ... 255 between the ground's two colours, shifted a little a scene."""
    shift = np.array([uniform_int(rng, -5, 6) for _ in range(3)], dtype=np.int32) + uniform_int(rng, -10, 11)
    table = np.array(COLOURS[name], dtype=np.int32) + shift
    steps = np.arange(256, dtype=np.int32)[:, None]
    ramp = np.clip((table[0] * (255 - steps) + table[1] * steps) // 255, 0, 255).astype(np.uint8)
    return ramp[np.clip(light, 0, 255)]


def _bricks(rng: np.random.Generator, size_px: int) -> UInt8[np.ndarray, "size size 3"]:
    """Draw a wall of bricks, each of its own shade, with mortar between and a little grain."""
    rows = uniform_int(rng, 8, 13)
    brick_height = max(3, size_px // rows)
    brick_width = brick_height * 2 + uniform_int(rng, 0, max(1, brick_height // 2))
    pixels = np.arange(size_px, dtype=np.int32)
    row, row_rest = np.divmod(pixels + uniform_int(rng, 0, brick_height), brick_height)
    along = pixels[None, :] + (row[:, None] % 2) * (brick_width // 2) + uniform_int(rng, 0, brick_width)
    column, column_rest = np.divmod(along, brick_width)
    shades = random_bytes(rng, int(row.max()) + 1, int(column.max()) + 1).astype(np.int32)
    light = (shades[row[:, None], column] * 3 + _noise(rng, size_px, ((32, 32),), (1,))) // 4
    wall = _between("brick wall", light, rng)
    thick = 1 if brick_height < 14 else 2
    wall[(row_rest < thick)[:, None] | (column_rest < thick)] = MORTAR
    return wall
