"""The command `refine`: other thresholds, another CRF, from the soft maps a store has kept."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from data.config import require
from data.console import warn_of_idle
from data.wording import count
from pseudolabel.config import mask_settings
from pseudolabel.masks.config import MaskConfig


def refine(
    store: Path,
    output: Path,
    root: Path | None = None,
    workers: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    device: str = "auto",
    **settings: Any,
) -> None:
    """Make masks anew from a store's soft maps, without the diffusion model.

    Settings that are not given are those the store was made with. A store of network predictions works too; there the
    background is the network's own, so the settings of fuse have no effect.

    Args:
        store: Store whose soft maps are read; it is left as it is.
        output: Folder of the new store; resumed if it exists.
        root: Folder of the images, if it is not where the store says.
        workers: Processes that make masks; none: one for each core but one; 0: no extra process.
        on_error: stop, or skip: an image that cannot be processed is counted and named at the end.
        device: Where PAMR, the CRF's torch engine and SAM run: auto (a GPU if there is one), cpu, cuda, cuda:1.
        **settings: The fields of MaskConfig.

    """
    from data.store.store import MaskStore
    from pseudolabel.generate.refine import holds_background, refine_masks
    from pseudolabel.generate.tally import check_some_made, print_sam, print_skipped

    require("workers", workers, workers is None or workers >= 0, "at least 0")
    config = MaskConfig(**settings)
    warn_of_idle(config.idle(background=holds_background(MaskStore.open(Path(store)))))
    tally = refine_masks(Path(store), Path(output), config, root, workers, on_error, device)
    print(f"{count(tally.written, 'mask')} in {Path(output) / 'masks'} in {tally.seconds:.0f} s.")
    if tally.relabelled:
        print(f"{tally.relabelled} of them again, because their labels have changed in {store}.")
    if tally.handed_on:
        print(f"Decisions and corrected masks of {count(tally.handed_on, 'image')} were taken over from {store}.")
    print_sam(tally)
    print_skipped(Path(output), tally.skipped)
    check_some_made(Path(output), tally.skipped)
    print(f"Next: pseudolabel score --store {output}     mIoU, where there is ground truth")
    print(f"      pseudolabel report --store {output}    a page of overlays, coverage and warnings")


def stored_defaults(store: Path) -> dict[str, Any]:
    """Return the mask settings of a store, as flat keys, to be the command's defaults; nothing where no store is.

    Raises:
        StoreError: the store cannot be read.

    """
    from data.store.store import MaskStore

    if not (store / "store.json").exists():
        return {}  # the command itself says so
    return _flat(asdict(mask_settings(MaskStore.open(store).header["config"])))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
