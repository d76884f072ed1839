"""The asynchronous front of a backend: cache, coalescing, time-outs.

    search ──► cache ──► in flight? ──► Line ──batch──► BackendThread ──► cache, callers
              (hit: done)  (join it)   (one batch is searched at a time; what arrives meanwhile is the next)

A thread that has searched a batch takes the next one out of the line by itself: the event loop may be busy with the
answers to the last one for longer than it takes to search a query.

Who waits in line isn't timed: more searches than there is time for are slower, not fewer. A search fails when the
backend works on it for too long, or when nothing at all comes back; a batch has no more searches than the backend has
shown to answer in that time (``pace.py``).

A backend that can be opened twice (``lanes``) gets a second thread, for short searches alone. It is used while a batch
takes long, so that what is quick needn't wait for what is slow. All backends of a service search the same: one that
has another identity than the first isn't used.

All other state lives on the event loop, so there are no locks but the line's; the backends live in the threads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import index
from statistics import median
from typing import SupportsIndex

from agent.errors import RetrievalError
from retrieval_service.backend import DOCUMENT, FOLLOWING, SEARCH, Backend, Identity, check_same
from retrieval_service.config import RetrievalConfig
from retrieval_service.line import LONG, Hits, Key, Line, Search
from retrieval_service.lru import Lru, weight_of
from retrieval_service.pace import FIRST, Pace
from retrieval_service.stats import Meter, Stats
from retrieval_service.worker import BackendThread, Batch, Job

OVERTAKE_S, OVERTAKE = 0.05, 2.0
"""How long a batch has to be out before short searches get past it: at least so many seconds, and so many times what
batches of short queries take. On a large index every batch takes long, and a second one beside it would only take its
threads."""
RECENT = 9
"""Batches that say what they take."""
STUCK = 2.0
"""Times ``timeout_s``: a batch that is out for so long never comes back."""
CLOSE_S = 10.0
"""Longest that a backend is waited for at the end."""


def asked(text: object, k: object) -> tuple[str, int]:
    """A search's text and number of passages, as plain ones: a tool of the user's own may give anything.

    Raises ``TypeError`` for what is no text or no number, ``ValueError`` for ``k < 1``.
    """
    if not isinstance(text, str):
        raise TypeError(f"the text of a search is of type {type(text).__name__}; it must be a text")
    if isinstance(k, bool) or not isinstance(k, SupportsIndex):
        raise TypeError(f"k={k!r}: must be a whole number of passages")
    if (number := index(k)) < 1:
        raise ValueError(f"k={number}: must be at least 1")
    return str.__str__(text), number


class TooSlow(RetrievalError):
    """A search was not answered in time."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Batch:
    """Searches that a backend gets at once."""

    searches: list[Search]
    sent: float
    stuck: asyncio.TimerHandle | None = None


