"""The pool actor: a thin asynchronous shell around ``agent.pool.query_pool.QueryPool``.

Consumes claims, outcomes and releases; ``claim`` waits until a draw is allowed, ``take`` until the
oldest batch is complete. Both are woken by every change of the pool and by the next lease's end.
The groups themselves lie in the object store: the pool holds references to them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray

from actors.calls import POLL_S
from actors.health import LONGEST_LOOK_S
from actors.payloads import is_whole
from actors.process import log_to
from actors.pulse import HEALTH, Beats, Pulse, during
from actors.reports import Released
from actors.run_state import TRAINING
from agent.errors import Fault, refused
from agent.pool import saved
from agent.pool.batches import TakenBatch
from agent.pool.query_pool import QueryPool
from agent.pool.rules.base import PoolRule
from agent.pool.search_limits import SearchLimits
from agent.records import Question
from agent.tickets import Outcome, Ticket
from learner.manifest import Files, listed, names
from tracking.dispensable import Dispensable
from tracking.draws import write_draws


@ray.remote(concurrency_groups={HEALTH: 4})  # type: ignore[call-overload]  # its stubs don't know it
class PoolActor:
    """Holds the query pool and its books of one run, and references to the groups in it."""

    def __init__(
        self,
        questions: tuple[Question, ...],
        rule: PoolRule,
        seed: int,
        log_dir: Path,
        name: str = "pool",
        limits: SearchLimits | None = None,
    ) -> None:
        log_to(log_dir, name)
        self._questions = questions
        self._make = lambda: QueryPool[ray.ObjectRef]([q.id for q in questions], rule, seed=seed, limits=limits)
        self._beats = Beats()
        self._notes: list[str] = []
        self._extras = Dispensable(self._notes.append)
        self._changed = asyncio.Condition()
        self._there = self._closed = False
        self._lost: set[str] = set()  # a dead worker's claim may still be waiting here
        self._begun: Counter[str] = Counter()  # and so may one that its worker has left
        self._before_take: dict[str, Any] = {}
        """The pool's state before the newest batch was taken."""
        self._looked = time.monotonic()
        self._frozen_s = 0.0
        """Seconds in which the machine stood still (a frozen container, say): its workers renewed nothing either."""

    @during("start")
    async def start(self, checkpoint: Path | None = None) -> None:
        """Makes the pool, as it was saved into a ``checkpoint`` if there is one.

        Raises ``UserError`` for questions that make no pool, and for a checkpoint of others.
        """
        self._pool = self._make()
        if checkpoint is not None:
            saved.restore(self._pool, checkpoint, TRAINING)
        self._there = True
        self._looking = asyncio.ensure_future(self._look())

    @ray.method(concurrency_group=HEALTH)
    async def ping(self) -> Pulse:
        """See ``actors/health.py``."""
        return self._beats.pulse()

    async def begin(self, worker: str) -> None:
        """``worker`` begins to play. What it claimed before comes back, and what it asked for then gets nothing.

        It plays none of that any more: it took the pool for dead, whose node it couldn't reach for a moment.
        """
        self._begun[worker] += 1
        self._pool.worker_lost(worker, suspect=False)
        await self._notify()

    async def claim(self, worker: str, limit: int) -> list[tuple[Ticket, Question]]:
        """One to ``limit`` tickets with their questions, once a batch may be drawn from; none once it is closed."""
        begun = self._begun[worker]
        while not self._closed and worker not in self._lost and begun == self._begun[worker]:
            tickets = self._pool.claim(worker, now=self._now(), limit=limit)
            if tickets:
                await self._notify()  # others may be waiting with no lease in sight
                return [(t, self._questions[t.query]) for t in tickets]
            await self._wait()
        return []

    async def submit(self, outcome: Outcome, group: bytes) -> bool:
        """See ``QueryPool.submit``; ``group`` is for the learner (``actors/payloads.py``).

        Raises ``Fault`` if it isn't what the worker has packed: then its claim is still held.
        """
        if not is_whole(group):
            raise Fault("a group arrived damaged at the pool")
        taken = self._pool.submit(outcome, ray.put(group))
        await self._notify()
        return taken

    async def take(self, version: int) -> TakenBatch[ray.ObjectRef]:
        """The oldest batch, once it is complete. Raises ``Fault`` if the pool is closed before."""
        while not self._pool.ready:
            if self._closed:
                raise Fault("the pool is closed, and no batch is complete")
            await self._wait()
        self._before_take = self._pool.state()
        return self._pool.take(version=version)

    async def release(
        self, batch: int | None, *, checkpoint: Path | None = None, draws: Path | None = None
    ) -> Released:
        """Ends the batch, and saves the pool into the folder of a ``checkpoint`` and its record to ``draws``.

        At the end of a run ``batch`` is None if the learner has come to the end of none that isn't released. One that
        is taken then was not trained on: it is saved as one to be taken, and played again after a resume.

        All in one call: right after it, waiting claims are served and the batches' random generators move on. What
        can't be written holds nobody up: it is in the result.
        """
        if batch is not None and self._pool.taken is not None:  # who didn't wait for an answer asks once more
            self._pool.release(batch)
        files, failed = {}, ""
        if checkpoint is not None:
            state = self._pool.state() if self._pool.taken is None else self._before_take
            try:
                files = self._save(checkpoint, state)
            except OSError as error:
                failed = refused(error)
            if draws is not None:
                self._extras.attempt(draws.name, lambda: write_draws(draws, state["log"], self._pool.ids))
        notes, self._notes[:] = tuple(self._notes), []
        await self._notify()
        return Released(files=files, failed=failed, notes=notes)

    @during("save")
    def _save(self, checkpoint: Path, state: dict[str, Any]) -> Files:
        before = names(checkpoint)
        (checkpoint / TRAINING).mkdir(exist_ok=True)
        saved.save(checkpoint / TRAINING, state)
        return listed(checkpoint, without=before)

    async def renew(self, worker: str, held: list[int], moved: list[int]) -> list[int]:
        """See ``QueryPool.renew``. Leases end here, too: nobody need be waiting for a claim or a batch."""
        now = self._now()
        gone = self._pool.renew(worker, held, moved, now=now)
        if self._pool.expire(now=now):  # the worker hears of it with its next renewal
            await self._notify()
        return gone

    async def worker_lost(self, worker: str, suspect: bool) -> tuple[int, list[Question]]:
        """Returns a dead worker's claims to the pool: how many, and which questions are quarantined for it.

        None is, unless its questions are ``suspect``.
        """
        self._lost.add(worker)
        # Ray promises no order of calls: this one may come before ``start``, and then nobody has claimed yet.
        if not self._there:
            return 0, []
        lost = self._pool.worker_lost(worker, suspect=suspect)
        await self._notify()
        return lost.returned, [self._questions[query] for query in lost.quarantined]

    async def report(self) -> dict[str, Any]:
        """Places, books and shares, for the metrics."""
        books = self._pool.books
        books.check()
        return {
            "places": self._pool.places(),
            "seen": self._pool.seen(),
            "flipped_share": self._pool.history.flipped_share,
            "late_groups": books.late_groups,
            "accounts": {
                name: {
                    "received": account.received,
                    "accepted": account.accepted,
                    "returned": dict(account.returned),
                    "in_flight": account.in_flight,
                }
                for name, account in (
                    ("groups", books.groups),
                    ("trajectories", books.trajectories),
                    ("tokens", books.tokens),
                )
            },
        }

    async def progress(self) -> tuple[int, int]:
        """Groups of the oldest open batch that have been played, and that it wants so far."""
        return self._pool.progress()

    async def close(self) -> None:
        """No more claims: workers that wait for one get none and end. Nor does a batch come that isn't complete."""
        self._closed = True
        await self._notify()

    def _now(self) -> float:
        """The time of the leases, in seconds: between two looks no more than ``LONGEST_LOOK_S`` counts."""
        now = time.monotonic()
        self._frozen_s += max(0.0, now - self._looked - LONGEST_LOOK_S)
        self._looked = now
        return now - self._frozen_s

    async def _look(self) -> None:
        while True:
            self._now()
            await asyncio.sleep(POLL_S)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self) -> None:
        """Until the pool changes or the next lease runs out."""
        deadline = self._pool.next_deadline
        timeout = None if deadline is None else max(0.0, deadline - self._now())
        try:
            async with self._changed:
                await asyncio.wait_for(self._changed.wait(), timeout)
        except TimeoutError:
            if self._pool.expire(now=self._now()):
                await self._notify()
