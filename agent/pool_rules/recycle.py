"""Query recycling (arXiv 2606.10709): only trained queries are consumed, the others may be drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import UserError, one_of
from agent.pool_rules.base import ACCEPTED, AT_ONCE, FOREVER, PoolRule, draws_until_full, oversampled, take_signal
from agent.query_history import QueryHistory
from agent.records import QueryState


@dataclass
class Rule(PoolRule):
    """Draws ceil(k B) candidates a batch, trains on the first B signal-bearing ones and consumes those.

    Zero-variance queries, and signal-bearing ones beyond B, keep their weight.
    """

    name: str = "recycle"
    oversample: float = 1.0
    """k >= 1: candidates drawn per trained group."""
    stop_early: bool = False
    """Draw only until B groups bear signal, at most the ceil(k B) that are drawn in any case without it."""
    when_dry: str = "reset"
    """When fewer than ceil(k B) queries are drawable: ``reset`` brings the consumed ones back, ``keep`` doesn't."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oversample < 1:
            raise UserError(f"pool.oversample={self.oversample} must be at least 1")
        one_of(self.when_dry, ("reset", "keep"), "pool.when_dry")

    @property
    def candidates(self) -> int:
        return oversampled(self.batch_questions, self.oversample)

    def wanted(self, *, room: int, drawn: int, zero: int) -> int:
        if self.stop_early:
            return draws_until_full(room, drawn, zero, self.candidates)
        return oversampled(room, self.oversample) - drawn

    def select(self, states: Sequence[QueryState]) -> list[str]:
        return take_signal(states, self.batch_questions)

    def rest(self, verdict: str, history: QueryHistory, query: int) -> int:
        return FOREVER if verdict == ACCEPTED else AT_ONCE

    def resets(self, *, available: int) -> bool:
        return self.when_dry == "reset" and available < self.candidates
