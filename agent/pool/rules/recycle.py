"""Query recycling (arXiv 2606.10709): only trained queries are consumed, the others may be drawn again."""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import one_of
from agent.pool.history import QueryHistory
from agent.pool.rules.base import (
    ACCEPTED,
    AT_ONCE,
    FOREVER,
    OversamplingRule,
    draws_until_full,
    oversampled,
    refuse_surplus,
)


@dataclass
class Rule(OversamplingRule):
    """Draws ceil(k B) candidates a batch, trains on the first B signal-bearing ones and consumes those.

    Zero-variance queries, and signal-bearing ones beyond B, keep their weight.
    """

    name: str = "recycle"
    stop_early: bool = False
    """Draw only until B groups bear signal, at most the ceil(k B) that are drawn in any case without it."""
    when_dry: str = "reset"
    """When fewer than ceil(k B) queries are drawable: ``reset`` brings the consumed ones back, ``keep`` doesn't."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.when_dry, ("reset", "keep"), "pool.when_dry")
        if self.stop_early:
            refuse_surplus(self, "pool=recycle with pool.stop_early=true")
        if self.keep_surplus and self.candidates == self.batch_questions:  # a rule of one's own may have its own
            refuse_surplus(self, f"pool=recycle with pool.oversample={self.oversample:g}")

    def wanted(self, *, room: int, drawn: int, zero: int) -> int:
        if self.stop_early:
            return draws_until_full(room, drawn, zero, self.candidates)
        return oversampled(room, self.oversample) - drawn

    def rest(self, verdict: str, history: QueryHistory, query: int) -> int:
        return FOREVER if verdict == ACCEPTED else AT_ONCE

    def resets(self, *, available: int) -> bool:
        return self.when_dry == "reset" and available < self.candidates
