"""The workers over fake workers under a real Ray: who gets which version when, and what a worker's death costs.

Fake workers check how they are used (``ray_fakes``) and write what they do on a board. A workers's call that would
wait for a gate runs in a thread, so that the test can watch it wait.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from lasting import Lent, lasting
from ray_fakes import KILLER, PATIENCE_S, Board, FakeWorker, Version, result, row_of, until

from actors.broadcast import Outcome
from actors.calls import Died, Hangs, get
from actors.health import Health
from actors.process import log_to
from actors.restarts import HOUR_S, Restarts
from actors.worker_pool import WorkerPool
from agent.config import GroupConfig
from agent.errors import Fault, Final, Unusable, UserError
from agent.records import Question
from conf.topology import DeadlineConfig

SLOW = pytest.mark.slow
PLAIN = GroupConfig()
QUESTIONS = [Question(id=f"q{i}", text="who?", golden_answers=("she",)) for i in range(11)]


class House:
    """A workers, its page of the board, and everybody whom the workers has called lost."""

    def __init__(self, board: Any, crew: Lent, log_dir: Path) -> None:
        self.board = board
        self.page = log_dir.name
        self.lost: list[tuple[str, str]] = []
        self.actors: dict[str, Any] = {}
        self._crew = crew
        self._log_dir = log_dir
        self.deadlines = DeadlineConfig()

    def workers(
        self,
        size: int,
        scripts: dict[str, dict[str, list[str]]] | None = None,
        max_restarts: int = 3,
        restarts: Restarts | None = None,
    ) -> WorkerPool:
        """``scripts`` by the worker's name; one that has none does all it is asked."""

        def make(name: str) -> Any:
            script = (scripts or {}).get(name, {})
            self.actors[name] = self._crew.take(name, self.board, self.page, script)
            return self.actors[name]

        return WorkerPool(
            make,
            self._lose,
            size=size,
            restarts=restarts or Restarts("rollout workers", max_restarts),
            health=Health(self.deadlines, self._log_dir),
            log_dir=self._log_dir,
            weight_timeout_s=300.0,
        )

    def _lose(self, name: str, cause: str, suspect: bool) -> None:
        self.lost.append((name, cause))
        vars(self.deadlines).update(vars(DeadlineConfig()))

    def events(self, *beginning: str) -> list[tuple[str, ...]]:
        return result(self.board.events.remote(self.page, *beginning))

    def await_event(self, *event: str) -> None:
        result(self.board.seen.remote(self.page, *event))

    def open(self, gate: str) -> None:
        result(self.board.open.remote(self.page, gate))

    def meanwhile(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Runs a call of the workers in a thread of its own; one that never returns must not hold up the tests."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(call(*arguments))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def patiently(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """A call of the workers that is certain to return."""
        return self.meanwhile(call, *arguments).result(PATIENCE_S)

    def watch(self, workers: WorkerPool, *event: str) -> None:
        """The workers does its work until ``event`` has happened."""
        self.patiently(workers.wait, self.board.seen.remote(self.page, *event), "board")

    def until_phases(self, workers: WorkerPool, *phases: str) -> None:
        """The workers does its work until its workers are where they are wanted."""

        def reached() -> bool:
            self.patiently(workers.wait, self.board.events.remote(self.page), "board")
            return tuple(w.phase for w in workers._workers) == phases

        until(reached)

    def end(self) -> None:
        """Whoever was lost has been killed, or will be at once."""
        self._crew.give_back(*(self.actors[name] for name, _ in self.lost))


@pytest.fixture(scope="module")
def board(local_ray: None) -> Iterator[Any]:
    board = Board.options(num_cpus=0, max_concurrency=1000).remote()
    yield board
    ray.kill(board)


@pytest.fixture(scope="module")
def crew(local_ray: None) -> Iterator[Lent]:
    crew = Lent(lasting(FakeWorker))
    yield crew
    crew.end()


@pytest.fixture
def house(board: Any, crew: Lent, tmp_path: Path) -> Iterator[House]:
    house = House(board, crew, tmp_path)
    yield house
    house.end()


# --- versions --------------------------------------------------------------------------------------


def test_deliver_waits_until_every_live_worker_holds_the_version(house: House) -> None:
    workers = house.workers(2, {"rollout-1": {"receive": ["", "gate:slow"]}})
    house.patiently(workers.deliver, Version(0))
    house.until_phases(workers, "idle", "idle")
    delivering = house.meanwhile(workers.deliver, Version(1))
    house.await_event("rollout-0", "has", "1")
    house.await_event("rollout-1", "receive", "1")
    assert not delivering.done()
    assert house.events("rollout-1", "has") == [("0",)]
    house.open("slow")
    assert delivering.result(PATIENCE_S) > 0
    assert house.events("rollout-1", "has") == [("0",), ("1",)]


@pytest.mark.slow
def test_a_supervisor_that_was_stopped_counts_what_is_there_first(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-Z during a delivery: when it goes on, the time is over and all answers are there."""
    workers = house.workers(2)
    house.patiently(workers.deliver, Version(0))
    house.until_phases(workers, "idle", "idle")
    later = itertools.chain([0.0], itertools.repeat(1e6))
    clock = SimpleNamespace(monotonic=lambda: next(later), perf_counter=time.perf_counter)
    monkeypatch.setattr("actors.worker_pool.time", clock)
    monkeypatch.setattr("actors.worker_pool.POLL_S", PATIENCE_S)
    house.patiently(workers.deliver, Version(1))
    assert house.lost == []
    assert house.events("rollout-0", "has")[-1] == house.events("rollout-1", "has")[-1] == ("1",)


@pytest.mark.slow
def test_deliver_waits_for_one_worker_and_not_for_those_that_still_start(house: House) -> None:
    workers = house.workers(2, {"rollout-0": {"start": ["gate:engine"]}})
    house.patiently(workers.deliver, Version(0))
    assert [w.name for w in workers.live] == ["rollout-1"]
    assert house.events("rollout-1", "has") == [("0",)]


@pytest.mark.slow
def test_workers_that_are_up_before_there_is_a_version_get_the_first(house: House) -> None:
    workers = house.workers(2)
    house.until_phases(workers, "empty", "empty")
    assert workers.live == []
    house.patiently(workers.deliver, Version(0))
    house.until_phases(workers, "idle", "idle")
    assert house.events("rollout-0", "has") == house.events("rollout-1", "has") == [("0",)]


@pytest.mark.slow
def test_a_late_worker_gets_the_newest_version_before_it_serves(house: House) -> None:
    workers = house.workers(2, {"rollout-1": {"start": ["gate:engine"]}})
    house.patiently(workers.deliver, Version(0))
    workers.serve("pool", PLAIN)
    house.patiently(workers.deliver, Version(1))
    house.patiently(workers.deliver, Version(2))
    house.open("engine")
    house.watch(workers, "rollout-1", "run", "2")
    assert house.events("rollout-1") == [("start",), ("receive", "2"), ("has", "2"), ("run", "2")]
    assert house.events("rollout-0", "run") == [("0",)]  # once, for the whole run
    assert house.events("rollout-0", "has") == [("0",), ("1",), ("2",)]


@pytest.mark.slow
def test_a_version_that_comes_while_an_older_one_loads_is_loaded_too_before_serving(house: House) -> None:
    workers = house.workers(2, {"rollout-1": {"start": ["gate:engine"], "receive": ["gate:load"]}})
    house.patiently(workers.deliver, Version(0))
    workers.serve("pool", PLAIN)
    house.open("engine")
    house.watch(workers, "rollout-1", "receive", "0")
    house.patiently(workers.deliver, Version(1))
    assert house.events("rollout-1", "has") == []
    house.open("load")
    house.watch(workers, "rollout-1", "run", "1")
    assert house.events("rollout-1", "has") == [("0",), ("1",)]
    assert house.events("rollout-1", "run") == [("1",)]


@pytest.mark.slow
def test_nobody_serves_before_it_is_told_to(house: House) -> None:
    workers = house.workers(1)
    house.patiently(workers.deliver, Version(0))
    house.patiently(workers.evaluate, QUESTIONS[:1])
    assert house.events("rollout-0", "run") == []
    workers.serve("pool", PLAIN)
    house.watch(workers, "rollout-0", "run", "0")


@pytest.mark.slow
def test_dismiss_waits_for_the_groups_that_still_play(house: House) -> None:
    workers = house.workers(2, {"rollout-1": {"run": ["gate:last group"]}})
    house.patiently(workers.deliver, Version(0))
    workers.serve("pool", PLAIN)
    house.until_phases(workers, "serving", "serving")
    leaving = house.meanwhile(workers.dismiss, PATIENCE_S)
    house.open("pool closed")
    house.await_event("rollout-0", "ran")
    assert not leaving.done()
    house.open("last group")
    leaving.result(PATIENCE_S)
    assert len(house.events("rollout-1", "ran")) == 1


@pytest.mark.slow
def test_a_worker_whose_pool_has_closed_is_idle(house: House) -> None:
    workers = house.workers(1)
    house.patiently(workers.deliver, Version(0))
    workers.serve("pool", PLAIN)
    house.open("pool closed")
    house.until_phases(workers, "idle")
    house.patiently(workers.deliver, Version(1))
    house.patiently(workers.evaluate, QUESTIONS[:1])
    assert house.events("rollout-0", "run") == [("0",)]


@pytest.mark.slow
def test_workers_that_are_idle_may_serve_another_pool(house: House) -> None:
    workers = house.workers(2, {"rollout-1": {"run": ["gate:last group"]}})
    house.patiently(workers.deliver, Version(0))
    workers.serve("seeding", PLAIN)
    house.until_phases(workers, "serving", "serving")
    house.open("seeding closed")
    waiting = house.meanwhile(workers.until_idle)
    house.await_event("rollout-0", "ran")
    assert not waiting.done(), "a group still plays"
    house.open("last group")
    waiting.result(PATIENCE_S)
    house.until_phases(workers, "idle", "idle")
    workers.serve("pool", PLAIN)
    house.until_phases(workers, "serving", "serving")
    until(lambda: len(house.events("rollout-0", "run")) == 2)
    assert len(house.events("rollout-0", "ran")) == 1, "it plays for the pool that is still open"


@pytest.mark.slow
def test_a_worker_that_dies_before_all_are_idle_is_replaced_by_an_idle_one(house: House) -> None:
    workers = house.workers(1, {"rollout-0": {"run": ["die"]}})
    house.patiently(workers.deliver, Version(0))
    workers.serve("seeding", PLAIN)
    house.patiently(workers.until_idle)
    house.until_phases(workers, "idle")
    assert house.events("rollout-1", "run") == []


# --- evaluation ------------------------------------------------------------------------------------


def test_evaluation_returns_a_row_per_question_in_order(house: House) -> None:
    # The first chunk is the last to be done.
    workers = house.workers(1, {"rollout-0": {"evaluate": ["gate:first"]}})
    house.patiently(workers.deliver, Version(0))
    evaluating = house.meanwhile(partial(workers.evaluate, chunk=3), QUESTIONS)
    for size in (3, 2):
        house.await_event("rollout-0", "evaluate", str(size), "at once 2")
    assert not evaluating.done()
    house.open("first")
    assert evaluating.result(PATIENCE_S) == [row_of(q) for q in QUESTIONS]
    sizes = sorted(int(size) for size, _ in house.events("rollout-0", "evaluate"))
    assert sizes == [2, 3, 3, 3]
    assert max(at_once for _, at_once in house.events("rollout-0", "evaluate")) == "at once 2"


@pytest.mark.slow
def test_evaluation_of_nothing_is_empty(house: House) -> None:
    workers = house.workers(1)
    house.patiently(workers.deliver, Version(0))
    assert house.patiently(workers.evaluate, []) == []


def test_a_dead_workers_share_of_an_evaluation_is_played_by_another(house: House) -> None:
    workers = house.workers(2, {"rollout-1": {"evaluate": ["gate:both busy", "die"]}})
    house.patiently(workers.deliver, Version(0))
    house.until_phases(workers, "idle", "idle")
    assert house.patiently(partial(workers.evaluate, chunk=2), QUESTIONS) == [row_of(q) for q in QUESTIONS]
    assert [name for name, _ in house.lost] == ["rollout-1"]
    assert workers.restarts == 1
    assert len(house.events("rollout-1", "evaluate")) == 2


@pytest.mark.slow
def test_the_only_workers_share_waits_for_its_replacement(house: House) -> None:
    workers = house.workers(1, {"rollout-0": {"evaluate": ["fault"]}})
    house.patiently(workers.deliver, Version(3))
    assert house.patiently(workers.evaluate, QUESTIONS[:3]) == [row_of(q) for q in QUESTIONS[:3]]
    assert house.lost == [("rollout-0", "rollout-0: evaluate broke")]
    assert house.events("rollout-1", "has") == [("3",)]


@pytest.mark.slow
def test_a_question_that_kills_workers_is_given_up_and_the_others_are_played(house: House) -> None:
    workers = house.workers(1, max_restarts=9)
    house.patiently(workers.deliver, Version(0))
    killer = Question(id="killer", text=KILLER, golden_answers=("she",))
    asked = [*QUESTIONS[:3], killer, *QUESTIONS[3:5]]
    kept: list[Any] = []
    rows = house.patiently(partial(workers.evaluate, chunk=6, keep=kept.extend), asked)
    assert [row.question_id for row in rows] == [q.id for q in asked]
    assert [row for row in rows if not row.fault] == [row_of(q) for q in QUESTIONS[:5]]
    assert rows[3].error == "4 rollout workers were lost while they played it"  # of 6, 3, 2 and 1 questions
    assert len(house.lost) == workers.restarts == 4
    assert sorted(row.question_id for row in kept) == sorted(q.id for q in asked)


# --- death -----------------------------------------------------------------------------------------


def died(house: House, name: str) -> None:
    """``name`` alone was called lost, with its death as the cause."""
    ((lost, cause),) = house.lost
    assert lost == name
    assert cause.startswith(f"{name} died (")


@pytest.mark.slow
def test_a_worker_that_dies_while_it_starts_is_replaced(house: House) -> None:
    workers = house.workers(1, {"rollout-0": {"start": ["die"]}})
    house.patiently(workers.deliver, Version(0))
    died(house, "rollout-0")
    assert [w.name for w in workers.live] == ["rollout-1"]
    assert house.events("rollout-1") == [("start",), ("receive", "0"), ("has", "0")]


@pytest.mark.slow
def test_a_worker_that_dies_while_it_loads_is_replaced(house: House) -> None:
    workers = house.workers(1, {"rollout-0": {"receive": ["die"]}})
    house.patiently(workers.deliver, Version(0))
    died(house, "rollout-0")
    assert [w.name for w in workers.live] == ["rollout-1"]


@pytest.mark.slow
def test_a_worker_that_dies_of_a_new_version_is_replaced(house: House) -> None:
    workers = house.workers(2, {"rollout-0": {"receive": ["", "die"]}})
    house.patiently(workers.deliver, Version(0))
    house.until_phases(workers, "idle", "idle")
    workers.serve("pool", PLAIN)
    house.patiently(workers.deliver, Version(1))
    died(house, "rollout-0")
    house.watch(workers, "rollout-2", "run", "1")
    assert house.events("rollout-2", "has") == [("1",)]
    assert house.events("rollout-1", "has") == [("0",), ("1",)]


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param("die", marks=SLOW), "fault"])
def test_a_worker_that_stops_serving_is_replaced_while_the_crew_waits_for_others(house: House, how: str) -> None:
    workers = house.workers(2, {"rollout-0": {"run": [how]}})
    house.patiently(workers.deliver, Version(0))
    workers.serve("pool", PLAIN)
    house.watch(workers, "rollout-2", "run", "0")
    assert [name for name, _ in house.lost] == ["rollout-0"]
    assert workers.restarts == 1
    if how == "fault":
        assert house.lost[0][1] == "rollout-0: run broke"


