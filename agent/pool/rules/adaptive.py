"""Queries are drawn for their chance to bear signal, from a belief about each that forgets as the policy moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.pool.beta_binomial import chance_of_both
from agent.pool.history import QueryHistory
from agent.pool.rules.base import ACCEPTED, AT_ONCE, FloatVector, OversamplingRule, draws_until_full, refuse_surplus
from agent.settings import bounded

LARGEST = 300.0
"""Of the exponent of a weight: sums of a million such weights are finite, and none is lost beside an unseen one's 1."""


@dataclass
class Rule(OversamplingRule):
    """Draws until B groups bear signal, at most ceil(k B); nothing is consumed for good.

    The belief about a query's success probability p is Beta(a, b): the population of first draws as the
    prior, plus the query's own successes and failures, which lose half their weight every ``half_life``
    batches. A query is drawn in proportion to its chance of signal, 1 - E[p^K] - E[(1 - p)^K], over that
    of an unseen one, to the power ``sharpness``. A trained query rests for ``cooldown`` batches. One that was
    too easy or too hard ``retire_after`` times in a row is retired for ``cooldown`` batches, then, if it
    is so again, for twice as long each time: it always has a way back.
    """

    name: str = "adaptive"
    oversample: float = bounded(2.0, "at least 1")
    half_life: float = bounded(32.0, "above 0")
    """Batches after which an observation counts half."""
    sharpness: float = bounded(8.0, "in [0, 100]")
    """0 draws uniformly, 1 in proportion to the chance of signal; higher values prefer the best."""
    explore: float = bounded(0.05, "in [0, 1]")
    """Share of draws that are uniform over all drawable queries."""
    cooldown: int = bounded(2, "in [0, 1000000]")
    """Batches for which a trained query rests."""
    retire_after: int = bounded(1, "in [0, 255]")
    """Draws in a row with the same zero-variance outcome that retire a query; 0 never does."""
    longest_rest: int = bounded(64, "in [1, 1000000]")
    """Most batches that a retired query rests."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_surplus(self, "pool=adaptive")

    def wanted(self, *, room: int, drawn: int, zero: int) -> int:
        return draws_until_full(room, drawn, zero, self.candidates)

    def rest(self, verdict: str, history: QueryHistory, query: int) -> int:
        if verdict == ACCEPTED:
            return self.cooldown
        beyond = int(history.streak[query]) - self.retire_after
        if not self.retire_after or beyond < 0:
            return AT_ONCE
        return min(max(self.cooldown, 1) * 2 ** min(beyond, 16), self.longest_rest)

    def resets(self, *, available: int) -> bool:
        return False

    def weights(self, history: QueryHistory, queries: npt.NDArray[np.int64], batch: int) -> FloatVector:
        a, b = history.population.beta
        successes, failures = history.counts_at(queries, batch)
        chance = chance_of_both(a + successes, b + failures, self.group_size) / chance_of_both(a, b, self.group_size)
        # An unseen query's weight is 1 at any time, so that a million of them never need to be touched.
        # As an exponent, and that bounded: no weight becomes nothing, or infinite, whatever the sharpness.
        exponent = np.clip(self.sharpness * np.log(np.maximum(chance, 1e-3)), -LARGEST, LARGEST)
        weights: FloatVector = np.exp(exponent)
        return weights

    def next_look(self, ages: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        return np.maximum(1, ages)  # an old belief changes slowly: looks whenever its age has doubled

    def retained(self, age: Any) -> Any:
        return 0.5 ** (np.asarray(age, dtype=np.float64) / self.half_life)
