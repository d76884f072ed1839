"""What a run is and how it went: its configuration, its curves, its events."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tracking.alarms import Alarms
from tracking.metrics import SERIES, same_series
from tracking.shapes import EVALUATION, EVENT, SPAN, STEP, SUMMARY, is_number, shaped
from tracking.spans import SPANS
from tracking.view.ending import ending, of_evaluation, why_broken
from tracking.view.episodes import Evaluations
from tracking.view.groups import in_words
from tracking.view.lines import MAX_CELL, Notices, clean, lines, short, shortened

MOST_ALARMS = 200
MOST_STEPS = 2_000
MOST_EVENTS = 2_000
MOST_SPANS = 40_000
MAX_EVENT = 2_000
"""Characters of a text of an event."""
SHAPES = {"step": STEP, "eval": EVALUATION, "event": EVENT, "summary": SUMMARY}
"""Of the rows of ``metrics.jsonl`` by their kind."""
Z = 1.959964
"""Of a 95 % interval."""


def facts(folder: Path, notices: Notices, held_out: Evaluations) -> dict[str, Any]:
    """The part of a report that is about the run as a whole: ``config``, ``overrides``, ``steps`` (columns),
    ``evals``, ``events``, ``summary``, ``alarms``, ``about``, ``end``,
    ``evaluation`` (it is one of ``mode=eval``). ``held_out`` are the episodes of its evaluations."""
    steps: list[dict[str, Any]] = []
    evals: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    summary: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = []
    for line in lines(folder / "metrics.jsonl", notices):
        kind = str(line.row.get("kind"))
        row = shaped(line.row, SHAPES.get(kind, {}))
        if kind in ("step", "eval") and row.get("step") is None:
            notices.add("metrics.jsonl: rows of a step or an evaluation that don't say which are left out")
            continue
        rows.append(row)
        if kind == "step":
            steps.append(row)
        elif kind == "eval":
            evals.append(clean(row, MAX_CELL))
        elif kind == "event":
            events.append(clean(row, MAX_EVENT))
        elif kind == "summary":
            summary = clean(row)
    broke = why_broken(events)
    about = next((e for e in reversed(events) if e.get("event") == "about"), None)
    alarms = Alarms(str((about or {}).get("dtype", "")))
    for row in rows:
        if row.get("kind") in ("step", "eval"):
            alarms.add(row)
    checkpoint = next(
        (row["checkpoint"] for row in (about or {}, *evals) if row.get("checkpoint")), None
    )  # in mode=eval alone
    config = _text(folder / ".hydra" / "config.yaml", notices)
    return {
        "name": folder.absolute().name,
        "folder": str(folder.absolute()),
        "config": config,
        "overrides": _text(folder / ".hydra" / "overrides.yaml", notices),
        "about": about,
        "steps": columns(steps, notices),
        "evals": thinned(_told(evals, held_out), "evaluations", notices),
        "events": [e for e in events if e.get("event") != "about"],
        "summary": summary,
        "alarms": [clean(asdict(alarm), MAX_EVENT) for alarm in alarms.all()[:MOST_ALARMS]],
        "end": ending(rows, summary, config, broke) if checkpoint is None else of_evaluation(checkpoint, evals, broke),
        "evaluation": checkpoint is not None,
    }


def columns(steps: list[dict[str, Any]], notices: Notices) -> dict[str, list[Any]]:
    """The numbers of the steps by name, null where a step has none."""
    shown = thinned(steps, "steps", notices)
    names = {name for row in shown for name, value in row.items() if is_number(value)}
    found = {name: [short(row[name]) if is_number(row.get(name)) else None for row in shown] for name in sorted(names)}
    return {name: values for name, values in found.items() if any(v is not None for v in values)}


def thinned(rows: list[dict[str, Any]], what: str, notices: Notices) -> list[dict[str, Any]]:
    """``rows``, or of more than ``MOST_STEPS`` every second, third, … one, the last one among them."""
    stride = -(-len(rows) // MOST_STEPS) or 1
    if stride > 1:
        notices.add(f"the curves show one in {stride} of {len(rows):,} {what}")
    return rows[::-1][::stride][::-1]


def _told(evals: list[dict[str, Any]], held_out: Evaluations) -> list[dict[str, Any]]:
    """``evals`` with their intervals, and of several series with ``series``, which says when and why theirs began."""
    times = Counter(row["step"] for row in evals)
    told: list[dict[str, Any]] = []
    series: list[str] = []
    for before, row in zip([None, *evals], evals, strict=False):
        if before is None or not same_series(before, row):
            asked = before is not None and before.get(SERIES[0]) != row.get(SERIES[0])
            why = "" if before is None else "other questions, " if asked else "played otherwise, "
            series.append(f"series {len(series) + 1}: {why}from step {row['step']}")
        # Two evaluations of one step are of two series: whose episodes are whose, the log doesn't say.
        told.append(row | _intervals(row, held_out, logged=times[row["step"]] == 1) | {"series": series[-1]})
    return told if len(series) > 1 else [{k: v for k, v in row.items() if k != "series"} for row in told]


def _intervals(row: dict[str, Any], held_out: Evaluations, logged: bool) -> dict[str, Any]:
    """Of EM and F1, from its ``logged`` episodes. The samples of a question are alike: only its mean over them is
    independent of the others."""
    if row.get("refused"):
        return {"em_interval": None, "f1_interval": None}
    step = row["step"]
    em = wilson(row.get("em"), row.get("n"))
    if max(held_out.samples(step), row.get("samples") or 1) > 1:
        em = mean_interval([*held_out.em(step).values()])
    return {"em_interval": em, "f1_interval": mean_interval([*held_out.f1(step).values()]) if logged else None}


def wilson(share: Any, n: Any) -> list[float] | None:
    """Wilson's 95 % interval of a share of ``n`` (JASA 22, 1927); None without them.

    >>> [round(x, 3) for x in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    if not is_number(share) or not isinstance(n, int) or n < 1 or not 0 <= share <= 1:
        return None
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return [short(max(0.0, round(middle - half, 9))), short(min(1.0, middle + half))]


def mean_interval(values: list[float]) -> list[float] | None:
    """The normal 95 % interval of the mean of scores between 0 and 1; None of fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    half = Z * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return [short(max(0.0, mean - half)), short(min(1.0, mean + half))]


def spans(folder: Path, notices: Notices) -> tuple[list[dict[str, Any]], int]:
    """The newest ``MOST_SPANS`` rows of ``spans.jsonl`` that say who did what and when, and how many there are."""
    newest: deque[dict[str, Any]] = deque(maxlen=MOST_SPANS)  # a long run has millions
    count = 0
    for line in lines(folder / SPANS, notices, SPAN):
        if all(line.row.get(name) is not None for name in SPAN):
            newest.append(line.row)
            count += 1
    return [*newest], count


def timeline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Who did what and when: ``start`` and ``end`` in seconds since ``began``."""
    began = min((row["start"] for row in rows), default=0.0)
    return {
        "began": began,
        "actor": in_words([clean(row.get("actor"), MAX_CELL) for row in rows]),
        "what": in_words([clean(row.get("what"), MAX_CELL) for row in rows]),
        "start": [round(row["start"] - began, 2) for row in rows],
        "end": [round(row["end"] - began, 2) for row in rows],
    }


def _text(path: Path, notices: Notices) -> str | None:
    try:
        return shortened(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        notices.add(f"{path.parent.name}/{path.name} is missing: the configuration is not known")
        return None
