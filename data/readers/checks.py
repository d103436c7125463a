"""The pre-flight look at a data set: everything that would stop or spoil a run, found before it; writes nothing."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.classes import MAX_NAME, ClassSet, class_key, nearest
from data.config import DataConfig
from data.errors import ImageError, UserError
from data.images import FORMATS, holds_several, open_image, orientation_of, to_rgb, turned_upright, upright_size
from data.masks import only_black_and_white, read_mask
from data.readers.layout import detect_format, list_data
from data.readers.listing import Listing, listing_classes, nearest_file, none_matched
from data.samples import evenly_spaced
from data.wording import count, printable, some

SHOWN = 5  # examples of each finding in the text; the JSON has them all
MAX_HINTS = 20  # unknown names that are compared with all known ones
TRUTHS = 12  # masks of ground truth to look at

HOW_READ = {
    "greyscale": "repeated in the three channels",
    "palette": "looked up in its palette",
    "alpha": "laid over white",
    "CMYK": "converted to RGB without colour profiles",
    "16-bit": "the high byte of each value is kept",
    "several pictures": "the first one is taken",
    "EXIF rotation": "turned upright; the mask is as a viewer shows the image",
}


@dataclass(frozen=True)
class ImageFacts:
    """What an image file says: size as shown, kinds that are converted, why it cannot be read, digest of its bytes."""

    size_hw: tuple[int, int] = (0, 0)
    kinds: tuple[str, ...] = ()
    problem: str = ""
    digest: bytes = b""


@dataclass
class DataReport:
    """What was found; `problems` would stop a run, `warnings` would not."""

    root: str
    format: str
    split: str
    images: int = 0
    labelled: int = 0
    unlabelled: list[str] = field(default_factory=list)
    not_on_disk: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    rows_without_image: dict[str, str] = field(default_factory=dict)
    files_not_read: list[str] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=dict)
    unknown_classes: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, list[float]] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    with_truth: int = 0
    examined: int = 0
    disk_mb: float = 0.0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


def check_data(
    config: DataConfig,
    skip_unreadable: bool = False,
    examine: int | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> DataReport:
    """Look a data set over.

    Args:
        config: which data set.
        skip_unreadable: unreadable images are a warning, because the run is to leave them out.
        examine: open at most this many images, spread evenly; None opens all.
        progress: wraps the walk over the images, to show a progress bar.

    Returns:
        The report. A fault of the whole data set (no folder, no labels at all) is its only problem then.

    """
    report = DataReport(str(config.root), config.format, config.split)
    if not Path(config.root).is_dir():
        report.problems.append(f"There is no folder {config.root}; --root must name the folder of the data set.")
        return report
    report.format = detect_format(config)
    try:
        listing = list_data(config)
        classes = listing_classes(listing)
    except UserError as error:
        report.problems.append(str(error))
        return report
    _check_labels(report, listing, classes, config)
    _check_images(report, listing, skip_unreadable, examine, progress)
    _note_white_truth(report, listing, config)
    return report


def _check_labels(report: DataReport, listing: Listing, classes: ClassSet, config: DataConfig) -> None:
    report.images = len(listing.ids)
    gone = set(listing.missing)
    bare = [one for one, names in zip(listing.ids, listing.names, strict=True) if not names]
    report.unlabelled = [one for one in bare if one not in gone]
    report.not_on_disk = [one for one in bare if one in gone]
    report.labelled = report.images - len(bare)
    report.rows_without_image = {
        row: nearest_file(row, listing.images) if number < SHOWN else "" for number, row in enumerate(listing.orphans)
    }
    report.files_not_read = list(listing.unsupported)
    spelt = Counter(name for names in listing.names for name in names)
    by_key = {class_key(name): name for name in classes.names}
    report.classes = dict.fromkeys(classes.names, 0)
    for name, number in spelt.items():
        known = by_key.get(class_key(name))
        if known is None:
            few = len(report.unknown_classes) < MAX_HINTS
            report.unknown_classes[name] = nearest(name, classes.names) if few else ""
        else:
            report.classes[known] += number
    report.with_truth = sum(1 for at in range(report.images) if listing.drawn_truth or listing.truth(at) is not None)
    for name, hint in list(report.unknown_classes.items())[:MAX_HINTS]:
        report.problems.append(
            f"Unknown class {name[:MAX_NAME]!r}{hint} in {listing.source}; correct it, or add it to --classes."
        )
    if len(report.unknown_classes) > MAX_HINTS:
        more = count(len(report.unknown_classes) - MAX_HINTS, "more unknown class", "more unknown classes")
        report.problems.append(f"{more} in {listing.source}.")
    _note_left_out(report, listing, config)
    report.warnings += listing.notes
    if report.rows_without_image:
        shown = some([f"{row!r}{near}" for row, near in report.rows_without_image.items()])
        report.warnings.append(f"{count(len(report.rows_without_image), 'label row')} without an image: {shown}.")
    if report.files_not_read:
        shown = some(report.files_not_read)
        there = count(len(report.files_not_read), "file is", "files are")
        report.warnings.append(f"{there} of an unread kind: {shown}; convert to JPEG or PNG.")


def _note_left_out(report: DataReport, listing: Listing, config: DataConfig) -> None:
    stop = config.unlabelled == "stop"
    rule = "the run would stop (data.unlabelled=stop)" if stop else "left out"
    if not report.labelled:
        report.problems.append(
            none_matched(listing)
            or f"No image has a label in {listing.source}; add labels.csv or name one with --data.labels."
        )
    elif report.unlabelled:
        there = count(len(report.unlabelled), "image has", "images have")
        text = f"{there} no labels ({some(report.unlabelled)}): {rule}."
        (report.problems if stop else report.warnings).append(text)
    if report.not_on_disk:
        there = count(len(report.not_on_disk), "image of the list is", "images of the list are")
        text = f"{there} not on disk ({some(report.not_on_disk)}): {rule}."
        (report.problems if stop or not report.labelled else report.warnings).append(text)


def _note_white_truth(report: DataReport, listing: Listing, config: DataConfig) -> None:
    """Warn where the first few masks of ground truth hold only 0 and 255; a damaged one is scoring's affair."""
    paths = [path for path in map(listing.truth, evenly_spaced(report.images, TRUTHS)) if path]
    white = []
    for path in paths:
        with contextlib.suppress(ImageError):
            if only_black_and_white(read_mask(path)):
                white.append(path)
    if white and config.truth_255 == "ignore":
        report.warnings.append(
            f"Only 0 and 255 in {len(white)} of the {count(len(paths), 'mask')} of ground truth seen (the first is "
            f"{white[0]}), and 255 is not scored; where it is the object of a single class, say --data.truth_255=class."
        )


