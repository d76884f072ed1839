"""Whether a run has ended, and if not, when it will."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from agent.readable import WRONG
from tracking.metrics import UNTRAINABLE
from tracking.progress import duration
from tracking.shapes import is_number

LATELY = 10
"""Steps whose pace the others are taken to keep."""
BUDGETS = {"rollout_budget": "rollout/trajectories", "token_budget": "rollout/generated_tokens"}
"""Of ``algorithm``, and what each step takes of it."""
ANEW = ("resumed", "recovered")
"""Events after which steps are played again or the clock starts again."""

BROKE = {"fault": "why", "failed": "message"}
"""Events that say what ended a run, and under which name. A job of a sweep fails, be it before its run has begun."""

Row = Mapping[str, Any]


def why_broken(events: Sequence[Row]) -> str | None:
    """What the last of the ``events`` that ended the run says; None of one that goes on or has ended by itself."""
    said = (str(e.get(BROKE[e["event"]])) for e in reversed(events) if e.get("event") in BROKE)
    return next(said, None)


def ending(rows: Sequence[Row], summary: Row | None, config: str | None, broke: str | None = None) -> str:
    """How the run of these ``rows`` of ``metrics.jsonl`` ended, or when it will: at the pace of its last steps.

    ``config`` is its ``config.yaml``, and ``broke`` says why it broke.
    """
    if summary is not None:
        how = "was stopped" if summary.get("interrupted") else "has ended"
        return f"The run {how} after step {summary.get('step')}."
    steps = [row for row in rows if row.get("kind") == "step"]
    if broke is not None:
        return f"The run broke after step {steps[-1].get('step') if steps else 0}: {broke}"
    if not steps:
        return "No step has ended yet."
    said = f"No summary: the run goes on, or it broke, after step {steps[-1].get('step')}."
    paces, left = [*_paces(rows)][-LATELY:], _steps_left(rows, steps, config)
    if not paces or left is None or left[0] <= 0:
        return said
    count, which = left
    left_s = statistics.mean(paces) * count
    return f"{said} At the pace of its last steps {which} {math.ceil(count):,} take {duration(left_s)}."


def of_evaluation(checkpoint: str, evals: Sequence[Row], broke: str | None) -> str:
    """The same of a ``mode=eval`` of ``checkpoint``, whose row is in ``evals`` once all is played."""
    if broke is not None:
        return f"The evaluation of {checkpoint} broke: {broke}"
    return f"An evaluation of {checkpoint}{'' if evals else ' that goes on, or was stopped'}."


def _paces(rows: Sequence[Row]) -> Iterator[float]:
    """Seconds from the end of each step to that of the next, with the evaluations between them."""
    before: Row | None = None
    for row in rows:
        if row.get("event") in ANEW:
            before = None
        if row.get("kind") != "step":
            continue
        if before is not None and is_number(before.get("time_s")) and is_number(row.get("time_s")):
            seconds = row["time_s"] - before["time_s"]
            if seconds > 0:
                yield seconds
        before = row


def _steps_left(rows: Sequence[Row], steps: Sequence[Row], config: str | None) -> tuple[float, str] | None:
    """How many steps are to come and which they are: the last by the run's steps or by what its budgets leave."""
    try:
        asked = yaml.safe_load(config or "")["algorithm"]
        wanted = asked["steps"]
    except (yaml.YAMLError, *WRONG):  # a date that is none, and the like
        return None
    done = steps[-1].get("step")
    if not is_number(wanted) or not is_number(done):
        return None
    left = [(wanted - done, "the other")]
    for budget, metric in BUDGETS.items():
        given = asked.get(budget)
        if not is_number(given) or given <= 0:
            continue
        lately = [row[metric] for row in steps[-LATELY:] if is_number(row.get(metric))]
        if sum(lately) <= 0:
            return None
        played = (row for row in rows if row.get("kind") == "step" or row.get("event") in ("seeding", UNTRAINABLE))
        spent = sum(row[metric] for row in played if is_number(row.get(metric)))
        left.append(((given - spent) / statistics.mean(lately), f"those that its {budget} leaves, about"))
    return min(left)
