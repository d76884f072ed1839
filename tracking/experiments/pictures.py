"""The pictures of a sweep, a panel for each question that its reader has.

Each seed is a thin line, the mean a thick one. An interval is drawn where it says something by itself: of differences
that are paired by seed, one condition a panel. Intervals of conditions that lie on each other show nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tracking.dispensable import Dispensable
from tracking.experiments.curves import (
    RATIOS,
    Curve,
    Row,
    both,
    by_seed,
    difference,
    evaluated,
    group_mix,
    mean_band,
    pairs,
    recycled,
    spent,
    stepped,
)
from tracking.experiments.measures import seeds
from tracking.experiments.sweep import Status
from tracking.palette import COLOURS

Runs = Mapping[str, Sequence[Sequence[Row]]]
"""The rows of each condition's finished jobs."""

MIX = {"too hard": "#D55E00", "signal": "#0072B2", "too easy": "#BBBBBB"}
"""``curves.STATES`` in words, and their colours."""
MEASURES = {"em": "held-out exact match", "evidence_recall": "held-out evidence recall"}
"""Of an evaluation: what is drawn against what a run has cost."""
AGAINST = {
    "em_after": "held-out EM in the end",
    "em_after/": "EM in the end, {}",
    "em_over_budget": "mean EM over the budget",
    "rollouts_per_signal_group": "rollouts per signal-bearing group",
}
"""What is compared with the baseline seed by seed (``measures.paired``): a measure, or all of a beginning."""
PANELS = 3
"""Conditions beside each other."""


def draw(
    folder: Path, report: Mapping[str, Any], rows: Mapping[str, Sequence[Row]], extras: Dispensable
) -> dict[str, str]:
    """Draws all pictures of a report into ``folder``; the files' names and captions of those that ``extras`` let be.

    ``rows`` are the jobs' by their names. Only conditions with a finished job are drawn.
    """
    finished = {j["name"] for j in report["jobs"] if j["status"] == Status.FINISHED}
    runs = {
        c["name"]: found
        for c in report["conditions"]
        if (found := [rows[name] for name in c["jobs"] if name in finished])
    }
    baseline = report["baseline"] if report["baseline"] in runs else None
    target = report["target_em"]
    made: dict[str, tuple[Callable[[], Figure], str]] = {
        "em.png": (
            lambda: _learnt(runs, "rollouts", "em", baseline, target),
            "How each seed learns: held-out exact match against rollouts",
        ),
        "em_tokens.png": (
            lambda: _learnt(runs, "generated_tokens", "em", baseline, target),
            "What it costs: held-out exact match against generated tokens",
        ),
    }
    if any(evaluated(rows, "rollouts", "evidence_recall")[0] for of in runs.values() for rows in of):
        made["evidence.png"] = (
            lambda: _learnt(runs, "generated_tokens", "evidence_recall", baseline),
            "What is found: held-out evidence recall against generated tokens",
        )
    # A job may finish without a step, as one that evaluates what it starts from: these have nothing to show of it.
    steps = {name: [rows for rows in of if any(r["kind"] == "step" for r in rows)] for name, of in runs.items()}
    if any(steps.values()):
        made["groups.png"] = (
            lambda: _groups({name: of for name, of in steps.items() if of}),
            "What is played: groups that were too hard, bore signal, were too easy",
        )
        made["pool.png"] = (
            lambda: _pool(steps),
            "What is recycled: share of trained groups; flipped share of questions",
        )
    of_seeds = {name: by_seed(report, rows, name) for name in runs}
    if baseline is not None and any(both(of, of_seeds[baseline]) for name, of in of_seeds.items() if name != baseline):
        made["against.png"] = (lambda: against(report), f"Is it better: against {baseline}, paired by seed")
        made["difference.png"] = (
            lambda: _difference(of_seeds, baseline),
            f"When is it better: held-out exact match less that of {baseline}, paired by seed",
        )
    if any(spent(rows, "searches")[0] for of in runs.values() for rows in of):
        made["spent.png"] = (
            lambda: _spent(runs, "searches", baseline),
            "What a question takes: exact match against its searches, evaluation by evaluation",
        )
        made["spent_tokens.png"] = (
            lambda: _spent(runs, "question_tokens", baseline),
            "What a question takes: exact match against its generated tokens, evaluation by evaluation",
        )

    def save(file: str) -> bool:
        (folder / file).unlink(missing_ok=True)  # of an earlier report
        made[file][0]().savefig(folder / file, dpi=130)
        return True

    return {file: caption for file, (_, caption) in made.items() if extras.attempt(file, partial(save, file))}