@pytest.mark.slow
def test_too_many_deaths_end_the_run(house: House) -> None:
    """Of processes that somebody kills: nothing says that the next one would be killed too."""
    workers = house.workers(1, {f"rollout-{i}": {"start": ["die"]} for i in range(3)}, max_restarts=2)
    wanted = r"^rollout workers failed 3 times within an hour \(cluster.restarts_per_hour=2\): rollout-2 died \("
    with pytest.raises(Fault, match=wanted):
        house.patiently(workers.deliver, Version(0))
    assert [name for name, _ in house.lost] == ["rollout-0", "rollout-1", "rollout-2"]


@pytest.mark.slow
def test_workers_none_of_which_comes_to_work_end_the_run(house: House) -> None:
    """Though each takes an hour. What one that has worked dies of doesn't count."""
    dies = {"rollout-0": {"run": ["die"]}, "rollout-1": {"start": ["die"]}, "rollout-2": {"receive": ["die"]}}
    restarts = Restarts("rollout workers", 9, in_a_row=2, clock=itertools.count(0.0, HOUR_S).__next__)
    workers = house.workers(1, dies, restarts=restarts)
    house.patiently(workers.deliver, Version(0))
    workers.serve("pool", PLAIN)
    with pytest.raises(Final, match=r"^rollout workers failed 2 times in a row, for more than an hour, before "):
        house.watch(workers, "rollout-3", "run", "0")
    assert [name for name, _ in house.lost] == ["rollout-0", "rollout-1", "rollout-2"]


