"""The rules of the query pool on simulated policies: cost of a signal-bearing group, and EM, over several seeds.

python bench/scenarios.py [--quick] [--queries N] [--seeds N] [--scenario NAME …]

What should hold, and why: ``recycle`` gives every zero-variance question the same chance to be drawn again, so
its pool fills with what the policy always or never solves; ``adaptive`` draws by the chance of signal, and
should need at most 0.8 of ``recycle``'s rollouts per signal-bearing group, at equal or better EM. The
scenarios are ``conf/simulation``; adaptive's settings were chosen on ``TUNED``, so only the others count.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from omegaconf import OmegaConf

from agent.errors import Fault
from agent.pool.rules.base import rule_class
from agent.simulation.policies import SimulationConfig, simulate
from agent.tickets import QueryState
from tracking.experiments.measures import interval, ratio_interval

CONF = Path(__file__).parents[1] / "conf" / "simulation"
TUNED = ("mixed", "hard", "easy", "spread")
RULES = ("epoch", "dynamic", "recycle", "adaptive")
BATCH, K = 32, 4
LIMIT = 0.8


@dataclasses.dataclass(frozen=True)
class Job:
    """One simulated run."""

    scenario: str
    rule: str
    seed: int
    queries: int | None


@dataclasses.dataclass(frozen=True)
class Result:
    """What it came to; a pool that ran dry has its numbers up to there."""

    rollouts_per_signal_group: float
    em: float
    dry: bool


def scenario(name: str, queries: int | None) -> SimulationConfig:
    """``conf/simulation/NAME.yaml``, with another number of queries if that is given and it has none of its own."""
    settings = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(settings, dict)
    if queries is not None:
        settings.setdefault("queries", queries)
    return SimulationConfig(**{str(key): value for key, value in settings.items()})


def play(job: Job) -> Result:
    rule = rule_class(job.rule)(batch_questions=BATCH, group_size=K)
    rollouts = signal = 0
    em, dry = 0.0, False
    try:
        for step in simulate(scenario(job.scenario, job.queries), rule, job.seed):
            rollouts += step.rollouts
            signal += step.batch.states[QueryState.SIGNAL]
            em = step.em
    except Fault:
        dry = True
    return Result(rollouts / signal, em, dry)


def line(name: str, found: dict[tuple[str, int], Result], seeds: int) -> tuple[str, bool]:
    """The scenario's row, and whether adaptive holds what it promises."""
    by_rule = {rule: [found[rule, seed] for seed in range(seeds)] for rule in RULES}
    cells = []
    for rule in RULES:
        mean = sum(r.rollouts_per_signal_group for r in by_rule[rule]) / seeds
        em = interval([r.em for r in by_rule[rule]])["mean"]
        dry = sum(r.dry for r in by_rule[rule])
        cells.append(f"{mean:.1f} / {em:.3f}" + (f" (dry: {dry})" if dry else ""))
    pairs = list(zip(by_rule["adaptive"], by_rule["recycle"], strict=True))
    ratio = ratio_interval([a.rollouts_per_signal_group / r.rollouts_per_signal_group for a, r in pairs])
    gain = interval([a.em - r.em for a, r in pairs])
    holds = ratio["mean"] <= LIMIT and gain["mean"] >= 0
    low, high = (f"{ratio[k]:.2f}" if ratio[k] is not None else "–" for k in ("low", "high"))
    return (
        f"| {name} | {' | '.join(cells)} | {ratio['mean']:.2f} [{low}, {high}] | {gain['mean']:+.3f} |"
        f" {'yes' if holds else 'no'} |",
        holds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 2,000 queries")
    parser.add_argument("--queries", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scenario", nargs="*", default=sorted(path.stem for path in CONF.glob("*.yaml")))
    given = parser.parse_args()
    queries, seeds = (2000, 1) if given.quick else (given.queries, given.seeds)
    jobs = [Job(name, rule, seed, queries) for name in given.scenario for rule in RULES for seed in range(seeds)]
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        results = dict(zip(jobs, workers.map(play, jobs), strict=True))
    print(f"Rollouts per signal-bearing group / EM in the end; B = {BATCH}, K = {K}, {seeds} seeds\n")
    print(f"| scenario | {' | '.join(RULES)} | adaptive / recycle | EM gained | claim holds |")
    print("| --- |" + " ---: |" * (len(RULES) + 3))
    held_out = []
    for name in sorted(given.scenario, key=lambda n: (n in TUNED, n)):
        found = {(job.rule, job.seed): result for job, result in results.items() if job.scenario == name}
        text, holds = line(f"{name} (tuned on)" if name in TUNED else name, found, seeds)
        print(text)
        held_out += [] if name in TUNED else [holds]
    print(f"\nOn {sum(held_out)} of {len(held_out)} scenarios that adaptive was not tuned on: at most {LIMIT} of")
    print("recycle's rollouts per signal-bearing group at equal or better EM.")


if __name__ == "__main__":
    main()
