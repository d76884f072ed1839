"""Every drawn query is trained on once per epoch, zero-variance groups included, as plain GRPO does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.pool.history import QueryHistory
from agent.pool.rules.base import ACCEPTED, AT_ONCE, FOREVER, PoolRule, refuse_surplus
from agent.tickets import QueryState


@dataclass
class Rule(PoolRule):
    """Draws B queries a batch, accepts and consumes them all; a new epoch starts when none is left.

    Zero-variance groups sit in the batch with zero advantage: they cost rollouts and teach nothing.
    """

    name: str = "epoch"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_surplus(self, "pool=epoch")

    @property
    def candidates(self) -> int:
        return self.batch_questions

    def wanted(self, *, room: int, drawn: int, zero: int) -> int:
        return room - drawn

    def select(self, states: Sequence[QueryState]) -> list[str]:
        return [ACCEPTED] * len(states)

    def rest(self, verdict: str, history: QueryHistory, query: int) -> int:
        return FOREVER if verdict == ACCEPTED else AT_ONCE

    def resets(self, *, available: int) -> bool:
        return available == 0
