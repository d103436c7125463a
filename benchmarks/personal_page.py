"""The page and the picture of `benchmarks.personal`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import machine_line, table
from benchmarks.personal_rules import CHOSEN_ON, READ, RULES, Choice, scores_of
from data.demo.personal import CONCEPTS, SUBSETS
from data.demo.scene import VISIBLE_PX
from data.images import read_image

Content = dict[str, Any]  # what personal.json holds
TILE_PX = 96


def report(content: Content) -> str:
    """Return the Markdown page."""
    parts = [introduction(content), final_half(content), tuning_half(content), by_drawing(content)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def drawings(tuning: bool) -> str:
    """Return the names of one half's drawings."""
    return ", ".join(concept.drawing for concept in CONCEPTS if concept.tuning == tuning)


def introduction(content: Content) -> str:
    """Return what was measured, and the rules."""
    return f"""# One particular drawing among others of its kind

{machine_line(content["machine"])} Written by `python -m benchmarks.personal`.

Eight drawings of the demo world, {content["scenes"]} scenes of each subset of each (`data.demo.personal`), a token
learned for each from five pictures without masks; scenes are read at the default image size, timestep 30, two noise
draws. IoU in percent: sum(I) / sum(U) over a concept's scenes (those without the drawing count too: what is marked
there is union), mean over concepts. Everything that is chosen (layers, spreading, scaling, lambda, cut) is chosen for
each rule by the subset `{CHOSEN_ON}` of the tuning half:
{drawings(tuning=True)}.
False alarms: scenes of `{CHOSEN_ON}` without the drawing in which more than {VISIBLE_PX} pixels are marked.
Oracle: the best cut for each concept and subset, by the truth.

Rules: `class word` is alone in its sentence, and `token` in its own. In the others both compete in one sentence, with
maps T of the token and K of the word: T where it is higher; the contrast max(0, T - lambda K); and the map of the class
word alone, scaled to 0..1, times the share T / (T + lambda K)."""


def rules_table(content: Content, kind: str, half: str) -> str:
    """Return every rule's figures on a half, with a token taught where to look ("taught") or as published ("plain")."""
    header = ["rule", *SUBSETS, "oracle: " + ", ".join(SUBSETS), "false alarms", "seen where it is"]
    rows = [
        [row["rule"], *row[half]["iou"], " / ".join(map(str, row[half]["oracle"])), row[half]["false_alarms"],
         row[half]["found"]]
        for row in content["rows"][kind]
    ]  # fmt: skip
    return table(header, rows)


def final_half(content: Content) -> str:
    """Return the figures of the drawings on which nothing was chosen."""
    class_row, *token_rows = content["rows"]["taught"]
    place = SUBSETS.index(CHOSEN_ON)
    best = max(token_rows, key=lambda row: row["tuning"]["iou"][place])
    gain = best["final"]["iou"][place] - class_row["final"]["iou"][place]
    return f"""## Final half, on which nothing was chosen: {drawings(tuning=False)}

The token taught where to look (`look.weight` 1, pictures of others drawn by the model itself), with the rule that was
best on the tuning half ({best["rule"]}), against the class word on `{CHOSEN_ON}`: {gain:+.1f} points.

{rules_table(content, "taught", "final")}

Textual inversion as published (`look.weight` 0):

{rules_table(content, "plain", "final")}

![scene, class word, token, contrast, mask, truth](personal.png)

Scenes of `{CHOSEN_ON}` of the final half: scene, map of the class word, of the token, contrast, what is marked
by the rule `contrast`, truth."""


def tuning_half(content: Content) -> str:
    """Return the figures of the drawings that settings were chosen on, and what was chosen."""
    chosen = [
        (f"{row['rule']}{' (published)' if kind == 'plain' else ''}", row["choice"], row["cut"])
        for kind in ("taught", "plain")
        for row in content["rows"][kind]
    ]
    rows = "\n".join(f"| {rule} | {choice} | {cut} |" for rule, choice, cut in chosen)
    return f"""## Tuning half

{rules_table(content, "taught", "tuning")}

Textual inversion as published:

{rules_table(content, "plain", "tuning")}

| rule | how it reads | cut |
|---|---|---:|
{rows}"""


def by_drawing(content: Content) -> str:
    """Return each drawing's figure under every rule."""
    place, rows = SUBSETS.index(CHOSEN_ON), content["rows"]["taught"]
    cells = [
        [name, *(f"{row[half]['by_concept'][name][place]}" for row in rows)]
        for half in ("tuning", "final")
        for name in rows[0][half]["by_concept"]
    ]
    return f"""## By drawing, `{CHOSEN_ON}`, token taught where to look

{table(["drawing", *RULES], cells)}"""


def draw_sheet(
    root: Path,
    maps: dict[tuple[str, str], dict[str, np.ndarray]],
    truths: dict[str, np.ndarray],
    rows: Sequence[dict[str, Any]],
) -> Image.Image:
    """Draw, for each drawing of the final half, three scenes with their maps and masks."""
    row = next(row for row in rows if row["rule"] == "contrast")
    layers, spread, scaled, weight = row["settings"]
    contrast = Choice("contrast", layers, spread, scaled, weight)
    lines = []
    for concept in (one for one in CONCEPTS if not one.tuning):
        truth, known = truths[concept.name], maps["taught", concept.name]
        scenes = len(truth) // len(SUBSETS)
        score = scores_of(known, contrast, truth.shape[1:])
        read = known["both"][:, int(spread), list(READ[layers])].mean(1)
        for index in (0, 1, 2):
            at = scenes + index
            path = sorted((root / concept.name / CHOSEN_ON / "images").iterdir())[index]
            high = max(read[at].max(), 1e-6)
            greys = [read[at, 1] / high, read[at, 0] / high, score[at] / max(score[at].max(), 1e-6)]
            greys += [(score[at] > row["cut"]).astype(np.float32), truth[at].astype(np.float32)]
            tiles = [Image.fromarray(read_image(path))]
            tiles += [Image.fromarray((255 * grey).clip(0, 255).astype(np.uint8)).convert("RGB") for grey in greys]
            lines.append(np.concatenate([np.asarray(tile.resize((TILE_PX, TILE_PX))) for tile in tiles], axis=1))
    half = len(lines) // 2
    return Image.fromarray(np.concatenate([np.concatenate(lines[:half]), np.concatenate(lines[half:])], axis=1))
