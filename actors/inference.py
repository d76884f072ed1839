"""Engines and retrieval without a learner: what evaluating, calibrating and asking a checkpoint need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from actors.fetching import fetch
from actors.health import Health
from actors.plan.fit import refusal
from actors.plan.installation import slow_bfloat16
from actors.plan.layouts import settled
from actors.plan.machine import check_machine
from actors.prepare import check_model
from actors.questions import Asked, asked
from actors.ray_start import start_ray, stop_ray
from actors.replicas import Replicas
from actors.restarts import Restarts
from actors.searching import Searching
from actors.settled import settle
from actors.stopping import at_once
from actors.topology import Topology, named
from actors.weights import FolderChannel, Published
from actors.worker_pool import WorkerPool
from agent.errors import UserError
from agent.inference.infer import Inference
from agent.paths import at_home
from conf.schema import RunConfig
from learner.hub import is_hub_name
from retrieval_service.backend import Identity
from retrieval_service.names import Digests
from tasks.load import Task, load
from tasks.notices import write_notices
from tracking.calibration import read_threshold
from tracking.console import Console

P = TypeVar("P", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Served(Generic[P]):
    """The data, and who plays: a worker pool that serves a checkpoint."""

    task: Task
    asked: Asked
    """The questions that the mode plays."""
    workers: P
    weights: str
    """Checksum of the checkpoint's weights; "" where they aren't ours to see."""
    index: Callable[[], Identity]
    """What is searched."""
    ending: dict[str, Any] | None
    """``Inference.ending`` of how they play."""
    searchable: Callable[[], None] | None = None
    """Waits until searches are answered again; None if only the endpoint's own process could."""


@contextmanager
def inference(config: RunConfig, run_dir: Path, namespace: str, console: Console) -> Iterator[Served[WorkerPool]]:
    """Serves ``config.checkpoint``, with early exit and query selectivity as they are configured.

    What there is to say of the questions goes to ``console``.

    Raises ``UserError`` when the checkpoint is no model's folder, when ``exit.calibration`` isn't for it, or for bad
    data; and ``Stopped`` for a signal that has ended it.
    """
    with at_once(), _serving(config, run_dir, namespace, console) as served:
        yield served


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A checkpoint and the questions for it, checked."""

    folder: Path
    """The checkpoint's."""
    published: Published
    task: Task
    asked: Asked
    how: Inference


def _read(config: RunConfig, run_dir: Path, console: Console) -> _Read:
    """What there is before Ray is started; ``config`` is settled for this machine."""
    given = f"checkpoint={config.checkpoint}"
    path = settle(config, str(config.checkpoint), given, console.phase)
    if config.model.path == config.checkpoint:
        config.model.path = path
    with console.phase("checking the machine"):
        config.cluster = settled(config).cluster
        check_machine(config)
        if why := refusal(config):
            raise UserError(why)
    if warning := slow_bfloat16(config):
        console.say(warning, "yellow")
    if is_hub_name(path):
        fetch(config, console)  # the model, too
    with console.phase("reading the checkpoint"):
        folder = check_model(path, given, config.agent, learns=False, hub=is_hub_name(path))
        published = FolderChannel().publish(folder, 0)
        how, calibrated = _how(config, published.checksum)
    fetch(config, console)
    with console.phase("reading the data") as phase:
        count = phase.counting("documents")
        task = load(config.data, config.seed, config.cache, mode=config.mode, say=console.say, count=count)
        questions = asked(config, task, folder, console.say, calibrated)
        write_notices(run_dir, questions.notices)
    console.notices(questions.notices, run_dir)
    if questions.about:
        console.say(questions.about)
    return _Read(folder=folder, published=published, task=task, asked=questions, how=how)


@contextmanager
def _serving(config: RunConfig, run_dir: Path, namespace: str, console: Console) -> Iterator[Served[WorkerPool]]:
    read = _read(config, run_dir, console)
    with console.phase("starting Ray"):
        start_ray(config, namespace)
    try:
        topology = Topology(config, run_dir, str(read.folder), read.task.corpus, read.how)
        topology.check_nodes()
        retrieval = topology.retrieval()
        health = Health(config.cluster.deadlines, topology.log_dir)
        cluster = config.cluster
        limit, in_vain = cluster.restarts_per_hour, cluster.losses_in_a_row * cluster.rollout_workers
        losses = Restarts("the retrieval", limit)
        replicas = Replicas(named(retrieval), health, lambda error: losses.count(str(error)))
        workers = WorkerPool(
            lambda name: topology.worker(name, retrieval),
            lambda name, cause, suspect: None,
            size=cluster.rollout_workers,
            restarts=Restarts("rollout workers", limit, in_a_row=in_vain),
            health=health,
            log_dir=topology.log_dir,
            weight_timeout_s=cluster.weight_timeout_s,
            samples=topology.inference.samples,
        )
        with console.phase("the retrieval index opens"):
            replicas.are_open(workers.wait)
        with console.phase(f"{cluster.rollout_workers} engine(s) start and take the weights"):
            workers.deliver(read.published)
        searching = Searching(
            retrieval.values(), workers.wait, console.say, config.retrieval.outage_s, stopped=lambda: False
        )
        yield Served(
            task=read.task,
            asked=read.asked,
            workers=workers,
            weights=read.published.checksum,
            index=lambda: replicas.identity(workers.wait),
            searchable=searching.until_they_answer,
            ending=read.how.ending,
        )
    finally:
        with console.phase("Ray shuts down"):
            stop_ray()


def _how(config: RunConfig, weights: str) -> tuple[Inference, Digests | None]:
    """How ``config.mode`` plays: calibration needs every probe of full episodes, the others a threshold; and the texts
    that it was found on, if that is known."""
    ending, scale, calibrated = config.exit, None, None
    if ending.calibration is not None:
        path = at_home(ending.calibration)
        threshold, scale, calibrated = read_threshold(path, ending, config.selectivity, config.agent, weights)
        ending = replace(ending, threshold=threshold, calibration=None)
    probes = ending.on or config.mode == "calibrate"
    inference = Inference(exit=ending if probes else None, scale=scale, selectivity=config.selectivity)
    if config.mode != "eval":
        return inference, calibrated
    wanted = config.evaluation
    inference = replace(inference, samples=wanted.samples, temperature=wanted.temperature, seed=config.seed)
    return inference, calibrated
