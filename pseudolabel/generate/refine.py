"""Masks made anew from the soft maps a store has kept: other thresholds, another CRF, no diffusion model."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from data.console import progress_bar
from data.densecrf import chosen_engine
from data.errors import StoreError, UserError
from data.gpu import may_have_gpu
from data.store.records import is_up_to_date
from data.store.review import hand_on
from data.store.source import moved, stored_path
from data.store.store import MaskStore
from pseudolabel.config import stored_mask_settings
from pseudolabel.generate.tally import Tally, count_outcome
from pseudolabel.generate.workers import MaskJob, default_workers, run_jobs
from pseudolabel.masks.config import MaskConfig
from pseudolabel.masks.crf import with_engine


def refine_masks(
    source_path: Path,
    output_path: Path,
    config: MaskConfig,
    root: Path | None = None,
    workers: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    device: str = "auto",
) -> Tally:
    """Make a new store from the soft maps of another one.

    Args:
        source_path: the store read.
        output_path: the store written; images it already has are left alone, unless the source has them with other
            labels by now.
        config: threshold, CRF and ignore band.
        root: folder of the images, if it is not where the source says.
        workers: worker processes; None: one for each core but one; 0: none.
        on_error: "stop" or "skip".
        device: where PAMR, the dense CRF's torch engine and SAM run: auto (a GPU if there is one), cpu, cuda, cuda:1.

    Raises:
        ConfigError: the machine has no such device.
        StoreError: output and source are one store, or the output was made with other settings.
        UserError: an image or soft map is missing or damaged, under `on_error="stop"`.

    """
    if source_path.resolve() == output_path.resolve():
        raise StoreError(f"{output_path} is the store that is read; name another folder with --output.")
    where = _device_of(config, device)
    config = replace(config, crf=with_engine(config.crf, where))
    source = MaskStore.open(source_path)
    header = refined_header(source, config, root)
    finished: dict[str, tuple[int, ...] | None] = {}
    if (output_path / "store.json").exists():
        finished = MaskStore.open_or_create(output_path, classes=source.classes, **header).finished_labels()
    records = [
        record
        for record in source.records()
        if not is_up_to_date(finished, record["id"], record.get("labels", finished.get(record["id"]) or ()))
    ]
    if not records and not finished:
        return Tally()
    handed_on = hand_on(source, MaskStore.open_or_create(output_path, classes=source.classes, **header))
    tally = Tally(relabelled=sum(record["id"] in finished for record in records), handed_on=handed_on)
    if not records:
        return tally
    jobs = _jobs(source, output_path, records, root)
    outcomes = run_jobs(jobs, config, default_workers(workers), where)
    with contextlib.closing(outcomes), progress_bar(total=len(records), unit="image", smoothing=0.05) as bar:
        for outcome in outcomes:
            count_outcome(outcome, tally, on_error)
            bar.update()
    return tally


def holds_background(source: MaskStore) -> bool:
    """Return whether the soft maps of a store hold a background, as a network's predictions do; the first one says."""
    for sample_id in source.ids():
        with contextlib.suppress(UserError):  # a damaged one is an error of its image
            if (soft := source.read_soft(sample_id)) is not None:
                return soft.background
    return False


def _device_of(config: MaskConfig, device: str) -> str:
    """Return where the refinement may run; torch is imported only where it is needed.

    Engine auto on a machine without a GPU is pydensecrf, where there is one: that takes no torch to find out.
    """
    crf = config.crf
    engine = crf.engine
    if engine == "auto" and (device == "cpu" or (device == "auto" and not may_have_gpu())):
        engine = chosen_engine(engine)
    on_cpu = crf.kind in ("none", "tlp") or (crf.kind == "densecrf" and engine == "pydensecrf")
    if on_cpu and config.sam.id is None:
        return "cpu"
    from pseudolabel.softmaps.diffusion.parts import pick_device

    return str(pick_device(device, "device"))


def refined_header(source: MaskStore, config: MaskConfig, root: Path | None) -> dict[str, Any]:
    """Return the header fields of a refined store: the source's, with the mask settings replaced."""
    settings = {name: value for name, value in source.header["config"].items() if name != "sam"}
    settings |= stored_mask_settings(config)
    data = moved(source.header["data"], root)
    return {"config": settings, "model": source.header["model"], "data": data}


def _jobs(source: MaskStore, output: Path, records: list[dict[str, Any]], root: Path | None) -> Iterator[MaskJob]:
    for record in records:
        path = source.image_path(record, root)
        yield MaskJob(
            store=output,
            id=record["id"],
            image=stored_path(path, root or source.root),
            image_path=path,
            rgb_u8=None,
            soft=None,
            soft_store=source.path,
            source_record=record,
        )
