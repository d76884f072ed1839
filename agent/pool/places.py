"""Where each query of a pool is, and what it weighs while it can be drawn.

Weights and rests are the rule's, which decides from the facts in the history. Two sum trees hold the available
queries, by weight and by number, so that a draw takes the logarithm of the pool's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.pool.history import QueryHistory
from agent.pool.rules.base import AT_ONCE, FOREVER, PoolRule
from agent.pool.sum_tree import SumTree


class Place(IntEnum):
    """Where a query is. Exactly one of these holds for each query at any time."""

    AVAILABLE = 0
    CLAIMED = 1
    SUBMITTED = 2
    ACCEPTED = 3
    RESTING = 4
    """Out until a batch that is known."""
    CONSUMED = 5
    """Out until the rule brings all consumed queries back."""
    QUARANTINED = 6
    """Out for good: workers died of it, or so it looks."""


class Places:
    """The places of ``size`` queries, all available at first."""

    def __init__(self, size: int, rule: PoolRule, history: QueryHistory) -> None:
        self._rule = rule
        self._history = history
        self._place = np.full(size, Place.AVAILABLE, dtype=np.uint8)
        self._open = SumTree(np.ones(size))  # 1 for available queries
        self._round = 0  # how often the consumed queries were brought back
        self._drawn_in = np.zeros(size, dtype=np.int32)  # round of the last draw
        self._looks_at = np.full(size, -1, dtype=np.int32)  # batch that wakes the query or weighs it anew
        self._looks: dict[int, list[int]] = {}  # the queries by that batch
        self.next_batch = 0
        """Index of the batch that opens next: the one that weights and rests are counted for."""
        self._tree = SumTree(self._weights(np.arange(size)))  # the weight of available queries, 0 for all others

    @property
    def available(self) -> int:
        """Queries that can be drawn."""
        return int(self._open.total)

    @property
    def any_rests(self) -> bool:
        """Whether a query is out until a later batch. One in flight that would be weighed anew then isn't."""
        return bool((self._place == Place.RESTING).any())

    def counts(self) -> dict[str, int]:
        """Number of queries in each place; they add up to the size of the pool."""
        counts = np.bincount(self._place, minlength=len(Place))
        return {place.name.lower(): int(counts[place]) for place in Place}

    def move(self, query: int, place: Place) -> None:
        """Changes one query's place; keeps the trees, and the batch at which the query is looked at again."""
        if place is Place.AVAILABLE:
            self._make_available(np.array([query]))
            return
        self._place[query] = place
        self._tree.set(query, 0.0)
        self._open.set(query, 0.0)
        self._looks_at[query] = -1

    def draw(self, random: np.random.Generator) -> int | None:
        """Claims an available query, chosen by weight; None if there is none.

        Where nothing is available, what the rule lets come back comes back first.
        """
        if self.available == 0 and self._rule.brings_back(available=0):
            self.bring_back_consumed()
        while self.available == 0 and self._looks:
            self._look(min(self._looks))  # better a query that has not rested to the end than none
        if self.available == 0:
            return None
        explores = self._rule.explore > 0 and random.random() < self._rule.explore
        # Where only queries of weight 0 are left, they are drawn, all alike.
        tree = self._tree if self._tree.total > 0 and not explores else self._open
        query = tree.find(random.random() * tree.total)
        self._drawn_in[query] = self._round
        self.move(query, Place.CLAIMED)
        return query

    def rest(self, query: int, rest: int) -> None:
        """A query comes back from its draw and rests as the rule says.

        A draw that is older than the last time the consumed queries came back consumes nothing now,
        or a query in flight at that moment would sit out a whole epoch.
        """
        if rest == AT_ONCE or (rest == FOREVER and self._drawn_in[query] < self._round):
            self.move(query, Place.AVAILABLE)
        elif rest == FOREVER:
            self.move(query, Place.CONSUMED)
        else:
            self.move(query, Place.RESTING)
            self._look_later(query, self.next_batch + rest)

    def wake(self, batch: int) -> None:
        """``batch`` opens: the queries that are due by then wake, or are weighed anew."""
        for at in sorted(at for at in self._looks if at <= batch):
            self._look(at)
        if self._rule.brings_back(available=self.available):
            self.bring_back_consumed()

    def bring_back_consumed(self) -> None:
        """Makes all consumed queries available."""
        consumed = np.flatnonzero(self._place == Place.CONSUMED)
        if len(consumed) == 0:
            return
        self._round += 1
        self._make_available(consumed)

    def can_bring_back(self) -> bool:
        """Whether the rule would bring consumed queries back into a pool that has run dry."""
        return self._rule.brings_back(available=0) and bool((self._place == Place.CONSUMED).any())

    # --- checkpoints -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All of it as arrays and numbers."""
        return {
            "rule": asdict(self._rule),
            "place": self._place.copy(),
            "weight": self._tree.weights.copy(),
            "looks_at": self._looks_at.copy(),
            "drawn_in": self._drawn_in.copy(),
            "round": self._round,
        }

    def load_state(self, state: dict[str, Any], claimed: Sequence[int]) -> None:
        """Continues from ``state()``; the queries ``claimed`` are claimed, wherever they were.

        Others that were claimed or played can be drawn: a surplus group isn't saved, and of a draw that ended the run,
        as its ticket could not be made, there is nothing to save.
        """
        self._place[:] = state["place"]
        self._tree = SumTree(state["weight"])
        self._open = SumTree(self._place == Place.AVAILABLE)
        self._drawn_in[:] = state["drawn_in"]
        self._round = int(state["round"])
        for query in np.flatnonzero(state["looks_at"] >= 0):
            self._look_later(int(query), int(state["looks_at"][query]))
        left = np.isin(self._place, (Place.CLAIMED, Place.SUBMITTED))
        left[[*claimed]] = False
        self._place[[*claimed]] = Place.CLAIMED
        now = asdict(self._rule)
        before = state.get("rule", now)
        if before["name"] != now["name"] and not self._rule.brings_back(available=0):
            self.bring_back_consumed()  # another rule consumed them, and nobody else would
        self._make_available(np.flatnonzero(left))
        if before != now:  # other weights would count until they are drawn
            self._make_available(np.flatnonzero(self._place == Place.AVAILABLE))

    # --- inside ----------------------------------------------------------------------------------

    def _make_available(self, queries: npt.NDArray[np.int64]) -> None:
        """Weighs ``queries`` and lets them be drawn, wherever they were."""
        if len(queries) == 0:
            return  # a rule is asked about queries: one of the user's own may look for their largest weight
        weights = self._weights(queries)  # before anything changes: the rule may raise
        self._place[queries] = Place.AVAILABLE
        self._tree.set_many(queries, weights)
        self._open.set_many(queries, 1.0)
        self._looks_at[queries] = -1
        drawn = queries[self._history.draws[queries] > 0]  # an unseen query's weight never changes
        looks = self._rule.looks(self.next_batch - self._history.drawn_at[drawn])
        for query, look in zip(drawn[looks > 0].tolist(), looks[looks > 0].tolist(), strict=True):
            self._look_later(query, self.next_batch + look)

    def _weights(self, queries: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Weights for the next batch to open."""
        return self._rule.weighs(self._history, queries, self.next_batch)

    def _look_later(self, query: int, batch: int) -> None:
        self._looks_at[query] = batch
        self._looks.setdefault(batch, []).append(query)

    def _look(self, batch: int) -> None:
        """Wakes or weighs anew the queries that are due at ``batch``."""
        due = np.unique(np.array(self._looks.pop(batch), dtype=np.int64))
        idle = np.isin(self._place[due], (Place.RESTING, Place.AVAILABLE))
        self._make_available(due[idle & (self._looks_at[due] == batch)])
