"""A batch that is still being drawn or played: its draws, its generator and the groups that are there."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np

from agent.pool.batches import P, Played
from agent.tickets import Ticket

Draw = tuple[int, int, int | None]
"""(order, query, limit of searches)."""


@dataclass
class OpenBatch(Generic[P]):
    """One batch, until it is taken."""

    index: int
    random: np.random.Generator
    drawn: int = 0
    redrawn: int = 0
    orders: int = 0
    zero: int = 0
    """Groups in ``groups`` without signal."""
    reissue: deque[Draw] = field(default_factory=deque)
    """Draws that a checkpoint had in flight: they are claimed again first."""
    claims: dict[int, Ticket] = field(default_factory=dict)
    """Tickets that are out, by claim."""
    kept: list[Played[P]] = field(default_factory=list)
    """Surplus of an earlier batch."""
    groups: dict[int, Played[P]] = field(default_factory=dict)  # by order
    spoiled: list[Played[P]] = field(default_factory=list)
    """Groups with too few viable members, or with one lost to a failed search, tool or reward."""
    returned: Counter[str] = field(default_factory=Counter)

    @property
    def selective_fault_share(self) -> float:
        """Share of the trajectories played for it that were lost to a failed search, tool or reward."""
        outcomes = [group.outcome for group in (*self.groups.values(), *self.spoiled)]
        played = sum(outcome.all_trajectories for outcome in outcomes)
        return sum(outcome.selective_faults for outcome in outcomes) / played if played else 0.0

    def state(self) -> dict[str, Any]:
        """As JSON values. Its draws that are claimed or played are in flight; played groups are not saved."""
        tickets = [*self.claims.values(), *(group.outcome.ticket for group in self.groups.values())]
        return {
            "index": self.index,
            "random": self.random.bit_generator.state,
            "drawn": self.drawn,
            "redrawn": self.redrawn,
            "orders": self.orders,
            "in_flight": sorted([*self.reissue, *((t.order, t.query, t.max_searches) for t in tickets)]),
            "returned": dict(self.returned),
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> OpenBatch[P]:
        """The batch of a ``state()``; what was in flight is claimed again first."""
        random = np.random.default_rng()
        random.bit_generator.state = state["random"]
        return cls(
            int(state["index"]),
            random,
            drawn=int(state["drawn"]),
            redrawn=int(state["redrawn"]),
            orders=int(state["orders"]),
            reissue=deque((order, query, limit) for order, query, limit in state["in_flight"]),
            returned=Counter(state["returned"]),
        )
