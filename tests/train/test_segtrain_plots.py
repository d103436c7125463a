"""The plots and the table of `segtrain test`: figures that can be read, whatever the classes are called."""

import io

import numpy as np
import pytest
from PIL import Image

from data.classes import COCO, ClassSet
from data.scoring import score
from train.evaluation import draw_bars, draw_confusion, table


def named(*names: str) -> ClassSet:
    return ClassSet(names, names, ((),) * len(names))


MANY = named(*COCO.names[:40])  # their cells are as small as those of any more


def counts(classes: int) -> np.ndarray:
    matrix = np.eye(classes, dtype=np.int64) * 900
    matrix[0, 1], matrix[1] = 97, 0
    matrix[0, 2] = 3
    return matrix


@pytest.mark.parametrize("classes", [named("disc", "box"), MANY])
def test_confusion_has_figures_and_a_colour_bar(classes):
    figure = draw_confusion(counts(len(classes) + 1), classes)
    plot, bar = figure.axes
    shown = {text.get_position(): text.get_text() for text in plot.texts}
    assert shown[0, 0] == "90"
    assert shown[1, 0] == "10"
    assert (2, 0) not in shown  # 0.3 per cent
    assert not any(row == 1 for _, row in shown)  # a class that does not occur
    assert len(shown) == len(classes) + 1  # the diagonal but for one, and one error
    assert bar.get_ylabel() == "% of the true class"
    figure.canvas.draw()
    cell_px = plot.transData.transform((1, 0))[0] - plot.transData.transform((0, 0))[0]
    widest = max(text.get_window_extent().width for text in plot.texts)
    assert widest < cell_px
    assert min(text.get_fontsize() for text in plot.texts) > 6


def test_names_do_not_break_the_plots():
    classes = named("$\\frac{a$", "x" * 200 + "1", "x" * 200 + "2", "cat\u202egnp")
    matrix = counts(5)
    for figure in (draw_confusion(matrix, classes), draw_bars(score(matrix), classes)):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=60)
        assert Image.open(buffer).width < 800
    names = [label.get_text() for label in draw_bars(score(matrix), classes).axes[0].get_yticklabels()]
    assert len(names) == 5  # names that begin alike keep a bar each
    assert "cat\\u202egnp" in names


def test_the_table_is_aligned_for_long_names():
    lines = table(score(counts(3)), None, named("a name of more than eighteen letters", "b\x1b[2J")).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert "b\\x1b[2J" in lines[3]
