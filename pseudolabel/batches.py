"""Which images share a pass of the U-Net: a bounded look-ahead, groups of equal size, and as many as fit."""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")

READERS = 2  # threads that decode images ahead; Pillow releases the lock while it does


def in_shard(items: Iterable[Item], shard: str) -> Iterator[Item]:
    """Yield every n-th item, starting with the i-th, for a shard "i/n" with i from 1 to n.

    >>> list(in_shard("abcde", "2/3"))
    ['b', 'e']
    """
    index, count = (int(part) for part in shard.split("/"))
    return (item for position, item in enumerate(items) if position % count == index - 1)


def loaded_ahead(items: Iterable[Item], load: Callable[[Item], Loaded], ahead: int) -> Iterator[Loaded]:
    """Yield `load(item)` in order while threads work on the next `ahead` ones."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[Future[Loaded]] = deque()
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def grouped(
    items: Iterable[Item], key: Callable[[Item], Hashable], size: Callable[[Hashable], int], window: int
) -> Iterator[list[Item]]:
    """Yield lists of items of one key; a list has `size(key)` items unless its key runs out.

    At most `window` items (or one full group, if that is more) are held: when the window is full, the group whose
    first item has waited longest goes.

    >>> list(grouped("aababb", key=str, size=lambda key: 2, window=4))
    [['a', 'a'], ['b', 'a'], ['b', 'b']] # doctest: +SKIP
    """
    groups: dict[Hashable, list[Item]] = {}  # in the order of their first items
    held = 0
    for item in items:
        name = key(item)
        groups.setdefault(name, []).append(item)
        held += 1
        if len(groups[name]) < size(name):
            if held < window:
                continue
            name = next(iter(groups))
        group = groups.pop(name)
        held -= len(group)
        yield group
    yield from groups.values()


class BatchSize:
    """How many noised images go through the U-Net at once, for each padded size.

    With "auto" on a GPU the number starts small, doubles after each pass as long as less than half of the memory was
    taken, and halves for good when memory runs out. On a CPU larger batches gain nothing, so the number is constant.
    """

    START_GPU, LARGEST_GPU, CPU = 8, 256, 8

    def __init__(self, setting: int | str, device: str) -> None:
        self.grows = setting == "auto" and device.startswith("cuda")
        if isinstance(setting, int):
            self.start = setting
        else:
            self.start = self.START_GPU if self.grows else self.CPU
        self._rows: dict[Hashable, int] = {}
        self._limit: dict[Hashable, int] = {}

    def rows(self, key: Hashable) -> int:
        """Return the number of noised images a pass takes for this padded size."""
        return self._rows.get(key, self.start)

    def images(self, key: Hashable, rows_each: int) -> int:
        """Return the number of images a pass takes when each needs `rows_each` noised images."""
        return max(1, self.rows(key) // rows_each)

    def most_images(self, rows_each: int) -> int:
        """Return the number of images the largest pass could take."""
        return max(1, (self.LARGEST_GPU if self.grows else self.start) // rows_each)

    def passed(self, key: Hashable, rows: int, share_of_memory: float) -> None:
        """Take note of a pass that went well with this many rows and this share of the GPU's memory."""
        if self.grows and rows >= self.rows(key) and share_of_memory < 0.45:
            self._rows[key] = min(2 * self.rows(key), self.LARGEST_GPU, self._limit.get(key, self.LARGEST_GPU))

    def failed(self, key: Hashable, rows: int) -> bool:
        """Take note of a pass that ran out of memory; False when one row was already too many."""
        if rows <= 1:
            return False
        self._rows[key] = self._limit[key] = max(1, min(rows, self.rows(key)) // 2)
        logger.info("out of memory with %d noised images a pass, going on with %d", rows, self._rows[key])
        return True
