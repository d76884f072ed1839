"""The episodes of an evaluation. What a fault ended is played once more: one that was passing costs no question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from agent.inference.evaluation import EvalRow
from agent.records import Question, StopReason

CHUNK = 64
"""Episodes that a worker is given at once."""


class Players(Protocol):
    """Who plays an evaluation: the rollout workers (``WorkerPool.evaluate``), or an endpoint's client."""

    def evaluate(
        self,
        questions: Sequence[Question],
        played: Callable[[int, int], None] | None = None,
        *,
        step: int | None = None,
        chunk: int = CHUNK,
        keep: Callable[[list[EvalRow]], None] = lambda rows: None,
    ) -> list[EvalRow]:
        """See ``WorkerPool.evaluate``."""
        ...


def play(
    workers: Players,
    questions: Sequence[Question],
    played: Callable[[int, int], None] | None = None,
    *,
    step: int | None,
    samples: int = 1,
    keep: Callable[[list[EvalRow]], None] = lambda rows: None,
    searchable: Callable[[], None] | None = None,
) -> list[EvalRow]:
    """The rows of the questions' episodes, ``samples`` of each, in their order; see ``WorkerPool.evaluate``.

    A question with a fault among its episodes is played again, all of them; the second attempt counts. If searches have
    failed, ``searchable`` waits for them before that. Where no episode was viable nothing is played again: that is no
    passing fault, unless it is one that can be waited for.
    """
    chunk = max(1, CHUNK // samples)
    rows = workers.evaluate(questions, played, step=step, chunk=chunk, keep=keep)
    by_question = [rows[at : at + samples] for at in range(0, len(rows), samples)]
    again = [at for at, own in enumerate(by_question) if any(row.fault for row in own)]
    tools_failed = searchable is not None and any(
        row.fault and StopReason(row.stop_reason).is_tool_failure for row in rows
    )
    if not again or (all(row.fault for row in rows) and not tools_failed):
        return rows
    if searchable is not None and tools_failed:
        searchable()
    second = workers.evaluate([questions[at] for at in again], step=step, chunk=chunk, keep=keep)
    for number, at in enumerate(again):
        by_question[at] = second[number * samples : (number + 1) * samples]
    return [row for own in by_question for row in own]


def are_rows(result: object, questions: Sequence[Question]) -> bool:
    """Whether ``result`` are the rows of these questions, as many of each as of the others."""
    if not isinstance(result, list) or not all(isinstance(row, EvalRow) for row in result):
        return False
    asked = [question.id for question in questions for _ in range(len(result) // len(questions))]
    return bool(result) and [row.question_id for row in result] == asked
