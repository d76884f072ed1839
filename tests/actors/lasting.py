"""Actors' processes that the tests of a file use one after another: to start one takes two seconds of a processor.

Nothing of a test is left in such a process for the next one: the object that answered, and all that it had under way,
are gone.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import ray
from ray_fakes import result


def lasting(cls: type) -> Any:
    """An actor that passes its calls on to an object of ``cls``; ``anew`` makes another in its place.

    All methods of the actor are asynchronous, and of one concurrency group.
    """

    def begin(self: Any, *given: Any, **named: Any) -> None:
        self.inner = cls(*given, **named)

    async def anew(self: Any, *given: Any, **named: Any) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        begin(self, *given, **named)

    async def here(self: Any) -> None:
        pass

    def passed_on(name: str) -> Callable[..., Any]:
        async def call(self: Any, *given: Any, **named: Any) -> Any:
            answer = getattr(self.inner, name)(*given, **named)
            return await answer if inspect.isawaitable(answer) else answer

        return call

    # What is made first is made by the constructor: of two calls, either may come first.
    names = [name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")]
    methods = {"__init__": begin, "anew": anew, "here": here, **{name: passed_on(name) for name in names}}
    holder = type(cls.__name__, (), methods)
    return ray.remote(num_cpus=0, max_concurrency=1000)(holder)  # type: ignore[call-overload]


class Lent:
    """Actors of a ``lasting`` class, each of which one test has at a time."""

    def __init__(self, lasting_class: Any) -> None:
        self._class = lasting_class
        self._idle: list[Any] = []
        self._taken: list[Any] = []

    def take(self, *given: Any, **named: Any) -> Any:
        """An actor with a new object, made of these arguments."""
        if self._idle:
            actor = self._idle.pop()
            # Until its process is up, Ray may give it calls in another order, one of the test before last.
            result(actor.here.remote())
            result(actor.anew.remote(*given, **named))
        else:
            actor = self._class.remote(*given, **named)
        self._taken.append(actor)
        return actor

    def give_back(self, *harmed: Any) -> None:
        """At the end of a test: all that was taken, but for those that it has ``harmed``, may be taken again."""
        for actor in self._taken:
            if actor in harmed:
                ray.kill(actor)
            else:
                self._idle.append(actor)
        self._taken.clear()

    def end(self) -> None:
        for actor in [*self._idle, *self._taken]:
            ray.kill(actor)
