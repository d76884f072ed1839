"""Whether the retrieval answers again, over replicas that follow a script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from actors.calls import Died, Hangs
from actors.replicas import Replicas
from actors.searching import PROBE, Searching
from agent.errors import Fault, Final
from retrieval_service.stats import Stats

NEVER = object()
"""In the place of an answer: there is none."""
FINE: tuple[Any, ...] = ()
"""What a search that finds nothing returns: an answer like any other."""


class Replica:
    """Answers each search with the next of ``answers``, the last one for ever. An exception is what asking raises."""

    def __init__(self, *answers: Any) -> None:
        self._answers: Iterator[Any] = iter(answers)
        self._last: Any = None
        self.asked = 0
        self.queries: list[str] = []
        self.search_many = SimpleNamespace(remote=self._search)

    def _search(self, queries: Sequence[str], k: int) -> Any:
        (query,) = queries
        assert query.startswith(PROBE)
        assert query not in self.queries, "a cache would answer it"
        assert k == 1
        self.queries.append(query)
        self.asked += 1
        self._last = next(self._answers, self._last)
        return self._last


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def answered(ref: Any, actor: str, given_up: Any = None) -> Any:
    """As ``WorkerPool.wait``, which gives up an answer that doesn't come."""
    assert actor == "retrieval"
    if ref is NEVER:
        while not given_up():
            pass
        return None
    if isinstance(ref, Exception):
        raise ref
    return [ref]


def searching(
    *replicas: Replica, outage_s: float = 600.0, stopped: Any = lambda: False
) -> tuple[Any, Clock, list[str]]:
    clock, said = Clock(), []
    watched = Searching(
        replicas,
        answered,
        lambda text, style: said.append(text),
        outage_s,
        stopped,
        clock=clock,
        sleep=clock.sleep,
    )
    return watched, clock, said


def test_a_retrieval_that_answers_holds_nobody_up() -> None:
    watched, clock, said = searching(Replica(FINE), Replica(FINE))
    watched.until_they_answer()
    assert (clock.now, said) == (0.0, [])


def test_rollouts_wait_until_each_replica_answers_with_a_line_a_minute() -> None:
    slow = Replica(*["timeout"] * 100, Fault("retrieval died"), FINE)
    watched, clock, said = searching(Replica(FINE), slow)
    watched.until_they_answer()
    assert slow.asked == 102
    assert said == [
        "episodes wait for retrieval (0 s so far): timeout",
        "episodes wait for retrieval (60 s so far): timeout",
        f"retrieval answers again after {clock.now:.0f} s",
    ]


def test_an_outage_that_lasts_ends_the_run_and_names_the_retrieval() -> None:
    watched, clock, _ = searching(Replica("Lucene: no such file"), outage_s=30.0)
    with pytest.raises(Fault, match=r"^retrieval has not answered for 30 s \(retrieval\.outage_s\): Lucene: no such"):
        watched.until_they_answer()
    assert clock.now == 30.0


def test_a_user_need_not_wait() -> None:
    watched, clock, _ = searching(Replica("timeout"), stopped=lambda: clock.now >= 5)
    watched.until_they_answer()
    assert clock.now == 5


def test_a_user_need_not_wait_for_a_retrieval_that_opens_its_index_either() -> None:
    """It may take longer than an outage may last: then the run is saved all the same."""

    def stopped() -> bool:
        clock.now += 400.0
        return clock.now >= 1000.0

    watched, clock, said = searching(Replica(NEVER), outage_s=600.0, stopped=stopped)
    watched.until_they_answer()
    assert said == []


def test_the_end_of_another_actor_is_not_taken_for_the_retrievals() -> None:
    """All are watched while one is waited for: the learner's end is the supervisor's to get over."""

    def watching(error: Fault) -> Any:
        def wait(ref: Any, actor: str, given_up: Any = None) -> Any:
            raise error

        replica = SimpleNamespace(
            stats=SimpleNamespace(remote=lambda: None), search_many=SimpleNamespace(remote=lambda queries, k: None)
        )
        return Searching([replica], wait, lambda *said: None, 10.0, lambda: False, clock=Clock(), sleep=lambda s: None)

    for error in (
        Hangs("learner", "update"),
        Died("pool died", actor="pool"),
        Final("the retrieval failed 13 times"),
    ):
        for ask in (watching(error).stats, watching(error).until_they_answer):
            with pytest.raises(type(error), match=str(error)):
                ask()
    own = Died("retrieval died", actor="retrieval")
    assert math.isnan(watching(own).stats()["retrieval/p99_s"])


