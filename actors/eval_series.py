"""A training run's own evaluations: which questions they play, and what the first and the last of them gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actors.run_state import RunState
from agent.inference.evaluation import EvalRow, judged, subset
from agent.records import Question
from conf.schema import RunConfig
from tasks.digest import digest_of


class EvalSeries:
    """Evaluations of one run on the same held-out ``questions``: those of others are no measure of its progress.

    ``first`` and ``last`` are rows of metrics.jsonl without their kind, None before there is one.
    """

    def __init__(self, config: RunConfig, name: str, held_out: Sequence[Question]) -> None:
        self._max_fault_share = config.evaluation.max_fault_share
        self.questions = subset(held_out, config.evaluation.limit(config.mode))
        self._about = {"data": name, "held_out": digest_of(self.questions)}
        self.first: dict[str, Any] | None = None
        self.last: dict[str, Any] | None = None

    def goes_on(self, state: RunState | None) -> bool:
        """Takes over what a checkpoint holds; returns False if that is of other questions, so that a series begins."""
        self.first = self.last = None
        if state is None or not self.has(state.last_eval):
            return state is None
        self.first, self.last = state.first_eval, state.last_eval
        return True

    def has(self, row: Mapping[str, Any] | None) -> bool:
        """Whether an evaluation played these questions; one of an earlier version doesn't say."""
        return row is None or bool(row.get("held_out", self._about["held_out"]) == self._about["held_out"])

    def scores(self, rows: Sequence[EvalRow]) -> dict[str, Any]:
        """What the played questions give. Raises ``Fault`` where too many of them have no score."""
        return {**self._about, **judged(rows, self._max_fault_share)}

    def add(self, row: dict[str, Any]) -> None:
        """One more evaluation."""
        self.first = self.first or row
        self.last = row

    def reaches(self, step: int) -> bool:
        """Whether the last one is of ``step``."""
        return self.last is not None and self.last["step"] == step
