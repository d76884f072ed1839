"""The pool actor under Ray: who waits for what, what wakes them, and what a checkpoint gets of it.

A call that must wait is known to wait by the pool's own books: calls of one caller start in their order, so a
report that was asked for later tells what the claim before it has got.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from lasting import Lent, lasting
from ray_fakes import pending, result, until

from actors import pool as pool_module
from actors.calls import get
from actors.payloads import fetched, packed
from actors.pool import PoolActor
from actors.reports import Released
from agent.errors import Fault, Unusable, UserError
from agent.groups import Group
from agent.pool import saved
from agent.pool.history import QueryHistory
from agent.pool.query_pool import QueryPool
from agent.pool.rules.base import AT_ONCE
from agent.pool.rules.epoch import Rule as Epoch
from agent.pool.rules.recycle import Rule as Recycle
from agent.records import Question, Score, ScoredTrajectory, StopReason, Trajectory, Turn
from agent.tickets import Ticket
from tracking.draws import read_draws

QUESTIONS = tuple(Question(id=f"q{i}", text=f"question {i}?", golden_answers=("yes",)) for i in range(6))

Start = Callable[..., Any]


@pytest.fixture(scope="module")
def pools(local_ray: None) -> Iterator[Lent]:
    pools = Lent(lasting(PoolActor.__ray_metadata__.modified_class))  # type: ignore[attr-defined]
    yield pools
    pools.end()


@pytest.fixture
def start(pools: Lent, tmp_path: Path) -> Iterator[Start]:
    """Starts a pool actor over ``QUESTIONS``; keyword arguments are the actor's."""

    def make(
        rule: Any,
        questions: Sequence[Question] = QUESTIONS,
        *,
        begin: bool = True,
        checkpoint: Path | None = None,
        **settings: Any,
    ) -> Any:
        pool = pools.take(tuple(questions), rule, 7, tmp_path / "logs", **settings)
        if begin:
            result(pool.start.remote(checkpoint))
        return pool

    yield make
    pools.give_back()


def played(ticket: Ticket, rewards: Sequence[float] = (0.0, 1.0), *, version: int = 0, faults: int = 0) -> Group:
    """The group of a ticket: a member of three tokens per reward, and ``faults`` that a fault excluded."""
    question = QUESTIONS[ticket.query]

    def trajectory(stop: StopReason) -> Trajectory:
        return Trajectory(
            question_id=question.id,
            prompt_ids=[0],
            token_ids=[1] * 3,
            action_mask=[True] * 3,
            logprobs=[-1.0] * 3,
            versions=[version] * 3,
            turns=(Turn(action_start=0, action_end=3, observation_end=3, text="a", answer="a"),),
            stop_reason=stop,
            fault="it broke" if stop.is_fault else "",
        )

    return Group(
        question=question,
        ticket=ticket,
        members=tuple(
            ScoredTrajectory(
                trajectory=trajectory(StopReason.ANSWERED), score=Score(reward=r, outcome=r, evidence=None)
            )
            for r in rewards
        ),
        excluded=tuple(trajectory(StopReason.GENERATION_FAILED) for _ in range(faults)),
        worker="w",
    )


def claim(pool: Any, worker: str = "w", limit: int = 8) -> list[Ticket]:
    """Tickets that are there at once; their questions are those of the pool."""
    claimed = result(pool.claim.remote(worker, limit))
    assert all(QUESTIONS[ticket.query] == question for ticket, question in claimed)
    return [ticket for ticket, _ in claimed]


def submitted(pool: Any, group: Group) -> bool:
    return result(pool.submit.remote(group.outcome(), packed(group)))


def claimed(pool: Any) -> int:
    return result(pool.report.remote())["places"]["claimed"]


