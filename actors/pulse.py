"""What an actor says to a ping: what it is doing, and how far it is. Whether that is too little is ``health.py``'s.

A phase is named after its deadline, ``cluster.deadlines.NAME``. The work done in it is counted in whatever it consists
of (tokens, searches, rows): a slow machine does little, one that hangs does none.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from threading import Lock
from typing import Any, TypeVar

import ray

ANSWER = "answer"
"""The phase that an actor with an event loop is always in: its loop gets round."""
HEALTH = "health"
"""The concurrency group of pings, so that they are answered whatever else is under way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """An answer to a ping."""

    pid: int
    node: str
    """Ray's id of the machine."""
    busy: Mapping[str, int]
    """Phases that are under way, each with the work that was ever done in it. An idle actor is in none."""


class Beats:
    """Keeps count of the phases of one actor. Used from any thread."""

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()
        self._work: Counter[str] = Counter()
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """``name`` is under way while the body runs."""
        with self._lock:
            self._under_way[name] += 1
            self._work[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way[name] -= 1
                self._work[name] += 1

    def did(self, name: str) -> None:
        """One more piece of a phase's work is done."""
        with self._lock:
            self._work[name] += 1

    def under_way(self, name: str) -> bool:
        """Whether the phase is."""
        return self._under_way[name] > 0

    def follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on a pulse also tells whether ``loop`` gets round."""
        self._loop = loop

    def pulse(self, work: Mapping[str, int | None] | None = None) -> Pulse:
        """How it is now. ``work`` has phases that somebody else counts; None: not under way."""
        with self._lock:
            busy = {name: self._work[name] for name, count in self._under_way.items() if count}
        for name, done in (work or {}).items():
            if done is not None:
                busy[name] = busy.get(name, 0) + done
        if self._loop is not None and not self._loop.is_closed():
            busy[ANSWER] = self._work[ANSWER]
            self._loop.call_soon_threadsafe(self.did, ANSWER)
        return Pulse(pid=os.getpid(), node=ray.get_runtime_context().get_node_id(), busy=busy)


Method = TypeVar("Method", bound=Callable[..., Any])


def during(name: str) -> Callable[[Method], Method]:
    """Makes a phase of each call of a method; its actor has ``_beats``. An asynchronous one tells them of its loop."""

    def of(method: Any) -> Any:
        @wraps(method)
        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            with self._beats.phase(name):
                return method(self, *arguments, **named)

        @wraps(method)
        async def call_async(self: Any, *arguments: Any, **named: Any) -> Any:
            self._beats.follow(asyncio.get_running_loop())
            with self._beats.phase(name):
                return await method(self, *arguments, **named)

        return call_async if inspect.iscoroutinefunction(method) else call

    return of