# --- what would only happen again ------------------------------------------------------------------


@pytest.mark.slow
def test_an_engine_that_has_never_started_is_not_started_again(house: House) -> None:
    workers = house.workers(1, {"rollout-0": {"start": ["fault"]}})
    with pytest.raises(Fault, match=r"^every new worker would fail in the same way: rollout-0: start broke$"):
        house.patiently(workers.deliver, Version(0))
    assert house.lost == []
    assert house.events("rollout-1") == []


@pytest.mark.slow
def test_the_cause_comes_with_the_logs_last_lines(house: House, tmp_path: Path) -> None:
    (tmp_path / "rollout-0.log").write_text("what vLLM said\n")
    workers = house.workers(1, {"rollout-0": {"start": ["fault"]}})
    with pytest.raises(Fault, match=r"rollout-0: start broke; its last lines:\nwhat vLLM said$"):
        house.patiently(workers.deliver, Version(0))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fault", "user"])
def test_an_engine_that_starts_elsewhere_is_started_once_more(house: House, how: str) -> None:
    """What is the user's mistake at first, a tool that can't be made, is none once another worker has made it."""
    workers = house.workers(1, {"rollout-0": {"receive": ["", "die"]}, "rollout-1": {"start": [how]}})
    house.patiently(workers.deliver, Version(0))
    house.patiently(workers.deliver, Version(1))
    assert [name for name, _ in house.lost] == ["rollout-0", "rollout-1"]
    assert [w.name for w in workers.live] == ["rollout-2"]


