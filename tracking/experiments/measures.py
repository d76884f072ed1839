"""What a run's rows say of its method, and what runs that differ in the seed say together. Pure functions.

A run's x-axis is what it has cost: trajectories played (``rollouts``) or tokens generated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tracking.metrics import UNTRAINABLE, same_series

Row = Mapping[str, Any]

# Quantiles t(0.975) of Student's distribution for 1, 2, … 30 degrees of freedom: NIST/SEMATECH e-Handbook of
# Statistical Methods, section 1.3.6.7.2.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean by Student's t; NaN for fewer than two values.

    Above 30 degrees of freedom the quantile of 30 is used: at most 4 % too wide.
    """
    n = len(values)
    if n < 2:
        return math.nan
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return _T[min(n - 1, len(_T)) - 1] * deviation / math.sqrt(n)


def interval(values: Sequence[float]) -> dict[str, Any]:
    """``mean``, ``low`` and ``high`` of its 95 % interval, and ``n``; None where there are too few values."""
    if not values:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean, half = sum(values) / len(values), half_width(values)
    ends = {"low": None, "high": None} if math.isnan(half) else {"low": mean - half, "high": mean + half}
    return {"mean": mean, **ends, "n": len(values)}


def ratio_interval(ratios: Sequence[float]) -> dict[str, Any]:
    """As ``interval``, of positive ratios: their geometric mean, so that swapping what is divided inverts it."""
    logs = interval([math.log(r) for r in ratios])
    return {k: v if k == "n" or v is None else math.exp(v) for k, v in logs.items()}


# --- one run ---------------------------------------------------------------------------------------


def measures(rows: Sequence[Row], target_em: float | None) -> dict[str, float | None]:
    """The measures of one run from the rows of its ``metrics.jsonl``; None for what they can't tell.

    Shares are of groups: ``zero_variance_share`` of all played ones, ``recycled_share_last_quarter`` and
    ``recovered_*_share`` of those that were trained on and bore signal. Quarters are of the rollouts.
    """
    steps = [r for r in rows if r["kind"] == "step"]
    evals = [r for r in rows if r["kind"] == "eval"]
    # A batch that is skipped, since its searches failed, say, has cost what it has cost.
    skipped = [r for r in rows if r.get("event") == UNTRAINABLE and "rollout/trajectories" in r]
    costs = [*steps, *(r for r in skipped if r.get("step") != 0)]
    played = sum(r["rollout/trajectories"] for r in costs)
    tokens = sum(r["rollout/generated_tokens"] for r in costs)
    # What came before the first step, the expert seeding (step 0), is in the totals of the evaluations alone.
    before = evals[0] if evals else {"rollouts": 0, "generated_tokens": 0}
    signal = sum(r["groups/signal"] for r in steps)
    trained = sum(trained_groups(r) for r in steps)
    quarter = quarters(steps)
    found: dict[str, float | None] = {
        "rollouts": before["rollouts"] + played,
        "generated_tokens": before["generated_tokens"] + tokens,
        **_evaluated(evals, target_em),
        "rollouts_per_signal_group": _share(played, signal),
        "zero_variance_share": zero_variance_share(steps),
    }
    for at, part in enumerate(quarter):
        found[f"zero_variance_share/quarter_{at + 1}"] = zero_variance_share(part)
    found["recycled_share_last_quarter"] = recycled_share(quarter[-1])
    found["flipped_share"] = steps[-1]["pool/flipped_share"] if steps else None
    for kind in ("too_hard", "too_easy"):
        found[f"recovered_{kind}_share"] = _share(sum(r[f"pool/recovered_{kind}"] for r in steps), trained)
    return found


def evaluations(rows: Sequence[Row]) -> list[Row]:
    """The evaluations of the newest series that scored something: one in which every episode broke says nothing of the
    policy."""
    evals = [r for r in rows if r["kind"] == "eval"]
    return [r for r in evals if r["em"] is not None and same_series(r, evals[-1])]


def ends(rows: Sequence[Row]) -> tuple[Row | None, Row | None]:
    """A run's first and last evaluation. None for one that scored nothing, because every episode broke or too many did,
    and for a first one of another series: no other evaluation stands for it.
    """
    evals = [r for r in rows if r["kind"] == "eval"]
    first, last = (evals[0], evals[-1]) if evals else (None, None)
    if first and last and not same_series(first, last):
        first = None
    return (first if first and first["em"] is not None else None), (last if last and last["em"] is not None else None)


