"""Engines and retrieval without a learner: what evaluating a checkpoint and asking it need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from actors.crew import Crew
from actors.machine import check_machine
from actors.topology import Topology, start_ray
from actors.weights import FolderChannel
from agent.errors import UserError
from conf.schema import RunConfig
from tasks.load import Task, load


@contextmanager
def inference(config: RunConfig, run_dir: Path, namespace: str) -> Iterator[tuple[Task, Crew]]:
    """The data, and a crew that serves ``config.checkpoint``.

    Raises ``UserError`` when the checkpoint is no model's folder.
    """
    folder = Path(config.checkpoint or "").expanduser().absolute()
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UserError(f"checkpoint={config.checkpoint}: not a model's folder (config.json and *.safetensors)")
    check_machine(config)
    task = load(config.data, config.seed, config.cache, evidence_match=config.reward.evidence_match)
    start_ray(config, namespace)
    try:
        topology = Topology(config, run_dir, str(folder), task.corpus)
        retrieval = topology.retrieval()
        opened = [replica.start.remote() for replica in retrieval.values()]
        crew = Crew(
            lambda name: topology.worker(name, retrieval),
            lambda name, cause: None,
            size=config.cluster.rollout_workers,
            max_restarts=config.cluster.max_restarts,
            log_dir=topology.log_dir,
        )
        for ref in opened:
            crew.wait(ref, "retrieval")
        crew.deliver(FolderChannel().publish(folder, 0))
        yield task, crew
    finally:
        ray.shutdown()
