"""How far the CRF in tiles is from the CRF of the whole image, by the margin around the tiles.

    python -m benchmarks.crf_tiles --root VOCdevkit [--split val] [--images 6]

Photographs of VOC with scores that are wrong in places: the true masks on a grid of 16 pixels, with noise. The colour
term's width is 12 pixels, for tiles of 160 and photographs of 500: as the default of 67 for tiles of 900 and
photographs of 2,800. Writes crf_tiles.md beside itself, with hardware and commit.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.common import HERE, machine, machine_line, table, write_text
from data.config import DataConfig
from data.images import read_image
from data.masks import read_truth
from data.readers.layout import open_samples
from train import crf_tiles
from train.crf_tiles import blocks_of_large
from train.inference import CrfConfig, InferenceConfig, sharpen

CRF = CrfConfig(enabled=True, sxy_bilateral=12.0)
TILE_PX = 160
CELL_PX = 16  # of the grid on which the scores are made
REACHES = (1, 2, 3, 4, 6)
SHIPPED, WHOLE_PX = crf_tiles.REACH, crf_tiles.WHOLE_PX


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=6)
    given = parser.parse_args()
    crf_tiles.WHOLE_PX, crf_tiles.LEAST_SIDE_PX = 1, TILE_PX
    found = {reach: [] for reach in REACHES}
    for rgb, scores in photographs(given.root, given.split, given.images):
        whole = sharpen(rgb, scores, CRF)
        for reach in REACHES:
            crf_tiles.REACH = reach
            tiled = in_tiles(rgb, scores)
            moved = (tiled.argmax(0) != whole.argmax(0)).mean()
            found[reach].append((float(np.abs(tiled - whole).max()), 1e6 * float(moved)))
    write_text(HERE / "crf_tiles.md", page(found, given.images))
    print(page(found, given.images))


def photographs(root: Path, split: str, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield photographs and scores of their classes, (classes, height, width)."""
    rng = np.random.default_rng(0)
    for sample in open_samples(DataConfig(root, split=split), need_labels=False, need_truth=True).samples[:count]:
        rgb = read_image(sample.image_path)
        assert sample.truth_path is not None
        truth = read_truth(sample.truth_path, rgb.shape[:2], sample.image_path, sample.white)
        height, width = truth.shape
        planes = [(truth == label).astype(np.float32) for label in np.unique(truth) if label != 255]
        size = (width // CELL_PX, height // CELL_PX)
        coarse = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in planes]
        noisy = [np.clip(each + rng.normal(0, 0.35, each.shape), 0.02, 1).astype(np.float32) for each in coarse]
        scores = np.stack([cv2.resize(each, (width, height)) for each in noisy]) + 0.05
        yield rgb, scores / scores.sum(axis=0)


def in_tiles(rgb: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the marginals that the tiles make; the network gives the logarithms of these scores."""
    logits = torch.from_numpy(scores).log()[None]

    def network(images: torch.Tensor) -> torch.Tensor:
        missing = [side - there for side, there in zip(images.shape[-2:], logits.shape[-2:], strict=True)]
        return torch.nn.functional.pad(logits, (0, missing[1], 0, missing[0]))

    image, fill = torch.from_numpy(rgb).permute(2, 0, 1), torch.zeros(1, 3, 1, 1)
    result = np.empty_like(scores)
    blocks = blocks_of_large(network, image, len(scores), InferenceConfig(crf=CRF), fill, "it")
    assert blocks is not None
    for _, block in blocks:
        result[:, block.rows, block.columns] = block.values
    return result


def page(found: dict[int, list[tuple[float, float]]], images: int) -> str:
    """Return the figures as Markdown."""
    rows = [
        (
            f"{reach}" + (" (as shipped)" if reach == SHIPPED else ""),
            f"{max(change for change, _ in values):.4f}",
            f"{np.mean([moved for _, moved in values]):.1f}",
            f"{max(moved for _, moved in values):.1f}",
        )
        for reach, values in found.items()
    ]
    header = ("margin, in widths of the colour term", "largest change", "labels moved, of a million", "at most")
    return "\n\n".join(
        [
            "# The CRF in tiles, against the whole image",
            f"{images} photographs of VOC 2012, tiles of {TILE_PX} pixels without their margin, a colour term of "
            f"{CRF.sxy_bilateral:g} pixels: as tiles of 900 pixels with the default of 67. `segtrain` cuts images "
            f"of more than {WHOLE_PX / 1e6:.1f} million pixels. The largest change is that of a probability.",
            table(header, rows),
            f"{machine_line(machine())} Made by `python -m benchmarks.crf_tiles --root VOCdevkit`.",
        ]
    )


if __name__ == "__main__":
    main()
