"""What the rules of ``alarms.py`` see of a run: its first and its last steps, its evaluations, and how good it was."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from learner.config import BFLOAT16_MISMATCH
from tracking.metrics import mean, same_series

WINDOW = 5
"""Steps that a rule takes together."""
MISMATCH_FLOOR = 1e-3
"""Nats a token; float32's rounding stays far below it, and growth below it says nothing."""

Row = Mapping[str, Any]


class Scored(NamedTuple):
    """An evaluation that has a score."""

    em: float
    n: float
    reward: float
    """The mean reward of the steps before it; NaN before the first step."""
    step: Any


class History:
    """What the rules see: the first and the last steps, the newest evaluation and the best before it.

    ``dtype`` is the model's.
    """

    def __init__(self, dtype: str) -> None:
        self.mismatch_bound = MISMATCH_FLOOR if dtype == "float32" else BFLOAT16_MISMATCH
        """Nats a token that rounding doesn't explain."""
        self.first: list[Row] = []
        self.last: deque[Row] = deque(maxlen=WINDOW)
        self._evaluation: Row | None = None
        self.scored: Scored | None = None
        """The newest evaluation of the newest series."""
        self.best: Scored | None = None
        """The best one of that series before it, the first of equals."""
        self.mismatches: deque[float] = deque(maxlen=WINDOW)
        self.least_mismatch = math.inf
        """The least median of ``WINDOW`` steps: a single step with few tokens may have hardly any."""
        self.best_throughput = 0.0
        self.overlaps = False
        """Rollouts and updates overlap (``pool.max_staleness`` above 0)."""

    def add(self, row: Row) -> None:
        if row.get("kind") == "eval":
            self._evaluated(row)
            return
        if len(self.first) < WINDOW:
            self.first.append(row)
        self.last.append(row)
        if (mismatch := number(row, "rollout/mismatch")) is not None:
            self.mismatches.append(mismatch)
            if len(self.mismatches) == WINDOW:
                self.least_mismatch = min(self.least_mismatch, statistics.median(self.mismatches))
        self.overlaps = self.overlaps or (number(row, "rollout/staleness_max") or 0) > 0
        if self.full and self.throughput > self.best_throughput:
            self.best_throughput = self.throughput

    def _evaluated(self, row: Row) -> None:
        if self._evaluation is not None and not same_series(self._evaluation, row):
            self.scored = self.best = None
        self._evaluation = row
        em, n = number(row, "em"), number(row, "n")
        if em is None or not n:
            return
        if self.scored is not None and (self.best is None or self.scored.em > self.best.em):
            self.best = self.scored
        self.scored = Scored(em=em, n=n, reward=self.now("reward/mean"), step=row.get("step"))

    @property
    def full(self) -> bool:
        return len(self.last) == WINDOW

    @property
    def throughput(self) -> float:
        """Generated tokens a second, the median of the last steps; NaN without a number."""
        values = self._values("rollout/tokens_per_s", self.last)
        return statistics.median(values) if values else math.nan

    def now(self, name: str) -> float:
        """The mean of the last steps; NaN without a number."""
        return mean(self._values(name, self.last))

    def then(self, name: str) -> float:
        """The mean of the first steps."""
        return mean(self._values(name, self.first))

    def share(self, parts: Sequence[str], wholes: Sequence[str]) -> float:
        """The sum of some counts over the last steps, divided by that of others."""
        total = sum(chain.from_iterable(self._values(name, self.last) for name in wholes))
        return sum(chain.from_iterable(self._values(name, self.last) for name in parts)) / total if total else math.nan

    def length(self, rows: Sequence[Row] | deque[Row]) -> float:
        """Generated tokens a trajectory."""
        played = sum(self._values("rollout/trajectories", rows))
        return sum(self._values("rollout/generated_tokens", rows)) / played if played else math.nan

    @staticmethod
    def _values(name: str, rows: Sequence[Row] | deque[Row]) -> list[float]:
        return [value for row in rows if (value := number(row, name)) is not None]


def number(row: Row, name: str) -> float | None:
    """What a row has under ``name``, if that is a finite number."""
    value = row.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer of more than 308 digits, in a file that was damaged
        return None
    return found if math.isfinite(found) else None
