"""The command `generate`: images and labels in, a mask store out."""

from pathlib import Path
from typing import Any

from data.console import warn_of_idle
from pseudolabel.config import GenerateConfig


def generate(store: Path, **settings: Any) -> None:
    """Turn images and their labels into masks; run again to resume.

    With --on_error skip the exit status is 0 even if some images were skipped: they are counted and named at the end
    and in skipped.txt, and tried again by the next run. It is 2 where the store holds no mask then.

    Args:
        store: Folder of the mask store; started if it does not exist, resumed if it does.
        **settings: The fields of GenerateConfig.

    """
    from data.readers.layout import open_samples
    from pseudolabel.generate.loop import generate_masks
    from pseudolabel.generate.tally import check_some_made, print_summary

    config = GenerateConfig(**settings)
    warn_of_idle(config.idle())
    samples = open_samples(config.data, need_labels=True, need_truth=False)
    tally = generate_masks(Path(store), samples, config)
    print_summary(Path(store), samples, tally)
    check_some_made(Path(store), tally.skipped)