def test_a_claim_waits_until_the_batch_before_it_is_released(start: Start) -> None:
    pool = start(Epoch(batch_questions=2, group_size=2, max_staleness=0))
    tickets = claim(pool)
    assert [t.batch for t in tickets] == [0, 0]
    waiting = pool.claim.remote("w", 8)
    for ticket in tickets:
        assert claimed(pool) == 2 - ticket.order
        assert submitted(pool, played(ticket))
    assert claimed(pool) == 0
    batch = result(pool.take.remote(0))
    assert batch.index == 0
    assert claimed(pool) == 0
    assert pending(waiting)
    assert result(pool.release.remote(0)) == Released(files={})
    assert [t.batch for t, _ in result(waiting)] == [1, 1]
    assert claimed(pool) == 2


@pytest.mark.slow
def test_with_staleness_one_more_batch_may_be_drawn(start: Start) -> None:
    pool = start(Epoch(batch_questions=2, group_size=2, max_staleness=1))
    tickets = claim(pool)
    assert [t.batch for t in tickets] == [0, 0, 1, 1]
    waiting = pool.claim.remote("w", 8)
    assert claimed(pool) == 4
    for ticket in tickets[:2]:
        submitted(pool, played(ticket))
    result(pool.take.remote(0))
    assert claimed(pool) == 2
    result(pool.release.remote(0))
    assert [t.batch for t, _ in result(waiting)] == [2, 2]


def test_take_waits_until_the_oldest_batch_is_complete(start: Start) -> None:
    pool = start(Recycle(batch_questions=3, group_size=2, max_staleness=1))
    taking = pool.take.remote(0)
    first, second, third, *next_batch = claim(pool)
    for ticket in (third, *next_batch, first):
        submitted(pool, played(ticket))
        assert result(pool.report.remote())["places"]["accepted"] == 0
    assert pending(taking)
    submitted(pool, played(second, (1.0, 1.0)))
    batch = result(taking)
    assert (batch.index, [p.outcome.ticket.order for p in batch.played]) == (0, [0, 1, 2])
    assert [a.outcome.ticket.order for a in batch.accepted] == [0, 2]
    report = result(pool.report.remote())
    assert report["places"]["accepted"] == 2
    assert report["accounts"]["groups"] == {
        "received": 6,
        "accepted": 2,
        "returned": {"zero_variance": 1},
        "in_flight": 3,
    }


@pytest.mark.slow
def test_a_group_that_comes_back_wakes_a_waiting_claim(start: Start) -> None:
    pool = start(Epoch(batch_questions=2, group_size=2))
    first, second = claim(pool, "w0")
    waiting = pool.claim.remote("w1", 8)
    assert claimed(pool) == 2
    submitted(pool, played(first, (1.0,), faults=1))
    ((again, _),) = result(waiting)
    assert (again.batch, again.order) == (0, 2)
    for ticket in (second, again):
        assert submitted(pool, played(ticket))
    batch = result(pool.take.remote(0))
    assert dict(batch.returned) == {"too_few_viable": 1}
    assert len(batch.accepted) == 2


def test_a_worker_that_is_lost_before_the_pool_is_made_has_claimed_nothing_and_gets_nothing(start: Start) -> None:
    """Ray may run the two calls in either order, as where both processes are killed for want of memory."""
    pool = start(Epoch(batch_questions=2, group_size=2), begin=False)
    assert result(pool.worker_lost.remote("w0", True)) == (0, [])
    result(pool.start.remote())
    assert result(pool.claim.remote("w0", 8)) == []
    assert claim(pool, "w1")


def test_a_lost_workers_claims_return_and_its_waiting_claim_ends(start: Start) -> None:
    pool = start(Epoch(batch_questions=2, group_size=2))
    lost = claim(pool, "w0")
    waiting_dead, waiting_alive = pool.claim.remote("w0", 8), pool.claim.remote("w1", 8)
    assert claimed(pool) == 2
    assert result(pool.worker_lost.remote("w0", True)) == (2, [])
    assert result(waiting_dead) == []
    tickets = [t for t, _ in result(waiting_alive)]
    assert len(tickets) == 2
    assert {t.claim_id for t in tickets}.isdisjoint(t.claim_id for t in lost)
    assert result(pool.claim.remote("w0", 8)) == []
    assert submitted(pool, played(lost[0])) is False
    assert result(pool.report.remote())["late_groups"] == 1
    for ticket in tickets:
        assert submitted(pool, played(ticket))
    batch = result(pool.take.remote(0))
    assert dict(batch.returned) == {"worker_lost": 2}
    assert [a.outcome.ticket for a in batch.accepted] == tickets


