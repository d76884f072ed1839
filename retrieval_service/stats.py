"""Counters and latencies of the retrieval service."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

LATENCY_WINDOW = 8192
"""Searches that the latency percentiles look back on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """Totals since the service started, and how fast it has been lately."""

    queries: int
    """Searches asked for, the cached and the failed ones included."""
    cache_hits: int
    """Searches answered from the cache."""
    shared: int
    """Searches that joined an identical one in flight."""
    batches: int
    """Calls of the backend."""
    failures: int
    """Searches that ended in a ``RetrievalError``, those that timed out aside."""
    timeouts: int
    """Searches that took longer than the time-out."""
    qps: float
    """Searches per second that ended since ``stats`` was last called."""
    p50_s: float
    """Median seconds from call to end of the latest 8,192 searches; 0 before the first."""
    p99_s: float


def percentile(values: Sequence[float], q: float) -> float:
    """The nearest-rank ``q`` quantile of ascending ``values``, 0 < q <= 1; 0 without values.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([1.0, 2.0], 0.99)
    (2.0, 2.0)
    """
    return values[math.ceil(q * len(values)) - 1] if values else 0.0


COUNTED = ("queries", "cache_hits", "shared", "batches", "failures", "timeouts")


def since(before: Stats | None, now: Stats) -> Stats:
    """``now`` less the totals of ``before``; all of it where the service has been started anew in between."""
    if before is None or any(getattr(now, name) < getattr(before, name) for name in COUNTED):
        return now
    return replace(now, **{name: getattr(now, name) - getattr(before, name) for name in COUNTED})


def merged(parts: Sequence[Stats]) -> Stats:
    """Of several services: counts and rates added up, the latencies of the slowest. At least one."""
    sums = {name: sum(getattr(part, name) for part in parts) for name in (*COUNTED, "qps")}
    return Stats(**sums, p50_s=max(part.p50_s for part in parts), p99_s=max(part.p99_s for part in parts))


class Meter:
    """Counts for ``Stats``; ``clock`` gives seconds, monotonic. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.queries = 0
        self.cache_hits = 0
        self.shared = 0
        self.batches = 0
        self.failures = 0
        self.timeouts = 0
        self._latencies: deque[float] = deque(maxlen=LATENCY_WINDOW)
        self._ended = 0
        self._window_start = clock()

    def ended(self, began: float) -> None:
        """One search ended that was asked for at ``began``, whichever way."""
        self._latencies.append(self.clock() - began)
        self._ended += 1

    def snapshot(self) -> Stats:
        """The counters so far; begins a new window for ``qps``."""
        now = self.clock()
        elapsed = now - self._window_start
        latencies = sorted(self._latencies)
        stats = Stats(
            queries=self.queries,
            cache_hits=self.cache_hits,
            shared=self.shared,
            batches=self.batches,
            failures=self.failures,
            timeouts=self.timeouts,
            qps=self._ended / elapsed if elapsed > 0 else 0.0,
            p50_s=percentile(latencies, 0.50),
            p99_s=percentile(latencies, 0.99),
        )
        self._window_start = now
        self._ended = 0
        return stats
