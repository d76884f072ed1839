"""The asynchronous front of a backend: cache, coalescing, time-outs.

    search ──► cache ──► in flight? ──► waiting ──batch──► BackendThread ──► cache, callers
              (hit: done)  (join it)   (one batch is out at a time; what arrives meanwhile is the next)

All state lives on the event loop, so there are no locks; only the backend lives in the thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from agent.errors import RetrievalError
from agent.records import Passage
from retrieval_service.backend import Backend
from retrieval_service.config import RetrievalConfig
from retrieval_service.lru import Lru
from retrieval_service.stats import Meter, Stats
from retrieval_service.worker import BackendThread, Batch

Hits = tuple[Passage, ...]
SEARCH, FOLLOWING, DOCUMENT = "search_batch", "following_batch", "document_batch"
"""The backend's methods."""
Key = tuple[str, int, str]
"""What identifies a search: the query (or id), as it is, k, and the backend's method."""


class TooSlow(RetrievalError):
    """A search was not answered in time."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Search:
    """One search in flight and those who wait for it."""

    key: Key
    hits: asyncio.Future[Hits]
    waiters: int = 0


class RetrievalService:
    """Answers searches from a backend that it makes, calls and closes in a thread of its own.

    ``make_backend`` runs in that thread; for BM25 it is
    ``lambda: open_backend(config, ensure_index(corpus, config, cache_dir))``. One event loop calls all methods.
    """

    def __init__(self, make_backend: Callable[[], Backend], config: RetrievalConfig) -> None:
        self._make_backend = make_backend
        self._config = config
        self._cache: Lru[Key, Hits] = Lru(config.cache_size)
        self._meter = Meter()
        self._in_flight: dict[Key, _Search] = {}
        self._waiting: dict[Key, _Search] = {}
        """The part of ``_in_flight`` that has not gone to the backend, oldest first."""
        self._batch: list[_Search] = []
        """The part that has."""
        self._thread: BackendThread | None = None
        self._ready = False
        self._closed = False

    async def start(self) -> None:
        """Makes the backend and waits for it; raises what ``make_backend`` raised. Call it once, first."""
        if self._thread is not None:
            raise RuntimeError("the retrieval service was started already")
        self._thread = BackendThread(self._make_backend)
        await self._thread.start()
        self._ready = True

    async def search(self, query: str, k: int) -> Hits:
        """The at most ``k`` best passages for ``query``, best first; none if it matches nothing. See ``_ask``."""
        return await self._ask((query, k, SEARCH))

    async def following(self, document_id: str, k: int) -> Hits:
        """The at most ``k`` passages that come after ``document_id`` in the same document. See ``_ask``."""
        return await self._ask((document_id, k, FOLLOWING))

    async def document(self, document_id: str, k: int = 1) -> Hits:
        """The passage ``document_id`` and the at most ``k - 1`` after it; none if it isn't there. See ``_ask``."""
        return await self._ask((document_id, k, DOCUMENT))

    async def _ask(self, key: Key) -> Hits:
        """What the backend says to ``key``, or has said before.

        Raises ``RetrievalError`` if the backend fails or the service is closed, its ``TooSlow`` if that takes longer
        than ``config.timeout_s`` seconds (waiting in line included), and ``ValueError`` for ``k < 1``.
        Cancelling a caller leaves others who wait for the same search alone.
        """
        if key[1] < 1:
            raise ValueError(f"k={key[1]}: must be at least 1")
        if self._closed:
            raise RetrievalError("the retrieval service is closed")
        if not self._ready:
            raise RuntimeError("the retrieval service has not been started")
        self._meter.queries += 1
        began = self._meter.clock()
        cached = self._cache.get(key)
        if cached is not None:
            self._meter.cache_hits += 1
            self._meter.ended(began)
            return cached
        if key in self._in_flight:
            self._meter.shared += 1
            search = self._in_flight[key]
        else:
            search = self._enqueue(key)
        try:
            hits = await self._wait(search)
        except RetrievalError:
            self._meter.ended(began)
            raise
        self._meter.ended(began)
        return hits

    def _enqueue(self, key: Key) -> _Search:
        loop = asyncio.get_running_loop()
        search = _Search(key=key, hits=loop.create_future())
        if not self._waiting and not self._batch:
            # Not at once: whoever else is about to search in this turn of the loop shares the batch.
            loop.call_soon(self._dispatch)
        self._in_flight[key] = self._waiting[key] = search
        return search

    async def _wait(self, search: _Search) -> Hits:
        """Waits for a search that others may wait for, too: neither a time-out nor a cancellation touches it."""
        search.waiters += 1
        try:
            done, _ = await asyncio.wait((search.hits,), timeout=self._config.timeout_s)
        finally:
            search.waiters -= 1
            if not search.waiters and self._waiting.get(search.key) is search:
                # Nobody waits any more, and the backend has not seen it: spare it.
                del self._waiting[search.key], self._in_flight[search.key]
        if not done:
            self._meter.timeouts += 1
            raise TooSlow(f"the search took longer than {self._config.timeout_s:g} s: {search.key[0]!r}")
        error = search.hits.exception()
        if error is not None:
            self._meter.failures += 1
            # Each caller raises an exception of its own, or their tracebacks would pile up in one.
            raise RetrievalError(str(error)) from error.__cause__
        return search.hits.result()

    def _dispatch(self) -> None:
        """Sends the oldest searches that ask for the same in the same way to the backend, if it has nothing to do."""
        if self._batch or not self._waiting or self._closed:
            return
        assert self._thread is not None
        _, k, method = next(iter(self._waiting.values())).key
        alike = (search for search in self._waiting.values() if search.key[1:] == (k, method))
        self._batch = list(islice(alike, self._config.max_batch))
        for search in self._batch:
            del self._waiting[search.key]
        self._meter.batches += 1
        answer = self._thread.ask(method, [search.key[0] for search in self._batch], k)
        answer.add_done_callback(self._answered)

    def _answered(self, answer: asyncio.Future[Batch]) -> None:
        """Hands a batch's hits, or its failure, to those who wait for them, and sends the next batch."""
        batch, self._batch = self._batch, []
        error = answer.exception()
        if self._closed:
            return
        for number, search in enumerate(batch):
            del self._in_flight[search.key]
            if error is None:
                hits = answer.result()[number]
                self._cache.put(search.key, hits)
                search.hits.set_result(hits)
            else:
                _fail(search, error)
        self._dispatch()

    def stats(self) -> Stats:
        """Counters since the start; ``qps`` since the last call of this method."""
        return self._meter.snapshot()

    async def close(self) -> None:
        """Fails the searches in flight with ``RetrievalError``, closes the backend and joins its thread.

        Raises ``Fault`` if the backend does not return within ``config.timeout_s``. Closing twice is no error.
        """
        if self._closed:
            return
        self._closed = True
        for search in self._in_flight.values():
            _fail(search, RetrievalError("the retrieval service was closed"))
        self._in_flight.clear()
        self._waiting.clear()
        if self._thread is not None:
            await self._thread.stop(self._config.timeout_s)


def _fail(search: _Search, error: BaseException) -> None:
    search.hits.set_exception(error)
    # Marks it as seen: asyncio would complain of it if all who waited have left.
    search.hits.exception()
