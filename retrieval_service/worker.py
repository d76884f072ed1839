"""One thread that owns a backend: makes it, calls it, closes it.

A JVM wants a single caller, and an event loop must not wait for one. Results travel back to the loop as
futures. The thread is a daemon: a backend that never returns must not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from agent.errors import Fault, RetrievalError
from agent.records import Passage
from retrieval_service.backend import Backend, Unavailable

Answer = tuple[Passage, ...] | RetrievalError
Batch = list[Answer]
Job = tuple[str, Sequence[str], int, float, "asyncio.Future[Batch]"]


class BackendThread:
    """Runs one backend in one thread, for the event loop that calls these methods."""

    def __init__(self, make_backend: Callable[[], Backend]) -> None:
        self._make_backend = make_backend
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[Backend] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="retrieval", daemon=True)

    async def start(self) -> Backend:
        """Starts the thread and waits until the backend is made, which is for this thread alone; its attributes may be
        read. Raises whatever its factory raised."""
        self._thread.start()
        return await self._opened

    def ask(self, method: str, texts: Sequence[str], k: int, timeout_s: float) -> asyncio.Future[Batch]:
        """Queues one batch for the backend's ``search_batch`` or another of its methods; see ``answers``."""
        future: asyncio.Future[Batch] = self._loop.create_future()
        self._jobs.put((method, texts, k, timeout_s, future))
        return future

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
        while (job := self._jobs.get()) is not None:
            method, texts, k, timeout_s, future = job
            end = time.monotonic() + timeout_s
            if (until := getattr(backend, "until", None)) is not None:
                until(end)
            self._settle(future, answers(getattr(backend, method), texts, k, end), None)
        try:
            backend.close()
        except Exception as error:
            self._settle(self._ended, None, error)
        else:
            self._settle(self._ended, None, None)

    def _settle(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        def settle() -> None:
            # Whoever awaited it may have been cancelled, and the future with it.
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        # A loop that was closed before the service raises this, and then nothing waits for the result.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(settle)


def answers(call: Callable[[Sequence[str], int], Any], texts: Sequence[str], k: int, end: float) -> Batch:
    """What ``call`` says to each of ``texts``: its passages, or a ``RetrievalError`` with the cause in its text.

    A batch that fails is asked again in halves, so that a text that can't be answered fails alone; neither half after
    ``end`` (by ``time.monotonic``), and not where the backend says that it is ``Unavailable``.
    """
    try:
        found = call(texts, k)
        if not isinstance(found, list) or len(found) != len(texts):
            count = len(found) if isinstance(found, list) else type(found).__name__
            raise Fault(f"the backend answered {count} of {len(texts)} queries")
        return [_passages(hits) for hits in found]
    except BaseException as error:
        failure = RetrievalError(f"search failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        if len(texts) == 1 or isinstance(error, Unavailable):
            return [failure] * len(texts)
    middle = len(texts) // 2
    both: Batch = []
    for half in (texts[:middle], texts[middle:]):
        both += [failure] * len(half) if time.monotonic() >= end else answers(call, half, k, end)
    return both


def _passages(hits: Any) -> Answer:
    if isinstance(hits, tuple) and all(isinstance(hit, Passage) for hit in hits):
        return hits
    return RetrievalError(f"search failed: the backend answered with {type(hits).__name__}, not with passages")
