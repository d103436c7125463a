"""A page about a store for people: overlays, coverage, warnings, classes; ground truth is welcome, not needed."""

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from data.classes import ClassSet
from data.errors import StoreError, UserError
from data.images import read_image
from data.masks import colorize, overlay, read_truth
from data.store.records import size_of_record
from data.store.source import truth_paths
from data.store.store import MaskStore
from pseudolabel.review import blocks
from pseudolabel.review.coverage import Coverage, measure_coverage
from pseudolabel.review.score import StoreScores, score_store

NAMED = 6  # image ids named for each kind of warning

FILTER = """<script>
const pick = document.getElementById("pick"), warned = document.getElementById("warned");
function filter() { for (const card of document.querySelectorAll(".gallery .card")) {
  const labels = card.dataset.labels.split(" ");
  card.hidden = (pick.value && !labels.includes(pick.value)) || (warned.checked && !card.dataset.warned); } }
pick.addEventListener("change", filter); warned.addEventListener("change", filter);
</script>"""


def report_page(store: MaskStore, limit: int = 48, root: Path | None = None, truth: str | None = None) -> str:
    """Return the page about a store as HTML.

    Raises:
        StoreError: the store holds no finished image.

    """
    coverage = measure_coverage(store)
    if not coverage.images:
        raise StoreError(f"{store.path} holds no finished image yet; run pseudolabel generate first.")
    truths, scores = _scores(store, root, truth)
    shown = choose_images(store, limit, {sample_id for ids in coverage.warnings.values() for sample_id in ids})
    model = store.header["model"].get("id", "a network")
    lead = f"{coverage.images} masks made by {model}. One line of figures, one table, and {len(shown)} of the images."
    return blocks.page(
        f"Masks in {store.path.name}",
        lead,
        [
            blocks.tiles(summary_tiles(coverage, scores)),
            blocks.section("Classes", class_table(store.classes, coverage, scores)),
            blocks.section("Warnings", warning_list(coverage)),
            blocks.section("Images", gallery(store, shown, root, truths)),
            blocks.section("Settings", settings(store)),
        ],
    )


def _scores(store: MaskStore, root: Path | None, truth: str | None) -> tuple[dict[str, Path], StoreScores | None]:
    """Return the ground truth and the figures, or neither where there is no ground truth and none was asked for."""
    try:
        truths = truth_paths(store, root, truth)
        return truths, score_store(store, root, truth, truths)
    except UserError:
        if truth is not None:
            raise
        return {}, None


