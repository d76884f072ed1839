"""A simulated run, written as a real one is, so that the same reports can be made of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from agent.pool_rules.base import PoolRule
from agent.records import QueryState
from agent.simulator import SimulationConfig, simulate
from tracking.console import Console
from tracking.metrics import MetricsLog

EVALUATIONS = 40
"""Evaluations over the whole budget."""


def write(config: SimulationConfig, rule: PoolRule, seed: int, run_dir: Path, console: Console) -> None:
    """Simulates ``rule`` on ``config`` into ``run_dir/metrics.jsonl``. A simulated rollout counts as one token."""
    started = time.perf_counter()
    log = MetricsLog(run_dir / "metrics.jsonl")
    budget = config.rollouts_per_query * config.queries
    rollouts = signal = step = 0
    first: dict[str, Any] | None = None
    last: dict[str, Any] = {}
    for step, played in enumerate(simulate(config, rule, seed), start=1):
        if first is None or rollouts >= budget * log_evals / EVALUATIONS:
            last = _evaluation(step - 1, played.em, rollouts)
            first = first or last
            log_evals = math.floor(rollouts / budget * EVALUATIONS) + 1
            log.write("eval", last)
        rollouts += played.rollouts
        trained = [a for a in played.batch.accepted if a.group.state is QueryState.SIGNAL]
        signal += played.batch.states[QueryState.SIGNAL]
        row = {
            "step": step,
            "rollout/trajectories": played.rollouts,
            "rollout/action_tokens": played.rollouts,
            "groups/signal": played.batch.states[QueryState.SIGNAL],
            "groups/too_easy": played.batch.states[QueryState.TOO_EASY],
            "groups/too_hard": played.batch.states[QueryState.TOO_HARD],
            "groups/accepted": len(played.batch.accepted),
            "pool/recycled_share": sum(a.recycled for a in trained) / len(trained) if trained else math.nan,
            "pool/recovered_too_hard": sum(a.before is QueryState.TOO_HARD for a in trained),
            "pool/recovered_too_easy": sum(a.before is QueryState.TOO_EASY for a in trained),
            "pool/flipped_share": played.flipped_share,
        }
        log.write("step", row)
    summary = {
        "step": step,
        "stopped_early": False,
        "first_eval": first,
        "last_eval": last,
        "rollouts": rollouts,
        "generated_tokens": rollouts,
        "time_s": time.perf_counter() - started,
    }
    log.write("summary", summary)
    console.say(
        f"{rule.name} on {config.name}: {config.queries:,} queries, {rollouts:,} rollouts, {step} steps, "
        f"{rollouts / signal:.2f} rollouts per signal-bearing group, EM {last['em']:.3f} in the end, "
        f"{summary['time_s']:.1f} s"
    )


def _evaluation(step: int, em: float, rollouts: int) -> dict[str, Any]:
    return {
        "step": step,
        "em": em,
        "rollouts": rollouts,
        "generated_tokens": rollouts,
        "search/mean": math.nan,
        "evidence_recall": math.nan,
    }
