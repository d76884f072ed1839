"""How a run is ended from outside: Ctrl-C, and the signals by which a machine is taken away or a terminal closed."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from actors.launcher import has_launcher
from agent.errors import Stopped

T = TypeVar("T")

LEAVING = (signal.SIGTERM, signal.SIGHUP)
"""They come before a kill: what there is has to be saved, and nothing else done."""

TWICE_S = 0.5
"""A signal that comes again within so many seconds, by two ways, was sent once."""
_came: dict[int, float] = dict.fromkeys((signal.SIGINT, *LEAVING), -math.inf)
"""When each was last taken."""


class LeftEvaluation(Exception):
    """An evaluation isn't played to its end: the run is to leave."""


class Stopping:
    """What has been asked of a run so far."""

    def __init__(self, say: Callable[[str, str], None]) -> None:
        self._say = say
        self.asked = False
        """The run is to end after this step."""
        self.leaving: signal.Signals | None = None
        """The signal that wants it to end at the next release, without an evaluation."""

    @contextmanager
    def after_the_step(self) -> Iterator[None]:
        """Meanwhile the first signal ends the run after the step that it is in; the second ends it at once."""
        with _handled((signal.SIGINT, *LEAVING), self._take):
            yield

    def _take(self, number: int, frame: Any) -> None:
        if self.asked:
            _stop(number, frame)
        self.asked = True
        if number == signal.SIGINT:
            how = "this step ends, is evaluated and saved; Ctrl-C again stops at once"
        else:
            self.leaving = signal.Signals(number)
            name = self.leaving.name
            how = f"{name}: saved at the next release, without an evaluation; {name} again stops at once"
        self._say(f"stopping: {how}", "yellow")


@contextmanager
def at_once() -> Iterator[None]:
    """Meanwhile the signals of ``LEAVING`` raise ``Stopped``, as Ctrl-C raises ``KeyboardInterrupt``."""
    try:
        with _handled((signal.SIGINT, *LEAVING), _stop):
            yield
    except Stopped:
        raise
    except KeyboardInterrupt as error:
        # Ray, where it waits for an answer, makes a plain one of any.
        last = max(_came, key=_came.__getitem__)
        if last in LEAVING:
            raise Stopped(signal.Signals(last)) from error
        raise


@contextmanager
def told(take: Callable[[signal.Signals], None], *, again: bool = True) -> Iterator[None]:
    """Meanwhile ``take`` is told of the first signal. The second raises as in ``at_once``, unless somebody else ends
    this process (``again`` is false): then it is nothing new."""
    came = False

    def handler(number: int, frame: Any) -> None:
        nonlocal came
        if not came:
            came = True
            take(signal.Signals(number))
        elif again:
            _stop(number, frame)

    with _handled((signal.SIGINT, *LEAVING), handler):
        yield


def run_until_told(runner: asyncio.Runner, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` comes to in the loop of ``runner``. The first signal cancels it, and raises as in ``at_once`` once
    it has ended: one that is raised within a loop leaves the loop's other tasks behind, which go on with its next run.
    """
    came: list[signal.Signals] = []

    async def cancellable() -> T:
        task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            came.append(number)
            loop.call_soon_threadsafe(task.cancel)

        with told(stop):
            return await task

    try:
        result = runner.run(cancellable())
    except asyncio.CancelledError:
        if not came:
            raise
    if came:
        _stop(came[0], None)
    return result


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped(signal.Signals(number))


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Of these signals those that aren't ignored: ``nohup`` ignores SIGHUP."""

    def once(number: int, frame: Any) -> None:
        """Who ends all processes of a job (Slurm, systemd) sends the driver what its launcher passes on, too."""
        now = time.monotonic()
        # No call between the two: Python lets the other signal's handler in at calls, within this one, too.
        last = _came[number]
        _came[number] = now
        if not (has_launcher() and now - last < TWICE_S):
            handler(number, frame)

    taken = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, once) for number in taken}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
