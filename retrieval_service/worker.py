"""One thread that owns a backend: makes it, calls it, closes it.

A JVM wants a single caller, and an event loop must not wait for one. Results travel back to the loop as
futures. The thread is a daemon: a backend that never returns must not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from agent.errors import Fault, RetrievalError
from agent.records import Passage
from retrieval_service.backend import Backend

Batch = list[tuple[Passage, ...]]


class BackendThread:
    """Runs one backend in one thread, for the event loop that calls these methods."""

    def __init__(self, make_backend: Callable[[], Backend]) -> None:
        self._make_backend = make_backend
        self._jobs: queue.SimpleQueue[tuple[str, Sequence[str], int, asyncio.Future[Batch]] | None] = (
            queue.SimpleQueue()
        )
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="retrieval", daemon=True)

    async def start(self) -> None:
        """Starts the thread and waits until the backend is made; raises whatever its factory raised."""
        self._thread.start()
        await self._opened

    def ask(self, method: str, texts: Sequence[str], k: int) -> asyncio.Future[Batch]:
        """Queues one batch for the backend's ``search_batch`` or ``following_batch``.

        The future fails with a ``RetrievalError`` that has the cause in its text.
        """
        future: asyncio.Future[Batch] = self._loop.create_future()
        self._jobs.put((method, texts, k, future))
        return future

    async def stop(self, timeout_s: float) -> None:
        """Ends the thread after the job it is at. Raises ``Fault`` if it doesn't end in ``timeout_s`` seconds,
        or with what the backend raised on closing."""
        self._jobs.put(None)
        done, _ = await asyncio.wait((self._ended,), timeout=timeout_s)
        if not done:
            raise Fault(f"the retrieval backend did not return within {timeout_s:g} s; its thread was left behind")
        self._thread.join()
        self._ended.result()

    def _run(self) -> None:
        try:
            backend = self._make_backend()
        except BaseException as error:
            self._settle(self._opened, None, error)
            self._settle(self._ended, None, None)
            return
        self._settle(self._opened, None, None)
        while (job := self._jobs.get()) is not None:
            method, queries, k, future = job
            try:
                result = getattr(backend, method)(queries, k)
                if len(result) != len(queries):
                    raise Fault(f"the backend answered {len(result)} of {len(queries)} queries")
            except BaseException as error:
                failure = RetrievalError(f"search failed: {type(error).__name__}: {error}")
                failure.__cause__ = error
                self._settle(future, None, failure)
            else:
                self._settle(future, result, None)
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
