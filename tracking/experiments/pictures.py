"""The pictures of a sweep: means over the finished jobs of each condition, with 95 % bands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tracking.experiments.measures import evaluations, half_width, per_question, recycled_share
from tracking.experiments.sweep import Status
from tracking.palette import COLOURS

Row = Mapping[str, Any]
Runs = Mapping[str, Sequence[Sequence[Row]]]
"""The rows of each condition's finished jobs."""
Curve = tuple[Sequence[float], Sequence[float]]

MIX = {"too_hard": ("too hard", "#D55E00"), "signal": ("signal", "#0072B2"), "too_easy": ("too easy", "#BBBBBB")}
BINS = 20
_DASHES = ("-", "--", ":")
_MARKERS = ("o", "s", "^")


def draw(folder: Path, report: Mapping[str, Any], rows: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Draws all pictures of a report into ``folder``; their files' names and captions.

    ``rows`` are the jobs' by their names. Only conditions with a finished job are drawn.
    """
    finished = {j["name"] for j in report["jobs"] if j["status"] == Status.FINISHED}
    runs = {
        c["name"]: found
        for c in report["conditions"]
        if (found := [rows[name] for name in c["jobs"] if name in finished])
    }
    made: dict[str, tuple[Callable[[], Figure], str]] = {
        "em.png": (lambda: _em(runs, report["target_em"]), "Held-out exact match against rollouts and tokens"),
        "groups.png": (lambda: _groups(runs), "Groups that were too hard, bore signal, were too easy"),
        "pool.png": (lambda: _pool(runs), "Recycled share of trained groups, flipped share of questions"),
    }
    if any(spent(rows, "searches")[0] for of in runs.values() for rows in of):
        made["spent.png"] = (lambda: _spent(runs), "Held-out exact match against searches and tokens per question")
    for file, (figure, _) in made.items():
        figure().savefig(folder / file, dpi=130)
    return {file: caption for file, (_, caption) in made.items()}


# --- from rows to curves ---------------------------------------------------------------------------


def evaluated(rows: Sequence[Row], x: str) -> Curve:
    """Held-out EM of a run against ``x`` (``rollouts`` or ``generated_tokens``)."""
    evals = evaluations(rows)
    return [r[x] for r in evals], [r["em"] for r in evals]


def spent(rows: Sequence[Row], x: str) -> Curve:
    """Held-out EM of a run's evaluations against what they took per question, ``searches`` or ``question_tokens``.

    Simulated policies search for nothing: their curve is empty.
    """
    evals = [r for r in rows if r["kind"] == "eval" and r["search/mean"] is not None]
    return [per_question(r)[x] for r in evals], [r["em"] for r in evals]


def stepped(rows: Sequence[Row], key: str) -> Curve:
    """A metric of a run's steps against the rollouts played by their ends."""
    steps = [r for r in rows if r["kind"] == "step"]
    return list(np.cumsum([r["rollout/trajectories"] for r in steps])), [r[key] for r in steps]


def mean_band(curves: Sequence[Curve], points: int = 101) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [points], mean [points] and half the 95 % interval [points] (NaN for one curve), where all curves are."""
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.linspace(start, end, points)
    values = np.array([np.interp(grid, x, y) for x, y in curves])
    return grid, values.mean(axis=0), np.array([half_width(list(column)) for column in values.T])


def binned(runs: Sequence[Sequence[Row]]) -> tuple[np.ndarray, list[list[list[Row]]]]:
    """The steps of runs by equal parts of the rollouts that all of them played: centres, and per run its bins."""
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
    """Centres [n] and shares [3, n] of the groups of each state in ``MIX``, over all runs together."""
    centres, bins = binned(runs)
    counts = np.array(
        [
            [sum(r[f"groups/{state}"] for parts in bins for r in parts[at]) for at in range(len(centres))]
            for state in MIX
        ]
    )
    full = counts.sum(axis=0) > 0
    return centres[full], counts[:, full] / counts[:, full].sum(axis=0)


def recycled(runs: Sequence[Sequence[Row]]) -> list[Curve]:
    """The recycled share of each run's trained groups by parts of its rollouts."""
    centres, bins = binned(runs)
    curves: list[Curve] = []
    for parts in bins:
        known = [
            (x, share) for x, rows in zip(centres, parts, strict=True) if (share := recycled_share(rows)) is not None
        ]
        if known:
            curves.append(([x for x, _ in known], [share for _, share in known]))
    return curves


# --- from curves to pictures -----------------------------------------------------------------------


def _em(runs: Runs, target: float | None) -> Figure:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, (x, label) in zip(
        figure.subplots(1, 2, sharey=True),
        (("rollouts", "rollouts"), ("generated_tokens", "generated tokens")),
        strict=True,
    ):
        curves = {name: [curve for rows in of if (curve := evaluated(rows, x))[0]] for name, of in runs.items()}
        _lines(axes, curves)
        if target is not None:
            axes.axhline(target, color="0.5", linewidth=0.8, linestyle=":")
        _dress(axes, label, "held-out exact match" if x == "rollouts" else "")
    figure.axes[0].legend(frameon=False, loc="lower right")
    return figure


def _groups(runs: Runs) -> Figure:
    lines = 1 if len(runs) <= 3 else math.ceil(len(runs) / 3)
    columns = math.ceil(len(runs) / lines)
    figure = Figure(figsize=(0.8 + 3.4 * columns, 0.6 + 2.9 * lines), layout="constrained")
    grid = iter(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    for at, ((name, of), axes) in enumerate(zip(runs.items(), grid, strict=False)):
        centres, shares = group_mix(of)
        axes.stackplot(
            centres, shares, labels=[label for label, _ in MIX.values()], colors=[colour for _, colour in MIX.values()]
        )
        axes.set_title(f"{name} ({_seeds(of)})", fontsize=10)
        axes.margins(x=0)
        _dress(axes, "rollouts", "" if at % columns else "share of groups")
    for axes in grid:
        axes.set_axis_off()
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


def _spent(runs: Runs) -> Figure:
    """The evaluations of each run in their order, the last one marked."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, (x, label) in zip(
        figure.subplots(1, 2, sharey=True),
        (("searches", "searches per question"), ("question_tokens", "generated tokens per question")),
        strict=True,
    ):
        for at, (name, of) in enumerate(runs.items()):
            colour, marker = COLOURS[at % len(COLOURS)], _MARKERS[at // len(COLOURS) % len(_MARKERS)]
            axes.plot([], [], marker, color=colour, label=f"{name} ({_seeds(of)})")
            for rows in of:
                across, up = spent(rows, x)
                axes.plot(across, up, color=colour, linewidth=0.8, alpha=0.4)
                axes.plot(across[-1:], up[-1:], marker, color=colour, alpha=0.8)
        _dress(axes, label, "held-out exact match" if x == "searches" else "")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _lines(axes: Axes, curves: Mapping[str, Sequence[Curve]]) -> None:
    """A line and a band for each condition that has curves; a condition keeps its colour in every picture."""
    for at, (name, of) in enumerate(curves.items()):
        if not of:
            continue
        colour, dash = COLOURS[at % len(COLOURS)], _DASHES[at // len(COLOURS) % len(_DASHES)]
        x, mean, half = mean_band(of)
        axes.plot(x, mean, color=colour, linestyle=dash, linewidth=1.8, label=f"{name} ({_seeds(of)})")
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)


def _seeds(of: Sequence[Any]) -> str:
    return f"{len(of)} {'seed' if len(of) == 1 else 'seeds'}"


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y, ylim=(0, 1))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _short(value: float, _: int) -> str:
    """A tick's text: thousands as k, millions as M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
