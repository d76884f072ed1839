"""How many searches are asked for together, of a backend whose speed nobody knows."""

from __future__ import annotations

FIRST = 4
"""Searches of a first batch."""
QUICK, SLOW = 1 / 3, 0.8
"""Shares of the time that a search may take: from a full batch of less on there are twice as many in the next one, from
a batch of more on half as many."""


class Pace:
    """The ``most`` searches of one kind that make a batch, at least 1 and at most ``limit``.

    A backend may take them one after the other, as a cross-encoder on a CPU does: then each takes as long as all of its
    batch, and none may be over its ``timeout_s`` because of the others.

    >>> pace = Pace(limit=64, timeout_s=30.0)
    >>> pace.took(4, 8.0); pace.most
    8
    >>> pace.took(8, 16.0); pace.most
    8
    >>> pace.took(8, 25.0); pace.most
    4
    """

    def __init__(self, *, limit: int, timeout_s: float, first: int = FIRST) -> None:
        self.most = min(first, limit)
        self._limit = limit
        self._timeout_s = timeout_s

    def took(self, count: int, seconds: float) -> None:
        """A batch of ``count`` was answered after so many seconds."""
        if seconds > SLOW * self._timeout_s:
            self.most = max(1, min(self.most, count // 2))
        elif count >= self.most and seconds < QUICK * self._timeout_s:
            self.most = min(2 * self.most, self._limit)
