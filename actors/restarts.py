"""How often parts of a run may be lost: so many an hour, or so many times without a step in between."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from agent.errors import Final

SETTING = "cluster.restarts_per_hour"
IN_A_ROW = "cluster.losses_in_a_row"
HOUR_S = 3600.0


class Restarts:
    """Counts the replacements of one kind of part, ``what``: at most ``limit`` within an hour.

    Starts may take so long that few fit into an hour: where no part of the kind comes to work for one, they are fewer
    than ``in_a_row``; None: any number of them.
    """

    def __init__(
        self, what: str, limit: int, *, in_a_row: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total = 0
        """Since the start of the run; one that goes on from a checkpoint begins with what that knows of."""
        self._what = what
        self._limit, self._in_a_row = limit, in_a_row
        self._clock = clock
        self._recent: deque[float] = deque()
        self._in_vain: list[float] = []
        """The times of those since one was at work."""

    def count(self, cause: str, *, at_work: bool = True) -> None:
        """One more, for ``cause``, when any part of the kind, be it this one, was ``at_work``. Raises ``Final`` with it
        if that is one too many."""
        now = self._clock()
        self.total += 1
        self._in_vain = [] if at_work else [*self._in_vain, now]
        self._recent.append(now)
        while now - self._recent[0] >= HOUR_S:
            self._recent.popleft()
        if len(self._recent) > self._limit:
            raise Final(
                f"{self._what} failed {len(self._recent)} times within an hour ({SETTING}={self._limit}): {cause}"
            )
        times = len(self._in_vain)
        if self._in_a_row is not None and times >= self._in_a_row and now - self._in_vain[0] >= HOUR_S:
            raise Final(
                f"{self._what} failed {times} times in a row, for more than an hour, before any came to work "
                f"({IN_A_ROW}, for each of them): {cause}"
            )


class Losses:
    """Counts the losses of learner or pool, each of which takes the run back to its last checkpoint.

    Nobody knows how much is played again each time, so no hour bounds them: a run that is lost ``limit`` times in a row
    without a step beyond all that it had before would be again.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = self._furthest = 0

    def reached(self, step: int) -> None:
        """``step`` is trained. One that is played again is nothing new."""
        if step > self._furthest:
            self._furthest, self._in_a_row = step, 0

    def count(self, cause: str) -> None:
        """One more, for ``cause``. Raises ``Final`` with it if that is the ``limit``-th in a row."""
        self._in_a_row += 1
        if self._in_a_row >= self._limit:
            times = f"{self._in_a_row} times in a row" if self._in_a_row > 1 else "once"
            raise Final(
                f"learner or pool was lost {times} before step {self._furthest + 1} was trained "
                f"({IN_A_ROW}={self._limit}); mend the cause and resume: {cause}"
            )
