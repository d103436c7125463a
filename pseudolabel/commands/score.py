"""The command `score`: a store's masks against ground truth."""

from pathlib import Path
from typing import Literal


def score(
    store: Path,
    root: Path | None = None,
    truth: str | None = None,
    truth_255: Literal["ignore", "class"] | None = None,
    json: bool = False,
) -> None:
    """Compare a store's masks with ground truth: IoU before and after the CRF.

    Args:
        store: Folder of the mask store.
        root: Folder of the data set, if it is not where the store says.
        truth: Folder of ground-truth masks, relative to the root or absolute; none: the layout's own.
        truth_255: 255 in the ground truth is not scored (ignore), or is the one class of black-and-white masks (class);
            none: as the store was made with, which is ignore unless it was set.
        json: Print the figures as JSON instead of a table.

    """
    from json import dumps

    from data.store.store import MaskStore
    from pseudolabel.review.score import score_store, table

    result = score_store(MaskStore.open(store), root, truth, truth_255=truth_255)
    print(dumps(result.to_json(), indent=1) if json else table(result))