def _evaluated(evals: Sequence[Row], target_em: float | None) -> dict[str, float | None]:
    first, last = ends(evals)
    scored = evaluations(evals)
    if not scored:
        return {}
    em = [r["em"] for r in scored]
    rollouts, tokens = [r["rollouts"] for r in scored], [r["generated_tokens"] for r in scored]
    found: dict[str, float | None] = {
        "em_before": first["em"] if first else None,
        "em_after": last["em"] if last else None,
    }
    for kind in (k for k in scored[-1] if k.startswith("em/")):
        found[f"em_before/{kind[3:]}"], found[f"em_after/{kind[3:]}"] = ((r or {}).get(kind) for r in (first, last))
    found["em_over_budget"] = mean_height(rollouts, em) if first and last else None
    if target_em is not None and same_series(evals[0], evals[-1]):  # else nobody knows whether it was there before
        found["rollouts_to_target"] = first_reach(rollouts, em, target_em)
        found["tokens_to_target"] = first_reach(tokens, em, target_em)
    of_last = dict.fromkeys((*per_question(scored[-1]), "evidence_recall"))
    return found | (per_question(last) | {"evidence_recall": last["evidence_recall"]} if last else of_last)


def per_question(evaluation: Row) -> dict[str, Any]:
    """Searches and generated tokens, probes included, that a question took; None for simulated policies."""
    tokens = evaluation["action_tokens/mean"]
    return {
        "searches": evaluation["search/mean"],
        "question_tokens": None if tokens is None else tokens + (evaluation.get("probe_tokens/mean") or 0.0),
    }


def first_reach(x: Sequence[float], y: Sequence[float], target: float) -> float | None:
    """Where the line through the points first reaches ``target``; None if it never does."""
    if y and y[0] >= target:
        return x[0]
    for (x0, y0), (x1, y1) in zip(zip(x, y, strict=True), zip(x[1:], y[1:], strict=True), strict=False):
        if y1 >= target:
            return x0 + (x1 - x0) * (target - y0) / (y1 - y0)
    return None


def mean_height(x: Sequence[float], y: Sequence[float]) -> float:
    """The area under the line through the points, divided by its length; of a single point, its height."""
    if x[-1] == x[0]:
        return y[-1]
    area = sum((b - a) * (c + d) / 2 for a, b, c, d in zip(x, x[1:], y, y[1:], strict=False))
    return area / (x[-1] - x[0])


def quarters(steps: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row], list[Row]]:
    """The steps by the quarter of the run's rollouts in which their middle lies."""
    parts: tuple[list[Row], list[Row], list[Row], list[Row]] = ([], [], [], [])
    total = sum(r["rollout/trajectories"] for r in steps)
    before = 0
    for row in steps:
        middle = before + row["rollout/trajectories"] / 2
        parts[min(3, int(4 * middle / total)) if total else 0].append(row)
        before += row["rollout/trajectories"]
    return parts


def trained_groups(step: Row) -> int:
    """Groups of a step that were trained on and bore signal, which its shares are of.

    A rule accepts signal-bearing groups first: the accepted ones are all of them (``epoch``), or all signal
    (``recycle``).
    """
    return min(step["groups/accepted"], step["groups/signal"])


def zero_variance_share(steps: Sequence[Row]) -> float | None:
    """Share of the played groups from which nothing can be learnt."""
    zero = sum(r["groups/too_easy"] + r["groups/too_hard"] for r in steps)
    return _share(zero, zero + sum(r["groups/signal"] for r in steps))


def recycled_share(steps: Sequence[Row]) -> float | None:
    """Share of the trained, signal-bearing groups whose query had been drawn before and not consumed."""
    weighted = [(trained_groups(r), r["pool/recycled_share"]) for r in steps if r["pool/recycled_share"] is not None]
    return _share(sum(n * share for n, share in weighted), sum(n for n, _ in weighted))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def seeds(count: int) -> str:
    """So many, in words."""
    return f"{count} {'seed' if count == 1 else 'seeds'}"


# --- runs together ---------------------------------------------------------------------------------


def pooled(runs: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """``interval`` of each measure over runs; ``n`` counts those that have it (that reached the target, say)."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: interval([v for run in runs if (v := run.get(name)) is not None]) for name in names}


def paired(
    runs: Mapping[int, Mapping[str, float | None]], baseline: Mapping[int, Mapping[str, float | None]]
) -> dict[str, dict[str, Any]]:
    """One condition against another, seed by seed: both map a seed to its run's measures.

    ``em_after``, that of each kind of question, and ``em_over_budget`` are differences (run minus baseline),
    ``rollouts_per_signal_group`` is a ratio (run to baseline, geometric mean). Seeds that only one of them has
    are left out.
    """

    def pairs(name: str) -> list[tuple[float, float]]:
        both = [(runs[seed].get(name), baseline[seed].get(name)) for seed in sorted(runs.keys() & baseline.keys())]
        return [(a, b) for a, b in both if a is not None and b is not None]

    kinds = dict.fromkeys(name for run in runs.values() for name in run if name.startswith("em_after/"))
    found = {name: interval([a - b for a, b in pairs(name)]) for name in ("em_after", *kinds, "em_over_budget")}
    ratio = "rollouts_per_signal_group"
    return found | {ratio: ratio_interval([a / b for a, b in pairs(ratio)])}
