"""The page and the figure of the demo: image, attention, mask, prediction and ground truth side by side."""

import io
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from data.classes import ClassSet
from data.images import read_image
from data.masks import colorize, overlay, read_truth
from data.store.source import truth_paths
from data.store.store import MaskStore
from pseudolabel.review import blocks
from pseudolabel.review.coverage import measure_coverage
from pseudolabel.review.report import class_table, gallery, summary_tiles

if TYPE_CHECKING:
    from pseudolabel.demo.results import Result


COLUMNS = ("image", "attention", "mask", "prediction", "ground truth")
LABELLED = 12  # labelled scenes shown below the strip
SCENE_RGB = ((64, 132, 255), (255, 150, 20), (50, 190, 95))  # first, second, third class of a scene
OTHER_RGB = (225, 60, 200)  # a class the scene does not have


@dataclass(frozen=True)
class Strip:
    """One scene, five times: as the columns of the page and the figure, all RGB of one size."""

    id: str
    labels: tuple[int, ...]
    pictures: tuple[UInt8[np.ndarray, "height width 3"], ...]


def strips(folder: Path, count: int) -> list[Strip]:
    """Return the first `count` test scenes that stage one was run on, those with several classes first.

    Image-level labels were given to stage one alone; the network saw the image and nothing else.
    """
    masks, predictions = MaskStore.open(folder / "masks_val"), MaskStore.open(folder / "predictions")
    truths = truth_paths(masks)
    records = sorted(masks.records(), key=lambda record: (len(record["labels"]) < 2, record["id"]))
    return [_strip(masks, predictions, record, truths[record["id"]]) for record in records[:count]]


def _strip(masks: MaskStore, predictions: MaskStore, record: dict[str, Any], truth: Path) -> Strip:
    rgb_u8 = read_image(masks.image_path(record))
    size = (record["height"], record["width"])
    soft = masks.read_soft(record)
    assert soft is not None
    palette = scene_palette(soft.labels)
    pictures = (
        rgb_u8,
        tinted_attention(rgb_u8, blocks.heat_maps(soft, size), palette[list(soft.labels)]),
        overlay(rgb_u8, masks.read_mask(record), palette, alpha=0.7),
        overlay(rgb_u8, predictions.read_argmax(record["id"]), palette, alpha=0.7),
        colorize(read_truth(truth, size), palette),
    )
    return Strip(record["id"], tuple(record["labels"]), pictures)


def scene_palette(labels: tuple[int, ...]) -> UInt8[np.ndarray, "256 3"]:
    """Return colours for one scene: easy to tell apart, the same in all of its pictures.

    Of VOC's palette several classes are hardly told apart, or from black. Here the scene's own classes have three clear
    colours in turn, any other class is magenta, the background near black and 255 white.
    """
    palette = np.tile(np.array(OTHER_RGB, np.uint8), (256, 1))
    palette[0], palette[255] = (24, 26, 30), (255, 255, 255)
    for position, label in enumerate(labels):
        palette[label] = SCENE_RGB[position % len(SCENE_RGB)]
    return palette


