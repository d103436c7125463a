"""Masks made anew from the soft maps a store has kept: other thresholds, another CRF, no diffusion model."""

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import yaml

from data.errors import StoreError
from data.store.store import MaskStore
from pseudolabel.config import MASK_FIELDS, MaskConfig, mask_settings
from pseudolabel.generate import Tally, count_outcome, print_skipped, progress_bar
from pseudolabel.workers import MaskJob, default_workers, run_jobs


def refine(
    store: Path,
    output: Path,
    root: Path | None = None,
    workers: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    **settings: Any,
) -> None:
    """Make masks anew from a store's soft maps, without the diffusion model.

    Settings that are not given are those the store was made with. A store of network predictions works too; there the
    background is the network's own, so the threshold has no effect.

    Args:
        store: Store whose soft maps are read; it is left as it is.
        output: Folder of the new store; resumed if it exists.
        root: Folder of the images, if it is not where the store says.
        workers: Processes that make masks; none: one for each core but one; 0: no extra process.
        on_error: stop, or skip: an image that cannot be processed is counted and named at the end.
        **settings: The fields of MaskConfig.

    """
    tally = refine_masks(Path(store), Path(output), MaskConfig(**settings), root, workers, on_error)
    print(f"{tally.written} masks in {Path(output) / 'masks'} in {tally.seconds:.0f} s.")
    print_skipped(Path(output), tally.skipped)
    print(f"Next: pseudolabel score --store {output}     mIoU, where there is ground truth")
    print(f"      pseudolabel report --store {output}    a page of overlays, coverage and warnings")


def refine_masks(
    source_path: Path,
    output_path: Path,
    config: MaskConfig,
    root: Path | None = None,
    workers: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
) -> Tally:
    """Make a new store from the soft maps of another one.

    Args:
        source_path: the store read.
        output_path: the store written; images it already has are left alone.
        config: threshold, CRF and ignore band.
        root: folder of the images, if it is not where the source says.
        workers: worker processes; None: one for each core but one; 0: none.
        on_error: "stop" or "skip".

    Raises:
        StoreError: output and source are one store, or the output was made with other settings.
        UserError: an image or soft map is missing or damaged, under `on_error="stop"`.

    """
    if source_path.resolve() == output_path.resolve():
        raise StoreError(f"{output_path} is the store that is read; name another folder with --output.")
    source = MaskStore.open(source_path)
    header = refined_header(source, config, root)
    finished: set[str] = set()
    if (output_path / "store.json").exists():
        finished = MaskStore.open_or_create(output_path, classes=source.classes, **header).finished()
    records = [record for record in source.records() if record["id"] not in finished]
    if not records:
        return Tally()
    MaskStore.open_or_create(output_path, classes=source.classes, **header)
    tally = Tally()
    jobs = _jobs(source, output_path, records, root)
    outcomes = run_jobs(jobs, config, default_workers(workers))
    with contextlib.closing(outcomes), progress_bar(len(records)) as bar:
        for outcome in outcomes:
            count_outcome(outcome, tally, on_error)
            bar.update()
    return tally


def refined_header(source: MaskStore, config: MaskConfig, root: Path | None) -> dict[str, Any]:
    """Return the header fields of a refined store: the source's, with the mask settings replaced."""
    fields = asdict(config)
    settings = source.header["config"] | {name: fields[name] for name in MASK_FIELDS}
    data = dict(source.header["data"])
    if root is not None:
        data["root"] = str(Path(root).absolute())
    return {"config": settings, "model": source.header["model"], "data": data}


def _jobs(source: MaskStore, output: Path, records: list[dict[str, Any]], root: Path | None) -> Iterator[MaskJob]:
    for record in records:
        yield MaskJob(
            store=output,
            id=record["id"],
            image=record["image"],
            image_path=source.image_path(record, root),
            rgb_u8=None,
            soft=None,
            soft_store=source.path,
        )


def stored_defaults(args: Sequence[str]) -> dict[str, Any]:
    """Return the mask settings of the store that `--store` names, as flat keys, to be the command's defaults.

    Args:
        args: the command line. A store named in a `--config` file is found too.

    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--store")
    parser.add_argument("--config", action="append", default=[])
    try:
        given, _ = parser.parse_known_args(list(args))
    except argparse.ArgumentError:
        return {}  # the real parser says what is wrong
    store = given.store or next((found for name in given.config if (found := _store_in(Path(name)))), None)
    if store is None or not (Path(store) / "store.json").exists():
        return {}
    return _flat(asdict(mask_settings(MaskStore.open(Path(store)).header["config"])))


def _store_in(config: Path) -> str | None:
    try:
        content = yaml.safe_load(config.read_text())
    except (OSError, yaml.YAMLError):
        return None
    return content.get("store") if isinstance(content, dict) else None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
