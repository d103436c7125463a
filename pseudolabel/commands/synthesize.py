"""The command `synthesize`: classes in, drawn images with their masks out."""

from pathlib import Path
from typing import Any, Literal

from pseudolabel.ground.config import GroundConfig


def synthesize(
    classes: Path,
    count: int,
    output: Path,
    per_image: int | tuple[int, ...] = 1,
    background: float = 0.5,
    absent: Literal["relabel", "drop", "keep"] = "relabel",
    presence_min: float = 0.5,
    seed: int = 0,
    steps: int = 30,
    guidance: float = 5.0,
    size: int | tuple[int, int] | None = None,
    **settings: Any,
) -> None:
    """Let the model draw images of classes and label them itself; run again to resume or to draw more.

    Writes a data set in Pascal VOC's layout and, in its folder store, the same as a mask store to train on.

    Args:
        classes: Class file (YAML); `pseudolabel init` writes one.
        count: How many images are drawn, those thrown away counted.
        output: Folder of the data set; started if it does not exist, continued if it does.
        per_image: How many classes an image is asked to show; with several numbers, any of them.
        background: Share of the sentences that also name one of the class's background words.
        absent: A class that is asked for and not there is taken out of the labels (an image left without any is thrown
            away), its image is thrown away, or it is kept.
        presence_min: Presence below which a class is not there.
        seed: Another number makes another data set.
        steps: Denoising steps.
        guidance: Classifier-free guidance; 1 is none.
        size: Side of the images, or height and width, in pixels; none: the model's own.
        **settings: The fields of GroundConfig.

    """
    from data.class_file import load_classes
    from data.console import warn_of_idle
    from data.wording import count as count_of
    from pseudolabel.generate.synthesize import Recipe, synthesize_images

    config, output = GroundConfig(**settings), Path(output)
    warn_of_idle(config.generate_config.idle())
    numbers = (per_image,) if isinstance(per_image, int) else tuple(per_image)
    recipe = Recipe(numbers, background, absent, presence_min, seed, steps, guidance, size)
    tally = synthesize_images(output, load_classes(classes), count, recipe, config)
    drawn = count_of(tally.kept + tally.thrown, "image")
    print(f"{drawn} drawn, {tally.made} of them now; {tally.kept} with masks in {output}.")
    if tally.absent:
        named = ", ".join(f"{name} {number}" for name, number in tally.absent.most_common())
        print(f"Asked for and not there (presence below {presence_min:g}): {named}.")
        print(
            f"Thrown away for it: {tally.thrown}, kept with a label less: {tally.relabelled}; see "
            f"{output / 'drawn.jsonl'}."
        )
    if tally.kept:
        print(f"Next: pseudolabel report --store {output / 'store'}    what do they look like?")
        print(f"      segtrain fit --data.store {output / 'store'}     train a network on them")