def tinted_attention(
    rgb_u8: UInt8[np.ndarray, "height width 3"],
    heat: Float[np.ndarray, "classes height width"],
    colours: UInt8[np.ndarray, "classes 3"],
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture in grey under the colour of the class looked at most, as strongly as it is looked at."""
    grey = rgb_u8.astype(np.float64).mean(axis=-1, keepdims=True).repeat(3, axis=-1) * 0.6
    cover = 0.9 * heat.max(axis=0)[..., None]
    mixed = grey * (1 - cover) + colours.astype(np.float64)[heat.argmax(axis=0)] * cover
    return np.clip(mixed, 0, 255).astype(np.uint8)


def demo_page(result: "Result", folder: Path, shown: list[Strip]) -> str:
    """Return the demo's page as HTML."""
    store = MaskStore.open(folder / "masks")
    coverage = measure_coverage(store)
    headline = [
        (_percent(result.masks["before_crf"]), "masks, before CRF (mIoU)"),
        (_percent(result.masks["after_crf"]), "masks, after CRF (mIoU)"),
        (_percent(result.network), "network on unseen scenes (mIoU)"),
    ]
    if result.network_true_masks is not None:
        headline.append((_percent(result.network_true_masks), "trained on true masks (mIoU)"))
    headline.append((f"{result.seconds / 60:.1f} min", "everything"))
    records = sorted(store.records(), key=lambda record: record["id"])[:LABELLED]
    from data.demo.world import TRAIN_TRUTH_FOLDER

    truths = truth_paths(store, truth=TRAIN_TRUTH_FOLDER)
    return blocks.page(
        "From labels to masks to a network",
        f"{coverage.images} drawn scenes with image-level labels became masks, the masks trained a network, and the "
        "network was tested on scenes nobody labelled. No mask was given to either stage.",
        [
            blocks.tiles(headline),
            blocks.section("Unseen scenes", _strip_note(), *(strip_card(store.classes, strip) for strip in shown)),
            blocks.section("IoU of each class", iou_table(store.classes, result)),
            blocks.section("Coverage of the masks", blocks.tiles(summary_tiles(coverage, None))),
            class_table(store.classes, coverage, None),
            blocks.section("Labelled scenes and their masks", gallery(store, records, None, truths)),
            blocks.section("What was run", steps_table(result), f'<p class="soft">{escape(result.machine)}</p>'),
        ],
    )


def _strip_note() -> str:
    return (
        "<p>Attention and mask know the image's labels; the prediction is the trained network's, which sees the image "
        "alone. Each class of a scene has one colour in all pictures; magenta is a class the scene does not have, "
        "white is undecided and takes no part in training.</p>"
    )


def strip_card(classes: ClassSet, strip: Strip) -> str:
    """Return a scene's five pictures as a card."""
    palette = scene_palette(strip.labels)
    names = "".join(f"<span>{blocks.chip(classes, label, palette)}</span>" for label in strip.labels)
    pictures = "".join(
        blocks.picture(blocks.shrink(picture, blocks.thumbnail_size((picture.shape[0], picture.shape[1]), 168)), column)
        for picture, column in zip(strip.pictures, COLUMNS, strict=True)
    )
    return (
        f'<div class="card" data-labels="" data-warned=""><header><b>{escape(strip.id)}</b>{names}</header>'
        f'<div class="strip">{pictures}</div></div>'
    )


def iou_table(classes: ClassSet, result: "Result") -> str:
    """Return IoU by class: masks before and after the CRF, and the networks."""
    columns = [("masks before CRF", result.masks["before_crf"]), ("masks after CRF", result.masks["after_crf"])]
    columns.append(("network, unseen scenes", result.network))
    if result.network_true_masks is not None:
        columns.append(("network trained on true masks", result.network_true_masks))
    kept = [(name, scores) for name, scores in columns if scores is not None]
    rows = []
    for class_id in range(len(classes) + 1):
        cells = [blocks.bar(scores["iou"][classes.name(class_id)], second="before" in name) for name, scores in kept]
        rows.append([blocks.chip(classes, class_id), *cells])
    total = ["mean (mIoU)", *(blocks.bar(scores["miou"], second="before" in name) for name, scores in kept)]
    return blocks.table(["class", *(name for name, _ in kept)], rows, total)


def steps_table(result: "Result") -> str:
    """Return the commands with their times."""
    rows = [
        [escape(step.title), f"{step.seconds:.0f} s", f"<code>{escape(step.command)}</code>"] for step in result.steps
    ]
    return blocks.table(["step", "time", "command"], rows, ["all", f"{result.seconds:.0f} s", ""])


def _percent(scores: dict[str, Any] | None) -> str:
    return "-" if scores is None or scores["miou"] is None else f"{100 * scores['miou']:.1f} %"


def strip_figure(
    shown: list[Strip], classes: ClassSet, side_px: int = 128, gap_px: int = 6, line_px: int = 22
) -> bytes:
    """Return the strips as one small PNG for a README: a header line, then a row for each scene with its labels."""
    width = len(COLUMNS) * side_px + (len(COLUMNS) + 1) * gap_px
    row_px = side_px + line_px
    canvas = Image.new("RGB", (width, line_px + len(shown) * row_px + 2), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    lefts = [gap_px + column * (side_px + gap_px) for column in range(len(COLUMNS))]
    for left, name in zip(lefts, COLUMNS, strict=True):
        draw.text((left + side_px / 2, line_px / 2), name, fill=(60, 64, 70), font=font, anchor="mm")
    for row, strip in enumerate(shown):
        top = line_px + row * row_px
        for left, picture in zip(lefts, strip.pictures, strict=True):
            canvas.paste(Image.fromarray(blocks.shrink(picture, (side_px, side_px))), (left, top))
        palette, at = scene_palette(strip.labels), float(gap_px)
        for label in strip.labels:
            red, green, blue = (int(0.85 * value) for value in palette[label])
            text = classes.name(label) + "   "
            draw.text((at, top + side_px + 2), text, fill=(red, green, blue), font=font)
            at += draw.textlength(text, font=font)
    buffer = io.BytesIO()
    canvas.quantize(224, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