@pytest.mark.slow
@pytest.mark.parametrize("call", [pytest.param("start", marks=SLOW), "receive"])
def test_what_two_workers_in_a_row_raise_alike_is_not_tried_a_third_time(house: House, call: str) -> None:
    scripts = {"rollout-0": {"receive": ["", "die"]}, "rollout-1": {call: ["fault"]}, "rollout-2": {call: ["fault"]}}
    workers = house.workers(1, scripts, max_restarts=9)
    house.patiently(workers.deliver, Version(0))
    with pytest.raises(Fault, match=rf"^every new worker would fail in the same way: rollout-2: {call} broke$"):
        house.patiently(workers.deliver, Version(1))
    assert [name for name, _ in house.lost] == ["rollout-0", "rollout-1"]


@pytest.mark.slow
def test_a_share_of_an_evaluation_that_breaks_two_workers_is_not_played_by_a_third(house: House) -> None:
    workers = house.workers(1, {f"rollout-{i}": {"evaluate": ["fault"]} for i in range(9)}, max_restarts=9)
    house.patiently(workers.deliver, Version(0))
    with pytest.raises(Fault, match=r"^every new worker would fail in the same way: rollout-1: evaluate broke$"):
        house.patiently(workers.evaluate, QUESTIONS)
    assert [name for name, _ in house.lost] == ["rollout-0"]