@dataclass(kw_only=True, slots=True, eq=False)
class _Lane:
    """A thread with its backend, and the batch that is searched there."""

    thread: BackendThread
    batch: _Batch | None = None
    moved: float
    """When a batch was last sent, or the backend was free again."""
    overtake: asyncio.TimerHandle | None = None


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
        self._in_flight: dict[Key, Search] = {}
        self._line = Line()
        """The part of ``_in_flight`` that no backend has got."""
        self._threads: list[BackendThread] = []
        self._lanes: list[_Lane] = []
        """Those of the threads whose backends are open. The first takes everything, the second what is short."""
        self._second: asyncio.Task[None] | None = None
        """Opens the second lane, once it is needed."""
        self._second_from = 0.0
        """When it may be tried again, after it couldn't be opened."""
        self._may_overtake = False
        self._recent: deque[float] = deque(maxlen=RECENT)
        """Seconds of the first lane's last batches of short queries. What is known by its id takes much less."""
        self.device: str | None = None
        """Where the backend computes, once it has started; None where nobody knows."""
        self._most = config.max_batch
        self._paces: dict[tuple[str, bool], Pace] = {}
        """Of each method, and of long texts apart."""
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
        return await self._ask((*asked(query, k), SEARCH))

    async def following(self, document_id: str, k: int) -> Hits:
        """The at most ``k`` passages that come after ``document_id`` in the same document. See ``_ask``."""
        return await self._ask((*asked(document_id, k), FOLLOWING))

    async def document(self, document_id: str, k: int = 1) -> Hits:
        """The passage ``document_id`` and the at most ``k - 1`` after it; none if it isn't there. See ``_ask``."""
        return await self._ask((*asked(document_id, k), DOCUMENT))

    async def _ask(self, key: Key) -> Hits:
        """What the backend says to ``key``, or has said before.

        Raises ``RetrievalError`` if the backend fails or the service is closed, its ``TooSlow`` if the backend works on
        it for longer than ``config.timeout_s`` seconds, or nothing comes back for so long; ``TypeError`` and
        ``ValueError`` as ``asked``. Cancelling a caller leaves others who wait for the same search alone.
        """
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

    def _enqueue(self, key: Key) -> Search:
        search = Search(key=key, hits=asyncio.get_running_loop().create_future())
        self._in_flight[key] = search
        self._line.join(search)
        if self._soon is None:
            # Not at once: whoever else is about to search in this turn of the loop shares the batch.
            self._soon = asyncio.get_running_loop().call_soon(self._dispatch)
        return search

    async def _wait(self, search: Search, began: float) -> Hits:
        """Waits for a search that others may wait for, too: neither a time-out nor a cancellation touches it."""
        search.waiters += 1
        try:
            while not search.hits.done() and (left := self._end(search, began) - self._meter.clock()) > 0:
                await asyncio.wait((search.hits,), timeout=left)
        finally:
            search.waiters -= 1
            if not search.waiters and self._line.leave(search):
                # Nobody waits any more, and no backend has seen it: spare it.
                del self._in_flight[search.key]
        if not search.hits.done():
            self._meter.timeouts += 1
            raise TooSlow(f"the search took longer than {self._config.timeout_s:g} s: {search.key[0][:LONG]!r}")
        error = search.hits.exception()
        if error is not None:
            self._meter.failures += 1
            # Each caller raises an exception of its own, or their tracebacks would pile up in one.
            raise RetrievalError(str(error)) from error.__cause__
        return search.hits.result()

    def _end(self, search: Search, began: float) -> float:
        """When somebody who has asked at ``began`` gives up: that long after the backend got the search. While it
        waits in line, that long after anything moved there."""
        lanes = self._lanes[:1] if search.is_long else self._lanes
        since = max(lane.moved for lane in lanes) if search.sent is None else search.sent
        return max(began, since) + self._config.timeout_s

    def _dispatch(self) -> None:
        """Gives what waits to the lanes that are free, the oldest first."""
        self._soon = None
        if not self._line or self._closed:
            return
        first = self._lanes[0]
        if first.batch is None:
            self._send(first, self._take(first))
        elif self._may_overtake and self._line.has_short and first.moved + self._overtake_s() <= self._meter.clock():
            if self._second is None and self._meter.clock() >= self._second_from:
                self._second = asyncio.ensure_future(self._open_second())
            if len(self._lanes) > 1 and self._lanes[1].batch is None:
                self._send(self._lanes[1], self._take(self._lanes[1], short=True))

    def _overtake_s(self) -> float:
        return max(OVERTAKE_S, OVERTAKE * median(self._recent or (0.0,)))

    def _pace(self, search: Search) -> Pace:
        kind = search.key[2], search.is_long
        if kind not in self._paces:
            first = 1 if search.is_long else FIRST
            self._paces[kind] = Pace(limit=self._most, timeout_s=self._config.timeout_s, first=first)
        return self._paces[kind]

    def _take(self, lane: _Lane, *, short: bool = False) -> Job | None:
        now = self._meter.clock()
        searches = self._line.take(lambda oldest: self._pace(oldest).most, now, short=short)
        return self._job(lane, _Batch(searches=searches, sent=now)) if searches else None

    def _send(self, lane: _Lane, job: Job | None) -> None:
        if job is not None:
            job.begun()
            lane.thread.ask(job)

    def _next(self, lane: _Lane, batch: _Batch) -> Job | None:
        """In the lane's thread, which has searched ``batch``: what it does next, if that waits."""
        self._pace(batch.searches[0]).took(len(batch.searches), self._meter.clock() - batch.sent)
        return self._take(lane) if lane is self._lanes[0] and not self._closed else None

    def _job(self, lane: _Lane, batch: _Batch) -> Job:
        _, k, method = batch.searches[0].key
        return Job(
            method=method,
            texts=[search.key[0] for search in batch.searches],
            k=k,
            timeout_s=self._config.timeout_s,
            begun=partial(self._begun, lane, batch),
            following=partial(self._next, lane, batch),
            free=partial(self._free, lane, batch),
            answered=partial(self._answered, batch),
        )

    def _begun(self, lane: _Lane, batch: _Batch) -> None:
        """Sets the clocks of a batch that a backend has got."""
        if self._closed:  # just then: it may never be searched, and nobody waits for it
            return
        lane.batch, lane.moved = batch, batch.sent
        self._meter.batches += 1
        loop, stuck_s = asyncio.get_running_loop(), STUCK * self._config.timeout_s
        batch.stuck = loop.call_later(stuck_s, self._stuck, stuck_s)
        if self._may_overtake and lane is self._lanes[0]:
            # Timers may be early by a little.
            lane.overtake = loop.call_later(self._overtake_s() + 0.005, self._dispatch)

    def _free(self, lane: _Lane, batch: _Batch, following: Job | None) -> None:
        """Notes that the backend has searched a batch and is at ``following``, or else sends the next one."""
        if lane.overtake is not None:
            lane.overtake.cancel()
        lane.batch, lane.moved, lane.overtake = None, self._meter.clock(), None
        if following is not None:
            following.begun()
        first = batch.searches[0]
        if lane is self._lanes[0] and first.key[2] == SEARCH and not first.is_long:
            self._recent.append(lane.moved - batch.sent)
        self._dispatch()

    def _answered(self, batch: _Batch, answers: Batch) -> None:
        """Hands a batch's hits, or its failures, to those who wait for them."""
        if batch.stuck is not None:
            batch.stuck.cancel()
        if self._closed:
            return
        for search, found in zip(batch.searches, answers, strict=True):
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
        self._line.clear()
        for thread in [*self._threads]:
            await thread.stop(wait_s)


def _fail(search: Search, error: BaseException) -> None:
    search.hits.set_exception(error)
    # Marks it as seen: asyncio would complain of it if all who waited have left.
    search.hits.exception()
