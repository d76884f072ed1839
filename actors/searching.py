"""The retrieval actors, as the supervisor sees them: their numbers, and whether they answer again after a failure."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from actors.calls import Died
from agent.errors import Fault, Final
from retrieval_service.stats import Stats, merged, since

RETRIEVAL = "retrieval"
"""What the names of its actors begin with."""
UNKNOWN = {"retrieval/qps": 0.0, "retrieval/p99_s": float("nan")}
"""Its metrics where nobody can tell."""
SAY_EVERY_S = 60.0
ASK_EVERY_S = 1.0
PROBE = "is the search answered"
"""A query that any index can answer, with no passage or with some. Each time it has another number behind it, so that
no cache answers in the place of a retriever that is dead."""


class Searching:
    """The ``replicas`` of one run. ``wait`` gets an actor's answer, or raises ``Fault`` where it has died; it takes a
    function as well, and leaves off with None once that says so (``WorkerPool.wait``)."""

    def __init__(
        self,
        replicas: Iterable[Any],
        wait: Callable[..., Any],
        say: Callable[[str, str], None],
        outage_s: float,
        stopped: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._replicas = tuple(replicas)
        self._wait, self._say, self._outage_s, self._stopped = wait, say, outage_s, stopped
        self._clock, self._sleep = clock, sleep
        self._probes = itertools.count()
        self._before: list[Stats | None] = [None for _ in self._replicas]
        """The totals of each replica when it was last asked."""

    def stats(self) -> dict[str, float]:
        """What they have done since they were last asked, as metrics."""
        try:
            totals = [self._wait(r.stats.remote(), RETRIEVAL) for r in self._replicas]
            stats = merged([since(*pair) for pair in zip(self._before, totals, strict=True)])
            self._before = totals
        except Fault as fault:  # Ray is restarting it; the searches that it lost are counted where they were asked
            _check_of_retrieval(fault)
            return UNKNOWN
        return {f"retrieval/{name}": value for name, value in asdict(stats).items()}

    def until_they_answer(self) -> None:
        """Waits until each of them answers a search, with a line each minute.

        No episode is played meanwhile: those that search would be lost, and what is left are those that don't. A user
        who stops the run need not wait. Raises ``Fault`` after ``retrieval.outage_s`` seconds.
        """
        began = said = self._clock()
        while not self._stopped():
            problem, now = self._problem(), self._clock()
            if problem is None:
                if said != began:
                    self._say(f"retrieval answers again after {now - began:.0f} s", "")
                return
            if self._stopped():
                return
            if now - began >= self._outage_s:
                raise Fault(
                    f"retrieval has not answered for {now - began:.0f} s (retrieval.outage_s): {problem}; fix what "
                    "it needs (index, memory, server)"
                )
            if now == began or now - said >= SAY_EVERY_S:
                said = now
                self._say(f"episodes wait for retrieval ({now - began:.0f} s so far): {problem}", "yellow")
            self._sleep(ASK_EVERY_S)

    def _problem(self) -> str | None:
        for replica in self._replicas:
            try:
                search = replica.search_many.remote([f"{PROBE} {next(self._probes)}"], 1)
                answer = self._wait(search, RETRIEVAL, self._stopped)  # it may open its index first
            except Fault as fault:
                _check_of_retrieval(fault)
                return str(fault)
            if answer is None:
                return "it has not answered yet"
            if isinstance(found := answer[0], str):
                return found
        return None


def _check_of_retrieval(fault: Fault) -> None:
    """Raises ``fault`` if it ends the run or is another actor's end: all are watched while one is waited for."""
    if isinstance(fault, Final) or (isinstance(fault, Died) and not fault.actor.startswith(RETRIEVAL)):
        raise fault
