"""A phrase data set from end to end: every target found and compared, a line each; then the table. Resumes."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.console import progress_bar
from data.errors import ConfigError, StoreError
from data.files import append_line, lines_by, write_atomically
from data.images import read_image
from data.machine import written_by
from data.readers.targets import Target, TargetSet, read_region
from data.wording import count
from pseudolabel.ground.config import GroundConfig
from pseudolabel.ground.localizer import Localizer
from pseudolabel.ground.refer_table import Row, markdown, rows_of
from pseudolabel.ground.referring import (
    ReferOptions,
    find_particular,
    find_phrases,
    groups_of,
    plan_all,
    scored,
    words_of,
)

FORMAT, FORMAT_VERSION = "pseudolabel-refer", 1
HEADER, LINES, TABLE, RESULTS = "refer.json", "targets.jsonl", "table.md", "results.json"
CHANGES_NOTHING = ("run", "data")  # settings that change no figure


def run_targets(
    output: Path, found: TargetSet, root: Path, config: GroundConfig, options: ReferOptions, limit: int | None = None
) -> tuple[list[Row], list[str]]:
    """Find every target that has no line yet, and write the table of all.

    Args:
        output: folder of the figures; started if it does not exist, gone on with if it was made with these settings.
        found: the data set.
        root: its folder, for the header.
        config: the model and how it is read.
        options: how particular things are asked for.
        limit: stop after this many targets, those with lines counted.

    Returns:
        The table's rows, and notes: what was left out and why.

    Raises:
        UserError: a wrong setting, image or mask; what is finished stays.

    """
    _check_folder(output)
    localizer = Localizer.from_pretrained(config=config)
    tokenizer = localizer.pipeline.parts.tokenizer
    targets = list(found.targets[: limit or len(found.targets)])
    words = {name: words_of(name, known, options, tokenizer) for name, known in found.concepts.items()}
    notes = list(found.notes)
    groups = groups_of(targets)
    for concept in words.values():
        localizer.plan(concept)
    if not words:
        left_out = set(plan_all(localizer, groups))
        groups = groups_of([target for target in targets if target.id not in left_out])
        if left_out:
            first = next(target for target in targets if target.id in left_out)
            notes.append(
                f"{len(left_out)} of {count(len(targets), 'phrase')} left out, such as {first.phrase!r} ({first.id}): "
                "too long, or not whole words of the sentence."
            )
    _start(output, found.kind, root, config, options, localizer.pipeline.parts.identity())
    done = read_lines(output)
    for line in _lines(groups, set(done), localizer, words, options):
        append_line(output / LINES, line)
        done[line["id"]] = line
    lines = [done[target.id] for target in targets if target.id in done]
    if not lines:
        raise ConfigError(f"Not one of {count(len(targets), 'phrase')} of {root} can be read; see --split and --limit.")
    rows = rows_of(found.kind, lines)
    _write(output, rows, notes, found.kind)
    return rows, notes


def _lines(
    groups: Sequence[Sequence[Target]],
    done: set[str],
    localizer: Localizer,
    words: dict[str, tuple[str, ...]],
    options: ReferOptions,
) -> Iterator[dict[str, Any]]:
    """Yield the line of every target that is not done."""
    left = [group for group in groups if any(target.id not in done for target in group)]
    for group in progress_bar(left, unit="image"):
        rgb_u8 = read_image(group[0].image_path)
        if words:
            answers = [find_particular(localizer, rgb_u8, words[one.phrase], options, one.id) for one in group]
        else:
            answers = find_phrases(localizer, rgb_u8, group, options, group[0].image_path.stem)
        for target, answer in zip(group, answers, strict=True):
            if target.id not in done:
                yield scored(target, answer, read_region(target))


def _check_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise StoreError(f"{output} is a file; --output must name a folder.")
    if output.is_dir() and any(output.iterdir()) and not (output / HEADER).is_file():
        raise StoreError(f"{output} is not empty and holds no figures of `refer`; name a new folder with --output.")


def _start(
    output: Path, kind: str, root: Path, config: GroundConfig, options: ReferOptions, model: dict[str, str]
) -> None:
    """Write the header, or check that the one that is there says the same."""
    settings = {name: value for name, value in config.to_json().items() if name not in CHANGES_NOTHING}
    content = {"kind": kind, "root": str(root.absolute()), "model": model, "settings": settings}
    content |= {"options": asdict(options)}
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "written_by": written_by("pseudolabel")}
    path = output / HEADER
    if path.is_file():
        try:
            existing = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}); name a new folder with --output.") from error
        different = [key for key in content if not isinstance(existing, dict) or existing.get(key) != content[key]]
        if different:
            raise StoreError(
                f"{output} was made with another {', '.join(different)}; use those settings, or name a new --output."
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps({**head, **content}, indent=1, ensure_ascii=False) + "\n").encode())


def read_lines(output: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of a folder by the target's id; the target of a torn line is found again."""
    return lines_by(output / LINES, lambda line: str(line["id"]))


def _write(output: Path, rows: Sequence[Row], notes: Sequence[str], kind: str) -> None:
    plain = [
        {
            "name": row.name,
            "targets": row.count,
            **{name: None if math.isnan(value) else round(value, 6) for name, value in row.figures.items()},
        }
        for row in rows
    ]
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": kind, "rows": plain, "notes": list(notes)}
    write_atomically(output / RESULTS, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(output / TABLE, markdown(rows).encode())
