"""Bounded dynamic sampling (DAPO, arXiv 2503.14476): zero-variance groups are dropped and more are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import UserError
from agent.pool_rules.base import FOREVER, PoolRule, draws_until_full, oversampled, take_signal
from agent.query_history import QueryHistory
from agent.records import QueryState


@dataclass
class Rule(PoolRule):
    """Draws until B groups bear signal, at most ceil(k B); every query with a verdict is consumed for the epoch."""

    name: str = "dynamic"
    oversample: float = 2.0
    """k >= 1: bound on the queries drawn per trained group."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oversample < 1:
            raise UserError(f"pool.oversample={self.oversample} must be at least 1")

    @property
    def candidates(self) -> int:
        return oversampled(self.batch_questions, self.oversample)

    def wanted(self, *, room: int, drawn: int, zero: int) -> int:
        return draws_until_full(room, drawn, zero, self.candidates)

    def select(self, states: Sequence[QueryState]) -> list[str]:
        return take_signal(states, self.batch_questions)

    def rest(self, verdict: str, history: QueryHistory, query: int) -> int:
        return FOREVER

    def resets(self, *, available: int) -> bool:
        return available == 0