def test_the_question_that_two_workers_died_of_is_named(start: Start) -> None:
    pool = start(Epoch(batch_questions=1, group_size=2), QUESTIONS[:1])
    claim(pool, "w0")
    assert result(pool.worker_lost.remote("w0", True)) == (1, [])
    claim(pool, "w1")
    assert result(pool.worker_lost.remote("w1", True)) == (1, [QUESTIONS[0]])
    report = result(pool.report.remote())
    assert report["places"]["quarantined"] == 1
    assert report["accounts"]["groups"]["returned"] == {"worker_lost": 1, "quarantined": 1}


def test_a_pool_that_is_closed_gives_no_batch_that_is_not_complete_and_can_be_saved(
    start: Start, tmp_path: Path
) -> None:
    """At the end of a run: whoever waits for a batch is free, and one that was taken, and that nothing was made from,
    is played again after a resume."""
    rule = Epoch(batch_questions=2, group_size=2)
    pool = start(rule)
    for batch in range(2):
        tickets = claim(pool, "w0")
        for ticket in tickets:
            assert submitted(pool, played(ticket, version=batch))
        assert len(result(pool.take.remote(batch)).accepted) == 2
        if batch == 0:
            for _ in range(2):  # the answer to the first call was not waited for
                result(pool.release.remote(0))
    taking = pool.take.remote(1)
    result(pool.report.remote())
    assert pending(taking)
    result(pool.close.remote())
    with pytest.raises(Fault, match=r"^pool: the pool is closed, and no batch is complete$"):
        get(taking, "pool", tmp_path)
    for name in ("taken", "again"):
        (tmp_path / name).mkdir()
        done = result(pool.release.remote(None, checkpoint=tmp_path / name, draws=tmp_path / "draws.parquet"))
        assert done.failed == ""
        assert saved.load(tmp_path / name / "training")["released"] == 1
        assert len(read_draws(tmp_path / "draws.parquet")) == 2, "the record has what was trained on"
    resumed = start(rule, checkpoint=tmp_path / "taken")
    assert result(resumed.report.remote())["accounts"]["groups"]["accepted"] == 2
    assert [(t.batch, t.query, t.seed) for t in claim(resumed)] == [(t.batch, t.query, t.seed) for t in tickets]