@pytest.mark.slow
def test_an_evaluation_without_a_sound_episode_ends_with_the_engine_that_breaks(house: House) -> None:
    """An engine that dies of its first request: what was in it comes back as faults, what comes later is raised."""
    workers = house.workers(1, {"rollout-0": {"evaluate": ["faults", "faults", "fault"]}})
    house.patiently(workers.deliver, Version(0))
    with pytest.raises(Fault, match=r"^every new worker would fail in the same way: rollout-0: evaluate broke$"):
        house.patiently(partial(workers.evaluate, chunk=2), QUESTIONS)
    assert house.lost == []


@pytest.mark.slow
def test_a_version_that_arrives_damaged_at_one_worker_costs_that_worker(house: House) -> None:
    workers = house.workers(2, {"rollout-1": {"receive": ["", "damaged"]}})
    house.patiently(workers.deliver, Version(0))
    house.until_phases(workers, "idle", "idle")
    house.patiently(workers.deliver, Version(1))
    ((lost, cause),) = house.lost
    assert lost == "rollout-1"
    assert cause == "what the learner gave can't be used: receive got damaged weights"
    house.until_phases(workers, "idle", "idle")
    assert house.events("rollout-2", "has") == [("1",)]


@pytest.mark.slow
def test_a_version_that_arrives_damaged_everywhere_is_the_learners_fault(house: House) -> None:
    workers = house.workers(1, {f"rollout-{n}": {"receive": ["", "damaged"][1 - (n == 0) :]} for n in range(3)})
    house.patiently(workers.deliver, Version(0))
    with pytest.raises(Unusable, match=r"^what the learner gave can't be used: receive got damaged weights$") as error:
        house.patiently(workers.deliver, Version(1))
    assert error.value.actor == "learner"
    workers.forget()
    house.patiently(workers.deliver, Version(0))
    assert house.events("rollout-1", "has") == [("0",)], "it is the learner that was replaced"
    assert [name for name, _ in house.lost] == ["rollout-0"]


