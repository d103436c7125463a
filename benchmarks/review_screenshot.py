"""The picture of the review page in the README: a drawn store, the page in Chromium, a few decisions.

    python -m benchmarks.review_screenshot --output benchmarks/review.png

Needs the extras [review] and [browser] and a Chromium (`CHROMIUM` names one).
"""

import argparse
import io
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.common import HERE
from benchmarks.review import reviewing
from benchmarks.review_store import draw_store
from data.files import write_atomically

WIDTH_PX, HEIGHT_PX, COLOURS = 1280, 760, 255


def screenshot(port: int, scheme: str) -> bytes:
    """Review a few images in a browser and return what it looks like, as PNG."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH_PX, "height": HEIGHT_PX}, color_scheme=scheme)
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#labels li")
        for key in ("a", "r", "a", "s", "ArrowRight"):
            page.keyboard.press(key)
            page.wait_for_timeout(1200)
        page.wait_for_timeout(3500)
        picture = bytes(page.screenshot())
        browser.close()
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "review.png")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = draw_store(Path(folder) / "drawn", 40, 40).path
        with reviewing(store) as (port, _, _):
            content = screenshot(port, options.scheme)
    small = Image.open(io.BytesIO(content)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    write_atomically(options.output, buffer.getvalue())
    print(f"{options.output}: {len(buffer.getvalue()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