class Own(Recycle):
    """A rule of the user's own: nothing is consumed."""

    def rest(self, verdict: str, history: QueryHistory, query: int) -> int:
        return AT_ONCE


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("method", ["select", "rest", "weights"])
def test_a_batch_in_which_a_rule_broke_is_played_again_after_a_resume(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is saved as it ends. Without that batch the pool would open no other, and who goes on waits for ever."""
    monkeypatch.setattr(pool_module, "log_to", lambda *_: None)

    def made() -> Any:
        rule = Own(batch_questions=2, group_size=2)
        return PoolActor.__ray_metadata__.modified_class(QUESTIONS, rule, 7, tmp_path)  # type: ignore[attr-defined]

    def fails(*_: object) -> None:
        raise KeyError("x")

    async def batch(pool: Any, version: int) -> list[tuple[int, int, int]]:
        tickets = [ticket for ticket, _ in await asyncio.wait_for(pool.claim("w", 8), 20)]
        for ticket, rewards in zip(tickets, ((0.0, 1.0), (1.0, 1.0)), strict=True):
            group = played(ticket, rewards, version=version)
            await pool.submit(group.outcome(), packed(group))
        return [(ticket.batch, ticket.query, ticket.seed) for ticket in tickets]

    async def scenario() -> None:
        pool = made()
        await pool.start()
        await batch(pool, 0)
        await pool.take(0)
        await pool.release(0)
        drawn = await batch(pool, 1)
        with monkeypatch.context() as broken:
            broken.setattr(Own, method, fails)
            with pytest.raises(KeyError):
                await pool.take(1)
            await pool.close()
            assert (await pool.release(None, checkpoint=tmp_path)).failed == ""
        resumed = made()
        await resumed.start(tmp_path)
        assert await batch(resumed, 1) == drawn
        assert len((await resumed.take(1)).accepted) == 1

    asyncio.run(scenario())


@pytest.mark.slow
def test_the_end_of_a_lease_wakes_a_waiting_claim(start: Start) -> None:
    pool = start(Epoch(batch_questions=2, group_size=2, lease_s=0.5))
    silent = claim(pool, "w0")
    tickets = claim(pool, "w1")
    assert [t.order for t in tickets] == [2, 3]
    assert {t.query for t in tickets} <= set(range(6))
    assert submitted(pool, played(silent[0])) is False
    assert result(pool.report.remote())["accounts"]["groups"]["returned"] == {"lease_expired": 2}


@pytest.mark.slow
def test_the_end_of_a_lease_is_seen_by_a_take_that_came_before_the_claim(start: Start) -> None:
    pool = start(Epoch(batch_questions=1, group_size=2, lease_s=0.3))
    taking = pool.take.remote(0)
    for expired in (1, 2):  # a batch draws again as often as it has candidates
        assert len(claim(pool)) == 1
        until(
            lambda expired=expired: (
                result(pool.report.remote())["accounts"]["groups"]["returned"] == {"lease_expired": expired}
            )
        )
    batch = result(taking)
    assert (dict(batch.returned), batch.accepted, batch.played) == ({"lease_expired": 2}, (), ())


def test_a_lease_ends_and_its_holder_is_told_though_nobody_waits(start: Start) -> None:
    """As in the last groups of a run: no claim and no take is there any more to see it."""
    pool = start(Epoch(batch_questions=1, group_size=2, lease_s=0.3))
    (hangs,) = (ticket.claim_id for ticket in claim(pool))
    result(pool.close.remote())
    until(lambda: result(pool.renew.remote("w", [hangs], [])) == [hangs])
    assert result(pool.report.remote())["accounts"]["groups"]["returned"] == {"lease_expired": 1}


@pytest.mark.slow
def test_what_a_worker_held_before_it_was_cut_off_comes_back_when_it_begins_anew(start: Start) -> None:
    pool = start(Epoch(batch_questions=2, group_size=2))
    result(pool.begin.remote("w"))
    before = claim(pool)
    waiting = pool.claim.remote("w", 8)
    assert claimed(pool) == 2
    result(pool.begin.remote("w"))
    assert result(waiting) == [], "nobody would play what it got"
    assert result(pool.report.remote())["accounts"]["groups"]["returned"] == {"worker_lost": 2}
    assert len(claim(pool)) == 2
    assert submitted(pool, played(before[0])) is False


def test_leases_do_not_run_while_the_machine_is_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their workers can renew nothing meanwhile."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pool_module, "log_to", lambda *_: None)
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(monotonic=lambda: clock.now))

    async def scenario() -> None:
        rule = Epoch(batch_questions=2, group_size=2, lease_s=10.0)
        pool: Any = PoolActor.__ray_metadata__.modified_class(QUESTIONS, rule, 7, tmp_path)  # type: ignore[attr-defined]
        await pool.start()
        assert len(await pool.claim("w", 8)) == 2
        clock.now += 3600.0
        assert pool._pool.expire(now=pool._now()) == 0
        expired = []
        for _ in range(6):
            clock.now += 1.0
            expired.append(pool._pool.expire(now=pool._now()))
        assert expired == [0, 0, 0, 0, 2, 0], "after 5 s of the hour and 5 more"

    asyncio.run(scenario())


@pytest.mark.slow
def test_close_ends_claims_and_what_was_claimed_makes_its_batch(start: Start) -> None:
    pool = start(Epoch(batch_questions=1, group_size=2))
    (ticket,) = claim(pool)
    waiting = [pool.claim.remote(w, 8) for w in ("w0", "w1")]
    assert claimed(pool) == 1
    result(pool.close.remote())
    assert [result(w) for w in waiting] == [[], []]
    assert result(pool.claim.remote("w2", 8)) == []
    assert submitted(pool, played(ticket))
    assert len(result(pool.take.remote(0)).accepted) == 1


def equal_states(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[k], b[k]) if isinstance(a[k], np.ndarray) else a[k] == b[k] for k in a
    )


def test_a_checkpoint_has_the_pools_state_at_the_release(start: Start, tmp_path: Path) -> None:
    rule = Recycle(batch_questions=3, group_size=2, when_dry="reset")
    pool, twin = start(rule), QueryPool([q.id for q in QUESTIONS], rule, seed=7)
    rewards = ((0.0, 1.0), (1.0, 1.0), (1.0, 0.0))
    waiting = pool.claim.remote("w", 8)
    for step in range(4):
        tickets = [t for t, _ in result(waiting)]
        assert tickets == twin.claim("w", now=0.0, limit=8)
        waiting = pool.claim.remote("w", 8)
        for ticket, reward in zip(tickets, rewards, strict=True):
            submitted(pool, played(ticket, reward, version=step))
            twin.submit(played(ticket, reward, version=step).outcome(), None)
        result(pool.take.remote(step))
        twin.take(version=step)
        assert claimed(pool) == 0
        draws = tmp_path / "draws.parquet"
        result(pool.release.remote(step, checkpoint=tmp_path, draws=draws))
        twin.release(step)
        state = saved.load(tmp_path / "training")
        assert equal_states(state, twin.state()), f"after step {step}"
        assert len(read_draws(draws)) == 3 * (step + 1)
    assert state["released"] == 4

    # What was waiting has gone on at once; a pool made from the checkpoint draws the same.
    resumed = start(rule, checkpoint=tmp_path)
    assert claim(resumed) == [t for t, _ in result(waiting)]


@pytest.mark.slow
def test_what_cannot_be_written_holds_nobody_up(start: Start, tmp_path: Path) -> None:
    """As on a full disk: the batch is released all the same, and the next one is served."""
    pool = start(Epoch(batch_questions=2, group_size=2))
    blocked = tmp_path / "checkpoint"
    blocked.mkdir()
    (blocked / "training").write_text("a file, where a folder has to be")
    waiting = pool.claim.remote("w", 8)
    for step in range(3):
        tickets = [ticket for ticket, _ in result(waiting)]
        assert len(tickets) == 2
        for ticket in tickets:
            submitted(pool, played(ticket, version=step))
        waiting = pool.claim.remote("w", 8)
        result(pool.take.remote(step))
        draws = tmp_path / "no such folder" / "draws.parquet"
        released = result(pool.release.remote(step, checkpoint=blocked, draws=draws))
        assert released.files == {}
        assert "training: File exists" in released.failed
        assert len(released.notes) == (step == 0)
        for note in released.notes:
            assert note.startswith("draws.parquet failed and is off for the rest of this run, which goes on: ")


@pytest.mark.slow
def test_the_groups_themselves_come_to_whoever_takes_the_batch(start: Start) -> None:
    pool = start(Epoch(batch_questions=2, group_size=2))
    sent = [played(ticket) for ticket in claim(pool)]
    for group in sent:
        assert submitted(pool, group)
    batch = fetched(result(pool.take.remote(0)))
    assert [pickle.dumps(group) for group in batch.payloads] == [pickle.dumps(group) for group in sent]
    assert [a.payload for a in batch.accepted] == list(batch.payloads), "each was fetched once"


@pytest.mark.slow
def test_a_group_that_arrives_damaged_is_refused_and_its_claim_goes_back_with_the_worker(start: Start) -> None:
    pool = start(Epoch(batch_questions=1, group_size=2))
    (ticket,) = claim(pool)
    group = played(ticket)
    content = bytearray(packed(group))
    content[-3] ^= 1
    for damaged in (bytes(content), packed(group)[:-1], b"", None):
        with pytest.raises(Fault, match=r"a group arrived damaged at the pool$"):
            result(pool.submit.remote(group.outcome(), damaged))
    assert claimed(pool) == 1
    assert result(pool.worker_lost.remote("w", True)) == (1, [])
    (again,) = claim(pool, "x")
    assert submitted(pool, played(again))
    report = result(pool.report.remote())  # which balances the books
    assert report["accounts"]["groups"]["returned"] == {"worker_lost": 1}
    assert result(pool.take.remote(0)).index == 0


@pytest.mark.slow
def test_a_batch_that_is_none_is_the_pools_fault(start: Start) -> None:
    with pytest.raises(
        Unusable, match=r"^what the pool gave can't be used: instead of a batch it is of type NoneType$"
    ):
        fetched(None)  # type: ignore[arg-type]
    pool = start(Epoch(batch_questions=1, group_size=2))
    (ticket,) = claim(pool)
    submitted(pool, played(ticket))
    batch = result(pool.take.remote(0)).unpacked(lambda reference: ray.put(ray.get(reference)[:-1]))
    with pytest.raises(Unusable, match=r"^what the pool gave can't be used: a group of batch 0 is damaged$"):
        fetched(batch)


@pytest.mark.slow
def test_a_group_outlives_the_worker_that_has_sent_it(start: Start) -> None:
    pool = start(Epoch(batch_questions=1, group_size=2))
    (ticket,) = claim(pool)
    sent = played(ticket)

    @ray.remote(num_cpus=0)
    class Worker:
        def send(self) -> bool:
            return submitted(pool, sent)

    worker = Worker.remote()  # type: ignore[attr-defined]
    assert result(worker.send.remote())
    ray.kill(worker)
    (group,) = fetched(result(pool.take.remote(0))).payloads
    assert pickle.dumps(group) == pickle.dumps(sent)


@pytest.mark.slow
def test_bad_questions_are_the_users_mistake(start: Start, tmp_path: Path) -> None:
    pool = start(Epoch(), [QUESTIONS[0], QUESTIONS[0]], begin=False)
    with pytest.raises(UserError, match=r"^question id q0 occurs more than once in the training data$"):
        get(pool.start.remote(), "pool", tmp_path / "logs")


@pytest.mark.slow
def test_a_checkpoint_of_other_questions_is_the_users_mistake(start: Start, tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    saved.save(tmp_path / "training", QueryPool([q.id for q in QUESTIONS[:2]], Epoch(), seed=7).state())
    pool = start(Epoch(), begin=False)
    with pytest.raises(UserError, match="resume with the same data"):
        get(pool.start.remote(tmp_path), "pool", tmp_path / "logs")


@pytest.mark.slow
def test_a_checkpoint_without_a_pool_is_the_users_mistake(start: Start, tmp_path: Path) -> None:
    pool = start(Epoch(), begin=False)
    with pytest.raises(UserError, match=r"the pool can't be read \(.*pool\.json"):
        get(pool.start.remote(tmp_path), "pool", tmp_path / "logs")


def test_batches_without_signal_end_the_run_with_a_picture_of_the_pool(start: Start, tmp_path: Path) -> None:
    pool = start(Recycle(batch_questions=2, group_size=2, max_empty_batches=2))
    for step in range(2):
        for ticket in claim(pool):
            submitted(pool, played(ticket, (0.0, 0.0), version=step))
        taking = pool.take.remote(step)
        if step == 0:
            assert result(taking).accepted == ()
            result(pool.release.remote(0))
    with pytest.raises(Fault, match=r"^pool: .*the pool of 6 questions has \d too hard"):
        get(taking, "pool", tmp_path / "logs")
