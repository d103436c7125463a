"""Questions (the phrases of an image) from flags or a table, and the folder of their answers."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data.config import to_plain
from data.console import progress_bar
from data.errors import ConfigError, ImageError, LabelError
from data.files import new_folder
from data.images import read_image
from data.readers.folder import image_samples
from data.readers.ids import make_ids
from data.readers.phrases import read_phrase_table
from data.wording import count
from pseudolabel.ground.config import GroundConfig
from pseudolabel.ground.files import PAGE, RESULTS, check_output, results_json, write_image_files
from pseudolabel.ground.localizer import Localizer
from pseudolabel.ground.page import ground_page, image_view
from pseudolabel.ground.sentences import check_phrases
from pseudolabel.softmaps.diffusion.draw import check_drawing, draw, painter_of

DRAWN_ID = "drawn"


@dataclass(frozen=True)
class Question:
    """Phrases to look for in one image; without a path in the one that is drawn."""

    id: str
    image_path: Path | None
    phrases: tuple[str, ...]
    sentence: str | None = None


@dataclass(frozen=True)
class Drawing:
    """An image to be drawn: what it shows, the seed of its noise, denoising steps, guidance, and size in pixels."""

    prompt: str
    seed: int = 0
    steps: int = 30
    guidance: float = 5.0
    size: int | tuple[int, int] | None = None


def questions_of_images(images: Sequence[Path], phrases: Sequence[str], sentence: str | None) -> list[Question]:
    """Ask the same phrases of images and of folders of images.

    Raises:
        ImageError: an image that is not there, or is given twice.
        LabelError: an empty phrase, or two alike.

    """
    checked = check_phrases(phrases)
    paths = [sample.image_path for image in images for sample in image_samples(Path(image), "image")]
    return [Question(name, path, checked, sentence) for name, path in zip(_ids(paths), paths, strict=True)]


def questions_of_table(table: Path) -> list[Question]:
    """Ask what a table says; rows of one image and sentence are one question.

    Raises:
        LabelError: not such a table, an empty phrase, or two alike for one image.
        ImageError: an image that is not there.

    """
    grouped: dict[tuple[Path, str | None], list[str]] = {}
    for row in read_phrase_table(Path(table)):
        grouped.setdefault((row.image_path, row.sentence), []).append(row.phrase)
    paths = list(dict.fromkeys(path for path, _ in grouped))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ImageError(
            f"{len(missing)} of {count(len(paths), 'image')} in {table} missing, the first is {missing[0]}; images are "
            "named from the table's folder."
        )
    ids = dict(zip(paths, _ids(paths), strict=True))
    asked: dict[Path, int] = {}
    questions = []
    for (path, sentence), phrases in grouped.items():
        try:
            checked = check_phrases(phrases)
        except LabelError as error:
            raise LabelError(f"{table}, image {path.name}: {error}") from error
        asked[path] = asked.get(path, 0) + 1
        name = ids[path] if asked[path] == 1 else f"{ids[path]}__{asked[path]}"
        questions.append(Question(name, path, checked, sentence))
    return questions


def _ids(paths: Sequence[Path]) -> list[str]:
    """Return an id for each image: its path, without suffix, below the folder that holds them all."""
    absolute = [Path(os.path.abspath(path)) for path in paths]
    twice = [path for place, path in enumerate(absolute) if path in absolute[:place]]
    if twice:
        raise ImageError(f"The image {twice[0]} is given twice; give each --image once.")
    base = Path(os.path.commonpath([path.parent for path in absolute]))
    return make_ids([path.relative_to(base).as_posix() for path in absolute])


def questions_of_drawing(drawing: Drawing, phrases: Sequence[str], sentence: str | None) -> list[Question]:
    """Ask phrases of an image that is to be drawn, in the given sentence or in the one that is drawn.

    Raises:
        ConfigError: an empty prompt, or a seed below 0.
        LabelError: an empty phrase, or two alike.

    """
    if not drawing.prompt.strip():
        raise ConfigError("--prompt is empty: it must say what to draw.")
    if not 0 <= drawing.seed < 2**63:
        raise ConfigError(f"--seed is {drawing.seed}: it must be at least 0 and below 2^63.")
    return [Question(DRAWN_ID, None, check_phrases(phrases), sentence or drawing.prompt)]


def answer(
    output: Path, questions: Sequence[Question], config: GroundConfig, independent: bool, drawing: Drawing | None = None
) -> list[dict[str, Any]]:
    """Answer all questions and write the folder; nothing of it is there after an error.

    Args:
        output: new folder.
        questions: at least one.
        config: all settings.
        independent: see `Localizer.localize`.
        drawing: the image that is to be drawn, where questions have no image.

    Returns:
        The images' entries in results.json.

    Raises:
        UserError: a phrase, sentence or image is wrong.

    """
    check_output(output)
    localizer = Localizer.from_pretrained(config=config, whole=drawing is not None)
    for question in questions:
        try:
            localizer.plan(question.phrases, question.sentence)
        except LabelError as error:
            raise LabelError(f"{question.id}: {error}" if len(questions) > 1 else str(error)) from error
    entries, views = [], []
    with new_folder(output) as folder:
        for question, rgb_u8 in _progress(questions, _images(questions, localizer, drawing)):
            found = localizer.localize(rgb_u8, question.phrases, question.sentence, independent, question.id)
            entries.append(write_image_files(folder, question.id, rgb_u8, found))
            if question.image_path is None:
                Image.fromarray(rgb_u8).save(folder / question.id / "image.png")
            views.append(image_view(question.id, rgb_u8, found))
        settings = config.to_json() | {"independent": independent}
        if drawing is not None:
            settings |= {"drawing": to_plain(drawing)}
        identity = localizer.pipeline.parts.identity()
        (folder / RESULTS).write_bytes(results_json(entries, settings, identity))
        (folder / PAGE).write_text(ground_page(views, identity["id"], independent), encoding="utf-8")
    return entries


def _images(
    questions: Sequence[Question], localizer: Localizer, drawing: Drawing | None
) -> Iterable[UInt8[np.ndarray, "height width 3"]]:
    """Yield the image of each question, read or drawn when it is needed."""
    for question in questions:
        if question.image_path is not None:
            yield read_image(question.image_path)
        elif drawing is not None:
            yield draw_one(localizer, drawing)


def draw_one(localizer: Localizer, drawing: Drawing) -> UInt8[np.ndarray, "height width 3"]:
    """Draw an image with a localizer's model, which must be whole.

    Raises:
        ConfigError: steps, guidance or size out of range, or a prompt that is too long.

    """
    parts, config = localizer.pipeline.parts, localizer.config
    size_hw = check_drawing(parts, [drawing.prompt], drawing.steps, drawing.guidance, drawing.size)
    painter = painter_of(parts, config.model)
    [drawn] = draw(painter, [drawing.prompt], [drawing.seed], drawing.steps, drawing.guidance, size_hw)
    return np.asarray(drawn)


def _progress(questions: Sequence[Question], images: Iterable[Any]) -> Iterable[tuple[Question, Any]]:
    return progress_bar(
        zip(questions, images, strict=True), total=len(questions), unit="image", disable=len(questions) < 2
    )
