"""The command `ground`: images and phrases in, soft maps, masks and a page out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import ConfigError
from pseudolabel.ground.config import GroundConfig
from pseudolabel.softmaps.config import PromptConfig


def ground(
    output: Path,
    image: tuple[Path, ...] = (),
    phrase: tuple[str, ...] = (),
    sentence: str | None = None,
    independent: bool = False,
    phrases: Path | None = None,
    prompt: str | PromptConfig | None = None,
    seed: int = 0,
    steps: int = 30,
    guidance: float = 5.0,
    size: int | tuple[int, int] | None = None,
    **settings: Any,
) -> None:
    """Find phrases in images, or in an image that the model draws first.

    For each phrase a soft map, a mask and an overlay (PNG), and its presence: how likely its thing is there at all. One
    page, ground.html, shows everything, results.json holds the figures. The folder appears as a whole or not at all.

    Args:
        output: New folder to write to.
        image: Image, or folder of images; give the flag once for each.
        phrase: What to look for; give the flag once for each phrase.
        sentence: Sentence to read the phrases in, which holds their very words; none: one is made of them.
        independent: Each phrase has its own threshold, masks may overlap; else every pixel goes to one phrase or none.
        phrases: Table of images and phrases instead: CSV with the columns image, phrase and, if wanted, sentence; a row
            a phrase, images named from the table's folder.
        prompt: Draw an image of this sentence and look there; it is the sentence that phrases are read in, too. In a
            config file it may be the group of the sentence's settings, as for generate.
        seed: Of the drawn image.
        steps: Denoising steps of the drawn image.
        guidance: Classifier-free guidance of the drawn image; 1 is none.
        size: Side of the drawn image, or height and width, in pixels; none: the model's own.
        **settings: The fields of GroundConfig.

    """
    from data.console import warn_of_idle
    from pseudolabel.ground.files import PAGE, RESULTS, check_output
    from pseudolabel.ground.questions import (
        Drawing,
        answer,
        questions_of_drawing,
        questions_of_images,
        questions_of_table,
    )

    if isinstance(prompt, PromptConfig):
        settings, prompt = {**settings, "prompt": prompt}, None
    config, output = GroundConfig(**settings), Path(output)
    warn_of_idle(config.generate_config.idle())
    check_output(output)
    _check_flags(image, phrase, sentence, phrases, prompt)
    drawing = None
    if prompt is not None:
        drawing = Drawing(prompt, seed, steps, guidance, size)
        questions = questions_of_drawing(drawing, phrase, sentence)
    elif phrases is not None:
        questions = questions_of_table(phrases)
    else:
        questions = questions_of_images(image, phrase, sentence)
    for entry in answer(output, questions, config, independent, drawing):
        for one in entry["phrases"]:
            share = f"{100 * one['share']:.1f} %"
            print(f"{entry['id']}: {one['phrase']}: presence {one['presence']:.2f}, {share} of the image")
    print(f"Wrote {output}: {PAGE} to look at, {RESULTS}, and a soft map, a mask and an overlay of each phrase.")


def _check_flags(
    image: Sequence[Path], phrase: Sequence[str], sentence: str | None, phrases: Path | None, prompt: str | None
) -> None:
    """Raise ConfigError unless it is clear which phrases are looked for in what."""
    sources = [f"--{name}" for name, given in (("image", image), ("phrases", phrases), ("prompt", prompt)) if given]
    if prompt is not None and not prompt:
        sources.append("--prompt")
    if len(sources) != 1:
        given = " and ".join(sources) or "none of them"
        raise ConfigError(f"Give --image, or --phrases with a table, or --prompt to draw an image; given: {given}.")
    if phrases is not None and (phrase or sentence is not None):
        raise ConfigError("--phrases is a table that holds phrases and sentences; leave --phrase and --sentence out.")
    if phrases is None and not phrase:
        raise ConfigError("There is no phrase to look for; give one with --phrase.")
