"""The actors of a training run, as the supervisor holds them.

retrieval, rollout workers      to the end of the run; each is replaced alone, at once
learner, pool                   together: both go on from the same checkpoint (``begin``)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.broadcast import Broadcast
from actors.calls import Died
from actors.health import Health
from actors.prepare import Prepared
from actors.record import Record
from actors.replicas import Replicas
from actors.restarts import Losses, Restarts
from actors.searching import Searching
from actors.topology import Topology, named
from actors.watch import Watch
from actors.worker_pool import WorkerPool
from agent.errors import ActorLost, Fault
from agent.records import Question
from conf.schema import RunConfig
from retrieval_service.backend import Identity


class Parts:
    """The parts of a run in ``run_dir``. What happens to them goes to ``record``; ``stopped`` says if a user stops."""

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        run_dir: Path,
        record: Record,
        watch: Watch,
        stopped: Callable[[], bool],
    ) -> None:
        self.config, self.prepared = config, prepared
        self.record = record
        self.topology = Topology(
            config, run_dir, prepared.model_path, prepared.task.corpus, config.evaluation_inference
        )
        limit, in_a_row = config.cluster.restarts_per_hour, config.cluster.losses_in_a_row
        self.health = Health(config.cluster.deadlines, self.topology.log_dir)
        self._retrieval_restarts = Restarts("the retrieval", limit)
        self.losses = Losses(in_a_row)
        in_vain = in_a_row * config.cluster.rollout_workers
        self.worker_restarts = Restarts("rollout workers", limit, in_a_row=in_vain)
        self._stopped, self._watch = stopped, watch
        self._replicas: Replicas | Any = None
        self.learner: Any = None
        self.pool: Any = None
        self.playing_for: Any = None
        """The pool that holds the claims of the workers, if there is one just now."""
        self.workers: WorkerPool | Any = None
        self._together: tuple[str, ...] = ()
        """If one of them is lost, all are."""
        self._alone = False

    def begin(self, checkpoint: Path | None) -> Any:
        """Starts learner and pool, as they were saved into ``checkpoint`` if there is one, and at first all others.

        Returns what the learner's start will give. Where learner and engine are colocated, it has given it already:
        the card is the learner's until it is up and has given back what it tried.
        """
        first, topology = self.workers is None, self.topology
        if self._replicas is None:
            topology.check_nodes()
            self.retrieval = topology.retrieval()
            self._replicas = Replicas(named(self.retrieval), self.health, self._retrieval_lost)
        if not first and self.config.cluster.colocated:
            self.workers.until_idle()  # what they played was for the pool that is gone
            self.workers.sleep()
        self.learner = topology.learner(checkpoint)
        self._together = ("learner", *topology.followers, "pool", "seeding-pool")
        for name, actor in {"learner": self.learner, **topology.followers}.items():
            self.health.watch(name, actor, _raise)
        built = self.learner.start.remote()
        self.pool = self.playing_for = topology.pool(self.prepared.task.train)
        self.health.watch("pool", self.pool, _raise)
        self._pooled = self.pool.start.remote(checkpoint)
        if self.config.cluster.colocated:
            self.health.answer(built, "learner")
        if first:
            self._start_workers()
        elif self.config.cluster.colocated:
            self.workers.wake()
        self._choose_channel(first)
        return built

    def seeding_pool(self, questions: tuple[Question, ...]) -> Any:
        """The pool of the expert seeding, which the workers then play for."""
        pool = self.playing_for = self.topology.seeding_pool(questions)
        self.health.watch("seeding-pool", pool, _raise)
        self.wait(pool.start.remote(), "seeding-pool")
        return pool

    def seeded(self) -> None:
        """The seeding is over."""
        self.health.end("seeding-pool")  # workers still hold it, and its name has to be free for another start
        self.playing_for = self.pool

    def pool_is_there(self) -> None:
        """Waits for the pool."""
        self.wait(self._pooled, "pool")

    def index_is_open(self) -> None:
        """Waits for the retrieval; what dies meanwhile is started again."""
        self._replicas.are_open(self.wait)

    def index(self) -> Identity:
        """What is searched; a retrieval that is down is waited for."""
        return self._replicas.identity(self.wait)

    def lost(self, error: Exception) -> dict[str, Fault]:
        """Which of learner and pool are gone after ``error``, if any, and why. All are to ``end`` then."""
        gone: dict[str, Fault] = {**self.health.gone(*self._together)}
        if isinstance(error, Died | ActorLost) and error.actor in self._together:
            gone = {error.actor: error, **gone}
        return gone

    def alone(self) -> None:
        """From now on learner and pool are all that is watched: the run ends, whatever becomes of the others."""
        self._alone = True
        self.health.only(*self._together)

    def end(self) -> None:
        """Ends learner and pool, whatever state they are in."""
        self.health.end(*self._together)
        self.playing_for = None
        if self.workers is not None:  # else a learner of an engine's card was lost before there was an engine
            self.workers.forget()

    def wait(self, ref: Any, actor: str, given_up: Callable[[], bool] = lambda: False) -> Any:
        """See ``WorkerPool.wait``: all others are watched meanwhile."""
        if self._alone:
            return self.health.answer(ref, actor)
        return self.workers.wait(ref, actor, given_up)

    @contextmanager
    def learners_turn(self, pool: Any = None) -> Iterator[None]:
        """The learner's work, with ``pool``'s next batch if it needs one. Colocated engines sleep meanwhile.

        take ─► engines sleep ─► the learner works ─► engines wake ─► (deliver)
        """
        if not self.config.cluster.colocated:
            yield
            return
        if pool is not None:
            self.wait(self.learner.take.remote(pool), "learner")
        self.workers.sleep()
        yield
        self.workers.wake()

    # --- inside ----------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        config, cluster = self.config, self.config.cluster
        self.workers = WorkerPool(
            lambda name: self.topology.worker(name, self.retrieval),
            self._worker_lost,
            size=cluster.rollout_workers,
            restarts=self.worker_restarts,
            health=self.health,
            log_dir=self.topology.log_dir,
            weight_timeout_s=self._weight_timeout_s,
            samples=self.topology.inference.samples,
        )
        self.workers.idle = self._watch.look
        self.searching = Searching(
            self.retrieval.values(), self.wait, self.record.say, config.retrieval.outage_s, self._stopped
        )

    def _choose_channel(self, first: bool) -> None:
        """Says how weights will travel; a broadcast needs somebody who directs it."""
        cluster = self.config.cluster
        channel, why = cluster.channel
        if channel == "nccl":
            self.workers.broadcast = Broadcast(
                self.learner,
                timeout_s=cluster.weight_timeout_s,
                hold_s=self._weight_timeout_s,
                say=self._broadcast_failed,
                log_dir=self.topology.log_dir,
            )
        if first:
            settings = "".join(f", {name}={value}" for name, value in cluster.nccl_environment.items())
            self.record.event("weight_channel", {"channel": channel, "why": why, **cluster.nccl_environment})
            self.record.say(f"weights travel through {channel}: {why}{settings}")

    @property
    def _weight_timeout_s(self) -> float:
        """Seconds for a worker to take weights, with those that it may first need to finish its groups."""
        cluster = self.config.cluster
        return cluster.weight_timeout_s + (0.0 if cluster.in_flight_updates else self.config.pool.lease_s)

    def _broadcast_failed(self, why: str) -> None:
        self.record.event("weight_channel", {"channel": "object_store", "why": why})
        self.record.say(why, "yellow")
        self.config.cluster.weight_channel = "object_store"  # a learner that comes after a loss is to know it, too

    def _worker_lost(self, name: str, cause: str, suspect: bool) -> None:
        """Returns a dead worker's claims, and says which questions are quarantined for it, if they are ``suspect``."""
        returned, quarantined = 0, []
        if self.playing_for is not None:
            returned, quarantined = self.health.answer(self.playing_for.worker_lost.remote(name, suspect), "pool")
        self.record.event("worker_lost", {"worker": name, "cause": cause, "returned_groups": returned})
        self.record.say(f"{name} is lost, {returned} groups go back, a new worker starts: {cause}", "yellow")
        for question in quarantined:
            self.record.event("quarantined", {"question": question.id, "worker": name})
            self.record.say(
                f"question {question.id} was claimed when workers died, more often than any other that {name} held "
                f"(pool.quarantine_after={self.config.pool.quarantine_after}): it is never drawn again",
                "yellow",
            )

    def _retrieval_lost(self, error: Died) -> None:
        cause = str(error)
        self.record.event("retrieval_lost", {"cause": cause})
        self._retrieval_restarts.count(cause)
        self.record.say(f"the retrieval starts again, and searches wait meanwhile: {cause}", "yellow")


def _raise(error: Died) -> None:
    raise error
