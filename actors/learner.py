"""The learner actor: takes a batch from the pool, updates the policy, publishes the next version.

Each step consumes one batch; it waits for a batch in ``take``, and for NCCL in a broadcast. What it publishes
reaches the workers through the supervisor, which releases the batch when they hold it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from actors.payloads import fetched
from actors.process import log_to
from actors.publisher import Publisher
from actors.reports import StepReport, Unsound
from actors.run_state import LEARNER, TRAINING
from actors.weights import Published
from agent.config import AgentConfig
from agent.errors import Fault, UserError
from agent.groups import Group
from agent.pool.batches import TakenBatch
from agent.records import Trajectory
from agent.seeding import inject
from agent.seeds import derive_seed
from agent.tokens import Tokenizer
from learner.config import AlgorithmConfig, ModelConfig
from learner.manifest import Files, listed, names
from tasks.demonstrations import Encoded, Expert
from tracking.dispensable import Dispensable
from tracking.metrics import batch_metrics
from tracking.progress import Progress
from tracking.spans import SPANS, Spans
from tracking.trajectories import Texts, TrajectoryLog

if TYPE_CHECKING:
    from learner.policy import Policy
    from learner.update import Updater


PLAYING = "rollouts"
"""What a learner that waits for a batch waits for; the pool knows how far they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerSettings:
    """What a learner is made from."""

    model_path: str
    """A model's folder or hub name; one without weights is built at random from its configuration."""
    model: ModelConfig
    algorithm: AlgorithmConfig
    agent: AgentConfig
    device: str
    colocated: bool
    """An engine has the card whenever this learner doesn't work."""
    threads: int
    weight_channel: str
    weight_bucket: int
    """Bytes in a bucket of a broadcast."""
    weight_timeout_s: float
    seed: int
    run_dir: Path
    log: TrajectoryLog
    """Of the episodes that it is given; those of the expert seeding aren't in it."""


@dataclass
class _Seeding:
    """What only the expert seeding needs."""

    updater: Updater
    experts: dict[str, Trajectory]
    """By the id of their question."""
    step: int = 0

    def inject(self, group: Group) -> Group:
        return inject(group, self.experts[group.question.id])


