"""What the rows of an evaluation say of a policy, and how sure that is: means over questions, bootstrap intervals.

A question's value is the mean over its episodes that no fault ended; the questions are what is resampled, so that
several episodes of one are not taken for independent ones. Intervals are percentiles of the resampled means (Efron and
Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.inference.evaluation import EvalRow
from agent.seeds import derive_seed

RESAMPLES = 2_000
LEVEL = 0.95
_NUMBER = re.compile(r"(\d+)")
_AT_ONCE = 4_000_000
"""Numbers drawn at once: 32 MB."""

MEASURES: dict[str, Callable[[EvalRow], float | None]] = {
    "em": lambda row: row.em,
    "f1": lambda row: row.f1,
    "cover_em": lambda row: row.cover,
    "evidence_recall": lambda row: row.evidence,
    "answerable": lambda row: row.answerable,
    "searches": lambda row: row.searches,
    "tokens": lambda row: row.action_tokens + row.probe_tokens,
}
"""Of an episode; None where it has none."""


def by_question(rows: Sequence[EvalRow]) -> dict[str, list[EvalRow]]:
    """The episodes of each question that no fault ended."""
    found: dict[str, list[EvalRow]] = {}
    for row in rows:
        if not row.fault:
            found.setdefault(row.question_id, []).append(row)
    return found


def values(rows: Sequence[EvalRow], measure: str) -> dict[str, float]:
    """A measure of each question that has one."""
    of = MEASURES[measure]
    known = {name: [v for row in own if (v := of(row)) is not None] for name, own in by_question(rows).items()}
    return {name: sum(each) / len(each) for name, each in known.items() if each}


def pass_at(n: int, correct: int, k: int) -> float:
    """Probability that at least one of ``k`` episodes is right, unbiased, from ``n`` of which ``correct`` are.

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv:2107.03374), equation 1.

    >>> pass_at(4, 1, 1), pass_at(4, 1, 2), pass_at(4, 1, 4)
    (0.25, 0.5, 1.0)
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} episodes: k must lie in [1, {n}]")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def passes(rows: Sequence[EvalRow], k: int, samples: int) -> dict[str, float]:
    """pass@k of each question that has all of its ``samples`` episodes without a fault. So the questions are the same
    for every k: otherwise more tries could seem worse than fewer."""
    found = by_question(rows)
    return {q: pass_at(samples, sum(r.em == 1.0 for r in own), k) for q, own in found.items() if len(own) == samples}


def tried(samples: int) -> list[int]:
    """The k of pass@k for ``samples`` episodes: the powers of two below, and all; none of a single episode."""
    return [] if samples < 2 else [*(2**i for i in range(1, samples.bit_length()) if 2**i < samples), samples]


def interval(each: Sequence[float], seed: int) -> dict[str, Any]:
    """``mean``, ``low`` and ``high`` of its 95 % bootstrap interval, ``n``; None where there are too few values."""
    if not each:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = sum(each) / len(each)
    if len(each) < 2:
        return {"mean": mean, "low": None, "high": None, "n": len(each)}
    low, high = np.quantile(resampled(np.asarray(each, dtype=np.float64), seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": mean, "low": float(low), "high": float(high), "n": len(each)}


def resampled(each: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    """(RESAMPLES,) means of as many values drawn with replacement; the same for the same seed."""
    rng, n = np.random.default_rng(derive_seed(seed, "bootstrap")), len(each)
    means: list[npt.NDArray[np.float64]] = []
    left = RESAMPLES
    while left:
        count = min(left, max(1, _AT_ONCE // n))
        means.append(each[rng.integers(0, n, (count, n))].mean(axis=1))
        left -= count
    return np.concatenate(means)


def _set_of(row: EvalRow) -> str:
    """The set of a question among several, which its id and its type begin with; "" otherwise."""
    name = row.kind.partition("/")[0]
    return name if row.question_id.startswith(f"{name}/") else ""


def _in_order(name: str) -> list[str | int]:
    """A key that sorts numbers within names as numbers: 2 before 10."""
    return [int(part) if at % 2 else part for at, part in enumerate(_NUMBER.split(name))]


def slices(rows: Sequence[EvalRow]) -> list[tuple[str, str, list[EvalRow]]]:
    """The lines of a table, each as the division, the part's name, and its rows: all rows; by set, where there are
    several; by type, whose name then begins with its set (``tasks/several.py``); by number of supporting documents.

    A division that has one part, or the parts of the one before, is left out, and so is a set among the types.
    """
    found: list[tuple[str, str, list[EvalRow]]] = [("all", "all", list(rows))]
    seen = [[frozenset(range(len(rows)))]]
    ways: Mapping[str, Callable[[EvalRow], str]] = {
        "set": _set_of,
        "type": lambda row: row.kind,
        "documents": lambda row: str(row.documents) if row.documents else "",
    }
    for by, name_of in ways.items():
        parts: dict[str, list[int]] = {}
        for at, row in enumerate(rows):
            parts.setdefault(name_of(row), []).append(at)
        division = sorted((frozenset(own) for own in parts.values()), key=min)
        named = sorted(filter(None, parts), key=_in_order)
        if not named or division in seen or (by != "type" and len(named) < 2):
            continue
        seen.append(division)
        # A set whose questions have no type is its own type.
        listed = {name for kind, name, _ in found if kind == "set"}
        found += [(by, name, [rows[at] for at in parts[name]]) for name in named if by != "type" or name not in listed]
    return found
