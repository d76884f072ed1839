"""Searches that wait for a backend."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from agent.records import Passage

Hits = tuple[Passage, ...]
Key = tuple[str, int, str]
"""What identifies a search: the query (or id), as it is, k, and the backend's method."""
LONG = 300
"""Characters of a text from which on a search may be slow: it shares no batch with short ones."""


@dataclass(kw_only=True, slots=True, eq=False)
class Search:
    """One search in flight and those who wait for it."""

    key: Key
    hits: asyncio.Future[Hits]
    waiters: int = 0
    sent: float | None = None
    """When a backend got it."""

    @property
    def is_long(self) -> bool:
        return len(self.key[0]) >= LONG

    @property
    def alike(self) -> tuple[int, str, bool]:
        """What searches of one batch have in common."""
        return *self.key[1:], self.is_long


class Line:
    """Searches that no backend has got yet, the oldest first. For several threads: a search is taken once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Key, Search] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_short(self) -> bool:
        with self._lock:
            return any(not search.is_long for search in self._waiting.values())

    def join(self, search: Search) -> None:
        with self._lock:
            self._waiting[search.key] = search

    def leave(self, search: Search) -> bool:
        """Whether it was still waiting, and waits no more."""
        with self._lock:
            waits = self._waiting.get(search.key) is search
            if waits:
                del self._waiting[search.key]
            return waits

    def take(self, most: Callable[[Search], int], now: float, *, short: bool = False) -> list[Search]:
        """The oldest search, and those that ask for the same in the same way, ``most`` of the oldest at most: a batch
        that is sent ``now``. With ``short`` none that is long. Nothing where none waits."""
        with self._lock:
            waiting = [search for search in self._waiting.values() if not (short and search.is_long)]
            if not waiting:
                return []
            alike = (search for search in waiting if search.alike == waiting[0].alike)
            batch = list(islice(alike, most(waiting[0])))
            for search in batch:
                search.sent = now
                del self._waiting[search.key]
            return batch

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()
