"""The learner actor: takes a batch from the pool, updates the policy, publishes the next version.

Each step consumes one batch; it waits for a batch in ``take``, and for NCCL in a broadcast. What it publishes
reaches the workers through the supervisor, which releases the batch when they hold it. With several learners this is
rank 0 of them, and the others mirror it (``actors/followers.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.followers import Followers
from actors.payloads import fetched
from actors.process import log_to
from actors.publisher import Publisher
from actors.pulse import HEALTH, Beats, Pulse, during
from actors.reports import StepReport, Untrainable
from actors.run_state import LEARNER, TRAINING
from actors.training import LearnerSettings, Training
from actors.weights import Published
from agent.collector import without_collector
from agent.errors import Fault
from agent.groups import Group
from agent.pool.batches import TakenBatch
from agent.records import Trajectory
from agent.seeding import inject
from agent.tokens import Tokenizer
from learner.manifest import Files, listed, names
from tasks.demonstrations import Encoded, Expert
from tracking.dispensable import Dispensable
from tracking.metrics import batch_metrics, drifted_tokens
from tracking.progress import Progress
from tracking.spans import SPANS, Spans
from tracking.trajectories import Texts, TrajectoryLog

if TYPE_CHECKING:
    from learner.report import UpdateReport


PLAYING = "rollouts"
"""What a learner that waits for a batch waits for; the pool knows how far they are."""


@dataclass
class _Seeding:
    """What only the expert seeding needs."""

    experts: dict[str, Trajectory]
    """By the id of their question."""
    step: int = 0

    def inject(self, group: Group) -> Group:
        return inject(group, self.experts[group.question.id])


@ray.remote(concurrency_groups={"beside": 2, "copies": 1, "saving": 1, HEALTH: 1})  # type: ignore[call-overload]  # its stubs don't know it
class LearnerActor:
    """Owns the policy, its optimizer and the version number.

    One call at a time, but for those of the group ``beside``, which others need while it waits for a batch or for NCCL,
    for copies of the weights, which wait for an update or a broadcast to end, and for the writing of a checkpoint.
    """

    def __init__(self, settings: LearnerSettings, log_dir: Path, followers: Sequence[Any] = ()) -> None:
        """``followers`` are the actors of ranks 1, 2, …."""
        log_to(log_dir, "learner")
        self._settings = settings
        self._followers = Followers(followers, log_dir)
        self._spans = Spans(path=settings.run_dir / SPANS, actor="learner")
        self._step = 0
        self._between_steps = True
        """False from the beginning of an update until its step is done; for ever if that breaks with other weights."""
        self._seeding: _Seeding | None = None
        self._taken: tuple[TakenBatch[Group], float] | None = None
        self._to_save: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] | None = None
        self._progress = Progress()
        self._notes: list[str] = []
        self._extras = Dispensable(self._notes.append)
        self._beats = Beats()

    @during("start")
    def start(self) -> int:
        """Loads or builds the policy and tries the largest step; returns the policy's number of parameters."""
        with without_collector():
            from learner.ranks import join

        settings, followers = self._settings, self._followers
        with followers.joining() as address:
            ranks = join(address, 0, followers.world, device=settings.device, timeout_s=settings.meeting_timeout_s)
        self._training = Training(settings, ranks, self._show, lambda: self._beats.did("update"))
        self._tokenizer = Tokenizer(settings.model_path)
        self._texts = Texts(self._tokenizer.decode)
        with followers.mirroring("start"):
            parameters = self._training.start()
        self._publisher = Publisher(
            self._training.policy,
            settings.weight_channel,
            bucket=settings.weight_bucket,
            timeout_s=settings.weight_timeout_s,
        )
        return parameters

    @during("update")
    def warm_start(self, cached: Path, imitated: Encoded | None) -> dict[str, Any]:
        """The supervised warm start on ``imitated``, or its result from the folder ``cached``.

        Returns its steps, seconds, last loss, and whether it was cached. Raises ``Fault`` if there is neither.
        """
        from learner.weight_cache import keep, load_cached

        config, policy = self._settings.algorithm.warm_start, self._training.policy
        started = time.perf_counter()
        self._show(Progress(what="the warm start begins"))
        if config.cache and load_cached(policy, cached):
            return {"steps": config.steps, "cached": True, "seconds": time.perf_counter() - started, "loss": None}
        if imitated is None:
            raise Fault(f"the warm start's weights in {cached} are gone or damaged; start the run again")
        losses = self._training.warm_start(imitated)
        if config.cache:
            keep(policy, cached)
        policy.fold()  # the next run will find it in the cache, and both have to begin alike
        seconds = time.perf_counter() - started
        self._training.leave_card()
        return {"steps": config.steps, "cached": False, "seconds": seconds, "loss": losses[-1]}

    @during("start")
    def begin_seeding(self, experts: Sequence[Expert]) -> Published:
        """Starts the expert seeding, with an optimizer (and a KL reference) of its own; publishes the first version."""
        with self._followers.mirroring("begin_seeding"):
            self._training.begin_seeding()
        self._seeding = _Seeding(experts={e.question.id: e.trajectory for e in experts})
        return self._published()

    def seed(self, pool: Any) -> StepReport:
        """One batch of the seeding: take, inject the experts where they are needed, update, publish."""
        seeding = self._seeding
        assert seeding is not None, "begin_seeding comes first"
        report = self._learn(pool, seeding.step, seeding.inject, log=None)
        seeding.step += report.untrainable is None
        self._between_steps = True
        return report

    def begin(self, checkpoint: Path | None) -> Published:
        """Ends the preparation: reference and optimizer are made (or loaded); publishes the first version.

        With a ``checkpoint``, the policy was already started from its folder.
        """
        with self._publisher.steady, self._beats.phase("start"):
            self._seeding = None
            with self._followers.mirroring("begin", checkpoint):
                begun = self._training.begin(checkpoint)
            if begun.version is not None:
                self._publisher.version, self._step = begun.version, begun.step
            if begun.otherwise:
                self._notes.append(begun.otherwise)  # said with the first step
            return self._published()

    def _published(self) -> Published:
        """The first weights of a phase; what merging adapters for them took goes back to a colocated engine."""
        published = self._publisher.publish()
        self._training.leave_card()
        return published

    @during("take")
    def take(self, pool: Any) -> int:
        """Waits for the next batch of ``pool`` and keeps it for the step that follows; returns its index.

        Where learner and engine are colocated: once the batch is here, no episode is being played.
        """
        waiting = time.perf_counter()
        self._show(Progress(what=PLAYING))
        with self._spans.span("wait for a batch"):
            batch = fetched(ray.get(pool.take.remote(self._publisher.version)))
        self._taken = batch, time.perf_counter() - waiting
        return batch.index

    def step(self, pool: Any) -> StepReport:
        """One batch: take, update, publish."""
        report = self._learn(pool, self._step, lambda group: group, log=self._settings.log)
        self._step += report.untrainable is None
        self._between_steps = True
        return report

    def _learn(
        self,
        pool: Any,
        step: int,
        prepared: Callable[[Group], Group],
        *,
        log: TrajectoryLog | None,
    ) -> StepReport:
        """One batch from ``pool``, its accepted groups trained on as ``prepared`` leaves them."""
        if self._taken is None:
            self.take(pool)
        assert self._taken is not None
        (batch, idle), self._taken = self._taken, None
        self._show(Progress(what="update"))
        if log is not None:
            with self._beats.phase("update"):  # a file system may hang
                self._extras.attempt(
                    "the log of trajectories", lambda: log.write(batch, self._publisher.version, self._texts)
                )
        self._between_steps = False
        with self._publisher.steady:
            with self._spans.span("update"), self._beats.phase("update"):
                report = self._update([prepared(a.payload) for a in batch.accepted], step)
            metrics = batch_metrics(batch, self._publisher.version)
            updated = time.perf_counter()
            published = None
            if report.updates:
                self._publisher.version += 1
                with self._spans.span("publish"), self._beats.phase("publish"):
                    published = self._publisher.publish()
        self._training.leave_card()
        figures = asdict(report)
        metrics |= {
            "rollout/drifted_tokens": drifted_tokens(batch.payloads, self._tokenizer.decode),
            "rollout/mismatch": figures.pop("mismatch"),
            "rollout/mismatch_max": figures.pop("mismatch_max"),
            "rollout/mismatch_shifted": figures.pop("mismatch_shifted"),
            "learner/tokens_per_s": report.tokens / report.seconds if report.seconds else 0.0,
            "learner/idle_s": idle,
            "weights/put_s": time.perf_counter() - updated,
        }
        metrics |= {f"learner/{name}": value for name, value in figures.items()}
        notes, self._notes[:] = tuple(self._notes), []
        return StepReport(
            batch=batch.index,
            version=self._publisher.version,
            published=published,
            rollouts=batch.rollouts,
            generated_tokens=batch.generated_tokens,
            metrics=metrics,
            notes=notes,
            untrainable=None if report.updates else Untrainable.of(batch),
        )

    def _update(self, groups: list[Group], step: int) -> UpdateReport:
        """All ranks update on the same groups."""
        version = self._publisher.version
        shared = ray.put(groups) if self._followers.world > 1 else None
        try:
            with self._followers.mirroring("update", shared, step, version):
                return self._training.update(groups, step, version)
        except Exception:
            self._between_steps = self._seeding is None and not self._training.changed
            raise

    @during("save")
    def copy_for_saving(self, folder: Path) -> None:
        """Copies all that changes in the next step, for ``save``; what is small is written at once.

        Called while no other save is under way. Raises ``Fault`` if a step has broken in its middle.
        """
        from learner.host_copy import copied
        from learner.optimizer import merged

        if not self._between_steps:
            raise Fault("its last step broke off in the middle")
        training = self._training
        self._show(Progress(what="copying for the checkpoint"))
        self._tokenizer.save(folder)
        updater = training.updater.state()
        if self._settings.algorithm.optimizer.shard:
            updater["optimizer"] = merged([updater["optimizer"], *self._followers.optimizer_states()])
        numbers = {"version": self._publisher.version, "step": self._step}
        state = {"updater": updater, "adapters": training.policy.adapters(), **numbers}
        reference = training.reference.weights() if training.reference is not None else {}  # these never change
        weights, state = copied((training.policy.weights(), state))
        self._to_save = weights, reference, state
        training.leave_card()  # what merging adapters took: a colocated engine is awake

    @ray.method(concurrency_group="saving")
    @during("save")
    def save(self, folder: Path) -> Files:
        """Writes the model and its tokenizer in Hugging Face format, and beside them what only training needs.

        All as they were at ``copy_for_saving``, while this learner goes on. Returns what it has written.
        """
        from learner.checkpoint import save_state

        assert self._to_save is not None, "copy_for_saving comes first"
        (weights, reference, state), self._to_save = self._to_save, None
        training = self._training
        with self._spans.span("save"):
            before = {name for name in names(folder) if name.startswith(f"{TRAINING}/")}
            training.policy.save(folder, weights)
            if training.reference is not None:
                training.reference.save(folder / TRAINING / "reference", reference)
            save_state(folder / TRAINING / LEARNER, state)
            return listed(folder, without=before)

    # --- the learner's end of a broadcast: see actors/broadcast.py ---------------------------------

    def offer(self) -> bytes:
        """See ``actors/publisher.py``, for this and the next four."""
        return self._publisher.offer()

    def join(self, group: bytes, world: int) -> None:
        self._publisher.join(group, world)

    def send(self, version: int) -> None:
        self._publisher.send(version)

    def leave(self) -> None:
        self._publisher.leave()

    def fall_back(self) -> None:
        self._publisher.fall_back()

    @ray.method(concurrency_group=HEALTH)
    def ping(self) -> Pulse:
        """See ``actors/health.py``."""
        return self._beats.pulse()

    @ray.method(concurrency_group="beside")
    def progress(self) -> Progress:
        """What the learner does right now, and how far it is."""
        return self._progress

    @ray.method(concurrency_group="beside")
    def abandon(self) -> None:
        """Ends a broadcast whose engines are gone."""
        self._publisher.leave()

    @ray.method(concurrency_group="copies")
    def copy(self) -> Published:
        """See ``Publisher.copy``."""
        return self._publisher.copy()

    def _show(self, progress: Progress) -> None:
        self._progress = progress
