"""The page and the figure of the demo: image, attention, mask, prediction and ground truth side by side."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from data.classes import ClassSet
from data.images import read_image
from data.masks import overlay, read_truth
from data.store.source import truth_paths
from data.store.store import MaskStore
from data.wording import count
from pseudolabel.review import blocks
from pseudolabel.review.coverage import measure_coverage
from pseudolabel.review.pages import render
from pseudolabel.review.report import ImageCard, class_choices, class_table, image_card, summary_tiles

if TYPE_CHECKING:
    from pseudolabel.demo.results import Result


COLUMNS = ("image", "attention", "mask", "prediction", "ground truth")
LABELLED = 12  # labelled scenes shown below the strip
STRIP_PX = 168  # height of the pictures of an unseen scene
SCENE_RGB = ((64, 132, 255), (255, 150, 20), (50, 190, 95))  # first, second, third class of a scene
OTHER_RGB = (225, 60, 200)  # a class the scene does not have


@dataclass(frozen=True)
class Strip:
    """One scene, five times: as the columns of the page and the figure, all RGB of one size."""

    id: str
    labels: tuple[int, ...]
    pictures: tuple[UInt8[np.ndarray, "height width 3"], ...]


def strips(folder: Path, number: int) -> list[Strip]:
    """Return the first `number` test scenes that stage one was run on, those with several classes first.

    Image-level labels were given to stage one alone; the network saw the image and nothing else.
    """
    masks, predictions = MaskStore.open(folder / "masks_val"), MaskStore.open(folder / "predictions")
    truths = truth_paths(masks)
    records = sorted(masks.records(), key=lambda record: (len(record["labels"]) < 2, record["id"]))
    return [_strip(masks, predictions, record, truths[record["id"]]) for record in records[:number]]


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
        overlay(rgb_u8, read_truth(truth, size), palette, alpha=0.7),
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
    from data.demo.world import TRAIN_TRUTH_FOLDER

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
    truths = truth_paths(store, truth=TRAIN_TRUTH_FOLDER)
    return render(
        "demo.html.j2",
        scenes=count(coverage.images, "drawn scene"),
        headline=headline,
        strips=[strip_card(store.classes, strip) for strip in shown],
        iou=iou_table(store.classes, result),
        coverage=summary_tiles(coverage, None),
        classes=class_table(store.classes, coverage, None),
        images=(image_card(store, record, None, truths.get(record["id"])) for record in records),
        choices=class_choices(store.classes, records),
        result=result,
    )


def strip_card(classes: ClassSet, strip: Strip) -> ImageCard:
    """Return a scene's five pictures as a card."""
    palette = scene_palette(strip.labels)
    pictures = tuple(
        blocks.picture(
            blocks.shrink(rgb_u8, blocks.thumbnail_size((rgb_u8.shape[0], rgb_u8.shape[1]), len(COLUMNS), STRIP_PX)),
            column,
        )
        for rgb_u8, column in zip(strip.pictures, COLUMNS, strict=True)
    )
    chips = tuple(blocks.chip(classes, label, palette) for label in strip.labels)
    return ImageCard(strip.id, strip.labels, chips, (), pictures)


def iou_table(classes: ClassSet, result: "Result") -> dict[str, Any]:
    """Return IoU by class: masks before and after the CRF, and the networks."""
    columns = [("masks before CRF", result.masks["before_crf"]), ("masks after CRF", result.masks["after_crf"])]
    columns.append(("network, unseen scenes", result.network))
    columns.append(("network trained on true masks", result.network_true_masks))
    kept = [(name, scores) for name, scores in columns if scores is not None]
    rows = [
        {
            "chip": blocks.chip(classes, class_id),
            "shares": [blocks.share_or_none(scores["iou"][classes.name(class_id)]) for _, scores in kept],
        }
        for class_id in range(len(classes) + 1)
    ]
    mean = [blocks.share_or_none(scores["miou"]) for _, scores in kept]
    return {"columns": [name for name, _ in kept], "rows": rows, "mean": mean}


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
