"""Bounded dynamic sampling (DAPO, arXiv 2503.14476): zero-variance groups are dropped and more are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from agent.pool.history import QueryHistory
from agent.pool.rules.base import FOREVER, OversamplingRule, draws_until_full, refuse_surplus
from agent.settings import bounded


@dataclass
class Rule(OversamplingRule):
    """Draws until B groups bear signal, at most ceil(k B); every query with a verdict is consumed for the epoch."""

    name: str = "dynamic"
    oversample: float = bounded(2.0, "at least 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_surplus(self, "pool=dynamic")

    def wanted(self, *, room: int, drawn: int, zero: int) -> int:
        return draws_until_full(room, drawn, zero, self.candidates)

    def rest(self, verdict: str, history: QueryHistory, query: int) -> int:
        return FOREVER

    def resets(self, *, available: int) -> bool:
        return available == 0
