"""What the parts of the loop took in a finished run, for the simulator of the loop (``agent/simulation/pipeline.py``).

Every other step is read; the ones between are left for a comparison of simulated and real step times. The first step
pays for the engine's warm-up, and a step after an evaluation or a checkpoint for that: both are left out.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import UserError
from agent.readable import content_of
from agent.simulation.pipeline import Latencies, Layout, fit_engine
from tracking.metrics import read

FIT_STEPS = 20
"""Simulated steps behind one point of the engine's fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A synchronous run, as the simulator needs it."""

    latencies: Latencies
    layout: Layout
    step_s: float
    """Mean real time from one release to the next, over the steps that nothing was fitted to."""
    rollout_s: float
    """Mean real time of a batch's rollouts, over the steps that the engine's speed was fitted to."""


def calibrate(run: Path, *, half: float, recompute: float, seed: int) -> Calibration:
    """Reads the folder of a synchronous run.

    A run has one number of sequences in the engine, so the shape of its curve (``half``) and what a new version
    costs (``recompute``) can't be seen in it; ``bench/rollout.py`` measures both. The engine's speed is fitted: the
    simulated rollouts of a batch take as long as the real ones.

    Raises ``UserError`` for a folder without the files of a run, or with damaged ones, and for a run that was not
    synchronous or too short.
    """
    with content_of(str(run)):
        return _calibrated(run, half, recompute, seed)


def _calibrated(run: Path, half: float, recompute: float, seed: int) -> Calibration:
    settings = _settings(run)
    if settings["pool"]["max_staleness"] != 0:
        raise UserError(
            f"{run}: pool.max_staleness={settings['pool']['max_staleness']}; the latencies of the parts show in a "
            "synchronous run, pool.max_staleness=0"
        )
    fitted, spared = _steps(run)
    groups = statistics.mean(r["groups/signal"] + r["groups/too_easy"] + r["groups/too_hard"] for r in fitted)
    layout = Layout(
        rollout_workers=settings["cluster"]["rollout_workers"],
        batch_questions=round(groups),
        group_size=settings["pool"]["group_size"],
        max_num_seqs=settings["cluster"]["engine"]["max_num_seqs"],
    )
    rollout_s = _mean(fitted, "rollout/seconds")
    parts = ("rollout/seconds", "learner/seconds", "weights/publish_s")
    tokens = sum(r["rollout/generated_tokens"] for r in fitted) / sum(r["rollout/trajectories"] for r in fitted)
    latencies = Latencies(
        episodes=scaled(_episodes(run), tokens),
        searches=spread(fitted[-1]["retrieval/p50_s"], fitted[-1]["retrieval/p99_s"]),
        learner=tuple(r["learner/seconds"] for r in fitted),
        # Medians: when something else on the machine holds these up for once, it isn't the loop that takes long.
        publish=statistics.median(r["weights/publish_s"] for r in fitted),
        driver=max(0.0, statistics.median(r["period_s"] - sum(r[part] for part in parts) for r in fitted)),
        token=1.0,
        half=half,
        recompute=recompute,
    )
    return Calibration(
        latencies=fit_engine(latencies, layout, rollout_s, steps=FIT_STEPS, seed=seed),
        layout=layout,
        step_s=_mean(spared, "period_s"),
        rollout_s=rollout_s,
    )


def scaled(episodes: Sequence[Sequence[float]], mean: float) -> tuple[tuple[float, ...], ...]:
    """The episodes with all their turns longer or shorter by one factor, so that their mean length is ``mean``.

    The log holds a few trajectories of each step, of accepted groups first; the metrics know the mean of all.
    """
    factor = mean / statistics.mean(sum(turns) for turns in episodes)
    return tuple(tuple(factor * tokens for tokens in turns) for turns in episodes)


def spread(p50_s: float, p99_s: float, count: int = 200) -> tuple[float, ...]:
    """``count`` equally likely seconds: the quantiles of the log-normal with this median and 99th percentile, none
    above the latter. Cached searches and slow ones lie far apart, and two numbers are all that a run keeps of them."""
    if p50_s <= 0 or p99_s <= p50_s:
        return (max(p50_s, 0.0),)
    sigma = math.log(p99_s / p50_s) / statistics.NormalDist().inv_cdf(0.99)
    normal = statistics.NormalDist(math.log(p50_s), sigma)
    return tuple(min(math.exp(normal.inv_cdf((i + 0.5) / count)), p99_s) for i in range(count))


def turns_of(row: dict[str, Any]) -> tuple[float, ...]:
    """Sampled tokens of each turn of a line of ``trajectories.jsonl``, which knows their sum: shared by length of text.

    >>> turns_of({"action_tokens": 9, "turns": [{"text": "abcd"}, {"text": "ab"}]})
    (6.0, 3.0)
    """
    lengths = [max(1, len(turn["text"])) for turn in row["turns"]]
    return tuple(row["action_tokens"] * length / sum(lengths) for length in lengths)


def _episodes(run: Path) -> list[tuple[float, ...]]:
    path = run / "trajectories.jsonl"
    if not path.is_file():
        raise UserError(f"{path} doesn't exist; set tracker.trajectories_per_step to more than 0 in the run to read")
    episodes = [turns_of(row) for row in read(path) if row.get("turns") and row.get("action_tokens")]
    if not episodes:
        raise UserError(f"{path} holds no episode")
    return episodes


def _settings(run: Path) -> Any:
    from omegaconf import OmegaConf

    path = run / ".hydra" / "config.yaml"
    for file in (path, run / "metrics.jsonl"):
        if not file.is_file():
            raise UserError(f"{run} is not the folder of a run: it has no {file.relative_to(run)}")
    return OmegaConf.load(path)


def _steps(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The undisturbed steps, with ``period_s`` from the step before to this one: every other one, and those between."""
    rows = read(run / "metrics.jsonl")
    disturbed = {r["step"] for r in rows if r.get("kind") == "eval" or r.get("event") == "checkpoint"}
    steps = [r for r in rows if r.get("kind") == "step"]
    pairs = [(a, b) for a, b in itertools.pairwise(steps) if b["step"] == a["step"] + 1]
    found = [{**b, "period_s": b["time_s"] - a["time_s"]} for a, b in pairs if a["step"] not in disturbed]
    if len(found) < 4:
        raise UserError(
            f"{run} has {len(found)} steps that no evaluation or checkpoint came before; 4 are needed: more "
            "algorithm.steps, or a larger evaluation.every"
        )
    return found[::2], found[1::2]


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.mean(row[name] for row in rows)
