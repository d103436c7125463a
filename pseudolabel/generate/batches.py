"""Which images share a pass of the denoiser: a shard, read ahead, in groups of equal size; never many at a time."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
    [['a', 'a'], ['b', 'b'], ['a'], ['b']]
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