@ray.remote(concurrency_groups={"beside": 2})  # type: ignore[call-overload]  # its stubs don't know it
class LearnerActor:
    """Owns the policy, its optimizer and the version number.

    One call at a time, but for those of the group ``beside``, which others need while it waits for a batch or for NCCL.
    """

    def __init__(self, settings: LearnerSettings, log_dir: Path) -> None:
        log_to(log_dir, "learner")
        self._settings = settings
        self._spans = Spans(path=settings.run_dir / SPANS, actor="learner")
        self._step = 0
        self._seeding: _Seeding | None = None
        self._taken: tuple[TakenBatch[Group], float] | None = None
        self._progress = Progress()
        self._notes: list[str] = []
        self._extras = Dispensable(self._notes.append)

    def start(self) -> int:
        """Loads or builds the policy and tries the largest step; returns the policy's number of parameters."""
        import torch

        from learner.dry_run import due, try_largest
        from learner.policy import Policy

        settings = self._settings
        self._progress = Progress(what="the learner loads the policy")
        torch.set_num_threads(settings.threads)
        self._tokenizer = Tokenizer(settings.model_path)
        self._texts = Texts(self._tokenizer.decode)
        self._policy = Policy.from_folder(
            settings.model_path,
            seed=derive_seed(settings.seed, "policy"),
            dtype=settings.model.dtype,
            device=settings.device,
            gradient_checkpointing=settings.algorithm.gradient_checkpointing,
            lora_rank=settings.model.lora_rank,
        )
        self._publisher = Publisher(
            self._policy,
            settings.weight_channel,
            bucket=settings.weight_bucket,
            timeout_s=settings.weight_timeout_s,
        )
        if due(settings.algorithm, settings.device):
            self._progress = Progress(what="the learner tries the largest step")
            worst = try_largest(
                self._policy,
                settings.algorithm,
                longest=self._settings.agent.longest_episode,
                temperature=settings.agent.temperature,
            )
            print(
                f"dry run: {worst.tokens} tokens in a row, {worst.seconds:.1f} s, "
                f"peak {worst.peak_bytes / 2**30:.2f} GiB",
                flush=True,
            )
        self._leave_card()
        return sum(p.numel() for p in self._policy.model.parameters())

    def warm_start(self, cached: Path, imitated: Encoded | None) -> dict[str, Any]:
        """The supervised warm start on ``imitated``, or its result from the folder ``cached``.

        Returns its steps, seconds, last loss, and whether it was cached. Raises ``Fault`` if there is neither.
        """
        from learner.memory import named_knobs
        from learner.warm_start import Demonstration, warm_start
        from learner.weight_cache import keep, load_cached

        config = self._settings.algorithm.warm_start
        started = time.perf_counter()
        self._progress = Progress(what="the warm start begins")

        def progress(step: int, loss: float) -> None:
            print(f"warm start step {step} loss {loss:.4f}", flush=True)
            self._progress = Progress(done=step + 1, total=config.steps, unit="steps")

        if config.cache and load_cached(self._policy, cached):
            return {"steps": config.steps, "cached": True, "seconds": time.perf_counter() - started, "loss": None}
        if imitated is None:
            raise Fault(f"the warm start's weights are no longer in {cached}; start the run again")
        demonstrations = [Demonstration(token_ids=ids, action_mask=mask) for ids, mask in imitated.split()]
        algorithm = self._settings.algorithm
        where, lora = "the warm start", self._policy.adapted
        with named_knobs(where, algorithm, longest=self._settings.agent.longest_episode, lora=lora, error=UserError):
            losses = warm_start(
                self._policy,
                demonstrations,
                config,
                rng=np.random.default_rng(derive_seed(self._settings.seed, "warm start")),
                optimizer=algorithm.optimizer,
                microbatch_tokens=algorithm.microbatch_tokens,
                logits_chunk=algorithm.logits_chunk,
                progress=progress,
            )
        if config.cache:
            keep(self._policy, cached)
        self._policy.fold()  # the next run will find it in the cache, and both have to begin alike
        seconds = time.perf_counter() - started
        self._leave_card()
        return {"steps": config.steps, "cached": False, "seconds": seconds, "loss": losses[-1]}

    def begin_seeding(self, experts: Sequence[Expert]) -> Published:
        """Starts the expert seeding, with an optimizer (and a KL reference) of its own; publishes the first version."""
        from learner.update import Updater

        settings = self._settings
        algorithm = settings.algorithm.of_seeding()
        self._seeding = _Seeding(
            updater=Updater(
                self._policy,
                algorithm,
                rng=np.random.default_rng(derive_seed(settings.seed, "seeding")),
                fault_folder=settings.run_dir,
                temperature=settings.agent.temperature,
                reference=self._anchor(algorithm),
            ),
            experts={e.question.id: e.trajectory for e in experts},
        )
        return self._publisher.publish()

    def seed(self, pool: Any) -> StepReport:
        """One batch of the seeding: take, inject the experts where they are needed, update, publish."""
        seeding = self._seeding
        assert seeding is not None, "begin_seeding comes first"
        report = self._learn(pool, seeding.updater, seeding.step, seeding.inject, log=None)
        seeding.step += report.unsound is None
        return report

    def begin(self, checkpoint: Path | None) -> Published:
        """Ends the preparation: reference and optimizer are made (or loaded); publishes the first version.

        With a ``checkpoint``, the policy was already started from its folder.
        """
        with self._publisher.steady:
            return self._begin(checkpoint)

    def _begin(self, checkpoint: Path | None) -> Published:
        from learner.checkpoint import load_state
        from learner.update import Updater

        settings = self._settings
        self._seeding = None  # its optimizer's moments make room for those of the main one
        reference = self._anchor(settings.algorithm)
        if checkpoint is not None and reference is not None:
            reference.load_weights(checkpoint / TRAINING / "reference")
        self._reference = reference
        self._updater = Updater(
            self._policy,
            settings.algorithm,
            rng=np.random.default_rng(derive_seed(settings.seed, "learner")),
            fault_folder=settings.run_dir,
            temperature=settings.agent.temperature,
            reference=reference,
        )
        if checkpoint is not None:
            state = load_state(checkpoint / TRAINING / LEARNER)
            self._policy.load_adapters(state["adapters"])
            self._updater.load_state(state["updater"])
            self._publisher.version, self._step = int(state["version"]), int(state["step"])
        return self._publisher.publish()

    def take(self, pool: Any) -> int:
        """Waits for the next batch of ``pool`` and keeps it for the step that follows; returns its index.

        Where learner and engine are colocated: once the batch is here, no episode is being played.
        """
        waiting = time.perf_counter()
        self._progress = Progress(what=PLAYING)
        with self._spans.span("wait for a batch"):
            batch = fetched(ray.get(pool.take.remote(self._publisher.version)))
        self._taken = batch, time.perf_counter() - waiting
        return batch.index

    def step(self, pool: Any) -> StepReport:
        """One batch: take, update, publish."""
        report = self._learn(pool, self._updater, self._step, lambda group: group, log=self._settings.log)
        self._step += report.unsound is None
        return report

    def _learn(
        self,
        pool: Any,
        updater: Updater,
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
        if log is not None:
            self._extras.attempt(
                "the log of trajectories", lambda: log.write(batch, self._publisher.version, self._texts)
            )
        self._progress = Progress(what="update")
        with self._publisher.steady:
            with self._spans.span("update"):
                report = updater.update(
                    [prepared(a.payload) for a in batch.accepted], step=step, version=self._publisher.version
                )
            metrics = batch_metrics(batch, self._publisher.version)
            updated = time.perf_counter()
            published = None
            if report.updates:
                self._publisher.version += 1
                with self._spans.span("publish"):
                    published = self._publisher.publish()
        self._leave_card()
        figures = asdict(report)
        metrics |= {
            "rollout/mismatch": figures.pop("mismatch"),
            "rollout/mismatch_max": figures.pop("mismatch_max"),
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
            unsound=None if report.updates else Unsound.of(batch),
        )

    def save(self, folder: Path) -> Files:
        """Writes the model and its tokenizer in Hugging Face format, and beside them what only training needs.

        Returns what it has written.
        """
        from learner.checkpoint import save_state

        self._progress = Progress(what="saving")
        before = names(folder)
        self._policy.save(folder)
        self._tokenizer.save(folder)
        (folder / TRAINING).mkdir(exist_ok=True)
        if self._reference is not None:
            self._reference.save(folder / TRAINING / "reference")
        state = {
            "updater": self._updater.state(),
            "adapters": self._policy.adapters(),
            "version": self._publisher.version,
            "step": self._step,
        }
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

    @ray.method(concurrency_group="beside")
    def progress(self) -> Progress:
        """What the learner does right now, and how far it is."""
        return self._progress

    @ray.method(concurrency_group="beside")
    def abandon(self) -> None:
        """Ends a broadcast whose engines are gone."""
        self._publisher.leave()

    @ray.method(concurrency_group="beside")
    def copy(self) -> Published:
        """See ``Publisher.copy``."""
        return self._publisher.copy()

    def _anchor(self, algorithm: AlgorithmConfig) -> Policy | None:
        """The reference of a KL term: the policy as it is now."""
        return None if algorithm.kl == "none" else self._policy.frozen_copy(host=algorithm.reference == "cpu")

    def _leave_card(self) -> None:
        """Gives back what torch's allocator holds and doesn't use; weights and optimizer states stay."""
        if self._settings.colocated:
            import torch

            torch.cuda.empty_cache()
