"""Cut the demo world's drawings out of Noto Color Emoji and write the atlas: `python -m data.demo.make_glyphs`.

The atlas is shipped, so nobody needs this script or the font; it is here to show where every pixel comes from. It
wants Pillow with raqm and Debian's package fonts-noto-color-emoji (SIL Open Font License 1.1).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from data.demo.drawings import DRAWINGS, RGB, Box, Drawing

FONT_PATH = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE_PX = 109  # The one size the font holds bitmaps of.
LONGEST_SIDE_PX = 96
ATLAS_VERSION = 1
ATLAS_WIDTH_PX = 1024


def draw_emoji(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw the emoji as RGBA, cropped to its visible pixels."""
    canvas = Image.new("RGBA", (240, 200))
    ImageDraw.Draw(canvas).text((20, 20), emoji, font=font, embedded_color=True)
    box = canvas.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    if box is None:
        raise ValueError(f"the font draws nothing for {emoji!r}")
    return canvas.crop(box)


def recolour(image: Image.Image, hue: int, saturation: float, tint: RGB) -> Image.Image:
    """Turn the hue (degrees), scale the saturation and multiply with a colour; alpha stays."""
    hsv = np.asarray(image.convert("RGB").convert("HSV")).astype(np.float64)
    hsv[..., 0] = (hsv[..., 0] + hue * 256 / 360) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
    rgb = np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")) * (np.array(tint) / 255)
    changed = Image.fromarray(rgb.round().astype(np.uint8), "RGB").convert("RGBA")
    changed.putalpha(image.getchannel("A"))
    return changed


def erase(image: Image.Image, boxes: tuple[Box, ...]) -> Image.Image:
    """Make the boxes (shares of the width and height) transparent and crop again."""
    pixels = np.array(image)
    height, width = pixels.shape[:2]
    for left, top, right, bottom in boxes:
        pixels[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 0
    erased = Image.fromarray(pixels, "RGBA")
    return erased.crop(erased.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox())


def shade(rgb: RGB, factor: float) -> RGB:
    """Return a lighter (above 1) or darker colour."""
    red, green, blue = (min(255, round(value * factor)) for value in rgb)
    return red, green, blue


def add_base(image: Image.Image, base: str, rgb: RGB) -> Image.Image:
    """Put the emoji into a pot or onto a table top, drawn at four times the size so that edges are smooth."""
    zoom = 4
    big = Image.new("RGBA", (160 * zoom, 180 * zoom))
    pen = ImageDraw.Draw(big)

    def scaled(*values: int) -> list[int]:
        return [value * zoom for value in values]

    match base:
        case "pot":
            pen.polygon(scaled(50, 118, 110, 118, 100, 160, 60, 160), fill=rgb)
            pen.polygon(scaled(88, 118, 110, 118, 100, 160, 84, 160), fill=shade(rgb, 0.85))
            pen.rounded_rectangle(scaled(44, 106, 116, 122), radius=4 * zoom, fill=shade(rgb, 1.12))
            place, longest = (80, 110), 96
        case "round table":
            pen.ellipse(scaled(4, 4, 156, 156), fill=shade(rgb, 0.8))
            pen.ellipse(scaled(9, 9, 151, 151), fill=rgb)
            place, longest = (80, 80), 112
        case "square table":
            pen.rounded_rectangle(scaled(4, 24, 156, 136), radius=10 * zoom, fill=shade(rgb, 0.8))
            pen.rounded_rectangle(scaled(9, 29, 151, 131), radius=8 * zoom, fill=rgb)
            place, longest = (80, 80), 104
        case _:
            raise ValueError(f"unknown base {base!r}")
    canvas = big.resize((160, 180), Image.Resampling.BOX)
    emoji = fit(image, longest)
    top = place[1] - emoji.height if base == "pot" else place[1] - emoji.height // 2
    left = place[0] - emoji.width // 2
    lower = Image.new("RGBA", canvas.size)
    lower.paste(emoji, (left, max(top, 0)))
    layers = (lower, canvas) if base == "pot" else (canvas, lower)
    joined = Image.alpha_composite(*layers)
    return joined.crop(joined.getchannel("A").getbbox())


def fit(image: Image.Image, longest_px: int) -> Image.Image:
    """Resize so that the longer side is `longest_px`."""
    scale = longest_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def make_drawing(drawing: Drawing, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One finished cut-out, RGBA, its longer side `LONGEST_SIDE_PX`."""
    image = draw_emoji(drawing.emoji, font)
    if drawing.erase:
        image = erase(image, drawing.erase)
    if drawing.hue or drawing.saturation != 1.0 or drawing.tint != (255, 255, 255):
        image = recolour(image, drawing.hue, drawing.saturation, drawing.tint)
    if drawing.base:
        image = add_base(image, drawing.base, drawing.base_rgb)
    pixels = np.array(fit(image, LONGEST_SIDE_PX))
    pixels[pixels[..., 3] < 8] = 0  # A veil too thin to see would still widen the boxes.
    return Image.fromarray(pixels, "RGBA")


def pack(images: list[Image.Image]) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """Lay the images out in rows, in order; returns the sheet and each (left, top, right, bottom)."""
    boxes, left, top, row_height = [], 0, 0, 0
    for image in images:
        if left + image.width > ATLAS_WIDTH_PX:
            left, top, row_height = 0, top + row_height, 0
        boxes.append((left, top, left + image.width, top + image.height))
        left, row_height = left + image.width, max(row_height, image.height)
    sheet = Image.new("RGBA", (ATLAS_WIDTH_PX, top + row_height))
    for image, box in zip(images, boxes, strict=True):
        sheet.paste(image, box[:2])
    return sheet, boxes


def write_atlas(folder: Path, font_path: Path = FONT_PATH) -> None:
    """Write atlas.png and atlas.json into `folder`."""
    if not features.check("raqm"):
        raise SystemExit("Pillow has no raqm here, which joins emoji sequences: install a wheel of Pillow from PyPI")
    font = ImageFont.truetype(str(font_path), FONT_SIZE_PX)
    sheet, boxes = pack([make_drawing(drawing, font) for drawing in DRAWINGS])
    entries = [
        {
            "class": drawing.class_name,
            "name": f"{drawing.class_name}/{drawing.name}",
            "emoji": drawing.emoji,
            "codepoints": " ".join(f"U+{ord(letter):04X}" for letter in drawing.emoji),
            "box": list(box),
            "held_out": drawing.held_out,
        }
        for drawing, box in zip(DRAWINGS, boxes, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / "atlas.png", optimize=True)
    lines = ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    header = f'"version": {ATLAS_VERSION}, "font": "Noto Color Emoji", "licence": "OFL-1.1"'
    (folder / "atlas.json").write_text(f'{{{header}, "drawings": [\n  {lines}\n]}}\n', encoding="utf-8")


def main() -> None:
    """Command line: where the font is and where the atlas goes."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--font", type=Path, default=FONT_PATH)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "glyphs")
    arguments = parser.parse_args()
    write_atlas(arguments.output, arguments.font)


if __name__ == "__main__":
    main()
