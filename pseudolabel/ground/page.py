"""One self-contained page about phrases that were looked for in images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from data.masks import overlay, voc_palette
from pseudolabel.ground.localizer import Localization
from pseudolabel.review.blocks import Picture, heat_overlay, picture, shrink
from pseudolabel.review.pages import render

HEIGHT_PX = 176  # of pictures on the page


@dataclass(frozen=True)
class PhraseView:
    """One phrase of an image as the page shows it."""

    phrase: str
    presence: float
    share: float
    words: tuple[str, ...]
    rgb: tuple[int, int, int]
    soft: Picture
    overlay: Picture


@dataclass(frozen=True)
class ImageView:
    """One image as the page shows it."""

    id: str
    height: int
    width: int
    sentences: tuple[str, ...]
    pictures: tuple[Picture, ...]
    phrases: tuple[PhraseView, ...]


def ground_page(images: Sequence[ImageView], model: str, independent: bool) -> str:
    """Return the page."""
    return render("ground.html.j2", images=images, model=model, independent=independent)


def image_view(image_id: str, rgb_u8: UInt8[np.ndarray, "height width 3"], found: Localization) -> ImageView:
    """Gather what the page shows of an image, in small pictures."""
    height, width = rgb_u8.shape[:2]
    scale = min(1.0, HEIGHT_PX / height, 2 * HEIGHT_PX / width)
    if height < HEIGHT_PX / 2:
        scale = HEIGHT_PX / height / 2  # small images are enlarged
    size_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
    pictures = [_picture(rgb_u8, size_hw, "image")]
    if found.labels is not None and len(found.phrases) > 1:
        pictures.append(_picture(overlay(rgb_u8, found.labels), size_hw, "all masks"))
    phrases = []
    for number, one in enumerate(found.phrases, start=1):
        red, green, blue = (int(value) for value in voc_palette()[number])
        phrases.append(
            PhraseView(
                one.phrase,
                one.presence,
                float(one.mask.mean()),
                one.words,
                (red, green, blue),
                _picture(heat_overlay(rgb_u8, one.soft), size_hw),
                _picture(phrase_overlay(rgb_u8, one.mask, number), size_hw),
            )
        )
    return ImageView(image_id, height, width, found.sentences, tuple(pictures), tuple(phrases))


def phrase_overlay(
    rgb_u8: UInt8[np.ndarray, "height width 3"], mask: np.ndarray, number: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image with one phrase's mask laid over it, in the colour of its number."""
    return overlay(rgb_u8, np.where(mask, np.uint8(number), np.uint8(0)))


def _picture(rgb_u8: UInt8[np.ndarray, "height width 3"], size_hw: tuple[int, int], caption: str = "") -> Picture:
    return picture(shrink(rgb_u8, size_hw), caption)
