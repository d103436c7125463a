"""How many images are refined at once: bounded in number and in the memory they may take."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pseudolabel.generate.workers import REFINING_BYTES, MaskJob, Outcome, _bounded
from pseudolabel.masks.config import MaskConfig


def job(number: int, height: int, width: int, in_memory: bool) -> MaskJob:
    rgb_u8 = np.zeros((height, width, 3), np.uint8) if in_memory else None
    record = None if in_memory else {"id": str(number), "height": height, "width": width}
    return MaskJob(Path("s"), str(number), "a.jpg", Path("a.jpg"), rgb_u8, None, source_record=record)


@pytest.mark.parametrize("in_memory", [True, False])  # as generate hands them on, and as refine does
@pytest.mark.parametrize(
    ("pixels", "memory", "most"),
    [
        (1000 * 1000, 3 * 10**6 * REFINING_BYTES, 3),
        (5000 * 4000, 5 * 10**6 * REFINING_BYTES, 2),  # worked on at 2.1 megapixels
        (100 * 100, 3 * 10**6 * REFINING_BYTES, 8),  # small ones by their number
        (2000 * 1000, 10**6, 1),  # always one
    ],
)
def test_large_images_are_refined_one_by_one_where_memory_is_short(in_memory, pixels, memory, most):
    held, seen, lock = 0, [], threading.Lock()
    jobs = [job(number, pixels // 1000, 1000, in_memory) for number in range(20)]

    with ThreadPoolExecutor(4) as pool:

        def submit(_: object, one: MaskJob, config: MaskConfig) -> Future[Outcome]:
            nonlocal held
            with lock:
                held += 1
                seen.append(held)
            return pool.submit(lambda: Outcome(one.id, {}))

        outcomes = []
        for outcome in _bounded(submit, jobs, MaskConfig(), limit=8, memory=memory):
            held -= 1
            outcomes.append(outcome.id)
    assert sorted(outcomes, key=int) == [one.id for one in jobs]
    assert max(seen) <= most
