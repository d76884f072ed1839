"""From a run's rows to the curves of the pictures. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracking.experiments.measures import evaluations, half_width, per_question, recycled_share
from tracking.experiments.sweep import Status

Row = Mapping[str, Any]
Curve = tuple[Sequence[float], Sequence[float]]

STATES = ("too_hard", "signal", "too_easy")
"""Of a group, as its step's row counts them."""
BINS = 20
RATIOS = ("rollouts_per_signal_group",)
"""Those of the compared measures that are no differences."""


def evaluated(rows: Sequence[Row], x: str, y: str = "em") -> Curve:
    """A measure of a run's evaluations, EM or another, against ``x`` (``rollouts`` or ``generated_tokens``).

    Where evaluations lack it, as evidence recall of questions that name no documents, the curve is empty.
    """
    evals = [r for r in evaluations(rows) if r.get(y) is not None]
    return [r[x] for r in evals], [r[y] for r in evals]


def spent(rows: Sequence[Row], x: str) -> Curve:
    """Held-out EM of a run's evaluations against what they took per question, ``searches`` or ``question_tokens``.

    Simulated policies search for nothing: their curve is empty.
    """
    evals = [r for r in evaluations(rows) if r["search/mean"] is not None]
    return [per_question(r)[x] for r in evals], [r["em"] for r in evals]


def stepped(rows: Sequence[Row], key: str) -> Curve:
    """A metric of a run's steps against the rollouts played by their ends."""
    steps = [r for r in rows if r["kind"] == "step"]
    return list(np.cumsum([r["rollout/trajectories"] for r in steps])), [r[key] for r in steps]


def difference(rows: Sequence[Row], baseline: Sequence[Row], points: int = 101) -> Curve:
    """Held-out EM of a run less that of another, against the rollouts that both have played."""
    (x, y), (other_x, other_y) = evaluated(rows, "rollouts"), evaluated(baseline, "rollouts")
    start, end = max(x[0], other_x[0]), min(x[-1], other_x[-1])
    grid = np.linspace(start, end, points if start <= end else 0)
    return list(grid), list(np.interp(grid, x, y) - np.interp(grid, other_x, other_y))


def by_seed(report: Mapping[str, Any], rows: Mapping[str, Sequence[Row]], condition: str) -> dict[int, Sequence[Row]]:
    """The finished jobs of a condition that were evaluated."""
    jobs = [j for j in report["jobs"] if j["condition"] == condition and j["status"] == Status.FINISHED]
    return {j["seed"]: rows[j["name"]] for j in jobs if evaluated(rows[j["name"]], "rollouts")[0]}


def both(one: Mapping[int, Any], other: Mapping[int, Any]) -> list[int]:
    return sorted(one.keys() & other.keys())


def pairs(report: Mapping[str, Any], condition: str, name: str) -> list[float]:
    """What each seed says of a condition against the baseline; none where the jobs are not known."""
    finished = [j for j in report["jobs"] if j["status"] == Status.FINISHED]
    one, other = (
        {j["seed"]: v for j in finished if j["condition"] == c and (v := j["measures"].get(name)) is not None}
        for c in (condition, report["baseline"])
    )
    return [one[s] / other[s] if name in RATIOS else one[s] - other[s] for s in both(one, other)]


def mean_band(curves: Sequence[Curve], points: int = 101) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [points], mean [points], half the 95 % interval [points] (NaN for one curve); empty where no x is in all."""
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.linspace(start, end, points if start <= end else 0)
    values = np.array([np.interp(grid, x, y) for x, y in curves])
    return grid, values.mean(axis=0), np.array([half_width(list(column)) for column in values.T])


def binned(runs: Sequence[Sequence[Row]]) -> tuple[np.ndarray, list[list[list[Row]]]]:
    """The steps of runs by equal parts of the rollouts that all of them played: centres, and per run its bins. Each has
    a step."""
    steps = [[r for r in rows if r["kind"] == "step"] for rows in runs]
    ends = [np.cumsum([r["rollout/trajectories"] for r in of_run]) for of_run in steps]
    count = max(1, min(BINS, *(len(of_run) for of_run in steps)))
    edges = np.linspace(0, min(e[-1] for e in ends), count + 1)
    bins: list[list[list[Row]]] = []
    for of_run, end in zip(steps, ends, strict=True):
        parts: list[list[Row]] = [[] for _ in range(count)]
        for row, last in zip(of_run, end, strict=True):
            at = int(np.searchsorted(edges, last - row["rollout/trajectories"] / 2, side="right")) - 1
            if at < count:
                parts[at].append(row)
        bins.append(parts)
    return (edges[:-1] + edges[1:]) / 2, bins


def group_mix(runs: Sequence[Sequence[Row]]) -> tuple[np.ndarray, np.ndarray]:
    """Centres [n] and shares [3, n] of the groups of each of ``STATES``, over all runs together."""
    centres, bins = binned(runs)
    counts = np.array(
        [
            [sum(r[f"groups/{state}"] for parts in bins for r in parts[at]) for at in range(len(centres))]
            for state in STATES
        ]
    )
    full = counts.sum(axis=0) > 0
    return centres[full], counts[:, full] / counts[:, full].sum(axis=0)


def recycled(runs: Sequence[Sequence[Row]]) -> list[Curve]:
    """The recycled share of each run's trained groups by parts of its rollouts."""
    if not runs:
        return []
    centres, bins = binned(runs)
    curves: list[Curve] = []
    for parts in bins:
        known = [
            (x, share) for x, rows in zip(centres, parts, strict=True) if (share := recycled_share(rows)) is not None
        ]
        if known:
            curves.append(([x for x, _ in known], [share for _, share in known]))
    return curves
