"""The server's numbers in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.visible import printable
from retrieval_service.backend import Identity
from retrieval_service.stats import Stats

PREFIX = "slingshot_retrieval"
COUNTED = {
    "queries": "Searches asked for, the cached and the failed ones included",
    "cache_hits": "Searches answered from the cache",
    "shared": "Searches that joined an identical one in flight",
    "batches": "Calls of the backend",
    "failures": "Searches that failed, those that timed out aside",
    "timeouts": "Searches that took longer than the time-out",
}
"""Fields of ``Stats`` that only grow."""
OTHER = "other"
"""The route of what has none."""


class Metrics:
    """Requests by route and status, and what the service counts."""

    def __init__(self, stats: Callable[[], Stats], waiting: Callable[[], int], identity: Identity) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(f"{PREFIX}_requests", "HTTP requests", ("route", "status"), registry=self._registry)
        self._seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "From a request's head to the end of its answer",
            ("route",),
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
            registry=self._registry,
        )
        line = Gauge(f"{PREFIX}_waiting", "Searches that are not answered yet", registry=self._registry)
        line.set_function(waiting)
        self._registry.register(_Service(stats, identity))
        self._series: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        """By route and status: looking one up by its labels takes longer than counting."""

    def answered(self, route: str | None, status: int, seconds: float) -> None:
        """One request has ended; status 0 if its client went away first."""
        key = (route or OTHER, status)
        if key not in self._series:
            self._series[key] = self._requests.labels(key[0], str(status)), self._seconds.labels(key[0])
        requests, durations = self._series[key]
        requests.inc()
        durations.observe(seconds)

    def turned_away(self, status: int) -> None:
        """A connection was refused before its request was read."""
        self._requests.labels(OTHER, str(status)).inc()

    def text(self) -> bytes:
        """All numbers, as a scrape gets them."""
        return generate_latest(self._registry)


class _Service(Collector):
    """What the service counts by itself, and the index's identity as labels."""

    def __init__(self, stats: Callable[[], Stats], identity: Identity) -> None:
        self._stats = stats
        self._identity = identity

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, about in COUNTED.items():
            yield CounterMetricFamily(f"{PREFIX}_{name}", about, value=getattr(stats, name))
        told = {"name": printable(self._identity.name), "backend": self._identity.backend}
        told["checksum"] = self._identity.checksum or ""
        index = GaugeMetricFamily(f"{PREFIX}_index_documents", "Passages of the index", labels=list(told))
        index.add_metric(list(told.values()), self._identity.documents or 0)
        yield index
