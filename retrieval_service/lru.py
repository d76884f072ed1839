"""A dictionary of bounded size that forgets what was used least recently."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from agent.records import Passage

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
ENTRY = 250
"""Bytes of an entry besides its texts, about."""
PASSAGE = 100
"""Bytes of a passage besides its texts, about."""


def weight_of(query: str, passages: Iterable[Passage]) -> int:
    """About how many bytes of memory an entry takes that keeps ``passages`` for ``query``."""
    texts = sum(sys.getsizeof(p.id) + sys.getsizeof(p.title) + sys.getsizeof(p.text) + PASSAGE for p in passages)
    return ENTRY + sys.getsizeof(query) + texts


class Lru(Generic[K, V]):
    """At most ``size`` entries that weigh ``most`` together; ``size=0`` keeps nothing. For one thread.

    An entry that weighs more than ``most`` by itself isn't kept.

    >>> cache = Lru[str, int](2, 100, lambda key, value: value)
    >>> cache.put("a", 1); cache.put("b", 2); cache.get("a"); cache.put("c", 3)
    1
    >>> cache.get("b"), cache.get("a"), len(cache)
    (None, 1, 2)
    >>> cache.put("d", 99); cache.get("c"), cache.get("a"), cache.get("d")
    (None, 1, 99)
    """

    def __init__(self, size: int, most: int, weigh: Callable[[K, V], int]) -> None:
        if size < 0 or most < 0:
            raise ValueError(f"a cache of {size} entries and {most} bytes")
        self._size = size
        self._most = most
        self._weigh = weigh
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.weight = 0
        """Of all entries."""

    def get(self, key: K) -> V | None:
        """The value of ``key``, which becomes the most recently used; None if it isn't there."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Adds or replaces ``key``, as the most recently used."""
        if key in self._entries:
            self.weight -= self._weigh(key, self._entries.pop(key))
        weight = self._weigh(key, value)
        if not self._size or weight > self._most:
            return
        while len(self._entries) >= self._size or self.weight + weight > self._most:
            self.weight -= self._weigh(*self._entries.popitem(last=False))
        self._entries[key] = value
        self.weight += weight

    def __len__(self) -> int:
        return len(self._entries)