# --- from curves to pictures -----------------------------------------------------------------------


def _learnt(runs: Runs, x: str, y: str, baseline: str | None, target: float | None = None) -> Figure:
    """A panel a condition; the baseline's mean is in each."""
    figure, grid = _panels(len(runs))
    curves = {name: [curve for rows in of if (curve := evaluated(rows, x, y))[0]] for name, of in runs.items()}
    for at, ((name, of), axes) in enumerate(zip(curves.items(), grid, strict=True)):
        if baseline is not None and name != baseline and curves[baseline]:
            across, mean, _ = mean_band(curves[baseline])
            axes.plot(across, mean, color="0.45", linestyle="--", linewidth=1.2, label=f"mean of {baseline}")
        _thin(axes, of, COLOURS[at % len(COLOURS)])
        if target is not None:
            axes.axhline(target, color="0.5", linewidth=0.8, linestyle=":")
        axes.set_title(f"{name} ({seeds(len(runs[name]))})", fontsize=10)
        _dress(axes, x.replace("_", " "), "" if at % PANELS else MEASURES[y])
    top = _top([v for of in curves.values() for _, values in of for v in values] + ([] if target is None else [target]))
    for axes in grid:
        axes.set_ylim(0, top)
    _legend(grid)
    return figure


def against(report: Mapping[str, Any]) -> Figure:
    """A panel for each of ``AGAINST``, a line for each condition: its seeds, their mean and its 95 % interval.

    ``report`` is what ``sweep.json`` holds; without its ``jobs`` the seeds are left out.
    """
    compared, names = report["comparisons"], [c["name"] for c in report["conditions"]]
    present = dict.fromkeys(name for c in compared for name, found in c.items() if isinstance(found, Mapping))
    shown = [
        (name, label.format(name.removeprefix(key)))
        for key, label in AGAINST.items()
        for name in present
        if name == key or (key.endswith("/") and name.startswith(key))
    ]
    lines = math.ceil(len(shown) / PANELS)
    figure = Figure(figsize=(11.6, 0.5 + lines * (0.9 + 0.34 * len(compared))), layout="constrained")
    grid = list(figure.subplots(lines, min(PANELS, len(shown)), sharey=True, squeeze=False).flat)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    for axes, (name, label) in zip(grid, shown, strict=False):
        for at, comparison in enumerate(compared):
            found, colour = comparison.get(name), COLOURS[names.index(comparison["condition"]) % len(COLOURS)]
            if not found or found["mean"] is None:
                continue
            points = pairs(report, comparison["condition"], name)
            axes.plot(points, [at - 0.22] * len(points), "o", color=colour, alpha=0.45, markersize=4)
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [at, at], color=colour, linewidth=2)
            axes.plot([found["mean"]], [at], "D", color=colour, markersize=5)
        kind = "ratio" if name in RATIOS else "difference"
        axes.axvline(1.0 if name in RATIOS else 0.0, color="0.3", linewidth=0.9)
        axes.set(xlabel=f"{label}, {kind}", ylim=(len(compared) - 0.4, -0.6))
        axes.set_yticks(range(len(compared)), [c["condition"] for c in compared])
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.25, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
    dots = "seeds (dots), " if report["jobs"] else ""
    figure.suptitle(f"against {report['baseline']}, paired by seed: {dots}mean and 95 % interval", fontsize=10)
    return figure


def _difference(of_seeds: Mapping[str, Mapping[int, Sequence[Row]]], baseline: str) -> Figure:
    """A panel for each condition but the baseline: EM less the baseline's of the same seed, over the rollouts."""
    others = {
        name: both(of, of_seeds[baseline])
        for name, of in of_seeds.items()
        if name != baseline and both(of, of_seeds[baseline])
    }
    figure, grid = _panels(len(others))
    widest = 0.05
    for at, ((name, shared), axes) in enumerate(zip(others.items(), grid, strict=True)):
        curves = [c for seed in shared if (c := difference(of_seeds[name][seed], of_seeds[baseline][seed]))[0]]
        colour = COLOURS[list(of_seeds).index(name) % len(COLOURS)]
        if curves:
            x, mean, half = mean_band(curves)
            axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
        _thin(axes, curves, colour)
        axes.axhline(0.0, color="0.3", linewidth=0.9)
        axes.set_title(f"{name} ({seeds(len(curves))})", fontsize=10)
        _dress(axes, "rollouts", "" if at % PANELS else f"EM less that of {baseline}")
        widest = max([widest, *(abs(v) for _, y in curves for v in y)])
    for axes in grid:
        axes.set_ylim(-1.2 * widest, 1.2 * widest)
    return figure


