"""The command `import`: masks that another program made become a store."""

from pathlib import Path
from typing import Literal

from data.config import DataConfig


def import_masks(
    masks: Path,
    store: Path,
    data: DataConfig,
    white: Literal["ignore", "class"] = "ignore",
    soft: bool = True,
    on_error: Literal["stop", "skip"] = "stop",
) -> None:
    """Take the masks of another program (SAM, an annotation tool, a paper's release) into a store.

    Masks are 8-bit palette or greyscale PNGs of class ids with 255 where nothing is known, named as the image's id or
    lying as the image does below the root. The same command again goes on where it stopped.

    Args:
        masks: Folder of the masks.
        store: Folder of the store; started if it does not exist, continued if it does.
        data: The images that the masks are of, their classes, and their labels where there are any.
        white: What 255 means in masks that hold only 0 and 255: no decision (ignore), or the one class there is
            (class).
        soft: Keep soft maps at an eighth of the size too, from which refine starts.
        on_error: A mask that cannot be taken: stop, or leave it out and name it at the end.

    """
    from data.wording import printable
    from pseudolabel.generate.importing import import_lines
    from pseudolabel.generate.importing import import_masks as take_masks
    from pseudolabel.generate.tally import check_some_made, print_skipped

    result = take_masks(store, masks, data, white, soft, on_error)
    for line in import_lines(result, store):
        print(printable(line))
    print_skipped(store, result.skipped)
    check_some_made(store, result.skipped)
    print(f"Next: pseudolabel report --store {store}    a page of overlays, coverage and warnings")
    print(f"      pseudolabel score --store {store}     mIoU, where there is ground truth")
    print(f"      segtrain fit --data.store {store}     train a network on the masks")
