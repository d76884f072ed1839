"""How often parts of a run may be replaced: so many an hour, however long the run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from agent.errors import Final

SETTING = "cluster.restarts_per_hour"
HOUR_S = 3600.0


class Restarts:
    """Counts the replacements of one kind of part, ``what``: at most ``limit`` within an hour."""

    def __init__(self, what: str, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        """Since the start of the run; one that goes on from a checkpoint begins with what that knows of."""
        self._what = what
        self._limit = limit
        self._clock = clock
        self._recent: deque[float] = deque()

    def count(self, cause: str) -> None:
        """One more, for ``cause``. Raises ``Final`` with it if that is one too many."""
        now = self._clock()
        self.total += 1
        self._recent.append(now)
        while now - self._recent[0] >= HOUR_S:
            self._recent.popleft()
        if len(self._recent) > self._limit:
            raise Final(
                f"{self._what} failed {len(self._recent)} times within an hour ({SETTING}={self._limit}): {cause}"
            )
