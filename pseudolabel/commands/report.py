"""The command `report`: one page about a store."""

from pathlib import Path

from data.config import require


def report(
    store: Path, output: Path | None = None, limit: int = 48, root: Path | None = None, truth: str | None = None
) -> None:
    """Write one self-contained HTML page about a store.

    Args:
        store: Folder of the mask store.
        output: The page; none: report.html in the store.
        limit: Images shown; they are spread over the store, those with warnings first.
        root: Folder of the data set, if it is not where the store says.
        truth: Folder of ground-truth masks, relative to the root or absolute; none: the layout's own.

    """
    from data.files import check_writable, write_atomically
    from data.store.store import MaskStore
    from pseudolabel.review.report import report_page

    require("limit", limit, limit >= 0, "at least 0")
    opened = MaskStore.open(store)
    target = Path(output) if output is not None else Path(store) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    check_writable(target)
    html = report_page(opened, limit, root, truth)
    write_atomically(target, html.encode("utf-8", "backslashreplace"))  # a path may be of no encoding
    print(f"{target} ({len(html) / 1e6:.1f} MB): open it in a browser.")
