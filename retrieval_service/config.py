"""Settings of the retrieval service."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from agent.errors import UserError, one_of
from agent.settings import PATH, TEXT, bounded, check_bounds
from retrieval_service.address import is_askable
from retrieval_service.backends import backend_names, is_remote
from retrieval_service.dialects import dialect, dialect_names
from retrieval_service.wikipedia import AUTO, PREBUILT

STEMMERS = ("porter", "krovetz", "none")
ENGLISH_AND_OTHERS = (
    *STEMMERS,
    *("ar", "bn", "da", "de", "es", "fa", "fi", "fr", "hi", "hu", "id", "it", "ja", "ko", "nl", "no", "pl", "pt", "ru"),
    *("sv", "te", "th", "tr", "uk", "zh"),
)
"""English by its stemmers, and the languages that Anserini has an analyser of Lucene's for."""
MIN_HEAP = 64 << 20
"""Bytes; a JVM that finds its heap too small ends the process without an exception to catch."""


@dataclass
class RetrievalConfig:
    """Where the passages come from and how they are ranked."""

    backend: str = "bm25"
    """A file of ``retrieval_service/backends/``."""
    index: str | None = field(default=None, metadata=PATH)
    """An existing Lucene index; None builds one from the data's corpus and caches it by checksum."""
    prebuilt: str | None = None
    """A published index by its name (``retrieval_service/wikipedia.py``), which is fetched once; ``auto`` is the one
    that fits the questions (``retrieval=wikipedia``)."""
    url: str | None = field(default=None, metadata=TEXT)
    """A search service to ask in place of an index (``backend: http``); without a path, or behind one that ends in a
    slash, the dialect's own is used."""
    dialect: str = "search_r1"
    """How that service is asked: a file of ``retrieval_service/dialects/``."""
    retries: int = bounded(4, "at least 0")
    """How often a request to it is sent again, within ``timeout_s``."""
    token_file: str | None = field(default=None, metadata=PATH)
    """The file with its token; without one, that is taken from ``SLINGSHOT_RETRIEVAL_TOKEN``, if it is set."""
    analyser: str | None = None
    """How Lucene makes terms of texts: ``porter``, ``krovetz`` or ``none``, English by its stemmer, or a language's
    code, such as ``de``. None: as the index was made, ``porter`` for a new one."""
    k1: float = bounded(0.9, "at least 0")
    """BM25's saturation: how much a term counts that occurs again in a passage."""
    b: float = bounded(0.4, "in [0, 1]")
    """BM25's normalisation by length: 0 leaves a passage's length out, 1 divides by it."""
    reranker: str | None = field(default=None, metadata=PATH)
    """A cross-encoder that orders the first passages anew: a folder, or a name on the hub."""
    rerank_depth: int = bounded(20, "at least 1")
    """How many passages it reads of each search."""
    device: str = field(default="auto", metadata=TEXT)
    """Where an encoder and a cross-encoder compute: ``cpu``, ``cuda``, ``cuda:1``; ``auto`` takes a GPU if there is
    one."""
    threads: int = bounded(2, "at least 1")
    """Processors that searching and building may use; with ``url``, requests that are under way at once."""
    heap: str = "1g"
    """The JVM's -Xmx."""
    max_batch: int = bounded(64, "at least 1")
    """Most requests coalesced into one batch search."""
    cache_size: int = bounded(100_000, "at least 0")
    """Queries kept in the LRU cache; 0 turns it off."""
    cache_mib: int = bounded(1024, "at least 0")
    """The most memory of that cache, in MiB: with long passages it forgets sooner."""
    timeout_s: float = bounded(30.0, "above 0")
    """A search that takes longer fails, and its trajectory is excluded."""
    outage_s: float = bounded(600.0, "at least 0")
    """Seconds that a run waits for searches that fail to be answered again, before it ends."""

    @property
    def elsewhere(self) -> bool:
        """Whether passages come from an index or a server that is named, and not from the data's corpus."""
        return self.place is not None

    @property
    def place(self) -> str | None:
        """That index or server; None for the data's corpus."""
        return self.index or self.prebuilt or self.url

    @property
    def place_key(self) -> str:
        """The setting that names it."""
        return next(f"retrieval.{name}" for name in ("index", "prebuilt", "url") if getattr(self, name))

    def __post_init__(self) -> None:
        check_bounds(self, "retrieval")
        one_of(self.backend, backend_names(), "retrieval.backend")
        one_of(self.dialect, dialect_names(), "retrieval.dialect")
        if self.analyser is not None:
            one_of(self.analyser, ENGLISH_AND_OTHERS, "retrieval.analyser")
        if self.prebuilt is not None:
            self._check_prebuilt(self.prebuilt)
        self._check_url()
        heap = re.fullmatch(r"(\d+)([kmg]?)", str(self.heap).lower())
        if heap is None or int(heap[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[heap[2]] < MIN_HEAP:
            raise UserError(f"retrieval.heap={self.heap}: must be at least 64m, written like 512m or 4g")

    def _check_prebuilt(self, name: str) -> None:
        one_of(name, (*PREBUILT, AUTO), "retrieval.prebuilt")
        if self.backend != "bm25":
            raise UserError(f"retrieval.prebuilt={name} is an index for retrieval.backend=bm25, not {self.backend}")
        if self.index is not None:
            raise UserError("retrieval.prebuilt and retrieval.index both say where passages come from; leave one out")

    def _check_url(self) -> None:
        remote = is_remote(self.backend)
        if self.url is None:
            if remote:
                raise UserError(
                    f"retrieval={self.backend} needs retrieval.url=http://HOST:PORT, where a search service listens"
                )
            return
        if not remote:
            raise UserError(
                f"retrieval.url is for a ranker that asks a service, which {self.backend} doesn't; set retrieval=http"
            )
        if self.index is not None:
            raise UserError("retrieval.url and retrieval.index both say where passages come from; leave one out")
        if not _is_address(self.url):
            raise UserError(
                f"retrieval.url={self.url}: is written http://HOST:PORT or http://HOST:PORT/PATH; a token goes into "
                "retrieval.token_file"
            )
        if not is_askable(self.url):
            raise UserError(
                f"retrieval.url={self.url}: nothing can listen at {urlsplit(self.url).netloc}; HOST is a name or an IP "
                "address, and PORT a number from 1"
            )
        dialect(self.dialect)  # one that can be spoken


def _is_address(url: str) -> bool:
    """Whether ``url`` is one of http or https, with a host, and without a name or password, query or fragment."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return (
        plain
        and parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and not (parts.username is not None or parts.query or parts.fragment)
    )
