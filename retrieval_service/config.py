"""Settings of the retrieval service."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from agent.errors import UserError, one_of
from agent.settings import PATH
from retrieval_service.backends import backend_names

MIN_HEAP = 64 << 20
"""Bytes; a JVM that finds its heap too small ends the process without an exception to catch."""


@dataclass
class RetrievalConfig:
    """Where the passages come from and how they are ranked."""

    backend: str = "bm25"
    """A file of ``retrieval_service/backends/``."""
    index: str | None = field(default=None, metadata=PATH)
    """An existing Lucene index; None builds one from the data's corpus and caches it by checksum."""
    k1: float = 0.9
    b: float = 0.4
    threads: int = 2
    """Processors that Lucene's batch search may use."""
    heap: str = "1g"
    """The JVM's -Xmx."""
    max_batch: int = 64
    """Most requests coalesced into one batch search."""
    cache_size: int = 100_000
    """Queries kept in the LRU cache; 0 turns it off."""
    timeout_s: float = 30.0
    """A search that takes longer fails, and its trajectory is excluded."""

    def __post_init__(self) -> None:
        one_of(self.backend, backend_names(), "retrieval.backend")
        if self.threads < 1 or self.max_batch < 1 or self.cache_size < 0 or not self.timeout_s > 0:
            raise UserError("retrieval: threads and max_batch must be >= 1, cache_size >= 0, timeout_s > 0")
        if not 0 <= self.k1 < float("inf") or not 0 <= self.b <= 1:
            raise UserError(f"retrieval.k1={self.k1}, retrieval.b={self.b}: k1 must be >= 0 and b in [0, 1]")
        heap = re.fullmatch(r"(\d+)([kmg]?)", str(self.heap).lower())
        if heap is None or int(heap[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[heap[2]] < MIN_HEAP:
            raise UserError(f"retrieval.heap={self.heap}: must be at least 64m, written like 512m or 4g")
