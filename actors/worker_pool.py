"""The worker pool: starts a run's rollout workers, supplies them with weights, replaces dead ones.

A worker is *starting* (the engine comes up), *empty* until a version has been published, *loading* the
newest one, *idle*, and *serving* while its ``run`` call is under way. A worker that dies in any phase is replaced by
one with a new name, so that it can't be confused with claims of the old one; so is one that hangs (``health.py``).

Replacing helps where the next worker may do better: a process was killed, an engine broke once. Where a new worker
would only raise the same error, the run ends with its cause instead (``actors/repeats.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray

from actors.broadcast import Broadcast
from actors.calls import POLL_S, Died, Hangs, get
from actors.health import Health
from actors.repeats import Repeats, hopeless
from actors.replay import CHUNK, ROOM, Share, Shares, are_rows
from actors.restarts import Restarts
from actors.weights import Published
from agent.config import GroupConfig
from agent.errors import Fault, Final, Unusable
from agent.inference.evaluation import EvalRow
from agent.inference.infer import Inferred
from agent.records import Question

_CALLS = {"starting": "start", "loading": "receive", "serving": "run"}
"""What a phase waits for."""
CANCELLED_S = 10.0
"""How long episodes may take to notice that nobody wants them."""


@dataclass
class _Worker:
    name: str
    actor: Any
    phase: Literal["starting", "empty", "loading", "idle", "serving"]
    task: Any
    """What the phase waits for; None when empty or idle."""
    job: Any = None
    """What it plays, or played last."""
    wanted: bool = True
    """What it loads is still what it needs."""
    stranded: bool = False
    """It was left without weights or without a pool, since another actor is gone, and tries again."""
    died: str = ""
    """What is known of its end."""


class WorkerPool:
    """All rollout workers of one run, seen from the supervisor.

    ``make`` creates a worker's actor by name, ``lost`` is told a dead worker's name, its cause, and whether the
    questions that it held may be that, and ``restarts`` counts them. ``wait`` watches the workers while it waits for
    another call. A worker that doesn't load new weights within ``weight_timeout_s`` is replaced like one that died. In
    an evaluation they play ``samples`` episodes of each question.
    """

    def __init__(
        self,
        make: Callable[[str], Any],
        lost: Callable[[str, str, bool], None],
        *,
        size: int,
        restarts: Restarts,
        health: Health,
        log_dir: Path,
        weight_timeout_s: float,
        samples: int = 1,
    ) -> None:
        self.broadcast: Broadcast | None = None
        """How a version that is published by broadcast reaches the workers that are live."""
        self._weight_timeout_s = weight_timeout_s
        self._samples = samples
        self._make = make
        self._lost = lost
        self._restarts = restarts
        self._health = health
        self._log_dir = log_dir
        self._started = 0
        self._published: Published | None = None
        self._job: tuple[Any, GroupConfig] | None = None
        self._workers: list[_Worker] = []
        self.idle: Callable[[], None] = lambda: None
        """Called about once a second while this waits for anything."""
        self._asleep = False
        self._looked = time.monotonic()
        self._repeats = Repeats()
        self._owed = 0
        """Workers that died while the engines slept. The card has room for new ones only when the engines are awake."""
        for _ in range(size):
            self._add()

    @property
    def restarts(self) -> int:
        """Workers that were replaced so far."""
        return self._restarts.total

    @property
    def live(self) -> list[_Worker]:
        """Workers that hold the newest version that was delivered while they were up."""
        return [w for w in self._workers if w.phase in ("idle", "serving")]

    def deliver(self, published: Published) -> float:
        """Gives a version to every live worker and waits until all of them hold it; seconds that took.

        Workers that are still starting get it when they are up, before they serve anything. Waits for
        at least one worker to be live.
        """
        started = time.perf_counter()
        self._published = published
        for worker in self._workers:
            if worker.phase == "empty":
                self._load(worker)
        without = self._broadcast(published) if published.channel == "nccl" else self.live
        pending = {w.actor.receive.remote(published): w for w in without}
        deadline = time.monotonic() + self._weight_timeout_s
        while pending or not self.live:
            done = self._next([*pending])
            if done is None:
                if time.monotonic() > deadline:  # looked at last: what is there already counts
                    for worker in pending.values():
                        self._replace(
                            worker,
                            f"{worker.name} did not load the weights of version {published.version} within "
                            f"{self._weight_timeout_s:g} s (cluster.weight_timeout_s)",
                            suspect=False,
                        )
                    pending.clear()
                continue
            worker = pending.pop(done)
            if self._result(done, worker, "receive") is None and worker in self._workers:  # nobody has the weights
                self._next([])  # in the meantime it is seen why
                pending[worker.actor.receive.remote(published)] = worker
        return time.perf_counter() - started

    def _broadcast(self, published: Published) -> list[_Worker]:
        """Broadcasts to the live workers; those that still need the version."""
        assert self.broadcast is not None, "a version was published for a broadcast, and none is set up"
        workers = {w.name: w for w in self.live}
        if not workers:
            return []
        outcome = self.broadcast.deliver(published, {name: w.actor for name, w in workers.items()})
        for name, cause in outcome.lost.items():
            self._replace(workers[name], cause, suspect=False)
        for name, cause in outcome.bystanders.items():
            self._replace(workers[name], cause, counted=False, suspect=False)
        gone = {*outcome.holding, *outcome.lost, *outcome.bystanders}
        return [w for name, w in workers.items() if name not in gone]

    def serve(self, pool: Any, group: GroupConfig) -> None:
        """From now on, every worker plays groups for ``pool`` by the strategy of ``group``."""
        self._job = pool, group
        for worker in self._workers:
            if worker.phase == "idle":
                self._run(worker)

    def forget(self) -> None:
        """What was published and what is played is void: learner and pool are gone. Others will come."""
        self._published = self._job = None
        self.broadcast = None
        for worker in self._workers:
            worker.wanted = False

    def until_idle(self) -> None:
        """Waits until all workers are idle, so that they may serve another query pool; theirs has to be closed."""
        self._job = None
        while any(w.phase == "serving" for w in self._workers):
            self._next([])

    def sleep(self) -> None:
        """Puts every engine to sleep, so that the learner has the card; waits for engines that are still starting.

        Nothing happens if they sleep already.
        """
        if self._asleep:
            return
        while any(w.phase in ("starting", "loading") for w in self._workers):
            self._next([])
        self._asleep = True
        self._all("sleep")

    def wake(self) -> None:
        """Wakes every engine, with the weights it had, and replaces the workers that were lost meanwhile."""
        self._asleep = False
        self._all("wake")
        for _ in range(self._owed):
            self._add()
        self._owed = 0

    def evaluate(
        self,
        questions: Sequence[Question],
        played: Callable[[int, int], None] | None = None,
        *,
        step: int | None = None,
        chunk: int = CHUNK,
        keep: Callable[[list[EvalRow]], None] = lambda rows: None,
    ) -> list[EvalRow]:
        """The rows of the questions, in order; a dead worker's share is played by another.

        A question that costs worker after worker is given up (``Shares``): its episodes are faults. ``played`` is told
        how many questions of how many are done, and ``keep`` is given the rows of each ``chunk`` of them as it ends.
        The workers log the episodes as those of ``step``, if there is one. Raises ``Fault`` when a worker breaks before
        any episode has had an end of its own: the next would, too.
        """
        shares = Shares(questions, chunk, self._samples)
        pending: dict[Any, tuple[_Worker, Share]] = {}
        try:
            while shares.todo or pending:
                load = {w.name: sum(share.room for by, share in pending.values() if by is w) for w in self.live}
                free = [w for w in self.live if shares.todo and load[w.name] + shares.todo[0].room <= ROOM]
                if free:
                    worker = min(free, key=lambda w: load[w.name])
                    share = shares.todo.pop(0)
                    pending[worker.actor.evaluate.remote(share.questions, step)] = (worker, share)
                    continue
                done = self._next([*pending])
                if done is None:
                    continue
                worker, share = pending.pop(done)
                rows = self._result(done, worker, "evaluate", final=shares.hopeless)
                if worker in self._workers and not are_rows(rows, share.questions):
                    self._replace(
                        worker, f"{worker.name} answered {len(share.questions)} questions with something else"
                    )
                if worker in self._workers:
                    shares.played(share, rows)
                elif (rows := shares.lose(share)) is None:
                    continue
                keep(rows)
                if played is not None:
                    played(shares.finished, len(questions))
        finally:  # whoever leaves an evaluation needs no more of it, and may put the engines to sleep next
            for ref in pending:
                ray.cancel(ref)
            if pending:
                ray.wait([*pending], num_returns=len(pending), timeout=CANCELLED_S)
        return shares.rows

    def ask(self, question: Question) -> tuple[Inferred, list[str]]:
        """One greedy episode by any live worker, and the text of each turn's observation."""
        worker = self.live[0]
        return self.wait(worker.actor.ask.remote(question), worker.name)

    def wait(self, ref: Any, actor: str, given_up: Callable[[], bool] = lambda: False) -> Any:
        """The result of ``ref``, a call of ``actor``, while dead workers are replaced; None once nobody wants it any
        more (``given_up``). Raises its error."""
        while self._next([ref]) is None:
            if given_up():
                return None
        return get(ref, actor, self._log_dir)

    def dismiss(self, timeout_s: float = 30.0) -> None:
        """Waits until the workers' ``run`` calls have ended (the pool is closed), at most ``timeout_s``."""
        runs = [w.task for w in self._workers if w.phase == "serving"]
        if runs:
            ray.wait(runs, num_returns=len(runs), timeout=timeout_s)

    # --- inside ----------------------------------------------------------------------------------

    def _all(self, call: str) -> None:
        """Calls a method without arguments of every worker, and waits for all of them."""
        pending = {getattr(w.actor, call).remote(): w for w in self._workers}
        while pending:
            done = self._next([*pending])
            if done is not None:
                self._result(done, pending.pop(done), call)

    def _add(self) -> None:
        name = f"rollout-{self._started}"
        self._started += 1
        actor = self._make(name)
        worker = _Worker(name, actor, "starting", actor.start.remote())
        self._workers.append(worker)
        self._health.watch(name, actor, lambda error: self._seen(worker, error))

    def _look(self) -> None:
        """Once a second: who hangs or is dead is replaced, and who was left alone tries again."""
        if time.monotonic() - self._looked < POLL_S:
            return
        self._looked = time.monotonic()
        dead = [w for w in self._workers if w.died]  # in no call, or that would have ended since
        self._health.look()
        for worker in dead:
            self._replace(worker, worker.died)
        self._try_again()

    def _seen(self, worker: _Worker, error: Died) -> None:
        """A worker is dead. Unless it hung, a call that it was in says so, too, and may know more."""
        if isinstance(error, Hangs):
            self._replace(worker, str(error))
        else:
            worker.died = str(error)

    def _next(self, refs: list[Any]) -> Any:
        """The first of ``refs`` that is done, or None after a worker's phase ended or a while passed."""
        self._look()
        phases = {w.task: w for w in self._workers if w.task is not None}
        done, _ = ray.wait([*refs, *phases], num_returns=1, timeout=POLL_S)
        if not done:
            self.idle()
            return None
        if done[0] in phases:
            self._phase_ended(phases[done[0]])
            return None
        return done[0]

    def _phase_ended(self, worker: _Worker) -> None:
        result = self._result(worker.task, worker, _CALLS[worker.phase])
        if worker not in self._workers:
            return
        if worker.phase == "serving":  # the pool is closed and all that was claimed is played; or it is gone
            other = self._job is not worker.job
            worker.phase, worker.task, worker.stranded = "idle", None, other or result is None
            if other:
                self._try_again()
        elif result is None or self._published is None:
            worker.phase, worker.task, worker.stranded = "empty", None, self._published is not None
        elif worker.phase == "starting" or not worker.wanted or result < self._published.version:
            self._load(worker)
        elif self._job is not None:
            self._run(worker)
        else:  # nothing to play yet
            worker.phase, worker.task = "idle", None

    def _try_again(self) -> None:
        """Gives the workers that another actor has left alone what there is for them now."""
        for worker in self._workers:
            if worker.stranded and worker.phase == "empty" and self._published is not None:
                self._load(worker)
            elif worker.stranded and worker.phase == "idle" and self._job is not None:
                self._run(worker)

    def _load(self, worker: _Worker) -> None:
        worker.wanted, worker.stranded = True, False
        worker.phase, worker.task = "loading", worker.actor.receive.remote(self._published)

    def _run(self, worker: _Worker) -> None:
        assert self._job is not None
        worker.job, worker.stranded = self._job, False
        worker.phase, worker.task = "serving", worker.actor.run.remote(*self._job)

    def _result(self, ref: Any, worker: _Worker, call: str, *, final: bool = False) -> Any:
        """The result of a worker's ``call``; None if the worker is lost, which replaces it, or was left alone.

        An error in its input is the user's and ends the run, unless another has started with the same; ``Final`` does,
        a fault that would only repeat itself, or with ``final`` any that was raised. Anything else costs one worker.
        """
        if worker not in self._workers:
            return None
        try:
            mistakes = call != "start" or not self._repeats.has_started
            result = get(ref, worker.name, self._log_dir, mistakes=mistakes)
        except Final:
            raise
        except Fault as error:
            if isinstance(error, Unusable) and self._is_void(worker, ref):  # who gave that is gone already
                return None
            # A group that breaks says nothing of the next one: others may have been played for hours in between.
            again = call != "run" and self._repeats.would(call, error)
            if isinstance(error, Unusable) and (again or call == "run"):  # it isn't the workers that fail
                raise  # and again with each look, until all of that is void
            if again or (call != "run" and final and not isinstance(error, Died)):
                raise hopeless(worker.name, error, self._log_dir) from error
            self._replace(worker, str(error))
            return None
        self._repeats.went_well(call)
        return result

    def _is_void(self, worker: _Worker, ref: Any) -> bool:
        """Whether the ``task`` of a worker, if ``ref`` is that, began before a ``forget``."""
        serving = worker.phase == "serving"
        return bool(worker.task == ref) and (worker.job is not self._job if serving else not worker.wanted)

    def _replace(self, worker: _Worker, cause: str, *, counted: bool = True, suspect: bool = True) -> None:
        """Starts another in its place; if ``counted``, as one of the restarts that an hour may have. Once.

        The questions that it held are ``suspect`` unless the weights were what it broke with.
        """
        if worker not in self._workers:  # it was found hanging while the pool was told of another
            return
        at_work = bool(self.live)
        self._workers.remove(worker)
        self._health.forget(worker.name)
        ray.kill(worker.actor)
        if self._asleep:
            self._owed += 1
        else:
            self._add()
        self._lost(worker.name, cause, suspect)
        if counted:
            self._restarts.count(cause, at_work=at_work)