def _check_images(
    report: DataReport,
    listing: Listing,
    skip_unreadable: bool,
    examine: int | None,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> None:
    """Open the labelled images; unlabelled ones take no part in a run."""
    labelled = [position for position, names in enumerate(listing.names) if names]
    wanted = [labelled[position] for position in evenly_spaced(len(labelled), examine)]
    by_digest: dict[bytes, list[str]] = {}
    sizes, kinds = [], Counter[str]()
    for position in progress(wanted):
        facts = image_facts(listing.base / listing.images[position])
        if facts.problem:
            report.unreadable[listing.ids[position]] = facts.problem
            continue
        sizes.append(facts.size_hw)
        kinds.update(facts.kinds)
        by_digest.setdefault(facts.digest, []).append(listing.ids[position])
    report.examined = len(wanted)
    report.kinds = dict(kinds.most_common())
    report.duplicates = [ids for ids in by_digest.values() if len(ids) > 1]
    report.sizes = _size_figures(sizes)
    report.disk_mb = _disk_mb(sizes, report.labelled, listing.names)
    _note_images(report, skip_unreadable)


def _note_images(report: DataReport, skip_unreadable: bool) -> None:
    if report.unreadable:
        shown = some([f"{one}: {reason}" for one, reason in report.unreadable.items()])
        remedy = "skipped" if skip_unreadable else "replace what is named, or leave it out with --on_error skip"
        unreadable = count(len(report.unreadable), "image")
        text = f"{unreadable} cannot be read ({shown}); {', '.join(FORMATS)} can; {remedy}."
        none_left = report.examined == len(report.unreadable)
        (report.warnings if skip_unreadable and not none_left else report.problems).append(text)
    if report.duplicates:
        shown = some([" = ".join(ids[:3]) for ids in report.duplicates])
        there = count(len(report.duplicates), "image occurs", "images occur")
        report.warnings.append(f"{there} more than once: {shown}.")


def image_facts(path: Path) -> ImageFacts:
    """Open an image as a run does and say what it is.

    A JPEG is decoded at an eighth of its size, which finds a cut or damaged file as well.
    """
    try:
        with open_image(path) as image:
            kinds, size_hw = _kinds(image), upright_size(image)
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            to_rgb(turned_upright(image), path)  # refuses values of unknown range
            kinds += ("several pictures",) if holds_several(image) else ()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        return ImageFacts(problem=error.strerror or " ".join(str(error).split()))
    except ImageError as error:
        return ImageFacts(problem=error.reason)
    return ImageFacts(size_hw, kinds, "", digest)


def _kinds(image: Image.Image) -> tuple[str, ...]:
    mode = image.mode
    kinds = []
    if mode in {"1", "L", "LA", "La"} or mode.startswith("I"):
        kinds.append("greyscale")
    if mode.startswith("I"):
        kinds.append("16-bit")
    if mode in {"P", "PA"}:
        kinds.append("palette")
    if image.has_transparency_data:
        kinds.append("alpha")
    if mode == "CMYK":
        kinds.append("CMYK")
    if orientation_of(image) != 1:
        kinds.append("EXIF rotation")
    return tuple(kinds)


def _size_figures(sizes: Sequence[tuple[int, int]]) -> dict[str, list[float]]:
    """Return smallest, median and largest height, width, and longer by shorter side."""
    if not sizes:
        return {}
    values = np.array(sizes, dtype=np.float64)
    ratio = values.max(axis=1) / values.min(axis=1)
    columns = {"height": values[:, 0], "width": values[:, 1], "long_by_short_side": ratio}
    return {
        name: [round(float(figure), 2) for figure in (column.min(), np.median(column), column.max())]
        for name, column in columns.items()
    }


def _disk_mb(sizes: Sequence[tuple[int, int]], labelled: int, names: Sequence[tuple[str, ...]]) -> float:
    """Estimate a store's size: two PNGs of about 0.012 byte per pixel, and float16 maps on about 48 x 36 cells."""
    if not sizes:
        return 0.0
    pixels = float(np.mean([height * width for height, width in sizes]))
    n_labels = sum(map(len, names)) / max(1, labelled)
    each = 2 * (600 + 0.012 * pixels) + n_labels * 48 * 36 * 2 + 500
    return round(labelled * each / 1e6, 2)


def report_lines(report: DataReport) -> list[str]:
    """Return the report as lines for a person."""
    lines = [
        f"Data set  {report.root} ({report.format}, split {report.split})",
        f"Images    {report.images}, {report.labelled} labelled, {len(report.unlabelled)} unlabelled, "
        + (f"{len(report.not_on_disk)} not on disk, " if report.not_on_disk else "")
        + f"{len(report.unreadable)} unreadable of {report.examined} opened, {report.with_truth} with ground truth",
    ]
    counted = sorted(report.classes.items(), key=lambda pair: -pair[1])
    if counted:
        lines.append("Classes   " + ", ".join(f"{name} {number}" for name, number in counted if number))
        unused = [name for name, number in counted if not number]
        if unused:
            lines.append(f"          without images: {some(unused)}")
    for name, (low, middle, high) in report.sizes.items():
        lines.append(f"{name.replace('_', ' '):<20}{low:g} to {high:g}, median {middle:g}")
    lines += [f"{count(number, 'image')}: {kind} ({HOW_READ[kind]})" for kind, number in report.kinds.items()]
    if report.disk_mb:
        lines.append(f"Disk      about {report.disk_mb:g} MB for the store")
    lines += [f"warning: {text}" for text in report.warnings]
    lines += [f"problem: {text}" for text in report.problems]
    return [printable(line) for line in lines]
