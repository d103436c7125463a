"""How quickly the review page opens, goes on to the next image and retunes a mask.

    python -m benchmarks.review --output benchmarks/review.md

A store of 20,000 images of 500 x 375 pixels is drawn (`benchmarks.review_store`; 200 scenes under 100 names each, as
links). `pseudolabel review` is started on it as a user starts it, and asked over HTTP for what its page asks for; where
there is a Chromium and Playwright, the page itself is opened and its keys pressed. Nothing is asked for twice.
"""

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import HERE, machine, machine_line, table, write_text
from benchmarks.review_store import draw_store
from pseudolabel.review.server import STATIC

IMAGES, SCENES, TRIES = 20_000, 200, 40
ROWS = 40  # of the queue, as many as a window shows
LIMITS_S = {"open": 2.0, "next image": 0.1, "retune without the CRF": 0.3}


@contextmanager
def reviewing(store: Path) -> Iterator[tuple[int, float, int]]:
    """Run the command on a store; gives the port, when the command was started, and its process."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pseudolabel.cli", "review", "--store", store.name, "--port", "0"]
    here = {"cwd": store.parent, "env": os.environ | {"PYTHONPATH": str(HERE.parent)}}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **here) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        port = next(int(found[1]) for line in lines if (found := re.search(r"http://127\.0\.0\.1:(\d+)/", line)))
        try:
            yield port, started, process.pid
        finally:
            process.send_signal(signal.SIGINT)


def ask(port: int, path: str, body: Any = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {} if body is None else {"content-type": "application/json"}
    connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, (path, answer.status, content[:200])
    connection.close()
    return content


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def processor_seconds(process: int) -> float:
    """Return the processor time that a process has taken (Linux; elsewhere not a number)."""
    status = Path(f"/proc/{process}/stat")
    if not status.exists():
        return float("nan")
    user, system = status.read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def open_queue(port: int) -> list[str]:
    """Ask for all that a window shows first."""
    for path in ("/", *(f"/static/{name}" for name in STATIC if name != "ground.js"), "/api/store"):
        ask(port, path)
    ids: list[str] = json.loads(ask(port, "/api/queue"))["ids"]
    ask(port, "/api/rows", {"ids": ids[:ROWS]})
    open_image(port, ids[0])
    return ids


def open_image(port: int, sample_id: str) -> None:
    for path in ("/api/item", "/image", "/mask"):
        ask(port, f"{path}?id={sample_id}")


def measure(store: Path) -> dict[str, list[float]]:
    """Return the seconds that each step took, over HTTP."""
    found: dict[str, list[float]] = {}
    with reviewing(store) as (port, started, process):
        ids = open_queue(port)
        found["open"] = [time.perf_counter() - started]
        found["open: processor time of the command"] = [processor_seconds(process)]
        chosen = ids[1 :: len(ids) // TRIES][:TRIES]  # spread over the queue: no scene under two names
        found["next image"] = [seconds(lambda name=name: open_image(port, name)) for name in chosen]
        found["picture of the queue"] = [seconds(lambda name=name: ask(port, f"/thumb?id={name}")) for name in chosen]
        for title, settings, tries in (
            ("retune without the CRF", {"threshold": 0.3, "crf": False}, TRIES),
            ("retune with the CRF at half size", {"threshold": 0.3, "crf": True, "scale": 0.5}, TRIES // 4),
            ("retune with the CRF", {"threshold": 0.3, "crf": True, "scale": 1}, TRIES // 4),
        ):
            bodies = [{"id": name, "settings": settings} for name in chosen[-tries:]]  # still at hand: the last six
            found[title] = [seconds(lambda body=body: ask(port, "/api/retune", body)) for body in bodies]
        found["filter the queue"] = [
            seconds(lambda query=query: ask(port, f"/api/queue?{query}"))
            for query in ("label=8", "decision=none", "order=id", "text=19")
        ]
    return found


def measure_in_browser(store: Path) -> dict[str, list[float]]:
    """Return the same as a person sees it, or nothing where no browser can be driven."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    if chromium is None:
        return {}
    with sync_playwright() as playwright, reviewing(store) as (port, started, _):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 860})
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#labels li")
        found = {"open, browser started and first image drawn": [time.perf_counter() - started]}
        page.wait_for_timeout(1000)
        keys = page.evaluate(KEYS, TRIES)
        found["next image, key to drawn, in the browser"] = [milliseconds / 1000 for milliseconds in keys]
        browser.close()
    return found


# Presses the right arrow, waits until the next image's name and mask are there, and looks at it for 0.2 s.
KEYS = """async (tries) => {
  const name = () => document.querySelector("#title").textContent, times = [];
  for (let number = 0; number < tries; number++) {
    const before = name(), start = performance.now();
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    while (name() === before) await new Promise((done) => requestAnimationFrame(done));
    times.push(performance.now() - start);
    await new Promise((done) => setTimeout(done, 200));
  }
  return times;
}"""


def rows(found: dict[str, list[float]]) -> list[Sequence[Any]]:
    lines = []
    for title, times in found.items():
        limit = LIMITS_S.get(title)
        worst = sorted(times)[max(0, int(0.95 * len(times)) - 1)]
        wanted = "" if limit is None else f"{1000 * limit:,.0f}"
        lines.append((title, len(times), f"{1000 * statistics.median(times):,.0f}", f"{1000 * worst:,.0f}", wanted))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "review.md")
    parser.add_argument("--images", type=int, default=IMAGES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = draw_store(Path(folder) / "drawn", options.images, SCENES).path
        load = os.getloadavg()[0]
        found = measure(store) | measure_in_browser(store)
    header = ("step", "times", "median, ms", "19 of 20 within, ms", "wanted, ms")
    text = "\n\n".join(
        [
            "# The review page: how long one waits",
            f"{machine_line(machine())} `python -m benchmarks.review`: a store of {options.images:,} drawn images of "
            f"500 x 375 pixels; one-minute load of the machine before: {load:.1f}.",
            table(header, rows(found)),
            '"Open" is from the start of the command to the first image with its mask and the first '
            f"{ROWS} lines of the queue. Nothing is asked for twice. In the browser the next two images are fetched "
            "while one is looked at, here for 0.2 s. With other work on the machine, opening takes longer than its "
            "processor time.",
        ]
    )
    write_text(options.output, text)
    print(text)


if __name__ == "__main__":
    main()
