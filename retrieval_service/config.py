"""Settings of the retrieval service."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from agent.errors import UserError, one_of
from agent.settings import PATH, bounded, check_bounds
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
    k1: float = bounded(0.9, "at least 0")
    b: float = bounded(0.4, "in [0, 1]")
    threads: int = bounded(2, "at least 1")
    """Processors that Lucene's batch search may use."""
    heap: str = "1g"
    """The JVM's -Xmx."""
    max_batch: int = bounded(64, "at least 1")
    """Most requests coalesced into one batch search."""
    cache_size: int = bounded(100_000, "at least 0")
    """Queries kept in the LRU cache; 0 turns it off."""
    timeout_s: float = bounded(30.0, "above 0")
    """A search that takes longer fails, and its trajectory is excluded."""

    def __post_init__(self) -> None:
        check_bounds(self, "retrieval")
        one_of(self.backend, backend_names(), "retrieval.backend")
        heap = re.fullmatch(r"(\d+)([kmg]?)", str(self.heap).lower())
        if heap is None or int(heap[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[heap[2]] < MIN_HEAP:
            raise UserError(f"retrieval.heap={self.heap}: must be at least 64m, written like 512m or 4g")
