"""From soft maps to a written mask, in this process or in a pool of worker processes.

`generate`, `refine` and the Ray engine all finish an image with `finish_image`; the pool runs it beside the denoiser.
Workers are spawned, never forked (a forked process inherits torch's dead threads), use one thread each, and end when
the process that started them ends, however it ends.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_connection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data.classes import ClassSet
from data.errors import UserError
from data.images import read_image
from data.machine import available_cpus, available_memory_bytes
from data.store.records import image_record, size_of_record
from data.store.softmaps import SoftMaps
from data.store.store import MaskStore
from pseudolabel.masks.config import CrfConfig, MaskConfig
from pseudolabel.masks.working import working_size

WAITING_JOBS_EACH = 3  # jobs queued for each worker: enough to keep it busy, few enough to keep memory flat
REFINING_BYTES = 1300  # for each pixel that is refined: what the CRF's lattice takes of pure noise, photographs half
ONE_LARGE = 3 << 30  # bytes that are always granted: one image of the largest working size


@dataclass(frozen=True)
class MaskJob:
    """One image whose mask is to be made.

    Attributes:
        store: folder of the store written to.
        id: the image's id.
        image: what the record says: the path relative to the data root, or absolute.
        image_path: where the image is now; read if `rgb_u8` is None.
        rgb_u8: the image, if it is at hand.
        soft: its soft maps; read from `soft_store` if None.
        soft_store: store the soft maps come from, for `refine`.
        source_record: the image's line in that store, which the soft maps must agree with.
        seconds: time already spent on this image.
        dropped_words: background words for which its sentence had no room.
        presence: of each label, how likely it is right; none where nothing was read anew.

    """

    store: Path
    id: str
    image: str
    image_path: Path
    rgb_u8: UInt8[np.ndarray, "height width 3"] | None
    soft: SoftMaps | None
    soft_store: Path | None = None
    source_record: dict[str, Any] | None = None
    seconds: float = 0.0
    dropped_words: tuple[str, ...] = ()
    presence: tuple[float, ...] = ()

    def refining_bytes(self, crf: CrfConfig) -> int:
        """Return how much memory its refinement may take, in bytes."""
        if self.rgb_u8 is not None:
            height, width = self.rgb_u8.shape[:2]
        elif self.source_record is not None:
            height, width = size_of_record(self.source_record)
        else:
            return 0
        return refining_bytes((height, width), crf)


def refining_bytes(image_hw: tuple[int, int], crf: CrfConfig) -> int:
    """Return how much memory the refinement of an image may take, in bytes; a guess on the safe side."""
    height, width = working_size(image_hw, crf)
    return round(height * width * crf.scale**2) * REFINING_BYTES


@dataclass(frozen=True)
class Outcome:
    """What became of one image: a record in the store, or an error a person can mend."""

    id: str
    record: dict[str, Any] | None
    error: str | None = None


_OPEN: dict[Path, tuple[tuple[int, int], MaskStore]] = {}


def _store(path: Path) -> MaskStore:
    """Open a store once for each process, and again when it was started over."""
    status = (path / "store.json").stat()
    version = status.st_ino, status.st_mtime_ns
    if path not in _OPEN or _OPEN[path][0] != version:
        _OPEN[path] = version, MaskStore.open(path)
    return _OPEN[path][1]


def finish_image(job: MaskJob, config: MaskConfig, device: str = "cpu") -> Outcome:
    """Make one mask from soft maps and write it; errors a person can mend come back in the outcome.

    Args:
        job: the image.
        config: threshold, refinement and ignore band.
        device: where PAMR and the dense CRF's torch engine run.

    """
    from pseudolabel.masks.crf import with_engine
    from pseudolabel.masks.labelmap import labelled

    start = time.perf_counter()
    store = _store(job.store)
    try:
        rgb_u8 = read_image(job.image_path) if job.rgb_u8 is None else job.rgb_u8
        soft = job.soft
        if soft is None and job.soft_store is not None:
            soft = _store(job.soft_store).read_soft(job.source_record or job.id)
        if soft is None:
            return Outcome(job.id, None, f"{job.id} has no soft maps in {job.soft_store}; run generate for it again")
        found = labelled(rgb_u8, soft, config, device)
    except UserError as error:
        return Outcome(job.id, None, str(error))
    seconds = job.seconds + time.perf_counter() - start
    record = image_record(
        job.id, job.image, found.mask, found.argmax, soft.labels, store.classes, seconds, job.dropped_words
    )
    if config.sam.id is not None:
        record["sam"] = {"objects": found.objects, "changed": found.changed}
    record |= _presence(job, soft.labels, store.classes)
    if with_engine(config.crf, device).engine == "torch":
        record["crf_engine"] = "torch"
    store.write(job.id, found.mask, argmax=found.argmax, soft=soft, record=record)
    return Outcome(job.id, record)


def _presence(job: MaskJob, labels: tuple[int, ...], classes: ClassSet) -> dict[str, Any]:
    """Return what the index says of how likely each label is right: as read, or as the store says that is refined."""
    if job.presence:
        scores = zip(labels, job.presence, strict=True)
        return {"presence": {classes.name(label): round(score, 4) for label, score in scores}}
    before = job.source_record or {}
    return {"presence": before["presence"]} if "presence" in before else {}


def _end_with_parent() -> None:
    """Leave as soon as the parent process is gone, also when it was killed and could say nothing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_connection([parent.sentinel])
        os._exit(1)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, which is imported later and only where the refinement needs it
    import cv2

    cv2.setNumThreads(1)