def test_counts_are_of_the_time_since_the_last_step() -> None:
    """One failure is one in the step in which it happened, and none later; a replica that was started anew has few, or
    has answered more than before and failed less."""

    def totals(queries: int, failures: int) -> Stats:
        counts = {"cache_hits": 0, "shared": 0, "batches": queries, "timeouts": 0}
        return Stats(queries=queries, failures=failures, qps=1.0, p50_s=0.1, p99_s=0.2, **counts)

    told = [iter([totals(10, 3), totals(14, 3), totals(2, 1)]), iter([totals(5, 2), totals(5, 2), totals(6, 0)])]
    replicas = [SimpleNamespace(stats=SimpleNamespace(remote=lambda of=of: next(of))) for of in told]
    watched = Searching(replicas, lambda ref, actor: ref, lambda text, style: None, 600.0, lambda: False)
    found = [watched.stats() for _ in range(3)]
    assert [row["retrieval/queries"] for row in found] == [15, 4, 8]
    assert [row["retrieval/failures"] for row in found] == [5, 0, 1]


def test_replicas_are_waited_for_over_their_own_ends_alone() -> None:
    ends: list[Fault] = [Died("it died", actor="retrieval"), Died("the learner died", actor="learner")]
    replica = SimpleNamespace(start=SimpleNamespace(remote=lambda: None), identity=SimpleNamespace(remote=lambda: None))
    health = SimpleNamespace(watch=lambda *given, **more: None)

    def wait(ref: Any, actor: str) -> Any:
        raise ends.pop(0)

    for ask in ("are_open", "identity"):
        replicas = Replicas({"retrieval": replica}, health, lambda error: None)  # type: ignore[arg-type]
        ends[:] = [Died("it died", actor="retrieval"), Died("the learner died", actor="learner")]
        with pytest.raises(Died, match="the learner died"):
            getattr(replicas, ask)(wait)
        assert not ends


def test_replicas_that_end_each_time_before_their_index_is_open_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long each takes for that; after it has been open, an end says nothing of the next start."""
    monkeypatch.setattr("actors.replicas.POLL_S", 0.0)
    told: list[Any] = []
    lost: list[Died] = []
    died = Died("retrieval died (OutOfMemoryError)", actor="retrieval")
    health = SimpleNamespace(watch=lambda name, actor, ended, **more: told.append(ended))
    replica = SimpleNamespace(start=SimpleNamespace(remote=lambda: None))
    ends = 2

    def wait(ref: Any, actor: str) -> Any:
        nonlocal ends
        if ends == 0:
            return True
        ends -= 1
        told[-1](died)
        raise died

    replicas = Replicas({"retrieval": replica}, health, lost.append)  # type: ignore[arg-type]
    replicas.are_open(wait)
    for _ in range(9):
        told[-1](died)
    ends = 9
    again = Replicas({"retrieval": replica}, health, lost.append)  # type: ignore[arg-type]
    with pytest.raises(
        Final, match=r"^retrieval has ended 3 times before its index was open: retrieval died \(OutOfMemoryError\)$"
    ):
        again.are_open(wait)
    assert len(lost) == 2 + 9 + 3


@pytest.mark.parametrize(
    ("opens", "wanted"),
    [
        (False, "retrieval has ended 3 times before its index was open: retrieval died"),
        (True, "retrieval has ended 3 times as it was asked what it searches: retrieval died"),
    ],
)
def test_a_retrieval_that_does_not_come_back_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, opens: bool, wanted: str
) -> None:
    """Learner and pool have been lost, and so has it, which had been open: however long each of its starts takes."""
    monkeypatch.setattr("actors.replicas.POLL_S", 0.0)
    told: list[Any] = []
    died = Died("retrieval died", actor="retrieval")
    health = SimpleNamespace(watch=lambda name, actor, ended, **more: told.append(ended))
    calls = {call: SimpleNamespace(remote=lambda call=call: call) for call in ("start", "identity")}
    asked: list[str] = []

    def wait(ref: Any, actor: str) -> Any:
        asked.append(ref)
        assert len(asked) < 99, "it is waited for for ever"
        if ref == "start" and (opens or len(asked) == 1):
            return True
        told[-1](died)
        raise died

    replicas = Replicas({"retrieval": SimpleNamespace(**calls)}, health, lambda error: None)  # type: ignore[arg-type]
    replicas.are_open(wait)
    with pytest.raises(Final, match=f"^{wanted}$"):
        replicas.identity(wait)
    again = ["identity", "start", "identity", "start", "identity"] if opens else ["identity", "start", "start", "start"]
    assert asked == ["start", *again]
