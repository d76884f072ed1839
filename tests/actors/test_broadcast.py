"""Broadcasts over scripted actors under a real Ray: the order of calls, who is missing, and what is done without him.

``FakeWorker`` and ``FakeSender`` check how they are used, and a broadcast of theirs waits for all ranks, as NCCL does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from lasting import Lent, lasting
from ray_fakes import Board, FakeSender, FakeWorker, Version, result
from test_worker_pool import House

from actors import broadcast
from actors.broadcast import Broadcast
from actors.worker_pool import WorkerPool
from agent.errors import Fault

SHORT_S = 6.0
"""For what never comes; what does come has to be quicker than this on a busy machine."""


def test_a_supervisor_that_was_stopped_itself_accuses_no_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For ten minutes, in the middle of a wait, while all had long answered; one that never answers is still named."""
    clock = [0.0]

    def wait(refs: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        clock[0] += 600.0 if not clock[0] else timeout
        ready = [ref for ref in refs if ref != "never"][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    monkeypatch.setattr(broadcast, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(broadcast, "ray", SimpleNamespace(wait=wait))
    monkeypatch.setattr(broadcast, "get", lambda ref, name, log_dir: ref)
    sent = Broadcast(None, timeout_s=60.0, hold_s=60.0, say=print, log_dir=tmp_path)
    calls = {f"rollout-{n}": f"answer {n}" for n in range(3)}
    assert sent._failures(calls, 60.0, "did not stop") == {}
    clock[0] = 0.0
    late = sent._failures({**calls, "rollout-3": "never"}, 60.0, "did not stop")
    assert late == {"rollout-3": "rollout-3 did not stop within 60 s (cluster.weight_timeout_s)"}


@pytest.fixture(scope="module")
def board(local_ray: None) -> Iterator[Any]:
    board = Board.options(num_cpus=0, max_concurrency=1000).remote()
    yield board
    ray.kill(board)


class Choir(House):
    """A house whose workers gets its weights by broadcast."""

    def __init__(self, board: Any, crew: Lent, log_dir: Path) -> None:
        super().__init__(board, crew, log_dir)
        self.said: list[str] = []
        self.learner: Any = None

    def choir(
        self,
        size: int,
        scripts: dict[str, dict[str, list[str]]] | None = None,
        learner: dict[str, list[str]] | None = None,
        *,
        hold_s: float = 60.0,
        timeout_s: float = 60.0,
        max_restarts: int = 3,
    ) -> WorkerPool:
        """A workers whose workers all hold version 0, which came as a copy for each."""
        self.learner = FakeSender.options(num_cpus=0).remote(self.board, self.page, learner or {})
        workers = self.workers(size, scripts, max_restarts)
        workers.broadcast = Broadcast(
            self.learner, timeout_s=timeout_s, hold_s=hold_s, say=self.said.append, log_dir=self._log_dir
        )
        self.until_phases(workers, *["empty"] * size)
        self.patiently(workers.deliver, Version(0, "nccl"))
        self.until_phases(workers, *["idle"] * size)
        assert self.events("learner") == []
        return workers

    def publish(self, workers: WorkerPool, version: int) -> None:
        self.patiently(workers.deliver, Version(version, "nccl"))

    def end(self) -> None:
        super().end()
        if self.learner is not None:
            ray.kill(self.learner)


@pytest.fixture(scope="module")
def crew(local_ray: None) -> Iterator[Lent]:
    crew = Lent(lasting(FakeWorker))
    yield crew
    crew.end()


@pytest.fixture
def choir(board: Any, crew: Lent, tmp_path: Path) -> Iterator[Choir]:
    choir = Choir(board, crew, tmp_path)
    yield choir
    choir.end()


@pytest.mark.slow
def test_all_stop_join_and_take_in_and_the_group_stays_open(choir: Choir) -> None:
    workers = choir.choir(2)
    choir.publish(workers, 1)
    choir.publish(workers, 2)
    assert choir.events("learner") == [("offer",), ("join", "3"), ("send", "1"), ("send", "2")]
    for rank, name in ((1, "rollout-0"), (2, "rollout-1")):
        assert choir.events(name) == [
            *(("start",), ("receive", "0"), ("has", "0")),
            *(("hold",), ("join", str(rank), "3"), ("transfer", "1"), ("has", "1")),
            *(("hold",), ("transfer", "2"), ("has", "2")),
        ]
    events = choir.events()
    assert max(events.index((n, "hold")) for n in ("rollout-0", "rollout-1")) < events.index(("learner", "offer"))
    assert (choir.said, choir.lost, workers.restarts) == ([], [], 0)


@pytest.mark.slow
def test_a_worker_that_does_not_stop_is_named_and_the_others_go_on_without_it(choir: Choir) -> None:
    workers = choir.choir(2, {"rollout-1": {"hold": ["gate:never"]}}, hold_s=SHORT_S)
    choir.publish(workers, 1)
    assert choir.lost == [
        (
            "rollout-1",
            "rollout-1 did not stop for the weights of version 1 within 6 s (cluster.weight_timeout_s)",
        )
    ]
    assert choir.events("learner") == [("offer",), ("join", "2"), ("send", "1")]
    assert choir.events("rollout-0", "has") == [("0",), ("1",)]
    choir.watch(workers, "rollout-2", "has", "1")
    assert choir.said == []


@pytest.mark.slow
def test_a_worker_that_was_replaced_is_in_the_next_broadcast(choir: Choir) -> None:
    workers = choir.choir(2, {"rollout-1": {"hold": ["die"]}})
    choir.publish(workers, 1)
    choir.until_phases(workers, "idle", "idle")
    assert choir.events("rollout-2") == [("start",), ("receive", "1"), ("has", "1")]
    choir.publish(workers, 2)
    assert choir.events("learner") == [
        *(("offer",), ("join", "2"), ("send", "1")),
        *(("offer",), ("join", "3"), ("send", "2")),
    ]
    assert choir.events("rollout-2")[3:] == [("hold",), ("join", "2", "3"), ("transfer", "2"), ("has", "2")]


@pytest.mark.slow
def test_a_worker_that_dies_in_a_broadcast_costs_one_restart_and_the_next_is_whole_again(choir: Choir) -> None:
    workers = choir.choir(2, {"rollout-1": {"transfer": ["die"]}}, max_restarts=1)
    choir.publish(workers, 1)
    assert sorted(name for name, _ in choir.lost) == ["rollout-0", "rollout-1"]
    causes = dict(choir.lost)
    assert causes["rollout-1"].startswith("rollout-1 died (")
    assert causes["rollout-0"] == "it had loaded a part of version 1 when the broadcast broke"
    assert workers.restarts == 1
    choir.until_phases(workers, "idle", "idle")
    assert choir.events("rollout-2", "has") == choir.events("rollout-3", "has") == [("1",)]
    choir.publish(workers, 2)
    assert choir.events("rollout-2", "has") == choir.events("rollout-3", "has") == [("1",), ("2",)]
    assert choir.events("learner", "send") == [("1",), ("2",)]
    assert choir.said == []


@pytest.mark.slow
def test_a_broadcast_that_never_ends_is_abandoned_and_says_who_was_missing(choir: Choir) -> None:
    workers = choir.choir(2, {"rollout-1": {"transfer": ["gate:never"]}}, timeout_s=SHORT_S, max_restarts=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.broadcast.GRACE_S", 2.0)
        choir.publish(workers, 1)
    causes = dict(choir.lost)
    assert causes == {
        "rollout-1": "rollout-1 did not finish the broadcast of version 1 within 6 s (cluster.weight_timeout_s)",
        "rollout-0": "it had loaded a part of version 1 when the broadcast broke",
    }
    assert workers.restarts == 1
    choir.watch(workers, "rollout-2", "has", "1")


@pytest.mark.slow
def test_two_broken_broadcasts_end_in_the_object_store(choir: Choir) -> None:
    workers = choir.choir(1, {f"rollout-{i}": {"transfer": ["fault"]} for i in range(2)})
    choir.publish(workers, 1)
    assert choir.said == []
    choir.publish(workers, 2)
    (said,) = choir.said
    assert said == (
        "NCCL failed, and from here on weights go through the object store; the next time, try cluster.nccl_p2p=false, "
        "or avoid NCCL with cluster.weight_channel=object_store (two broadcasts in a row broke: "
        "rollout-1: transfer broke)"
    )
    assert choir.events("learner")[-1] == ("fall back",)
    choir.publish(workers, 3)
    choir.until_phases(workers, "idle")
    assert choir.events("rollout-2", "has") == [("2",), ("3",)]
    assert choir.events("rollout-2", "hold") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "who",
    [
        pytest.param("learner's offer", marks=pytest.mark.slow),
        "learner",
        pytest.param("rollout-1", marks=pytest.mark.slow),
    ],
)
def test_a_group_that_cannot_be_opened_costs_nobody_and_says_why(choir: Choir, who: str) -> None:
    learner = {"learner's offer": {"offer": ["fault"]}, "learner": {"join": ["fault"]}}.get(who, {})
    workers = choir.choir(2, {who: {"join": ["fault"]}}, learner)
    choir.publish(workers, 1)
    cause = "learner: offer broke" if "offer" in who else f"{who}: join broke"
    (said,) = choir.said
    assert said.endswith(f"({cause})")
    for name in ("rollout-0", "rollout-1"):
        assert choir.events(name, "has") == [("0",), ("1",)]
        assert choir.events(name, "transfer") == []
    assert (choir.lost, workers.restarts) == ([], 0)
    choir.patiently(workers.deliver, Version(2))
    assert choir.events("learner", "offer") == [()]
    assert choir.events("rollout-0", "has")[-1] == ("2",)


@pytest.mark.slow
def test_a_learner_that_hangs_ends_the_run_with_what_to_do(choir: Choir) -> None:
    workers = choir.choir(1, {}, {"offer": ["gate:never"]}, timeout_s=SHORT_S)
    with pytest.raises(Fault, match=r"has not returned from NCCL for 6 s .*weight_channel=object_store"):
        choir.publish(workers, 1)


@pytest.mark.slow
def test_a_learner_that_dies_ends_the_run(choir: Choir) -> None:
    workers = choir.choir(1)
    ray.kill(choir.learner)
    with pytest.raises(Fault, match=r"learner died \("):
        choir.publish(workers, 1)


@pytest.mark.slow
def test_a_worker_that_takes_no_copy_is_named_too(choir: Choir) -> None:
    workers = choir.workers(2, {"rollout-1": {"receive": ["", "gate:never"]}})
    choir.patiently(workers.deliver, Version(0))
    choir.until_phases(workers, "idle", "idle")
    workers._weight_timeout_s = SHORT_S
    choir.patiently(workers.deliver, Version(1))
    assert choir.lost == [
        ("rollout-1", "rollout-1 did not load the weights of version 1 within 6 s (cluster.weight_timeout_s)")
    ]
    assert result(choir.board.events.remote(choir.page, "rollout-0", "has")) == [("0",), ("1",)]