def default_workers(workers: int | None) -> int:
    """Return the number of worker processes: the setting, or one for each core but one (at least one)."""
    return max(1, available_cpus() - 1) if workers is None else workers


def run_jobs(jobs: Iterable[MaskJob], config: MaskConfig, workers: int, device: str = "cpu") -> Generator[Outcome]:
    """Finish images as the jobs arrive and yield their outcomes, in the order they are done.

    At most `WAITING_JOBS_EACH` jobs for each worker are taken ahead, so memory stays flat and an iterator that computes
    soft maps runs just ahead of the workers. Of large images no more are refined at once than half of the memory that
    is free at the start can be expected to hold, but always one.

    Args:
        jobs: the images.
        config: threshold, refinement and ignore band.
        workers: worker processes; 0: none.
        device: where the model is. What refines on a GPU runs in this process, which holds the GPU already; what takes
            a core, in the workers.

    Raises:
        UserError: a worker process was killed, most often for lack of memory.

    """
    from pseudolabel.masks.labelmap import runs_here

    if workers == 0 or runs_here(config, device):
        for job in jobs:
            yield finish_image(job, config, device)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        memory = max(ONE_LARGE, (available_memory_bytes() or 0) // 2)
        yield from _bounded(pool.submit, jobs, config, limit=WAITING_JOBS_EACH * workers, memory=memory)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process ended unexpectedly (often: too little memory); the same command goes on from here, "
            f"with fewer workers than {workers} if you like: --run.workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _bounded(
    submit: Callable[..., "Future[Outcome]"], jobs: Iterable[MaskJob], config: MaskConfig, limit: int, memory: int
) -> Generator[Outcome]:
    """Submit jobs as long as both their number and the memory they may take stay within bounds."""
    held: dict[Future[Outcome], int] = {}
    for job in jobs:
        wanted = job.refining_bytes(config.crf)
        full = True
        while full and held:
            full = len(held) >= limit or sum(held.values()) + wanted > memory
            done, _ = wait(held, timeout=None if full else 0, return_when=FIRST_COMPLETED)
            for future in done:
                del held[future]
                yield future.result()
        held[submit(finish_image, job, config)] = wanted
    while held:
        done, _ = wait(held, return_when=FIRST_COMPLETED)
        for future in done:
            del held[future]
            yield future.result()
