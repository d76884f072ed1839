"""The asynchronous front of a backend: cache, coalescing, time-outs.

    search ──► cache ──► in flight? ──► waiting ──batch──► BackendThread ──► cache, callers
              (hit: done)  (join it)   (one batch is searched at a time; what arrives meanwhile is the next)

Who waits in line isn't timed: more searches than there is time for are slower, not fewer. A search fails when the
backend works on it for too long, or when nothing at all comes back.

A backend that can be opened twice (``lanes``) gets a second thread, for short searches alone. It is used while a batch
takes long, so that what is quick needn't wait for what is slow. All backends of a service search the same: one that
has another identity than the first isn't used.

All state lives on the event loop, so there are no locks; only the backends live in the threads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from statistics import median

from agent.errors import RetrievalError
from agent.records import Passage
from retrieval_service.backend import DOCUMENT, FOLLOWING, SEARCH, Backend, Identity, check_same
from retrieval_service.config import RetrievalConfig
from retrieval_service.lru import Lru, weight_of
from retrieval_service.stats import Meter, Stats
from retrieval_service.worker import BackendThread, Batch

Hits = tuple[Passage, ...]
Key = tuple[str, int, str]
"""What identifies a search: the query (or id), as it is, k, and the backend's method."""
LONG = 300
"""Characters of a text from which on a search may be slow: it shares no batch with short ones."""
OVERTAKE_S, OVERTAKE = 0.05, 2.0
"""How long a batch has to be out before short searches get past it: at least so many seconds, and so many times what
batches of short ones take. On a large index every batch takes long, and a second one beside it would only take its
threads."""
RECENT = 9
"""Batches that say what they take."""
STUCK = 2.0
"""Times ``timeout_s``: a batch that is out for so long never comes back."""
CLOSE_S = 10.0
"""Longest that a backend is waited for at the end."""


