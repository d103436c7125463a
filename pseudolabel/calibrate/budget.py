"""How long a calibration may search: minutes of this run, by a clock that tests replace."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


class OutOfTime(Exception):
    """The time for searching is used up; what has been found so far is kept."""


@dataclass
class Budget:
    """The time a run may take, and what is set aside for measuring the result at its end.

    Attributes:
        minutes: for the whole run; None: as long as it takes.
        clock: returns seconds; only differences count.
        reserve_s: seconds kept for the end.
        lifted: nothing is checked: what the time is set aside for is at work.
        started_s: what the clock said when the run began.

    """

    minutes: float | None = None
    clock: Callable[[], float] = time.monotonic
    reserve_s: float = 0.0
    lifted: bool = False
    started_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.started_s = self.clock()

    @property
    def spent_s(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.started_s

    def check(self) -> None:
        """Raise OutOfTime where the search must stop so that the end still fits."""
        if self.minutes is not None and not self.lifted and self.spent_s + self.reserve_s > 60 * self.minutes:
            raise OutOfTime