@pytest.mark.slow
def test_a_claim_that_is_none_is_the_pools_fault(house: House) -> None:
    workers = house.workers(1, {"rollout-0": {"run": ["garbled"]}})
    house.patiently(workers.deliver, Version(0))
    workers.serve("pool", PLAIN)
    with pytest.raises(Unusable, match=r"^what the pool gave can't be used: run got a damaged claim$") as error:
        house.watch(workers, "rollout-1", "run")
    assert error.value.actor == "pool"
    with pytest.raises(Unusable):  # until the pool is gone, wherever somebody waits
        house.watch(workers, "rollout-1", "run")
    workers.forget()
    house.patiently(workers.deliver, Version(0))
    workers.serve("another pool", PLAIN)
    house.until_phases(workers, "serving")
    assert house.lost == []


@pytest.mark.slow
def test_what_several_workers_got_damaged_costs_its_giver_once(house: House) -> None:
    """The second is heard of when the first has had the pool replaced."""
    workers = house.workers(2, {f"rollout-{n}": {"run": ["garbled"]} for n in range(2)})
    house.patiently(workers.deliver, Version(0))
    house.until_phases(workers, "idle", "idle")
    workers.serve("pool", PLAIN)
    with pytest.raises(Unusable):
        house.watch(workers, "rollout-2", "run")
    workers.forget()
    house.patiently(workers.deliver, Version(0))
    workers.serve("another pool", PLAIN)
    house.until_phases(workers, "serving", "serving")
    assert house.lost == []


@pytest.mark.slow
def test_a_pool_that_cannot_draw_costs_no_worker(house: House) -> None:
    workers = house.workers(1, {"rollout-0": {"run": ["final"]}})
    house.patiently(workers.deliver, Version(0))
    workers.serve("pool", PLAIN)
    with pytest.raises(Final, match=r"^run can't go on$"):
        house.watch(workers, "rollout-1", "run", "0")
    assert house.lost == []


@pytest.mark.slow
@pytest.mark.parametrize("garbage", ["none", *(pytest.param(g, marks=SLOW) for g in ("short", "text", "others"))])
def test_rows_that_are_none_cost_a_worker_and_are_played_again(house: House, garbage: str) -> None:
    workers = house.workers(1, {"rollout-0": {"evaluate": [garbage]}})
    house.patiently(workers.deliver, Version(0))
    assert house.patiently(workers.evaluate, QUESTIONS[:3]) == [row_of(q) for q in QUESTIONS[:3]]
    assert [name for name, _ in house.lost] == ["rollout-0"]


@pytest.mark.slow
def test_groups_that_break_workers_in_a_long_run_cost_a_worker_each(house: House) -> None:
    """Hours may lie between two that break alike."""
    workers = house.workers(1, {f"rollout-{i}": {"run": ["fault"]} for i in range(3)}, max_restarts=3)
    house.patiently(workers.deliver, Version(0))
    workers.serve("pool", PLAIN)
    house.watch(workers, "rollout-3", "run", "0")
    assert [cause for _, cause in house.lost] == [f"rollout-{i}: run broke" for i in range(3)]


def test_a_users_mistake_ends_the_run_and_costs_no_worker(house: House) -> None:
    workers = house.workers(1, {"rollout-0": {"start": ["user"]}})
    with pytest.raises(UserError, match=r"^start got bad input$"):
        house.patiently(workers.deliver, Version(0))
    assert house.lost == []


# --- errors of other actors ------------------------------------------------------------------------


@ray.remote(num_cpus=0)
class Failing:
    """An actor that fails in the way it is told to, itself or through another one that it asks."""

    def __init__(self, log_dir: Path, behind: Any = None) -> None:
        log_to(log_dir, "failing")
        self._behind = behind

    def ready(self) -> bool:
        return True

    def fail(self, how: str) -> None:
        import os

        if self._behind is not None:
            ray.get(self._behind.fail.remote(how))
        if how == "die":
            print("the last words", flush=True)
            os._exit(1)
        if how == "crash":
            os.abort()
        full = ray.exceptions.OutOfDiskError("x")
        errors = {
            "user": UserError("file.jsonl:3: bad"),
            "fault": Fault("it broke"),
            "bug": KeyError("x"),
            "full": full,
        }
        raise errors[how]


