"""Building blocks of self-contained HTML pages: pictures as data addresses, tiles, tables with bars.

A page is one file that opens from disk without a network: no script, font or style comes from elsewhere.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from data.classes import ClassSet
from data.masks import voc_palette
from data.store.softmaps import SoftMaps, upsample

THUMBNAIL_PX = 144

# Control points of a perceptually even ramp from dark violet to yellow, after matplotlib's "inferno" (CC0).
RAMP = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], np.float64)

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #666c75; --paper: #ffffff; --card: #f5f6f8; --line: #dfe2e7;
  --accent: #2f6fde; --accent2: #9aa7bd; --warn: #b25400; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa1ab; --paper: #15171a; --card: #1f2226;
  --line: #33383f; --accent: #6ea0ff; --accent2: #5a6577; --warn: #ffb061; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p, .lead { max-width: 46rem; } .lead, .soft { color: var(--soft); } .lead { margin: 0 0 1.5rem; }
code, pre { font: 13px/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1rem;
  overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .6rem .9rem;
  min-width: 7.5rem; }
.tile b { display: block; font-size: 1.45rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: .82rem; vertical-align: bottom; }
td, th { padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; padding-right: 1.6rem; }
tr.total td { font-weight: 650; border-top: 2px solid var(--line); }
.bar { display: flex; align-items: center; gap: .5rem; min-width: 8rem; }
.bar i { flex: 1; height: .55rem; border-radius: 3px; background: var(--line); overflow: hidden; display: block; }
.bar i b { display: block; height: 100%; background: var(--accent); border-radius: 3px; }
.bar.second i b { background: var(--accent2); }
.bar span { width: 3.4rem; text-align: right; white-space: nowrap; }
.chip { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .45em;
  vertical-align: -.05em; border: 1px solid rgba(128,128,128,.45); }
.card { border: 1px solid var(--line); background: var(--card); border-radius: 10px; padding: .7rem .8rem;
  margin: 0 0 .8rem; }
.card header { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin-bottom: .45rem; font-size: .9rem; }
.card header b { font-weight: 600; } .warn { color: var(--warn); }
.strip { display: flex; gap: .5rem; overflow-x: auto; }
figure { margin: 0; flex: none; } figure img { display: block; border-radius: 6px; }
figcaption { font-size: .78rem; color: var(--soft); margin-top: .2rem; text-align: center; }
.filters { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; margin-bottom: .9rem; align-items: center; }
select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .2rem .5rem; }
summary { cursor: pointer; color: var(--soft); } [hidden] { display: none; }
"""


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """Return a whole HTML page; title and lead are plain text, sections are HTML."""
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n</body></html>\n'
    )


def section(heading: str, *parts: str) -> str:
    """Return a part of a page under a heading."""
    return f"<section><h2>{escape(heading)}</h2>\n" + "\n".join(parts) + "\n</section>"


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """Return a row of figures: what is shown large, and what it is."""
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in values
    )
    return f'<div class="tiles">{cells}</div>'


def bar(share: float | None, second: bool = False) -> str:
    """Return a share between 0 and 1 as a bar with its percentage; a dash for None or nan."""
    if share is None or np.isnan(share):
        return '<span class="soft">-</span>'
    width = f"{100 * min(max(share, 0.0), 1.0):.1f}"
    kind = "bar second" if second else "bar"
    return f'<div class="{kind}"><i><b style="width:{width}%"></b></i><span>{100 * share:.1f} %</span></div>'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None) -> str:
    """Return a table; headings are plain text, cells are HTML, and cells that are numbers stand at the right."""

    def cell(content: str) -> str:
        return f'<td class="number">{content}</td>' if content.isdigit() else f"<td>{content}</td>"

    cells = list(rows)
    numbers = [bool(cells) and cells[0][column].isdigit() for column in range(len(headings))]
    head = "".join(
        f"<th{' class=number' if number else ''}>{escape(heading)}</th>"
        for heading, number in zip(headings, numbers, strict=True)
    )
    lines = ["<tr>" + "".join(map(cell, row)) + "</tr>" for row in cells]
    if total is not None:
        lines.append('<tr class="total">' + "".join(map(cell, total)) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def chip(classes: ClassSet, class_id: int, palette: UInt8[np.ndarray, "256 3"] | None = None) -> str:
    """Return a class's name beside its colour: the one it has in masks, or in the palette given."""
    red, green, blue = (int(value) for value in (voc_palette() if palette is None else palette)[class_id])
    return f'<span class="chip" style="background:rgb({red},{green},{blue})"></span>{escape(classes.name(class_id))}'


def details(summary: str, content: str) -> str:
    """Return HTML that is folded away under a line of plain text."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def picture(rgb_u8: UInt8[np.ndarray, "height width 3"], caption: str, kind: Literal["photo", "flat"] = "photo") -> str:
    """Return a picture with a caption (HTML); photographs become JPEG, flat colours PNG, inside the page."""
    buffer = io.BytesIO()
    image = Image.fromarray(rgb_u8)
    if kind == "photo":
        image.save(buffer, "JPEG", quality=85, subsampling=0)
    else:
        image.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    mime = "jpeg" if kind == "photo" else "png"
    content = base64.b64encode(buffer.getvalue()).decode()
    height, width = rgb_u8.shape[:2]
    return (
        f'<figure style="width:{width}px"><img width="{width}" height="{height}" alt="" '
        f'src="data:image/{mime};base64,{content}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def thumbnail_size(image_hw: tuple[int, int], height_px: int = THUMBNAIL_PX) -> tuple[int, int]:
    """Return height and width of a thumbnail: a fixed height, and at most three times as wide.

    >>> thumbnail_size((375, 500), 150), thumbnail_size((100, 1000), 150)
    ((150, 200), (45, 450))
    """
    height, width = image_hw
    scale = min(height_px / height, 3 * height_px / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrink(
    rgb_u8: UInt8[np.ndarray, "height width 3"], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Resize a picture for the page."""
    resized = Image.fromarray(rgb_u8).resize(size_hw[::-1], Image.Resampling.LANCZOS)
    return np.asarray(resized)


def shrink_mask(
    mask: UInt8[np.ndarray, "height width"], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width"]:
    """Resize a mask for the page; ids are kept, not mixed."""
    return np.asarray(Image.fromarray(mask).resize(size_hw[::-1], Image.Resampling.NEAREST))


def heat_maps(soft: SoftMaps, size_hw: tuple[int, int]) -> Float[np.ndarray, "classes height width"]:
    """Return the map of each label (not the background) over the image, 0 to 1, at the size asked for."""
    rows = soft.maps[1:] if soft.background else soft.maps
    return np.clip(upsample(rows.astype(np.float32), soft, size_hw), 0, 1)


def heat_overlay(
    rgb_u8: UInt8[np.ndarray, "height width 3"], heat: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture in grey under the ramp's colours; the hotter, the less of the picture shows."""
    grey = rgb_u8.astype(np.float64).mean(axis=-1, keepdims=True) * 0.55
    position = np.clip(heat.astype(np.float64), 0, 1) * (len(RAMP) - 1)
    low = np.minimum(position.astype(np.int64), len(RAMP) - 2)
    share = (position - low)[..., None]
    colour = RAMP[low] * (1 - share) + RAMP[low + 1] * share
    cover = 0.35 + 0.55 * np.clip(heat, 0, 1)[..., None]
    return np.clip(grey * (1 - cover) + colour * cover, 0, 255).astype(np.uint8)
