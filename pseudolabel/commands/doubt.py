"""The command `doubt`: labels that may be wrong."""

from pathlib import Path

from data.config import require
from data.wording import count, printable


def doubt(store: Path, limit: int = 20, output: Path | None = None, json: bool = False) -> None:
    """List the labels of a store that may be wrong, the most doubtful first; nothing is changed.

    A label's presence is how much of the image's attention its words draw; its scale is the model's own.

    Args:
        store: Folder of the mask store, made by `generate`.
        limit: Lines printed; 0 prints all.
        output: Write the whole list here too, as CSV.
        json: Print JSON instead of a table.

    """
    from dataclasses import asdict
    from json import dumps

    from data.files import write_atomically
    from data.store.store import MaskStore
    from pseudolabel.review.doubtful import as_csv, doubtful_labels

    require("limit", limit, limit >= 0, "at least 0")
    found = doubtful_labels(MaskStore.open(Path(store)))
    shown = found[:limit] if limit else found
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, as_csv(found).encode(errors="backslashreplace"))
    if json:
        content = {"format": "pseudolabel-doubt", "format_version": 1, "labels": [asdict(each) for each in shown]}
        print(dumps(content, indent=1))
        return
    width = max(5, *(len(printable(each.label)) for each in shown))
    print(f"{'label':<{width}}  presence   mask  image")
    for each in shown:
        figures = f"{each.presence:8.3f}  {100 * each.share:3.0f} %"
        print(f"{printable(each.label):<{width}}  {figures}  {printable(each.image or each.id)}")
    print(f"{count(len(shown), 'label')} of {len(found)}, the most doubtful first.")
    if output is not None:
        print(f"All of them: {output}")
    print("Next: correct the label file and run generate again,")
    print(f"      or segtrain fit --data.store {store} --data.min_presence P     learns no label below P")
