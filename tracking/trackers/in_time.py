"""The calls of one tracker, each in bounded time: W&B's library waits for its own process, which may hang for ever."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class InTime:
    """Makes calls one after the other, in a thread of its own.

    One that takes longer than ``limit_s`` is left behind with the thread; no other may follow it. What would end a
    process (``SystemExit``, a ``KeyboardInterrupt`` that no user sent) ends none: it is raised as ``RuntimeError``.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.hangs = False
        """A call was left behind."""
        self._asked: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        Thread(target=self._work, daemon=True).start()

    def __call__(self, do: Callable[[], T]) -> T:
        """What ``do`` returns. Raises what it raises, and ``TimeoutError``."""
        future: Future[T] = Future()
        self._asked.put((do, future))
        try:
            return future.result(self._limit_s)
        except TimeoutError:
            if future.done():
                raise
            self.hangs = True
            raise TimeoutError(f"no answer within {self._limit_s:g} s (tracker.timeout_s)") from None

    def end(self) -> None:
        """Lets the thread end after the calls so far."""
        self._asked.put(None)

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            do, future = asked
            try:
                future.set_result(do())
            except Exception as error:  # it is the caller's
                future.set_exception(error)
            except BaseException as error:
                harmless = RuntimeError(f"it raised {type(error).__name__}: {error}")
                harmless.__cause__ = error
                future.set_exception(harmless)