class TooSlow(RetrievalError):
    """A search was not answered in time."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Search:
    """One search in flight and those who wait for it."""

    key: Key
    hits: asyncio.Future[Hits]
    waiters: int = 0
    sent: float | None = None
    """When it went to the backend."""

    @property
    def is_long(self) -> bool:
        return len(self.key[0]) >= LONG

    @property
    def alike(self) -> tuple[int, str, bool]:
        """What searches of one batch have in common."""
        return *self.key[1:], self.is_long


@dataclass(kw_only=True, slots=True, eq=False)
class _Lane:
    """A thread with its backend, and the batch that is searched there."""

    thread: BackendThread
    batch: list[_Search] = field(default_factory=list)
    moved: float
    """When a batch was last sent, or the backend was free again."""


class RetrievalService:
    """Answers searches from a backend that it makes, calls and closes in a thread of its own.

    ``make_backend`` runs in that thread, and again for a second lane: it is ``opener(corpus, config, cache_dir)``
    (``rankers.py``). One event loop calls all methods.
    ``stuck`` is told of a thread that has not come back for so many seconds that it never will. ``known`` is what has
    to be searched, where that was said before.
    """

    def __init__(
        self,
        make_backend: Callable[[], Backend],
        config: RetrievalConfig,
        stuck: Callable[[float], None] = lambda seconds: None,
        known: Identity | None = None,
    ) -> None:
        self._make_backend = make_backend
        self._config = config
        self._stuck = stuck
        self._identity = known
        self._cache: Lru[Key, Hits] = Lru(
            config.cache_size, config.cache_mib << 20, lambda key, hits: weight_of(key[0], hits)
        )
        self._meter = Meter()
        self._in_flight: dict[Key, _Search] = {}
        self._waiting: dict[Key, _Search] = {}
        """The part of ``_in_flight`` that has not gone to a backend, oldest first."""
        self._threads: list[BackendThread] = []
        self._lanes: list[_Lane] = []
        """Those of the threads whose backends are open. The first takes everything, the second what is short."""
        self._second: asyncio.Task[None] | None = None
        """Opens the second lane, once it is needed."""
        self._second_from = 0.0
        """When it may be tried again, after it couldn't be opened."""
        self._may_overtake = False
        self._recent: deque[float] = deque(maxlen=RECENT)
        """Seconds of the first lane's last batches of short searches."""
        self.device: str | None = None
        """Where the backend computes, once it has started; None where nobody knows."""
        self._most = config.max_batch
        self._soon: asyncio.Handle | None = None
        self._started = False
        self._closed = False

    async def start(self) -> None:
        """Makes the backend and waits for it. Call it once, first.

        Raises what ``make_backend`` raised, and ``Fault`` for a backend that doesn't search what is ``known``.
        """
        if self._started:
            raise RuntimeError("the retrieval service was started already")
        self._started = True
        backend = await self._open()
        self._most = min(self._most, getattr(backend, "most", self._most))
        self._may_overtake = getattr(backend, "lanes", 1) > 1
        self.device = getattr(backend, "device", "cpu")

    async def _open(self) -> Backend:
        thread = BackendThread(self._make)
        self._threads.append(thread)
        try:
            backend = await thread.start()
        except BaseException:
            # It has ended, or whoever waited for it was cancelled: nobody knows how long it takes to open an index.
            self._threads.remove(thread)
            thread.leave()
            raise
        self._lanes.append(_Lane(thread=thread, moved=self._meter.clock()))
        return backend

    def _make(self) -> Backend:
        """A backend; in its thread, while no other is made. A server may search something else by now."""
        backend = self._make_backend()
        try:
            now = backend.identity()
            check_same(self._identity or now, now)
        except BaseException:
            backend.close()
            raise
        self._identity = now
        return backend

    @property
    def identity(self) -> Identity:
        """What is searched, once it has started."""
        if self._identity is None:
            raise RuntimeError("the retrieval service has not been started")
        return self._identity

    async def _open_second(self) -> None:
        try:
            await self._open()
        except Exception:  # there is one lane then, as there was
            self._second, self._second_from = None, self._meter.clock() + self._config.timeout_s
        self._dispatch()

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

        Raises ``RetrievalError`` if the backend fails or the service is closed, its ``TooSlow`` if the backend works on
        it for longer than ``config.timeout_s`` seconds, or nothing comes back for so long, and ``ValueError`` for
        ``k < 1``. Cancelling a caller leaves others who wait for the same search alone.
        """
        if key[1] < 1:
            raise ValueError(f"k={key[1]}: must be at least 1")
        if self._closed:
            raise RetrievalError("the retrieval service is closed")
        if not self._lanes:
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
            hits = await self._wait(search, began)
        except RetrievalError:
            self._meter.ended(began)
            raise
        self._meter.ended(began)
        return hits

    def _enqueue(self, key: Key) -> _Search:
        search = _Search(key=key, hits=asyncio.get_running_loop().create_future())
        self._in_flight[key] = self._waiting[key] = search
        if self._soon is None:
            # Not at once: whoever else is about to search in this turn of the loop shares the batch.
            self._soon = asyncio.get_running_loop().call_soon(self._dispatch)
        return search

    async def _wait(self, search: _Search, began: float) -> Hits:
        """Waits for a search that others may wait for, too: neither a time-out nor a cancellation touches it."""
        search.waiters += 1
        try:
            while not search.hits.done() and (left := self._end(search, began) - self._meter.clock()) > 0:
                await asyncio.wait((search.hits,), timeout=left)
        finally:
            search.waiters -= 1
            if not search.waiters and self._waiting.get(search.key) is search:
                # Nobody waits any more, and the backend has not seen it: spare it.
                del self._waiting[search.key], self._in_flight[search.key]
        if not search.hits.done():
            self._meter.timeouts += 1
            raise TooSlow(f"the search took longer than {self._config.timeout_s:g} s: {search.key[0][:LONG]!r}")
        error = search.hits.exception()
        if error is not None:
            self._meter.failures += 1
            # Each caller raises an exception of its own, or their tracebacks would pile up in one.
            raise RetrievalError(str(error)) from error.__cause__
        return search.hits.result()

    def _end(self, search: _Search, began: float) -> float:
        """When somebody who has asked at ``began`` gives up: that long after the backend got the search. While it
        waits in line, that long after anything moved there."""
        lanes = self._lanes[:1] if search.is_long else self._lanes
        since = max(lane.moved for lane in lanes) if search.sent is None else search.sent
        return max(began, since) + self._config.timeout_s

    def _dispatch(self) -> None:
        """Gives what waits to the lanes that are free, the oldest first."""
        self._soon = None
        if not self._waiting or self._closed:
            return
        first = self._lanes[0]
        if not first.batch:
            self._send(first, self._waiting.values())
        elif self._may_overtake and self._meter.clock() - first.moved >= self._overtake_s():
            short = [search for search in self._waiting.values() if not search.is_long]
            if short and self._second is None and self._meter.clock() >= self._second_from:
                self._second = asyncio.ensure_future(self._open_second())
            if short and len(self._lanes) > 1 and not self._lanes[1].batch:
                self._send(self._lanes[1], short)

    def _overtake_s(self) -> float:
        return max(OVERTAKE_S, OVERTAKE * median(self._recent or (0.0,)))

    def _send(self, lane: _Lane, waiting: Iterable[_Search]) -> None:
        """Sends the oldest of ``waiting`` to the backend, and what asks for the same in the same way."""
        waiting = list(waiting)
        alike = (search for search in waiting if search.alike == waiting[0].alike)
        lane.batch, lane.moved = list(islice(alike, self._most)), self._meter.clock()
        for search in lane.batch:
            search.sent = lane.moved
            del self._waiting[search.key]
        self._meter.batches += 1
        _, k, method = lane.batch[0].key
        texts, timeout_s = [search.key[0] for search in lane.batch], self._config.timeout_s
        searched = lane.thread.ask(method, texts, k, timeout_s)
        loop = asyncio.get_running_loop()
        stuck_s = STUCK * timeout_s
        stuck, overtake = loop.call_later(stuck_s, self._stuck, stuck_s), None
        if self._may_overtake and lane is self._lanes[0]:
            # Timers may be early by a little.
            overtake = loop.call_later(self._overtake_s() + 0.005, self._dispatch)
        batch = lane.batch
        searched.answers.add_done_callback(lambda answers: self._answered(batch, answers, stuck))
        searched.free.add_done_callback(lambda _: self._free(lane, overtake))

    def _free(self, lane: _Lane, overtake: asyncio.TimerHandle | None) -> None:
        """Sends the next batch: the backend has searched this one."""
        if overtake is not None:
            overtake.cancel()
        batch, sent, lane.batch, lane.moved = lane.batch, lane.moved, [], self._meter.clock()
        if lane is self._lanes[0] and not batch[0].is_long:
            self._recent.append(lane.moved - sent)
        self._dispatch()

    def _answered(self, batch: list[_Search], answers: asyncio.Future[Batch], stuck: asyncio.TimerHandle) -> None:
        """Hands a batch's hits, or its failures, to those who wait for them."""
        stuck.cancel()
        if self._closed:
            return
        for search, found in zip(batch, answers.result(), strict=True):
            del self._in_flight[search.key]
            if isinstance(found, RetrievalError):
                _fail(search, found)
            else:
                self._cache.put(search.key, found)
                search.hits.set_result(found)

    def stats(self) -> Stats:
        """Counters since the start; ``qps`` since the last call of this method."""
        return self._meter.snapshot()

    async def close(self, wait_s: float = CLOSE_S) -> None:
        """Fails the searches in flight with ``RetrievalError``, closes the backend and joins its thread. A backend that
        is at work for longer than ``wait_s`` seconds is left to itself.

        Closing twice is no error.
        """
        if self._closed:
            return
        self._closed = True
        for search in self._in_flight.values():
            _fail(search, RetrievalError("the retrieval service was closed"))
        self._in_flight.clear()
        self._waiting.clear()
        for thread in [*self._threads]:
            await thread.stop(wait_s)


def _fail(search: _Search, error: BaseException) -> None:
    search.hits.set_exception(error)
    # Marks it as seen: asyncio would complain of it if all who waited have left.
    search.hits.exception()
