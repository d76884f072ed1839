"""A simulated run, written as a real one is, so that the same reports can be made of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from agent.pool.rules.base import PoolRule
from agent.simulation.policies import SimulatedStep, SimulationConfig, simulate
from agent.tickets import QueryState
from tracking.console import Console
from tracking.metrics import MetricsLog
from tracking.progress import Progress

EVALUATIONS = 40
"""Evaluations over the whole budget."""


def write(config: SimulationConfig, rule: PoolRule, seed: int, run_dir: Path, console: Console) -> None:
    """Simulates ``rule`` on ``config`` into ``run_dir/metrics.jsonl``. A simulated rollout counts as one token.

    Raises ``Fault`` as ``simulate`` does: when the pool has no signal left to give.
    """
    started = time.perf_counter()
    log = MetricsLog(run_dir / "metrics.jsonl")
    budget = config.rollouts_per_query * config.queries
    step = rollouts = signal = 0
    evaluations: list[dict[str, Any]] = []
    policy: dict[str, Any] = {}
    with console.phase("simulation") as phase:
        for step, played in enumerate(simulate(config, rule, seed), start=1):
            policy = _evaluation(step - 1, played.em, rollouts)  # before this step's update
            if rollouts >= len(evaluations) * budget / EVALUATIONS:
                evaluations.append(policy)
                log.write("eval", policy)
            rollouts += played.rollouts
            signal += played.batch.states[QueryState.SIGNAL]
            log.write("step", {"step": step, **_row(played)})
            phase.update(Progress(done=rollouts, total=max(int(budget), rollouts), unit="rollouts"))
    if evaluations[-1] is not policy:
        evaluations.append(policy)
        log.write("eval", policy)
    seconds = time.perf_counter() - started
    log.write(
        "summary",
        {
            "step": step,
            "stopped_early": False,
            "interrupted": False,
            "first_eval": evaluations[0],
            "last_eval": evaluations[-1],
            "rollouts": rollouts,
            "generated_tokens": rollouts,
            "time_s": seconds,
        },
    )
    cost = f"{rollouts / signal:.2f} rollouts per signal-bearing group" if signal else "no signal"
    console.say(
        f"{rule.name} on {config.name}: {config.queries:,} queries, {rollouts:,} rollouts, {step} steps, {cost}, "
        f"EM {policy['em']:.3f} in the end, {seconds:.1f} s"
    )


def _row(played: SimulatedStep) -> dict[str, Any]:
    """The part of a run's step that a pool can tell."""
    batch = played.batch
    signal = [a for a in batch.accepted if a.outcome.state is QueryState.SIGNAL]
    return {
        "rollout/trajectories": played.rollouts,
        "rollout/generated_tokens": played.rollouts,
        "groups/signal": batch.states[QueryState.SIGNAL],
        "groups/too_easy": batch.states[QueryState.TOO_EASY],
        "groups/too_hard": batch.states[QueryState.TOO_HARD],
        "groups/accepted": len(batch.accepted),
        "pool/recycled_share": sum(a.recycled for a in signal) / len(signal) if signal else math.nan,
        "pool/recovered_too_hard": sum(a.before is QueryState.TOO_HARD for a in signal),
        "pool/recovered_too_easy": sum(a.before is QueryState.TOO_EASY for a in signal),
        "pool/flipped_share": played.flipped_share,
    }


def _evaluation(step: int, em: float, rollouts: int) -> dict[str, Any]:
    """The policy after ``step`` updates; what only an agent's episodes would tell is null."""
    return {
        "step": step,
        "em": em,
        "rollouts": rollouts,
        "generated_tokens": rollouts,
        "search/mean": None,
        "action_tokens/mean": None,
        "evidence_recall": None,
    }
