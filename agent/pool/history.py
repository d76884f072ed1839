"""What the draws said of each query: the facts that every pool rule decides from, and the record of all draws.

Nothing here depends on the rule but ``retained``, which says how much an old observation still counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.tickets import Outcome, QueryState

STATES = tuple(QueryState)
"""The order in which states are stored as small integers."""

NEVER = 255
"""``needed`` of a query that was never solved."""

DRAW = np.dtype(
    [
        ("query", "<i4"),  # index in the pool
        ("batch", "<i4"),
        ("order", "<i4"),  # within the batch
        ("version", "<i4"),  # oldest policy version that the group was sampled with
        ("size", "u1"),  # viable rollouts
        ("successes", "u1"),
        ("before", "u1"),  # index into STATES
        ("rolled_out", "u1"),  # what the K independent rollouts say
        ("found", "u1"),  # what the group says; another state if a continuation replaced a rollout
        ("after", "u1"),
        ("accepted", "?"),
    ]
)
"""One resolved draw, 23 bytes."""


class Population:
    """Mean and second moment of the success probability over queries that were drawn for the first time.

    Both are running averages that forget, since the policy moves; they start from one imagined query
    with the arcsine prior Beta(1/2, 1/2): most queries are nearly always or nearly never solved.
    """

    DECAY = 0.95
    """Per batch."""
    LEAST = 1e-12
    """The moments don't fade below this weight, or they would underflow. Beside one more query they count for nothing
    long before."""

    def __init__(self) -> None:
        self.weight, self.mean_sum, self.square_sum = 1.0, 0.5, 0.375
        self.signal, self.rollouts = 0.0, 0.0

    def observe(self, successes: int, size: int) -> None:
        """``size`` >= 2 rollouts, as many whatever they found; s (s - 1) / (K (K - 1)) estimates p^2 without bias."""
        self.weight += 1
        self.mean_sum += successes / size
        self.square_sum += successes * (successes - 1) / (size * (size - 1))

    def spend(self, *, signal: bool, rollouts: int) -> None:
        """A draw of any query brought signal with the ``rollouts`` of its group, or didn't. What a continuation has
        played besides is left out, as it is of the further rollouts that ``PoolRule.cuts`` compares this with."""
        self.signal += signal
        self.rollouts += rollouts

    def forget(self) -> None:
        """One batch has passed."""
        if self.weight > self.LEAST:
            self.weight, self.mean_sum, self.square_sum = (x * self.DECAY for x in self.values()[:3])
        self.signal, self.rollouts = self.signal * self.DECAY, self.rollouts * self.DECAY

    def values(self) -> list[float]:
        """All that ``load`` needs."""
        return [self.weight, self.mean_sum, self.square_sum, self.signal, self.rollouts]

    def load(self, values: Sequence[float]) -> None:
        """Continues from ``values()``."""
        self.weight, self.mean_sum, self.square_sum, self.signal, self.rollouts = map(float, values)

    @property
    def signal_per_rollout(self) -> float:
        """Signal-bearing groups per rollout of late; 0 before the first one."""
        return self.signal / self.rollouts if self.rollouts else 0.0

    @property
    def beta(self) -> tuple[float, float]:
        """The Beta distribution with these moments, its pseudo-counts kept between 0.3 and 4 in sum."""
        mean = min(max(self.mean_sum / self.weight, 0.02), 0.98)
        variance = self.square_sum / self.weight - mean * mean
        limit = mean * (1 - mean)
        strength = limit / variance - 1 if variance > limit / 5 else 4.0
        strength = min(max(strength, 0.3), 4.0)
        return mean * strength, (1 - mean) * strength


class QueryHistory:
    """The draws of ``n`` queries. ``retained(age)`` is the share of a count that is left after ``age`` batches."""

    def __init__(self, n: int, retained: Callable[[npt.ArrayLike], Any]) -> None:
        self._retained = retained
        self.last = np.zeros(n, dtype=np.uint8)  # state after the last draw, an index into STATES
        self.draws = np.zeros(n, dtype=np.int32)
        self.drawn_at = np.full(n, -1, dtype=np.int32)  # batch of the last resolved draw
        self.successes = np.zeros(n, dtype=np.float32)  # discounted up to ``drawn_at``
        self.failures = np.zeros(n, dtype=np.float32)
        self.streak = np.zeros(n, dtype=np.uint8)  # draws in a row with the same zero-variance state
        self.ever_zero = np.zeros(n, dtype=np.bool_)
        self.flipped = np.zeros(n, dtype=np.bool_)
        self.needed = np.full(n, NEVER, dtype=np.uint8)  # searches that the query was last solved with
        self.misses = np.zeros(n, dtype=np.uint8)  # draws since then in which no rollout was right
        self.population = Population()
        self._log = np.zeros(64, dtype=DRAW)
        self._logged = 0

    ARRAYS = (
        *("last", "draws", "drawn_at", "successes", "failures", "streak", "ever_zero", "flipped"),
        *("needed", "misses"),
    )

    def state_of(self, query: int) -> QueryState:
        """The query's state after its last draw."""
        return STATES[self.last[query]]

    def observe(self, outcome: Outcome, batch: int) -> None:
        """Takes in one draw that is resolved in ``batch``, before its verdict."""
        query, found = outcome.ticket.query, outcome.state
        successes, size = outcome.successes, outcome.size
        self.population.spend(signal=found is QueryState.SIGNAL, rollouts=size)
        if self.draws[query] == 0:
            self.population.observe(*(outcome.pilot or (successes, size)))
        kept = float(self._retained(batch - self.drawn_at[query]))
        self.successes[query] = self.successes[query] * kept + successes
        self.failures[query] = self.failures[query] * kept + size - successes
        if found is QueryState.SIGNAL:
            self.streak[query] = 0
            self.flipped[query] |= self.ever_zero[query]
        else:
            same = self.state_of(query) is found
            self.streak[query] = min(int(self.streak[query]) + 1, 255) if same else 1
            self.ever_zero[query] = True
        self.draws[query] += 1
        self.drawn_at[query] = batch

    def observe_searches(self, query: int, solved: Sequence[int], size: int) -> None:
        """Takes in the searches of the right rollouts of a draw of ``size``.

        It is solved if at least half of them are right, and then needed their median (the upper one of an even
        number); a draw without a right one is a miss; any other changes nothing.
        """
        if not solved:
            self.misses[query] = min(int(self.misses[query]) + 1, 255)
        elif 2 * len(solved) >= size:
            self.needed[query] = min(sorted(solved)[len(solved) // 2], NEVER - 1)
            self.misses[query] = 0

    def settle(
        self,
        query: int,
        *,
        batch: int,
        order: int,
        version: int,
        size: int,
        successes: int,
        rolled_out: QueryState,
        found: QueryState,
        after: QueryState,
        accepted: bool,
    ) -> None:
        """Writes the draw's row, and the state that the query is in from now on."""
        if self._logged == len(self._log):
            self._log = np.concatenate([self._log, np.zeros_like(self._log)])
        states = (int(self.last[query]), *map(STATES.index, (rolled_out, found, after)))
        self._log[self._logged] = (query, batch, order, version, size, successes, *states, accepted)
        self._logged += 1
        self.last[query] = states[-1]

    @property
    def log(self) -> npt.NDArray[np.void]:
        """(draws,) of dtype ``DRAW``, in the order of the batches and of the draws within them."""
        return self._log[: self._logged]

    def counts_at(
        self, queries: npt.NDArray[np.int64], batch: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Successes and failures of ``queries``, discounted up to ``batch``; zeros for unseen ones."""
        kept = self._retained(np.maximum(batch - self.drawn_at[queries], 0))
        return self.successes[queries] * kept, self.failures[queries] * kept

    def beta(self, query: int, batch: int) -> tuple[float, float]:
        """The posterior over the query's success probability at ``batch``: Beta(a, b), the population as prior."""
        successes, failures = self.counts_at(np.array([query]), batch)
        a, b = self.population.beta
        return a + float(successes[0]), b + float(failures[0])

    @property
    def flipped_share(self) -> float:
        """Share of the queries drawn so far that went from zero-variance to signal-bearing at some draw."""
        drawn = int(np.count_nonzero(self.draws))
        return float(np.count_nonzero(self.flipped) / drawn) if drawn else 0.0

    def state(self) -> dict[str, Any]:
        """Copies of all arrays, and plain values."""
        return {
            **{name: getattr(self, name).copy() for name in self.ARRAYS},
            "log": self.log.copy(),
            "population": self.population.values(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from ``state()``."""
        for name in self.ARRAYS:
            getattr(self, name)[:] = state[name]
        self._log = np.concatenate([state["log"].astype(DRAW), np.zeros(64, dtype=DRAW)])
        self._logged = len(state["log"])
        self.population.load(state["population"])