def choose_images(store: MaskStore, limit: int, warned: set[str]) -> list[dict[str, Any]]:
    """Return the records of the images to show, by id: a third with warnings, the rest spread over the store."""
    ids = store.ids()
    with_warnings = _spread([sample_id for sample_id in ids if sample_id in warned], limit // 3)
    rest = _spread([sample_id for sample_id in ids if sample_id not in warned], limit - len(with_warnings))
    if len(rest) < limit - len(with_warnings):
        with_warnings = _spread([sample_id for sample_id in ids if sample_id in warned], limit - len(rest))
    chosen = {*with_warnings, *rest}
    return sorted((record for record in store.records() if record["id"] in chosen), key=lambda record: record["id"])


def _spread(ids: list[str], count: int) -> list[str]:
    if len(ids) <= count:
        return ids
    return [ids[position * len(ids) // count] for position in range(count)]


def summary_tiles(coverage: Coverage, scores: StoreScores | None) -> list[tuple[str, str]]:
    """Return the figures at the top of the blocks."""
    values = [(f"{coverage.images:,}", "images")]
    if scores is not None:
        if scores.before_crf is not None:
            values.append((f"{100 * scores.before_crf.miou:.1f} %", "mIoU before CRF"))
        values.append((f"{100 * scores.after_crf.miou:.1f} %", "mIoU after CRF"))
    values += [
        (f"{100 * coverage.background / coverage.images:.1f} %", "background pixels"),
        (f"{100 * coverage.ignore / coverage.images:.1f} %", "undecided pixels (255)"),
        (f"{coverage.warned:,}", "images with warnings"),
        (f"{coverage.seconds / coverage.images:.2f} s", "work an image"),
    ]
    return values


def class_table(classes: ClassSet, coverage: Coverage, scores: StoreScores | None) -> str:
    """Return the table of classes, the most frequent first."""
    headings = ["class", "images", "share of their pixels", "without any pixel"]
    if scores is not None:
        headings += ["IoU before CRF", "IoU after CRF"]
        if scores.missing_truth:
            headings[-1] += f" ({scores.images} of {coverage.images} images have ground truth)"

    def figures(position: int) -> list[str]:
        if scores is None:
            return []
        before = None if scores.before_crf is None else float(scores.before_crf.iou[position])
        return [blocks.bar(before, second=True), blocks.bar(float(scores.after_crf.iou[position]))]

    rows = [
        [
            blocks.chip(classes, 0),
            str(coverage.images),
            blocks.bar(coverage.background / coverage.images),
            "0",
            *figures(0),
        ]
    ]
    for label, count in coverage.with_label.most_common():
        share = blocks.bar(coverage.pixels[label] / count)
        rows.append([blocks.chip(classes, label), str(count), share, str(coverage.empty[label]), *figures(label)])
    total = None
    if scores is not None:
        before = None if scores.before_crf is None else scores.before_crf.miou
        total = ["mean (mIoU)", "", "", "", blocks.bar(before, second=True), blocks.bar(scores.after_crf.miou)]
    absent = [name for position, name in enumerate(classes.names, 1) if not coverage.with_label[position]]
    note = f'<p class="soft">No image carries: {escape(", ".join(absent))}.</p>' if absent else ""
    return blocks.table(headings, rows, total) + note


def warning_list(coverage: Coverage) -> str:
    """Return how often each warning was given, and for which images."""
    if not coverage.warnings:
        return "<p>None.</p>"
    rows = []
    for warning, ids in sorted(coverage.warnings.items(), key=lambda item: -len(item[1])):
        more = ", ..." if len(ids) > NAMED else ""
        rows.append([escape(warning), str(len(ids)), f"<code>{escape(', '.join(ids[:NAMED]))}{more}</code>"])
    return blocks.table(["warning", "images", "for example"], rows)


def gallery(store: MaskStore, records: list[dict[str, Any]], root: Path | None, truths: dict[str, Path]) -> str:
    """Return a card for each image, under a choice of class."""
    labels = sorted({label for record in records for label in record.get("labels", [])})
    options = "".join(f'<option value="{label}">{escape(store.classes.name(label))}</option>' for label in labels)
    filters = (
        '<div class="filters"><label>Class <select id="pick"><option value="">all</option>'
        f"{options}</select></label>"
        '<label><input type="checkbox" id="warned"> with warnings only</label></div>'
    )
    cards = (card(store, record, root, truths.get(record["id"])) for record in records)
    return "\n".join([filters, '<div class="gallery">', *cards, "</div>", FILTER])


def card(store: MaskStore, record: dict[str, Any], root: Path | None, truth: Path | None) -> str:
    """Return image, attention of each class, mask and, where there is one, ground truth of one image side by side."""
    labels, warnings = record.get("labels", []), record.get("warnings", [])
    head = [
        f"<b>{escape(record['id'])}</b>",
        *(f"<span>{blocks.chip(store.classes, label)}</span>" for label in labels),
    ]
    head += [f'<span class="warn">{escape(warning)}</span>' for warning in warnings]
    try:
        pictures = image_strip(store, record, root, truth)
    except UserError as error:
        pictures = [f'<p class="warn">{escape(str(error))}</p>']
    return (
        f'<div class="card" data-labels="{" ".join(map(str, labels))}" data-warned="{"1" if warnings else ""}">'
        f'<header>{"".join(head)}</header><div class="strip">{"".join(pictures)}</div></div>'
    )


def image_strip(store: MaskStore, record: dict[str, Any], root: Path | None, truth: Path | None) -> list[str]:
    """Return the pictures of one image: image, attention, mask over the image, mask alone, truth."""
    rgb_u8 = read_image(store.image_path(record, root))
    size = blocks.thumbnail_size((rgb_u8.shape[0], rgb_u8.shape[1]))
    small = blocks.shrink(rgb_u8, size)
    pictures = [blocks.picture(small, "image")]
    soft = store.read_soft(record)
    if soft is not None:
        for label, heat in zip(soft.labels, blocks.heat_maps(soft, size), strict=True):
            pictures.append(blocks.picture(blocks.heat_overlay(small, heat), escape(store.classes.name(label))))
    mask = blocks.shrink_mask(store.read_mask(record), size)
    pictures.append(blocks.picture(overlay(small, mask), f"mask, {100 * float(np.mean(mask == 255)):.0f} % undecided"))
    if truth is not None:
        true = read_truth(truth, size_of_record(record), store.image_path(record, root))
        pictures.append(blocks.picture(colorize(blocks.shrink_mask(true, size)), "ground truth", "flat"))
    return pictures


def settings(store: MaskStore) -> str:
    """Return how the store was made, folded away."""
    parts: Iterable[tuple[str, Any]] = (
        ("Model", store.header["model"]),
        ("Data", store.header["data"]),
        ("Settings", store.header["config"]),
    )
    return "".join(
        blocks.details(name, f"<pre>{escape(json.dumps(content, indent=1, ensure_ascii=False))}</pre>")
        for name, content in parts
    )
