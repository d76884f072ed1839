"""What the query pool and its players say to each other: a ticket to play a query, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class QueryState(StrEnum):
    """What a group of K rollouts says of its query."""

    UNSEEN = "unseen"
    TOO_HARD = "too_hard"
    SIGNAL = "signal"
    TOO_EASY = "too_easy"
    CONSUMED = "consumed"
    """Trained on and out of the pool until it is brought back; a state of the query, never of a group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """The pool's permission to play one query: who draws it, for which batch, and in what order."""

    claim_id: int
    query: int
    """Index of the question in the pool."""
    batch: int
    """The batch this draw belongs to, counted from 0."""
    order: int
    """Position of the draw within its batch: groups are chosen in this order."""
    seed: int
    """Seeds the K rollouts of the group."""
    probe: int = 0
    """Rollouts to play first; 0 plays all at once."""
    cut_hard: bool = False
    """Play no more if the probe says too hard."""
    cut_easy: bool = False
    """Play no more if the probe says too easy."""
    max_searches: int | None = None
    """Most searches of each rollout (``agent/pool/budgets.py``); None is ``agent.max_searches``."""
