"""One thread that owns a backend: makes it, calls it, closes it.

A JVM wants a single caller, and an event loop must not wait for one. Results travel back to the
loop. The thread is a daemon: a backend that never returns must not keep the process from ending.

A backend that can part a search from reading what it found (``begin_batch``) has a second thread for that, so that it
searches on meanwhile.

    jobs ──► search ──► Job.free ──► the next job
                │
                └─found─► read ──► Job.answered          (one batch is read, one more may wait for it)
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from agent.errors import Fault, RetrievalError
from agent.records import Passage
from retrieval_service.backend import SEARCH, Backend, Read, Unavailable

Answer = tuple[Passage, ...] | RetrievalError
Batch = list[Answer]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """A batch for the backend's ``search_batch`` or another of its methods. What it has to call is called on the event
    loop, but for ``following``."""

    method: str
    texts: Sequence[str]
    k: int
    timeout_s: float
    begun: Callable[[], None]
    """For the job's owner, who calls it for one that the thread has taken by itself (``free``)."""
    following: Callable[[], Job | None]
    """Called in the thread as soon as the backend has searched the batch: what it does next. After None it waits until
    it is asked."""
    free: Callable[[Job | None], None]
    """The backend has searched the batch, and is at this one, if any. Before ``answered``: whoever gets an answer may
    ask again at once."""
    answered: Callable[[Batch], None]
    unread: BaseException | None = None
    """Why what was found could not be read."""


class BackendThread:
    """Runs one backend in one thread, for the event loop that calls these methods."""

    def __init__(self, make_backend: Callable[[], Backend]) -> None:
        self._make_backend = make_backend
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._found: queue.Queue[tuple[Read, Job] | None] = queue.Queue(maxsize=1)
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[Backend] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="retrieval", daemon=True)

    async def start(self) -> Backend:
        """Starts the thread and waits until the backend is made, which is for this thread alone; its attributes may be
        read. Raises whatever its factory raised."""
        self._thread.start()
        return await self._opened

    def ask(self, job: Job) -> None:
        """Queues one batch; see ``answers``."""
        self._jobs.put(job)

    def leave(self) -> None:
        """Lets the thread close the backend and end after what it is at, and doesn't wait for it."""
        self._jobs.put(None)

    async def stop(self, wait_s: float) -> None:
        """Ends the thread after the job it is at, or leaves it to itself if that takes longer than ``wait_s`` seconds:
        nobody waits for the job any more. Raises what the backend raised on closing."""
        self.leave()
        done, _ = await asyncio.wait((self._ended,), timeout=wait_s)
        if done:
            self._thread.join()
            self._ended.result()

    def _run(self) -> None:
        try:
            backend = self._make_backend()
        except BaseException as error:
            self._settle(self._opened, None, error)
            self._settle(self._ended, None, None)
            return
        self._settle(self._opened, backend, None)
        begin = getattr(backend, "begin_batch", None)
        reading = threading.Thread(target=self._read, args=(backend,), name="reading", daemon=True)
        if begin is not None:
            reading.start()
        while (job := self._jobs.get()) is not None:
            end = time.monotonic() + job.timeout_s
            if (until := getattr(backend, "until", None)) is not None:
                until(end)
            call, broken = getattr(backend, job.method), job.unread
            if begin is not None and job.method == SEARCH and broken is None:
                try:
                    found = begin(job.texts, job.k)
                except BaseException as error:
                    broken = error
                else:
                    self._free(job)  # first, or the reading thread may tell the answers before that
                    self._found.put((found, job))
                    del found  # an object of Java's, which this thread must not be the last to hold
                    continue
            asked = call, job.texts, job.k, end
            batch = answers(*asked) if broken is None else apart(broken, *asked)
            self._free(job)
            self._tell(job.answered, batch)
        if begin is not None:
            self._found.put(None)
            reading.join()
        try:
            backend.close()
        except Exception as error:
            self._settle(self._ended, None, error)
        else:
            self._settle(self._ended, None, None)

    def _read(self, backend: Any) -> None:
        while (one := self._found.get()) is not None:
            found, job = one
            try:
                batch = checked(found(), job.texts)
            except BaseException as error:
                self._jobs.put(replace(job, unread=error))
            else:
                self._tell(job.answered, batch)
            del one, found
        backend.end_reading()

    def _free(self, job: Job) -> None:
        if job.unread is None:  # or it was told when the job was searched
            following = job.following()
            if following is not None:
                self._jobs.put(following)
            self._tell(job.free, following)

    def _settle(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        def settle() -> None:
            # Whoever awaited it may have been cancelled, and the future with it.
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self._tell(settle)

    def _tell(self, call: Callable[..., None], *told: Any) -> None:
        # A loop that was closed before the service raises this, and then nothing waits for the result.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *told)


def answers(call: Callable[[Sequence[str], int], Any], texts: Sequence[str], k: int, end: float) -> Batch:
    """What ``call`` says to each of ``texts``: its passages, or a ``RetrievalError`` with the cause in its text.

    A batch that fails is asked ``apart``.
    """
    try:
        return checked(call(texts, k), texts)
    except BaseException as error:
        return apart(error, call, texts, k, end)


def apart(
    error: BaseException, call: Callable[[Sequence[str], int], Any], texts: Sequence[str], k: int, end: float
) -> Batch:
    """The ``answers`` to a batch that has failed with ``error``: it is asked again in halves, so that a text that can't
    be answered fails alone; neither half after ``end`` (by ``time.monotonic``), and not where the backend says that it
    is ``Unavailable``."""
    failure = RetrievalError(f"search failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    if len(texts) == 1 or isinstance(error, Unavailable):
        return [failure] * len(texts)
    middle = len(texts) // 2
    both: Batch = []
    for half in (texts[:middle], texts[middle:]):
        both += [failure] * len(half) if time.monotonic() >= end else answers(call, half, k, end)
    return both


def checked(found: Any, texts: Sequence[str]) -> Batch:
    """What a backend has found of ``texts``. Raises ``Fault`` if it isn't something of each."""
    if not isinstance(found, list) or len(found) != len(texts):
        count = len(found) if isinstance(found, list) else type(found).__name__
        raise Fault(f"the backend answered {count} of {len(texts)} queries")
    return [_passages(hits) for hits in found]


def _passages(hits: Any) -> Answer:
    if isinstance(hits, tuple) and all(isinstance(hit, Passage) for hit in hits):
        return hits
    return RetrievalError(f"search failed: the backend answered with {type(hits).__name__}, not with passages")
