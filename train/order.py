"""The order of training samples: drawn from seed and epoch, and resumed in the middle of one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

Key = tuple[int, int]  # epoch, index: what a drawn training sample depends on


class EpochOrder(Sampler[Key]):
    """The order of an epoch: a permutation that depends on (seed, epoch), dealt out to the processes in turn."""

    def __init__(self, length: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._length, self._seed, self._rank, self._world_size = length, seed, rank, world_size
        self.epoch = 0
        self.first = 0  # samples of this process to leave out at the start, once: a resumed run has seen them

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length // self._world_size  # the same on all processes, as they step together

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self._length)
        mine = order[self._rank :: self._world_size][: len(self)]
        first, self.first = self.first, 0
        for index in mine[first:]:
            yield self.epoch, int(index)


class ResumableLoader(DataLoader):
    """A loader that remembers how many batches of which epoch it gave out; Lightning keeps that in the checkpoint."""

    order: EpochOrder
    given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches that are left of the epoch."""
        if not self.order.first:
            self.given = 0
        return self._count(super().__iter__())  # outside the generator, so that the workers start at once

    def _count(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands."""
        return {"epoch": self.order.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from where a loader stood; an epoch that was given out whole is over."""
        whole = state["given"] >= len(self)
        self.order.set_epoch(state["epoch"] + int(whole))
        self.given = 0 if whole else state["given"]
        self.order.first = self.given * self.batch_sampler.batch_size  # type: ignore[union-attr]


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of one sample in one epoch, 32 bits, independent of all others."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0])


def step_seed(seed: int, step: int, rank: int, part: int) -> int:
    """Return the seed of dropout in one batch of one process.

    Args:
        seed: that of the run.
        step: steps of the optimizer before it.
        rank: number of the process.
        part: which of the batches of this step it is, where several are accumulated.

    """
    first = (seed * 1_000_003 + step) * 1024 + rank
    return first if part == 0 else sample_seed(first, step, part)
