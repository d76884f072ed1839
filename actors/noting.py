"""What a run notes of itself before it starts and when it breaks, for its report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.errors import Fault, UserError, refused, shortened
from conf.schema import RunConfig
from tasks.load import Task
from tracking import about
from tracking.console import Console
from tracking.metrics import MetricsLog
from tracking.view.mode import view_at_end


def note(config: RunConfig, run_dir: Path, task: Task, *, checkpoint: str | None = None) -> None:
    """Notes what the run runs on and from, as an event in its metrics; of an evaluation, its ``checkpoint``."""
    cluster, retrieval = config.cluster, config.retrieval
    other = f" ({task.held_out_name})" if task.held_out_name else ""
    noted = {
        "code": about.code(),
        "packages": about.packages(),
        "hardware": about.hardware(),
        "cluster": f"{cluster.name}, {cluster.rollout_workers} rollout worker(s) on {cluster.device}",
        "model": f"{config.model.name} {config.model.path or ''}".strip(),
        "dtype": config.model.dtype,
        "data": f"{task.name}: {len(task.train)} questions to train on, {len(task.eval)} held out{other}",
        "index": f"{retrieval.backend} over {retrieval.place or task.corpus}, {config.agent.top_k} passages a search",
    }
    if checkpoint is not None:
        noted["checkpoint"] = checkpoint
    MetricsLog(run_dir / "metrics.jsonl").write("event", {"event": "about", **noted})


@contextmanager
def reported(run_dir: Path, console: Console, before_s: float = 0.0) -> Iterator[None]:
    """Notes what ends the run inside, and writes its report however it ends; nothing before its metrics have a row.

    ``before_s`` are the seconds of earlier starts of the run.
    """
    began, metrics = time.perf_counter() - before_s, run_dir / "metrics.jsonl"
    try:
        yield
    except Exception as error:
        known = isinstance(error, UserError | Fault | OSError)
        why = refused(error) if known else f"{type(error).__name__}: {shortened(error)}"
        if metrics.is_file():
            with suppress(OSError):  # of a full disk, say: that is what the error is about
                row = {"event": "fault", "time_s": time.perf_counter() - began, "why": why}
                MetricsLog(metrics).write("event", row)
        raise
    finally:
        if metrics.is_file():
            view_at_end(run_dir, console)
