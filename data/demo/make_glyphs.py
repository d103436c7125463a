"""Cut the demo world's drawings out of Noto Color Emoji and write the atlas: `python -m data.demo.make_glyphs`.

The atlas is shipped, so nobody needs this script or the font; it is here to show where every pixel comes from. It
wants Pillow with raqm and Debian's package fonts-noto-color-emoji (SIL Open Font License 1.1).
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

FONT_PATH = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE_PX = 109  # The one size the font holds bitmaps of.
LONGEST_SIDE_PX = 96
ATLAS_VERSION = 1
ATLAS_WIDTH_PX = 1024
RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Drawing:
    """One drawing: an emoji, and what is done to it. More than one drawing keeps a class from being one picture."""

    class_name: str
    name: str
    emoji: str
    held_out: bool = False  # Kept out of training, for a shifted world.
    hue: int = 0  # Degrees by which every hue is turned.
    saturation: float = 1.0
    tint: RGB = (255, 255, 255)  # Multiplied with the colours: greys become coloured, light becomes dark.
    erase: tuple[Box, ...] = ()  # Scenery to take away: (left, top, right, bottom) as shares of the tight crop.
    base: str = ""  # "pot", "round table" or "square table": drawn below or under the emoji.
    base_rgb: RGB = (190, 95, 55)


LAMP = ((0.0, 0.0, 1.0, 0.44),)
RUNWAY = ((0.0, 0.64, 1.0, 1.0),)
WIRE = ((0.0, 0.0, 1.0, 0.17),)
WOOD, WALNUT, CLOTH, CHECK = (196, 140, 84), (118, 76, 50), (236, 228, 214), (178, 62, 58)

DRAWINGS = (
    Drawing("aeroplane", "airliner", "✈️"),
    Drawing("aeroplane", "airliner-red", "✈️", hue=150),
    Drawing("aeroplane", "propeller", "🛩️"),
    Drawing("aeroplane", "propeller-yellow", "🛩️", hue=-140),
    Drawing("aeroplane", "departing", "🛫", erase=RUNWAY),
    Drawing("aeroplane", "arriving", "🛬", erase=RUNWAY),
    Drawing("aeroplane", "arriving-green", "🛬", hue=-80, erase=RUNWAY, held_out=True),
    Drawing("aeroplane", "propeller-violet", "🛩️", hue=90, held_out=True),
    Drawing("bicycle", "teal", "🚲"),
    Drawing("bicycle", "red", "🚲", hue=170, saturation=2.0),
    Drawing("bicycle", "blue", "🚲", hue=40, saturation=1.8),
    Drawing("bicycle", "green", "🚲", hue=-70, saturation=1.6),
    Drawing("bicycle", "violet", "🚲", hue=95, saturation=1.8, held_out=True),
    Drawing("bird", "blue", "🐦"),
    Drawing("bird", "black", "🐦‍⬛"),
    Drawing("bird", "eagle", "🦅"),
    Drawing("bird", "duck", "🦆"),
    Drawing("bird", "owl", "🦉"),
    Drawing("bird", "penguin", "🐧"),
    Drawing("bird", "rooster", "🐓"),
    Drawing("bird", "swan", "🦢"),
    Drawing("bird", "parrot", "🦜"),
    Drawing("bird", "turkey", "🦃"),
    Drawing("bird", "goose", "🪿"),
    Drawing("bird", "chick", "🐤", held_out=True),
    Drawing("bird", "dodo", "🦤", held_out=True),
    Drawing("bird", "flamingo", "🦩", held_out=True),
    Drawing("boat", "sailing", "⛵"),
    Drawing("boat", "sailing-blue", "⛵", hue=-160),
    Drawing("boat", "speed", "🚤"),
    Drawing("boat", "motor", "🛥️"),
    Drawing("boat", "canoe", "🛶"),
    Drawing("boat", "liner", "🛳️"),
    Drawing("boat", "steamer", "🚢"),
    Drawing("boat", "ferry", "⛴️", held_out=True),
    Drawing("boat", "speed-green", "🚤", hue=110, held_out=True),
    Drawing("bottle", "champagne", "🍾"),
    Drawing("bottle", "baby", "🍼"),
    Drawing("bottle", "baby-pink", "🍼", hue=-70),
    Drawing("bottle", "pump", "🧴"),
    Drawing("bottle", "pump-rose", "🧴", hue=170),
    Drawing("bottle", "champagne-dark", "🍾", saturation=0.8, tint=(150, 110, 85)),
    Drawing("bottle", "pump-violet", "🧴", hue=90, held_out=True),
    Drawing("bottle", "champagne-blue", "🍾", hue=100, held_out=True),
    Drawing("bus", "side", "🚌"),
    Drawing("bus", "side-red", "🚌", hue=160, saturation=1.8),
    Drawing("bus", "front", "🚍"),
    Drawing("bus", "front-yellow", "🚍", hue=-150, saturation=1.8),
    Drawing("bus", "trolley", "🚎", erase=WIRE),
    Drawing("bus", "side-green", "🚌", hue=-70, saturation=1.8, held_out=True),
    Drawing("bus", "trolley-orange", "🚎", hue=-50, saturation=1.3, erase=WIRE, held_out=True),
    Drawing("car", "red", "🚗"),
    Drawing("car", "blue", "🚙"),
    Drawing("car", "racing", "🏎️"),
    Drawing("car", "taxi", "🚕"),
    Drawing("car", "police", "🚓"),
    Drawing("car", "front", "🚘"),
    Drawing("car", "front-police", "🚔"),
    Drawing("car", "pickup", "🛻"),
    Drawing("car", "front-taxi", "🚖", held_out=True),
    Drawing("car", "green", "🚗", hue=120, held_out=True),
    Drawing("cat", "ginger", "🐈"),
    Drawing("cat", "grey", "🐈", saturation=0.15, tint=(225, 225, 235)),
    Drawing("cat", "black", "🐈‍⬛"),
    Drawing("cat", "face", "🐱"),
    Drawing("cat", "face-smiling", "😺"),
    Drawing("cat", "face-brown", "🐱", saturation=0.7, tint=(190, 160, 140)),
    Drawing("cat", "brown", "🐈", saturation=0.8, tint=(170, 130, 110), held_out=True),
    Drawing("cat", "face-grey", "🐱", saturation=0.12, tint=(215, 215, 225), held_out=True),
    Drawing("chair", "wooden", "🪑"),
    Drawing("chair", "white", "🪑", saturation=0.25, tint=(255, 252, 245)),
    Drawing("chair", "dark", "🪑", saturation=0.8, tint=(165, 140, 130)),
    Drawing("chair", "seat", "💺"),
    Drawing("chair", "seat-red", "💺", hue=145),
    Drawing("chair", "blue", "🪑", hue=185, held_out=True),
    Drawing("chair", "seat-green", "💺", hue=-90, held_out=True),
    Drawing("cow", "dairy", "🐄"),
    Drawing("cow", "dairy-brown", "🐄", tint=(215, 165, 130)),
    Drawing("cow", "ox", "🐂"),
    Drawing("cow", "buffalo", "🐃"),
    Drawing("cow", "face", "🐮"),
    Drawing("cow", "face-dark", "🐮", saturation=0.7, tint=(200, 185, 175)),
    Drawing("cow", "bison", "🦬", held_out=True),
    Drawing("cow", "ox-red", "🐂", saturation=1.4, tint=(255, 190, 160), held_out=True),
    Drawing("diningtable", "setting", "🍽️"),
    Drawing("diningtable", "round-wood", "🍽️", base="round table", base_rgb=WOOD),
    Drawing("diningtable", "round-cloth", "🍽️", base="round table", base_rgb=CLOTH),
    Drawing("diningtable", "square-walnut", "🍽️", base="square table", base_rgb=WALNUT),
    Drawing("diningtable", "square-wood", "🍽️", base="square table", base_rgb=WOOD),
    Drawing("diningtable", "round-red", "🍽️", base="round table", base_rgb=CHECK, held_out=True),
    Drawing("diningtable", "square-cloth", "🍽️", base="square table", base_rgb=CLOTH, held_out=True),
    Drawing("dog", "spotted", "🐕"),
    Drawing("dog", "poodle", "🐩"),
    Drawing("dog", "poodle-apricot", "🐩", tint=(255, 205, 150)),
    Drawing("dog", "guide", "🦮"),
    Drawing("dog", "face", "🐶"),
    Drawing("dog", "spotted-dark", "🐕", saturation=0.7, tint=(185, 150, 130)),
    Drawing("dog", "service", "🐕‍🦺", held_out=True),
    Drawing("dog", "guide-chocolate", "🦮", saturation=0.6, tint=(165, 115, 90), held_out=True),
    Drawing("dog", "poodle-black", "🐩", tint=(105, 100, 110), held_out=True),
    Drawing("horse", "galloping", "🐎"),
    Drawing("horse", "galloping-white", "🐎", saturation=0.12, tint=(255, 252, 248)),
    Drawing("horse", "galloping-dark", "🐎", saturation=0.8, tint=(160, 125, 110)),
    Drawing("horse", "head", "🐴"),
    Drawing("horse", "head-grey", "🐴", saturation=0.1, tint=(225, 225, 230)),
    Drawing("horse", "head-dark", "🐴", saturation=0.8, tint=(150, 115, 100), held_out=True),
    Drawing("horse", "galloping-red", "🐎", saturation=1.3, tint=(255, 170, 130), held_out=True),
    Drawing("motorbike", "racing", "🏍️"),
    Drawing("motorbike", "racing-blue", "🏍️", hue=-140),
    Drawing("motorbike", "scooter", "🛵"),
    Drawing("motorbike", "scooter-red", "🛵", hue=-45),
    Drawing("motorbike", "scooter-blue", "🛵", hue=165),
    Drawing("motorbike", "racing-green", "🏍️", hue=110, held_out=True),
    Drawing("motorbike", "scooter-violet", "🛵", hue=-130, held_out=True),
    Drawing("person", "standing", "🧍"),
    Drawing("person", "standing-woman-dark", "🧍🏿‍♀️"),
    Drawing("person", "standing-man-light", "🧍🏻‍♂️"),
    Drawing("person", "standing-medium", "🧍🏽"),
    Drawing("person", "walking-medium", "🚶🏽"),
    Drawing("person", "walking-woman", "🚶‍♀️"),
    Drawing("person", "walking-man-dark", "🚶🏿‍♂️"),
    Drawing("person", "running", "🏃"),
    Drawing("person", "running-woman-dark", "🏃🏿‍♀️"),
    Drawing("person", "dancing", "💃"),
    Drawing("person", "dancing-dark", "💃🏾"),
    Drawing("person", "dancing-man", "🕺"),
    Drawing("person", "dancing-man-light", "🕺🏻"),
    Drawing("person", "officer", "👮"),
    Drawing("person", "firefighter", "👩‍🚒"),
    Drawing("person", "hand-raised", "🙋🏽"),
    Drawing("person", "running-man-dark", "🏃🏾‍♂️", held_out=True),
    Drawing("person", "walking-light", "🚶🏻", held_out=True),
    Drawing("person", "shrugging", "🤷🏽‍♀️", held_out=True),
    Drawing("pottedplant", "fern", "🪴"),
    Drawing("pottedplant", "fern-dark", "🪴", saturation=0.9, tint=(175, 190, 175)),
    Drawing("pottedplant", "cactus", "🌵", base="pot"),
    Drawing("pottedplant", "tulip", "🌷", base="pot"),
    Drawing("pottedplant", "sunflower", "🌻", base="pot", base_rgb=(120, 130, 140)),
    Drawing("pottedplant", "seedling", "🌱", base="pot", base_rgb=(176, 120, 74)),
    Drawing("pottedplant", "hyacinth", "🪻", base="pot", held_out=True),
    Drawing("pottedplant", "herb", "🌿", base="pot", base_rgb=(120, 130, 140), held_out=True),
    Drawing("sheep", "ewe", "🐑"),
    Drawing("sheep", "ewe-cream", "🐑", tint=(255, 238, 205)),
    Drawing("sheep", "ram", "🐏"),
    Drawing("sheep", "ram-brown", "🐏", tint=(205, 165, 135)),
    Drawing("sheep", "ewe-black", "🐑", tint=(105, 100, 100), held_out=True),
    Drawing("sheep", "ram-dark", "🐏", tint=(130, 125, 130), held_out=True),
    Drawing("sofa", "blue", "🛋️", erase=LAMP),
    Drawing("sofa", "red", "🛋️", hue=155, erase=LAMP),
    Drawing("sofa", "green", "🛋️", hue=-80, saturation=0.8, erase=LAMP),
    Drawing("sofa", "brown", "🛋️", hue=-175, saturation=0.7, tint=(200, 170, 150), erase=LAMP),
    Drawing("sofa", "grey", "🛋️", saturation=0.1, erase=LAMP, held_out=True),
    Drawing("sofa", "violet", "🛋️", hue=75, saturation=0.8, erase=LAMP, held_out=True),
    Drawing("train", "front", "🚆"),
    Drawing("train", "front-red", "🚆", hue=150),
    Drawing("train", "steam", "🚂"),
    Drawing("train", "fast", "🚄"),
    Drawing("train", "bullet", "🚅"),
    Drawing("train", "light-rail", "🚈", erase=WIRE),
    Drawing("train", "carriage", "🚃"),
    Drawing("train", "tram", "🚊", held_out=True),
    Drawing("train", "bullet-red", "🚅", hue=150, held_out=True),
    Drawing("tvmonitor", "set", "📺"),
    Drawing("tvmonitor", "set-brown", "📺", hue=-170),
    Drawing("tvmonitor", "monitor", "🖥️"),
    Drawing("tvmonitor", "set-red", "📺", hue=165, saturation=1.3),
    Drawing("tvmonitor", "monitor-dark", "🖥️", saturation=0.4, tint=(130, 130, 140)),
    Drawing("tvmonitor", "set-green", "📺", hue=-50, held_out=True),
    Drawing("tvmonitor", "monitor-gold", "🖥️", tint=(255, 215, 150), held_out=True),
)


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
