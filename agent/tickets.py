"""What the query pool and its players say to each other: a ticket to play a query, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from agent.records import NO_VERSION, StopReason


class QueryState(StrEnum):
    """What is known of a question. Groups say too hard, signal or too easy; the others are the question's alone."""

    UNSEEN = "unseen"
    TOO_HARD = "too_hard"
    SIGNAL = "signal"
    TOO_EASY = "too_easy"
    CONSUMED = "consumed"
    """Out of the pool until the rule brings all consumed questions back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """The pool's permission to play one question: for which batch, at which place in it, with which seed and limits."""

    claim_id: int
    query: int
    """Index of the question in the pool."""
    batch: int
    """The batch this draw belongs to, counted from 0."""
    order: int
    """Position of the draw within its batch: groups are chosen in this order."""
    seed: int
    """Seeds the K rollouts of the group."""
    pilot: int = 0
    """Rollouts to play first; 0 plays all at once."""
    cut_hard: bool = False
    """Play no more if the pilot says too hard."""
    cut_easy: bool = False
    """Play no more if the pilot says too easy."""
    min_viable: int = 2
    """With fewer viable rollouts the pool takes the group back."""
    max_searches: int | None = None
    """Most searches of each rollout (``agent/pool/search_limits.py``); None is ``agent.max_searches``."""


class Spent(NamedTuple):
    """What trajectories that aren't trained on have cost."""

    trajectories: int
    tokens: int


_SELECTIVE = tuple(reason for reason in StopReason if reason.is_selective)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a ticket: the facts that the pool decides from. The group itself is opaque to it.

    Raises ``ValueError`` for a state that no group has or that contradicts the successes, and for negative counts.
    """

    ticket: Ticket
    state: QueryState
    """What the trajectories say that would be trained on: one of ``TOO_HARD``, ``SIGNAL`` and ``TOO_EASY``."""
    rolled_out: QueryState
    """What the K independent rollouts said; another state if a continuation has replaced one of them."""
    size: int
    """Viable trajectories."""
    successes: int
    """Of these; strictly between 0 and ``size`` exactly when there is signal."""
    tokens: int
    """Generated for the viable trajectories."""
    solved_searches: tuple[int, ...] = ()
    """Searches of each viable trajectory whose answer is right."""
    oldest_version: int = NO_VERSION
    """Oldest policy version among their action tokens; ``NO_VERSION`` without any."""
    pilot: tuple[int, int] | None = None
    """Successes and size of the ticket's pilot, which is played whatever it says: they are no biased choice, as those
    of groups that it may cut short are. None without one, or where a fault has taken a rollout out of it."""
    set_aside: Mapping[str, Spent] = field(default_factory=dict)
    """Further trajectories that were played and won't be trained on, by the reason."""

    def __post_init__(self) -> None:
        query = self.ticket.query
        if not 0 <= self.successes <= self.size:
            raise ValueError(f"query {query}: {self.successes} successes of {self.size} trajectories")
        if self.pilot is not None and not 0 <= self.pilot[0] <= self.pilot[1]:
            raise ValueError(f"query {query}: a pilot of {self.pilot[0]} successes of {self.pilot[1]} trajectories")
        if min(self.tokens, *(n for spent in self.set_aside.values() for n in spent), 0) < 0:
            raise ValueError(f"query {query}: a negative count in {self}")
        for state in (self.state, self.rolled_out):
            if state not in (QueryState.TOO_HARD, QueryState.SIGNAL, QueryState.TOO_EASY):
                raise ValueError(f"query {query}: {state} is no state of a group")
        if (self.state is QueryState.SIGNAL) != (0 < self.successes < self.size):
            raise ValueError(f"query {query}: {self.successes} successes of {self.size} are not {self.state}")

    @property
    def selective_faults(self) -> int:
        """Trajectories lost to a failed search, tool or reward: those that didn't ask for one are all that is left."""
        return sum(self.set_aside[str(r)].trajectories for r in _SELECTIVE if str(r) in self.set_aside)

    def too_stale(self, version: int, limit: int) -> bool:
        """Whether a token was sampled more than ``limit`` versions before ``version``."""
        return self.oldest_version != NO_VERSION and version - self.oldest_version > limit

    @property
    def all_trajectories(self) -> int:
        """Trajectories played for the ticket, those set aside too."""
        return self.size + sum(spent.trajectories for spent in self.set_aside.values())

    @property
    def all_tokens(self) -> int:
        """Tokens generated for the ticket, those of the trajectories set aside too."""
        return self.tokens + sum(spent.tokens for spent in self.set_aside.values())
