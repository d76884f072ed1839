"""What a sweep's runs have gained on each held-out question: before and after, paired by question.

An interval over two or three seeds is too wide to say much, while each seed's evaluation has hundreds of questions. So
an interval here is over the questions, each with the mean of its seeds (``agent.inference.estimates``): how sure a
difference is for these seeds on other questions of the kind. What other seeds would do it doesn't say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.inference.estimates import interval
from tracking.experiments.measures import ends
from tracking.metrics import rows_of
from tracking.shapes import is_number
from tracking.trajectories import EVALUATIONS

Row = Mapping[str, Any]
Values = Mapping[str, float]
"""A measure of each question, by its id."""

MEASURES = {
    "em": "em",
    "f1": "f1",
    "evidence_recall": "evidence",
    "answerable": "answerable",
    "searches": "searches",
}
"""The measures, by the names of ``estimates.MEASURES``, and what the log of episodes calls them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """What the first and the last evaluation of a run say of each question, by the measures that they have."""

    before: Mapping[str, Values]
    after: Mapping[str, Values]


def ends_of(folder: Path, rows: Sequence[Row]) -> Ends | None:
    """The ends of the run in ``folder``, whose metrics are ``rows``; None for one that lacks one of them, or its
    episodes: a simulated policy plays none, and a run that went on in another folder has the first ones in the old one.

    A question that a fault ended has no value. Of one that was played twice at a step, after a resume, the last counts.
    """
    first, last = ends(rows)
    path = folder / EVALUATIONS
    if first is None or last is None or first["step"] == last["step"] or not path.is_file():
        return None
    played: dict[Any, dict[str, dict[Any, Row]]] = {first["step"]: {}, last["step"]: {}}
    for row in rows_of(path):
        step, question = row.get("step"), row.get("question_id")
        if isinstance(step, int) and step in played and isinstance(question, str):
            values = {name: row.get(key) for name, key in MEASURES.items()} if not row.get("fault") else {}
            played[step].setdefault(question, {})[str(row.get("sample"))] = values
    before, after = (_measured(of) for of in played.values())
    return Ends(before=before, after=after) if before and after else None


def _measured(played: Mapping[str, Mapping[Any, Row]]) -> dict[str, dict[str, float]]:
    """Of each question the mean over its episodes; measures without a question are left out."""
    found: dict[str, dict[str, float]] = {}
    for name in MEASURES:
        for question, episodes in played.items():
            known: list[float] = [values[name] for values in episodes.values() if is_number(values.get(name))]
            if known:
                found.setdefault(name, {})[question] = sum(known) / len(known)
    return found


def gains(runs: Mapping[int, Ends], baseline: Mapping[int, Ends] | None) -> dict[str, Any]:
    """Of each measure ``before``, ``after`` and ``gain`` (after less before), and ``against``: after, less the after of
    the ``baseline``. Each is an ``interval`` over questions; ``runs`` and ``baseline`` are by their seeds.

    A question counts that all seeds have a value of, before and after; against the baseline, that both have, after, in
    the seeds that both have.
    """
    found: dict[str, Any] = {"seeds": len(runs)}
    shared = sorted(runs.keys() & baseline.keys()) if baseline else []
    for name in MEASURES:
        before = _mean([run.before.get(name, {}) for run in runs.values()])
        after = _mean([run.after.get(name, {}) for run in runs.values()])
        questions = sorted(before.keys() & after.keys())
        if not questions:
            continue
        found[name] = {
            "before": interval([before[q] for q in questions], seed=0),
            "after": interval([after[q] for q in questions], seed=0),
            "gain": interval([after[q] - before[q] for q in questions], seed=0),
        }
        if baseline and shared:
            one, other = (_mean([of[seed].after.get(name, {}) for seed in shared]) for of in (runs, baseline))
            common = sorted(one.keys() & other.keys())
            found[name]["against"] = interval([one[q] - other[q] for q in common], seed=0)
    return found


def _mean(seeds: Sequence[Values]) -> dict[str, float]:
    """The mean over seeds of each question that all of them have."""
    common = set.intersection(*(set(values) for values in seeds)) if seeds else set()
    return {q: sum(values[q] for values in seeds) / len(seeds) for q in common}
