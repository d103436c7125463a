"""The command `refer`: a phrase data set in, the table of its protocol out."""

from pathlib import Path
from typing import Any, Literal

from pseudolabel.ground.config import GroundConfig


def refer(
    root: Path,
    output: Path,
    layout: Literal["auto", "personal", "perseg", "permis", "refcoco", "png"] = "auto",
    split: str | None = None,
    rule: Literal["contrast", "compete", "token", "class"] = "contrast",
    token: str | None = None,
    class_word: str | None = None,
    contrast: float = 0.5,
    independent: bool = False,
    limit: int | None = None,
    **settings: Any,
) -> None:
    """Find what a phrase data set asks for and compare it with the truth; run again to resume.

    Sets of particular things (my mug among mugs): our own layout, PerSeg, PerMIS. Sets of phrases: RefCOCO, RefCOCO+,
    RefCOCOg, panoptic narrative grounding. The layouts and figures are described in data/readers/personal.py and
    phrases.py.

    Args:
        root: Folder of the data set.
        output: Folder for the table (table.md), results.json and a line for each target (targets.jsonl).
        layout: Layout of the folder; auto looks for the files that only one of them has.
        split: Split of RefCOCO (val if not given) or PNG (val2017).
        rule: Particular things: the token's map less the class word's, both sharing the pixels, or one of them alone.
        token: The learned token, {concept} standing for the concept's name; none: the data set's (concept.yaml).
        class_word: The word for its kind, likewise.
        contrast: Weight of the class word's map that is taken from the token's.
        independent: Phrases of one sentence do not share pixels.
        limit: Stop after this many targets.
        **settings: The fields of GroundConfig.

    """
    from data.console import warn_of_idle
    from data.errors import ConfigError
    from data.readers.target_layout import open_targets
    from pseudolabel.ground.refer_run import TABLE, run_targets
    from pseudolabel.ground.refer_table import markdown
    from pseudolabel.ground.referring import ReferOptions

    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}: it must be at least 1; leave it out for all targets")
    config, root, output = GroundConfig(**settings), Path(root), Path(output)
    warn_of_idle(config.generate_config.idle())
    options = ReferOptions(rule, token, class_word, contrast, independent)
    rows, notes = run_targets(output, open_targets(root, layout, split), root, config, options, limit)
    print(markdown(rows), end="")
    for note in notes:
        print(f"Note: {note}")
    print(f"Wrote {output / TABLE}.")