def _groups(runs: Runs) -> Figure:
    figure, grid = _panels(len(runs))
    for at, ((name, of), axes) in enumerate(zip(runs.items(), grid, strict=True)):
        centres, shares = group_mix(of)
        axes.stackplot(centres, shares, labels=list(MIX), colors=list(MIX.values()))
        axes.set_title(f"{name} ({seeds(len(of))})", fontsize=10)
        axes.margins(x=0)
        _dress(axes, "rollouts", "" if at % PANELS else "share of groups")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False)
    return figure


def _pool(runs: Runs) -> Figure:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _lines(left, {name: recycled(of) for name, of in runs.items()})
    _dress(left, "rollouts", "recycled share of trained groups")
    _lines(right, {name: [stepped(rows, "pool/flipped_share") for rows in of] for name, of in runs.items()})
    _dress(right, "rollouts", "flipped share of questions")
    right.legend(frameon=False)
    return figure


def _spent(runs: Runs, x: str, baseline: str | None) -> Figure:
    """A panel a condition: the evaluations of each run in their order, a dot at the last; behind it the baseline's."""
    figure, grid = _panels(len(runs))
    curves = {name: [spent(rows, x) for rows in of] for name, of in runs.items()}
    for at, ((name, of), axes) in enumerate(zip(curves.items(), grid, strict=True)):
        if baseline is not None and name != baseline:
            _paths(axes, curves[baseline], "0.6", baseline)
        _paths(axes, of, COLOURS[at % len(COLOURS)])
        axes.set_title(f"{name} ({seeds(len(of))})", fontsize=10)
        label = {"searches": "searches per question", "question_tokens": "generated tokens per question"}[x]
        _dress(axes, label, "" if at % PANELS else "held-out exact match")
    _legend(grid)
    return figure


def _paths(axes: Axes, curves: Sequence[Curve], colour: str, label: str | None = None) -> None:
    """A thin line for each curve, with a dot at its end."""
    for x, y in curves:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5)
        axes.plot(x[-1:], y[-1:], "o", color=colour, markersize=5)
    if label is not None:
        axes.plot([], [], "o-", color=colour, linewidth=0.8, markersize=5, label=label)


def _legend(grid: Sequence[Axes]) -> None:
    """In the first panel that has the baseline beside its own."""
    for axes in [axes for axes in grid if axes.get_legend_handles_labels()[1]][:1]:
        axes.legend(frameon=False, loc="upper left", fontsize=8)


def _lines(axes: Axes, curves: Mapping[str, Sequence[Curve]]) -> None:
    """The seeds and the mean of each condition that has curves; a condition keeps its colour in every picture."""
    for at, (name, of) in enumerate(curves.items()):
        if of:
            _thin(axes, of, COLOURS[at % len(COLOURS)], f"{name} ({seeds(len(of))})")


def _thin(axes: Axes, curves: Sequence[Curve], colour: str, label: str | None = None) -> None:
    """A thin line for each curve, and a thick one for their mean."""
    for x, y in curves:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.4)
    if curves:
        across, mean, _ = mean_band(curves)
        axes.plot(across, mean, color=colour, linewidth=2.0, label=label)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """``count`` panels of one scale, at most ``PANELS`` beside each other."""
    columns = min(count, PANELS)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(0.8 + 3.4 * columns, 0.6 + 2.9 * lines), layout="constrained")
    grid = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for at, axes in enumerate(grid):
        if at + columns >= count:  # the last of its column
            axes.tick_params(labelbottom=True)
        if at >= count:
            axes.set_axis_off()
    return figure, grid[:count]


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y, ylim=(0, 1))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _top(values: Sequence[float]) -> float:
    """The end of a scale for shares: small ones would lie flat on the ground of one that ends at 1."""
    return next((top for top in (0.1, 0.2, 0.5) if max(values, default=1.0) < 0.9 * top), 1.0)


def _short(value: float, _: int) -> str:
    """A tick's text: thousands as k, millions as M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
