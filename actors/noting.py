"""What a run notes of itself before it starts, for its report."""

from __future__ import annotations

from pathlib import Path

from conf.schema import RunConfig
from tasks.load import Task
from tracking import about
from tracking.metrics import MetricsLog


def note(config: RunConfig, run_dir: Path, task: Task) -> None:
    """Notes what the run runs on and from, as an event in its metrics."""
    cluster, retrieval = config.cluster, config.retrieval
    noted = {
        "code": about.code(),
        "packages": about.packages(),
        "hardware": about.hardware(),
        "cluster": f"{cluster.name}, {cluster.rollout_workers} rollout worker(s) on {cluster.device}",
        "model": f"{config.model.name} {config.model.path or ''}".strip(),
        "dtype": config.model.dtype,
        "data": f"{task.name}: {len(task.train)} questions to train on, {len(task.eval)} held out",
        "index": f"{retrieval.backend} over {retrieval.place or task.corpus}, {config.agent.top_k} passages a search",
    }
    MetricsLog(run_dir / "metrics.jsonl").write("event", {"event": "about", **noted})