@pytest.fixture
def failing(local_ray: None, tmp_path: Path) -> Iterator[Any]:
    actor = Failing.remote(tmp_path)
    yield actor
    ray.kill(actor)


@pytest.mark.slow
def test_errors_come_back_as_ours_in_one_line_that_names_the_actor(failing: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^file\.jsonl:3: bad$"):
        get(failing.fail.remote("user"), "retrieval", tmp_path)
    with pytest.raises(Fault, match=r"^retrieval: it broke$"):
        get(failing.fail.remote("fault"), "retrieval", tmp_path)
    with pytest.raises(Fault, match=r"^retrieval: KeyError: 'x'$"):
        get(failing.fail.remote("bug"), "retrieval", tmp_path)
    with pytest.raises(
        Fault, match=r"^retrieval: Ray's object store is full \(OutOfDiskError\): make room on the disk"
    ):
        get(failing.fail.remote("full"), "retrieval", tmp_path)


@pytest.mark.slow
def test_an_error_keeps_its_meaning_through_two_actors(failing: Any, tmp_path: Path) -> None:
    """As of the learner, which takes its batches from the pool."""
    asking = Failing.remote(tmp_path, failing)
    with pytest.raises(UserError, match=r"^file\.jsonl:3: bad$"):
        get(asking.fail.remote("user"), "learner", tmp_path)
    with pytest.raises(Fault, match=r"^learner: it broke$"):
        get(asking.fail.remote("fault"), "learner", tmp_path)
    with pytest.raises(Fault, match=r"^learner: KeyError: 'x'$"):
        get(asking.fail.remote("bug"), "learner", tmp_path)
    ray.kill(asking)


@pytest.mark.slow
def test_a_dead_actor_is_reported_with_its_last_words(failing: Any, tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"^failing died \(\w+\); its last lines:\n[^$]*the last words"):
        get(failing.fail.remote("die"), "failing", tmp_path)
    with pytest.raises(Fault, match=r"^other died \(\w+\)$"):
        get(failing.ready.remote(), "other", tmp_path)


def test_a_crash_is_told_from_a_death(failing: Any, tmp_path: Path) -> None:
    with pytest.raises(Died, match=r"^failing died \(\w+: Fatal Python error: Aborted\); its last lines:\n") as error:
        get(failing.fail.remote("crash"), "failing", tmp_path)
    assert error.value.crash == "Fatal Python error: Aborted"


@pytest.mark.slow
def test_waiting_for_an_actor_raises_its_error(house: House, failing: Any) -> None:
    workers = house.workers(1)
    with pytest.raises(Fault, match=r"^learner: it broke$"):
        house.patiently(workers.wait, failing.fail.remote("fault"), "learner")
    assert house.lost == []


# --- colocated on one card ----------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_sleep_once_they_are_up_and_wake_with_what_they_had(house: House) -> None:
    workers = house.workers(2, {"rollout-1": {"start": ["gate:slow"]}})
    sleeping = house.meanwhile(workers.sleep)
    house.await_event("rollout-1", "start")
    assert not sleeping.done()
    assert house.events("rollout-0", "sleep") == []
    house.open("slow")
    sleeping.result(PATIENCE_S)
    house.patiently(workers.wake)
    house.patiently(workers.deliver, Version(0))
    house.until_phases(workers, "idle", "idle")
    assert house.events("rollout-1")[:5] == [("start",), ("sleep",), ("asleep",), ("wake",), ("awake",)]


@pytest.mark.slow
def test_a_serving_worker_can_sleep_between_two_batches(house: House) -> None:
    workers = house.workers(1)
    house.patiently(workers.deliver, Version(0))
    workers.serve("pool", PLAIN)
    house.await_event("rollout-0", "run", "0")
    house.patiently(workers.sleep)
    house.patiently(workers.wake)
    house.patiently(workers.deliver, Version(1))
    assert house.events("rollout-0", "has") == [("0",), ("1",)]
    assert [w.phase for w in workers.live] == ["serving"]
    house.open("pool closed")


@pytest.mark.slow
def test_a_worker_that_is_lost_in_its_sleep_is_replaced_when_there_is_room_again(house: House) -> None:
    workers = house.workers(1, {"rollout-0": {"sleep": ["die"]}})
    house.patiently(workers.deliver, Version(0))
    house.patiently(workers.sleep)
    assert [name for name, _ in house.lost] == ["rollout-0"]
    assert workers._workers == [], "a new engine would need the card that the learner has"
    house.patiently(workers.wake)
    house.patiently(workers.deliver, Version(1))
    assert house.events("rollout-1", "has")[-1] == ("1",)


# --- workers that hang, and workers that others have left alone ---------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("call", "phase"), [(call, call) for call in ("start", "evaluate", "sleep")])
def test_a_worker_that_hangs_is_replaced_after_the_deadline_of_its_phase(house: House, call: str, phase: str) -> None:
    setattr(house.deadlines, phase, 2.0)  # for the first: on a busy machine the next may need longer to begin
    workers = house.workers(1, {"rollout-0": {call: ["hang"]}})
    if call == "sleep":
        house.patiently(workers.deliver, Version(0))
        house.patiently(workers.sleep)
        house.patiently(workers.wake)
    house.patiently(workers.deliver, Version(0))
    assert house.patiently(workers.evaluate, QUESTIONS[:1]) == [row_of(QUESTIONS[0])]
    ((name, cause),) = house.lost
    assert name == "rollout-0"
    assert cause.startswith(f"rollout-0 hangs: {phase} has made no progress for ")
    assert [w.name for w in workers.live] == ["rollout-1"]


@pytest.mark.slow
def test_two_workers_that_a_broadcast_loses_are_replaced_once_where_the_second_is_found_hanging_meanwhile(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool is told of the first, and all are watched while it is."""

    def lose(name: str, cause: str, suspect: bool) -> None:
        House._lose(house, name, cause, suspect)
        if name == "rollout-0":
            workers._seen(second, Hangs("rollout-1", "publish has made no progress for 301 s"))

    monkeypatch.setattr(house, "_lose", lose)
    workers = house.workers(2)
    house.patiently(workers.deliver, Version(0))
    house.until_phases(workers, "idle", "idle")
    _, second = workers._workers
    lost = {name: f"{name} did not finish the broadcast" for name in ("rollout-0", "rollout-1")}
    monkeypatch.setattr(workers, "broadcast", SimpleNamespace(deliver=lambda *_: Outcome(lost=lost)))
    house.patiently(workers.deliver, Version(1, channel="nccl"))
    assert [name for name, _ in house.lost] == ["rollout-0", "rollout-1"]
    house.until_phases(workers, "idle", "idle")
    assert [w.name for w in workers.live] == ["rollout-2", "rollout-3"]


@pytest.mark.slow
def test_an_idle_worker_that_dies_is_replaced_before_anybody_needs_it(house: House) -> None:
    workers = house.workers(1)
    house.patiently(workers.deliver, Version(0))
    house.until_phases(workers, "idle")
    ray.kill(house.actors["rollout-0"])
    house.watch(workers, "rollout-1", "has", "0")
    assert [name for name, _ in house.lost] == ["rollout-0"]


@pytest.mark.slow
def test_without_learner_and_pool_workers_wait_for_others_and_for_weights_that_may_be_older(house: House) -> None:
    """One plays for the pool that is gone, one is about to get the weights that are gone."""
    workers = house.workers(2, {"rollout-0": {"run": ["gate:lost"]}, "rollout-1": {"receive": ["gate:slow"]}})
    house.patiently(workers.deliver, Version(5))
    workers.serve("old pool", PLAIN)
    house.watch(workers, "rollout-1", "receive", "5")
    house.watch(workers, "rollout-0", "run", "5")
    workers.forget()
    house.open("slow")
    house.open("lost")
    house.until_phases(workers, "serving", "empty")
    house.patiently(workers.deliver, Version(3, anew=True))
    workers.serve("new pool", PLAIN)
    house.open("old pool closed")
    house.watch(workers, "rollout-0", "run", "3")
    house.watch(workers, "rollout-1", "run", "3")
    assert house.events("rollout-0", "run") == [("5",), ("3",)]
    assert house.events("rollout-1", "run") == [("3",)]
    assert (house.lost, workers.restarts) == ([], 0)
    house.open("new pool closed")


@pytest.mark.slow
def test_a_worker_that_finds_its_pool_or_its_weights_gone_tries_again(house: House) -> None:
    workers = house.workers(1, {"rollout-0": {"receive": ["", "gone", "gone"], "run": ["gone"]}})
    house.patiently(workers.deliver, Version(0))
    workers.serve("pool", PLAIN)
    house.until_phases(workers, "serving")
    house.watch(workers, "rollout-0", "run", "0")
    house.patiently(workers.deliver, Version(1))
    assert house.events("rollout-0", "has") == [("0",), ("1",)]
    assert (house.lost, workers.restarts) == ([], 0)
    house.open("pool closed")
