"""Starting actors under Ray: their names, what they may use, and their end.

Named actors of a run live in a namespace of its own, so that runs (the jobs of a sweep, say) can share
a cluster: ``retrieval``, ``pool``, ``learner`` and ``rollout-0``, ``rollout-1``, … in Ray's dashboard.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import ray

from actors.engine_arguments import engine_environment
from actors.followers import FollowerActor
from actors.followers import name as learner_name
from actors.learner import LearnerActor
from actors.nodes import check_nodes
from actors.placement import (
    ANYWHERE,
    Places,
    alive_nodes,
    bundles,
    engine_bundles,
    engine_nodes,
    is_there,
    on_node,
    reserve,
)
from actors.plan.layouts import chosen
from actors.pool import PoolActor
from actors.process import QUIET
from actors.retrieval import RetrievalActor, noted
from actors.rollout import RolloutWorker, WorkerSettings
from actors.training import LearnerSettings, learner_environment
from agent.inference.infer import Inference
from agent.pool.rules.base import PoolRule
from agent.pool.rules.epoch import Rule as Epoch
from agent.pool.search_limits import SearchLimits
from agent.records import Question
from agent.seeds import derive_seed
from conf.schema import RunConfig
from tracking.trajectories import TrajectoryLog


def retrieval_names(count: int) -> list[str]:
    return [f"retrieval-{i}" for i in range(count)] if count > 1 else ["retrieval"]


def named(replicas: Mapping[str, Any]) -> dict[str, Any]:
    """Retrieval actors (by node) by their names."""
    return dict(zip(retrieval_names(len(replicas)), replicas.values(), strict=True))


def seeding_rule(pool: PoolRule, steps: int, questions: int) -> Epoch:
    """How the expert seeding's pool draws beside the run's ``pool``: all of its questions in each of its batches."""
    return Epoch(
        batch_questions=questions,
        group_size=pool.group_size,
        min_viable=pool.min_viable,
        lease_s=pool.lease_s,
        quarantine_after=0,  # each of them is in every batch
        max_tool_failures=pool.max_tool_failures,
        # The experts bring the signal that the rollouts of all its batches may lack; what is more was skipped.
        max_empty_batches=steps + pool.max_empty_batches,
    )


@dataclass
class Topology:
    """Makes the actors of one run; holds no state but where things are."""

    config: RunConfig
    run_dir: Path
    model_path: str
    corpus: Path | None
    inference: Inference = field(default_factory=Inference)
    """How the workers evaluate and answer."""
    followers: dict[str, Any] = field(default_factory=dict)
    """The learners of other ranks than 0, by name."""
    _engines: dict[str, str | int] = field(default_factory=dict)
    """The bundle of each engine; without a GPU its node."""

    @property
    def log_dir(self) -> Path:
        return self.run_dir / "logs"

    @cached_property
    def places(self) -> Places | None:
        """The GPUs that are reserved for this run; None on a CPU. Raises ``UserError`` if it can't have them."""
        cluster = self.config.cluster
        wanted = bundles(cluster)
        return reserve(wanted, cluster.name, cluster.start_timeout_s) if wanted else None

    @cached_property
    def home(self) -> str:
        """The node of what the run can't lose: the learner's, or the driver's where there is no GPU."""
        if self.places:
            return self.places.nodes[0]
        return ray.get_runtime_context().get_node_id() if self.config.cluster.address is not None else ANYWHERE

    def check_nodes(self) -> None:
        """Raises ``UserError`` if a node of an existing Ray cluster lacks what an actor would need there."""
        cluster = self.config.cluster
        if cluster.address is None:
            return
        nodes = self.places.nodes if self.places else alive_nodes()
        model = Path(self.model_path)
        files = [file for file in (self.corpus, model if model.is_dir() else None) if file is not None]
        check_nodes(nodes, self.run_dir, self.config.cache, files, cluster.start_timeout_s)

    def retrieval(self) -> dict[str, Any]:
        """A retrieval actor on each node with engines, by the node's id; Ray restarts one whose process dies."""
        nodes = engine_nodes(self.places.nodes, self.config.cluster.learners) if self.places else (self.home,)
        names = retrieval_names(len(nodes))
        for name in names:
            noted(self.log_dir, name).unlink(missing_ok=True)
        return {
            node: RetrievalActor.options(  # type: ignore[attr-defined]
                name=name,
                num_cpus=0,
                max_restarts=-1,  # how often is counted in parts.py
                max_concurrency=1000,
                runtime_env={"env_vars": QUIET},
                **on_node(node),
            ).remote(self.corpus, self.config.retrieval, self.config.cache, self.log_dir, name, self.config.agent.top_k)
            for node, name in zip(nodes, names, strict=True)
        }

    def pool(self, questions: tuple[Question, ...]) -> Any:
        """The pool actor with the run's query pool."""
        limits = SearchLimits(self.config.search_limit, self.config.agent.max_searches)
        return PoolActor.options(  # type: ignore[attr-defined]
            name="pool", num_cpus=0, max_concurrency=1000, runtime_env={"env_vars": QUIET}, **on_node(self.home)
        ).remote(questions, self.config.pool, derive_seed(self.config.seed, "run"), self.log_dir, limits=limits)

    def seeding_pool(self, questions: tuple[Question, ...]) -> Any:
        """The pool actor of the expert seeding: every batch is all of ``questions``. It ends with its last handle."""
        rule = seeding_rule(self.config.pool, self.config.algorithm.seeding.steps, len(questions))
        return PoolActor.options(  # type: ignore[attr-defined]
            name="seeding-pool", num_cpus=0, max_concurrency=1000, runtime_env={"env_vars": QUIET}, **on_node(self.home)
        ).remote(questions, rule, derive_seed(self.config.seed, "seeding"), self.log_dir, name="seeding-pool")

    def learner(self, checkpoint: Path | None = None) -> Any:
        """The learner, of ``checkpoint`` if there is one, on the first GPU if the cluster has any.

        Those of other ranks are its own, on the next ones, and in ``followers``.
        """
        config = self.config
        settings = LearnerSettings(
            model_path=self.model_path if checkpoint is None else str(checkpoint),
            model=config.model,
            algorithm=chosen(config),
            agent=config.agent,
            device=config.cluster.device,
            colocated=config.cluster.colocated,
            threads=config.cluster.learner_threads,
            weight_channel=config.cluster.channel[0],
            weight_bucket=config.cluster.weight_bucket_mib * 2**20,
            weight_timeout_s=config.cluster.weight_timeout_s,
            meeting_timeout_s=config.cluster.meeting_timeout_s,
            seed=config.seed,
            run_dir=self.run_dir,
            log=TrajectoryLog(
                folder=self.run_dir,
                per_step=config.tracker.trajectories_per_step,
                advantage=config.algorithm.choices.advantage,
            ),
        )
        env = {**QUIET, **learner_environment(config)}
        world = config.cluster.learners
        if world > 1:  # a rank that waits in vain is to say so; NCCL's watchdog would end its process
            env["TORCH_NCCL_BLOCKING_WAIT"] = "1"

        def options(rank: int) -> dict[str, Any]:
            return {
                "name": learner_name(rank),
                "num_cpus": 0,
                "num_gpus": self._gpus,
                "runtime_env": {"env_vars": env},
                **(self.places.bundle(rank) if self.places else on_node(self.home)),
            }

        self.followers = {
            learner_name(rank): FollowerActor.options(**options(rank)).remote(  # type: ignore[attr-defined]
                settings, rank, world, self.log_dir
            )
            for rank in range(1, world)
        }
        followers = [*self.followers.values()]
        return LearnerActor.options(**options(0)).remote(settings, self.log_dir, followers)  # type: ignore[attr-defined]

    def worker(self, name: str, retrieval: Mapping[str, Any]) -> Any:
        """A rollout worker with an engine of its own, on a GPU of its own unless it shares the learner's."""
        config, cluster = self.config, self.config.cluster
        settings = WorkerSettings(
            model_path=self.model_path,
            dtype=config.model.dtype,
            device=cluster.device,
            colocated=cluster.colocated,
            transfers=cluster.channel[0] == "nccl" and config.mode == "train",
            in_flight_updates=cluster.in_flight_updates,
            weight_bucket=cluster.weight_bucket_mib * 2**20,
            weight_timeout_s=cluster.weight_timeout_s,
            engine=cluster.engine,
            agent=config.agent,
            reward=config.reward,
            inference=self.inference,
            run_dir=self.run_dir,
            group_size=config.pool.group_size,
            groups_in_flight=self.groups_in_flight,
            lease_s=config.pool.lease_s,
            retrieval_timeout_s=config.retrieval.timeout_s,
            seed=derive_seed(config.seed, "engine"),
        )
        env = {**QUIET, **engine_environment(cluster.engine, cluster.device), **cluster.nccl_environment}
        return RolloutWorker.options(  # type: ignore[attr-defined]
            name=name,
            num_cpus=0,
            num_gpus=self._gpus,
            max_concurrency=1000,
            runtime_env={"env_vars": env},
            **self._place(name),
        ).remote(name, settings, self.log_dir, dict(retrieval))

    def _place(self, name: str) -> dict[str, Any]:
        """Options of an engine: in the bundle with the fewest, and without a GPU on the node with the fewest.

        Left to Ray, two may get the same: a bundle by a half that a learner has left, a node by SPREAD.
        """
        places, cluster = self.places, self.config.cluster
        if places is None and cluster.address is None:
            return {}
        self._engines = {other: place for other, place in self._engines.items() if is_there(other)}
        counts = Counter(self._engines.values())
        if places is None:
            node = min(alive_nodes(), key=lambda node: counts[node])
            self._engines[name] = node
            return on_node(node)
        bundle = min(engine_bundles(len(places.nodes), cluster.learners), key=lambda bundle: counts[bundle])
        self._engines[name] = bundle
        return places.bundle(bundle)

    @property
    def groups_in_flight(self) -> int:
        """Groups per worker: as configured, or one batch divided among the workers.

        No more when several batches may be open: played together they would share the engine, the oldest would be
        complete late, and all at once (docs/pipeline.md).
        """
        config = self.config
        return config.cluster.groups_per_worker or math.ceil(config.pool.bound() / config.cluster.rollout_workers)

    @property
    def _gpus(self) -> float:
        """Of a learner or an engine."""
        if self.config.cluster.device == "cpu":
            return 0
        return 0.5 if self.config.cluster.colocated else 1
