"""What keeps a network trained on pseudo-masks from one trained on the true masks: each kind of error mended alone.

    python -m benchmarks.stage_two_limits --store S --root W [--seed 0] [--output runs/limits]

S is a store of pseudo-masks of W's train split, W the demo world. Trained and tested on val, all settings equal:

    pseudo      the store's masks
    classes     pixels that show another class than the mask says get their true class; outlines stay
    extent      object pixels called background, and background called object, are mended; mixed-up classes stay
    ignored     pixels in the ignore band get their true class, nothing else is mended
    argmax      the store's masks without an ignore band
    confidence  the store's masks, each pixel weighted by its soft maps' confidence
    bootstrap   the store's masks, bootstrapped cross-entropy in place of balanced
    true        the true masks

The mended ones tell what limits the network, the next three what may be done about it. Runs that are done
are not repeated. The figures go to benchmarks/stage_two_limits.json, with hardware and commit.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from benchmarks.common import HERE, machine, write_json
from benchmarks.stage_two_seeds import CONFIG, train
from data.classes import IGNORE
from data.demo.world import TRAIN_TRUTH_FOLDER
from data.masks import read_mask, write_mask
from data.store.store import MaskStore

Mask = UInt8[np.ndarray, "height width"]


def mend_classes(mask: Mask, truth: Mask) -> Mask:
    """Return the mask with the true class where both show an object."""
    both = (mask > 0) & (mask != IGNORE) & (truth > 0)
    return np.where(both, truth, mask)


def mend_extent(mask: Mask, truth: Mask) -> Mask:
    """Return the mask with the truth where one shows an object and the other background."""
    return np.where((mask != IGNORE) & ((mask > 0) != (truth > 0)), truth, mask)


def mend_ignored(mask: Mask, truth: Mask) -> Mask:
    """Return the mask with the truth where it has no decision."""
    return np.where(mask == IGNORE, truth, mask)


MENDED: dict[str, Callable[[Mask, Mask], Mask]] = {
    "classes": mend_classes,
    "extent": mend_extent,
    "ignored": mend_ignored,
}
TRIED = {
    "argmax": ["--data.masks", "argmax"],
    "confidence": ["--data.weights", "confidence"],
    "bootstrap": ["--model.loss.kind", "bootstrapped"],
}


def main() -> None:
    """Write the mended masks, train, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--output", type=Path, default=Path("runs/limits"))
    parser.add_argument("--only", nargs="+", choices=["pseudo", *MENDED, *TRIED, "true"])
    given = parser.parse_args()
    truth = given.root / TRAIN_TRUTH_FOLDER
    shares = write_mended(MaskStore.open(given.store), truth, given.output)
    runs = {"pseudo": []}
    runs |= {name: ["--data.masks", "truth", "--data.truth", given.output / f"masks_{name}"] for name in MENDED}
    runs |= TRIED | {"true": ["--data.masks", "truth", "--data.truth", truth]}
    figures: dict[str, float] = {}
    for name in given.only or runs:
        figures[name] = train(given, name, given.store, given.seed, runs[name])
        found = {"miou": figures, "share_of_pixels": shares, "seed": given.seed, "store": str(given.store)}
        write_json(HERE / "stage_two_limits.json", found | machine())
    print(json.dumps(found, indent=1))


def write_mended(store: MaskStore, truth: Path, output: Path) -> dict[str, float]:
    """Write the store's masks with one kind of error mended each; return the share of all pixels that each changes."""
    changed, pixels = dict.fromkeys(MENDED, 0), 0
    for record in store.records():
        name = f"{record['id']}.png"
        mask, true = store.read_mask(record["id"]), read_mask(truth / name)
        pixels += mask.size
        for kind, mend in MENDED.items():
            mended = mend(mask, true)
            changed[kind] += int((mended != mask).sum())
            folder = output / f"masks_{kind}"
            folder.mkdir(parents=True, exist_ok=True)
            write_mask(folder / name, mended)
    return {kind: round(count / pixels, 4) for kind, count in changed.items()}


if __name__ == "__main__":
    main()
