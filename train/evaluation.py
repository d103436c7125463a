"""What `segtrain test` writes: a table, scores.json, two plots, and the folder the VOC server takes."""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
from jaxtyping import Float64, Int64

from data.classes import ClassSet
from data.files import write_atomically
from data.masks import write_mask
from data.scoring import Scores, boundary_iou, score
from data.wording import count, printable
from train.inference import InferenceConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES_FORMAT = "segtrain-scores"
SCORES_VERSION = 1
DOTS_PER_INCH = 120
NAME_LETTERS = 28  # of a class's name beside a plot
Boundary = Float64[np.ndarray, " classes"]  # Boundary IoU of each class, nan for one that never occurs
# Folder and file names of submissions: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc, "results file format"
VOC_TEST_FOLDER = Path("results/VOC2012/Segmentation/comp5_test_cls")


@dataclass(frozen=True)
class ReportConfig:
    """What a measurement writes."""

    output: Path | None = None
    """Folder for scores.json and the plots; <checkpoint without .ckpt>_test if not given."""
    plots: bool = True
    """Draw the IoU of each class and the confusion matrix."""
    save_masks: bool = False
    """Write the predicted masks to masks/ in the output folder."""


class Evaluator(pl.Callback):
    """Collects a test run's counts and predictions, and reports them."""

    def __init__(
        self,
        inference: InferenceConfig,
        report: ReportConfig,
        checkpoint: Path,
        *,
        quick: bool = False,
        save_voc_test: Path | None = None,
    ) -> None:
        self.inference, self.report, self.checkpoint, self.quick = inference, report, checkpoint, quick
        self.voc_folder = None if save_voc_test is None else voc_test_folder(save_voc_test)
        self.output = report.output or checkpoint.with_name(f"{checkpoint.stem}_test")
        self._images = 0

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Write the prediction of an image where that is wanted."""
        self._images += 1
        decisions = outputs["decisions"].cpu().numpy()
        folders = [self.output / "masks"] if self.report.save_masks else []
        if self.voc_folder is not None:
            folders.append(self.voc_folder)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            write_mask(folder / f"{batch['id']}.png", decisions)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Add the counts of all processes up, and report on the first."""
        counts = pl_module.gather_counts()
        images = int(trainer.strategy.reduce(pl_module.device_tensor(self._images), reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        if self.voc_folder is not None:
            print(f"For the VOC server: {self.voc_folder} ({count(images, 'image')})")
        if not counts["matrix"].sum():
            return
        scores = score(counts["matrix"])
        boundary = boundary_iou(counts["boundary"]) if "boundary" in counts else None
        if not self.quick:
            print(table(scores, boundary, pl_module.classes))
        print(f"mIoU {scores.miou:.4f}   pixel accuracy {scores.pixel_accuracy:.4f}   images {images}", flush=True)
        if not self.quick:
            self._write(scores, boundary, pl_module.classes, images)

    def _write(self, scores: Scores, boundary: Boundary | None, classes: ClassSet, images: int) -> None:
        from data.config import to_plain
        from train.checkpoint import file_digest

        self.output.mkdir(parents=True, exist_ok=True)
        content = scores_json(scores, boundary, classes) | {
            "images": images,
            "checkpoint": {"path": str(self.checkpoint), "fingerprint": file_digest(self.checkpoint)},
            "inference": to_plain(self.inference),
        }
        write_atomically(self.output / "scores.json", (json.dumps(content, indent=1) + "\n").encode())
        if self.report.plots:
            _save(draw_bars(scores, classes), self.output / "per_class.png")
            _save(draw_confusion(scores.matrix, classes), self.output / "confusion.png")
        print(f"Written: {self.output}")


def voc_test_folder(output: Path) -> Path:
    """Return the folder for the masks that the VOC server wants packed, for the folder that a user named.

    >>> voc_test_folder(Path("a")).as_posix(), voc_test_folder(Path("a/results")).as_posix()
    ('a/results/VOC2012/Segmentation/comp5_test_cls', 'a/results/VOC2012/Segmentation/comp5_test_cls')
    """
    return (output.parent if output.name == VOC_TEST_FOLDER.parts[0] else output) / VOC_TEST_FOLDER


def table(scores: Scores, boundary: Boundary | None, classes: ClassSet) -> str:
    """Return a text table with one row per class: IoU, boundary IoU, precision, recall, in percent."""
    names = [printable(classes.name(index)) for index in range(len(scores.iou))]
    width = max(18, *(len(name) + 1 for name in names))
    lines = [f"{'class':<{width}}{'IoU':>8}{'boundary IoU':>14}{'precision':>11}{'recall':>8}"]
    for index in range(len(scores.iou)):
        cells = [scores.iou[index], math.nan if boundary is None else boundary[index]]
        cells += [scores.precision[index], scores.recall[index]]
        texts = [_percent(cell) for cell in cells]
        lines.append(f"{names[index]:<{width}}{texts[0]:>8}{texts[1]:>14}{texts[2]:>11}{texts[3]:>8}")
    lines.append(f"{'mean':<{width}}{_percent(scores.miou):>8}{_percent(_mean(boundary)):>14}")
    return "\n".join(lines)


def scores_json(scores: Scores, boundary: Boundary | None, classes: ClassSet) -> dict[str, Any]:
    """Return the figures as JSON values, shares from 0 to 1, null where a class never occurs.

    `boundary_iou` is Cheng et al.'s Boundary IoU (`data.scoring.boundary_counts`), `boundary_miou` its mean.
    """
    names = [classes.name(index) for index in range(len(scores.iou))]
    return {
        "format": SCORES_FORMAT,
        "format_version": SCORES_VERSION,
        "miou": _number(scores.miou),
        "pixel_accuracy": _number(scores.pixel_accuracy),
        "boundary_miou": _number(_mean(boundary)),
        "iou": {name: _number(value) for name, value in zip(names, scores.iou, strict=True)},
        "boundary_iou": None
        if boundary is None
        else {name: _number(value) for name, value in zip(names, boundary, strict=True)},
        "confusion_matrix": scores.matrix.tolist(),
    }


def _mean(values: Boundary | None) -> float:
    return math.nan if values is None or np.isnan(values).all() else float(np.nanmean(values))


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


def draw_bars(scores: Scores, classes: ClassSet) -> "Figure":
    """Draw the IoU of each class as a bar, best first."""
    figure, axes = _figure(6, 1 + 0.25 * len(scores.iou))
    order = [index for index in np.argsort(np.nan_to_num(scores.iou, nan=-1)) if not math.isnan(scores.iou[index])]
    axes.barh(range(len(order)), 100 * scores.iou[order], color="#4878a8")
    axes.set_yticks(range(len(order)), [_drawn_name(classes, index) for index in order], parse_math=False)
    axes.axvline(100 * scores.miou, color="#c04040", linewidth=1, label=f"mean {100 * scores.miou:.1f}")
    axes.set(xlabel="IoU in percent", xlim=(0, 100))
    axes.legend(loc="lower right", frameon=False)
    return figure


def draw_confusion(matrix: Int64[np.ndarray, "classes classes"], classes: ClassSet) -> "Figure":
    """Draw the confusion matrix in percent of each true class (row), with a colour bar.

    Each cell shows its figure in whole percent; those below a half are left empty, so that errors can be found among
    many classes.
    """
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cell = float(np.clip(9 / len(matrix), 0.27, 0.6))  # inches: two digits stay readable at any number of classes
    names = [_drawn_name(classes, index) for index in range(len(matrix))]
    side = cell * len(matrix) + 1 + 0.09 * max(map(len, names))
    figure, axes = _figure(side + 0.8, side)
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.argwhere(percent >= 0.5):
        value = percent[row, column]
        colour = "white" if value > 55 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=min(10, cell * 26))
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8, aspect=30, pad=0.02)
    return figure


def _drawn_name(classes: ClassSet, class_id: int) -> str:
    """Return a name as it stands beside a plot, which a long one would leave no room."""
    name = printable(classes.name(class_id))
    return name if len(name) <= NAME_LETTERS else name[: NAME_LETTERS - 1] + "…"


def _save(figure: "Figure", path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    write_atomically(path, buffer.getvalue())


def _figure(width: float, height: float) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
