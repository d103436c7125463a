"""From lines about targets to the table of their protocol."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.phrase_scores import (
    Overlap,
    auroc,
    average_recall,
    false_alarm_rate,
    mean_iou,
    mean_over_concepts,
    overall_accuracy,
    overall_boundary_iou,
    overall_iou,
)
from pseudolabel.ground.referring import CUTS

Lines = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, how many targets it counts, and its figures by column, nan where it has none."""

    name: str
    count: int
    figures: dict[str, float]


def overlaps(lines: Lines) -> list[Overlap]:
    """Return the overlaps of lines."""
    return [Overlap(*line["overlap"]) for line in lines]


def rows_of(kind: str, lines: Lines) -> list[Row]:
    """Return the table of a data set's protocol (see the readers' docstrings), the row of everything last."""
    match kind:
        case "refcoco":
            return [_expressions("total", lines)]
        case "png":
            tags = ("things", "stuff", "singular", "plural")
            parts = [(tag, [line for line in lines if tag in line["tags"]]) for tag in tags]
            return [*(_narrative(tag, part) for tag, part in parts), _narrative("total", lines)]
        case "permis":
            return [_particular("total", lines, concepts=False)]
        case "perseg":
            return [*_by(lines, "phrase", _particular), _particular("total", lines)]
        case _:
            concepts = _by(lines, "phrase", _particular) if len({line["phrase"] for line in lines}) > 1 else []
            return [*concepts, *_by(lines, "group", _particular, "subset "), _particular("total", lines)]


def _by(lines: Lines, key: str, row: Callable[[str, Lines], Row], prefix: str = "") -> list[Row]:
    names = list(dict.fromkeys(line[key] for line in lines))
    return [row(f"{prefix}{name}", [line for line in lines if line[key] == name]) for name in names]


def _expressions(name: str, lines: Lines) -> Row:
    found = overlaps(lines)
    return Row(
        name, len(lines), {"oIoU": overall_iou(found), "mIoU": mean_iou(found), "oracle mIoU": _oracle_mean(lines)}
    )


def _narrative(name: str, lines: Lines) -> Row:
    found = overlaps(lines)
    return Row(name, len(lines), {"average recall": average_recall(found), "mIoU": mean_iou(found)})


def _particular(name: str, lines: Lines, concepts: bool = True) -> Row:
    """Return the figures of particular things: mean over concepts, or everything together (PerMIS).

    In PerSeg and PerMIS the lines of the group "absent" count for false alarms and presence alone: the protocols do not
    know them.
    """
    counted = [line for line in lines if line["group"] != "absent"]
    names = list(dict.fromkeys(line["phrase"] for line in counted)) if concepts else [None]
    parts = [[line for line in counted if one is None or line["phrase"] == one] for one in names]

    def mean(figure: Callable[[list[Overlap]], float]) -> float:
        return mean_over_concepts([figure(overlaps(part)) for part in parts])

    present = np.array([line["overlap"][3] > 0 for line in lines], bool)
    figures = {
        "mIoU": mean(overall_iou),
        "mean accuracy": mean(overall_accuracy),
        "boundary IoU": mean(overall_boundary_iou),
        "oracle mIoU": _oracle(parts),
        "false alarms": false_alarm_rate(overlaps(lines)),
        "presence AUROC": auroc(np.array([line["presence"] for line in lines], float), present),
    }
    return Row(name, len(lines), figures)


def _oracle(parts: Sequence[Lines]) -> float:
    """Return the best mean over concepts of sum(I) / sum(U) that one cut through the soft maps, unrefined, reaches."""
    by_cut = []
    for cut in range(len(CUTS)):
        sums = [np.sum([line["cuts"][cut] for line in part], axis=0) for part in parts if part]
        by_cut.append(mean_over_concepts([both / either if either else math.nan for both, either in sums]))
    known = [value for value in by_cut if not math.isnan(value)]
    return max(known) if known else math.nan


def _oracle_mean(lines: Lines) -> float:
    """Return the best mean IoU that one cut through the soft maps reaches."""
    if not lines:
        return math.nan
    cuts = np.array([line["cuts"] for line in lines], float)
    both, either = cuts[..., 0], cuts[..., 1]
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).mean(axis=0).max())


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; figures in percent but for the AUROC."""
    columns = list(rows[0].figures)
    lines = [f"| | targets | {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) + 1)]
    for row in rows:
        cells = [_cell(name, row.figures[name]) for name in columns]
        lines.append(f"| {row.name.replace('|', chr(92) + '|')} | {row.count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(name: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if name == "presence AUROC" else f"{100 * value:.1f}"
