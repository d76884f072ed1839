"""The episodes of an evaluation. What a fault ended is played once more: one that was passing costs no question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.inference.evaluation import EvalRow, unplayed
from agent.records import Question, StopReason

CHUNK = 64
"""Episodes that a worker is given at once."""
ROOM = 2
"""Shares that a worker plays at once: its engine stays full while the longest episodes of one end."""
LOSSES = 2
"""Workers that a question may cost before it is given up, the last of them with nothing else to play."""


@dataclass(frozen=True)
class Share:
    """Questions of an evaluation that one worker is given at once."""

    at: int
    """Number of the first one among all."""
    questions: tuple[Question, ...]
    lost: int = 0
    """Workers that were lost while they played these."""

    @property
    def room(self) -> int:
        """How much of a worker's ``ROOM`` it takes: all, once it may be what kills workers."""
        return ROOM if self.lost else 1


class Shares:
    """The questions of an evaluation, in shares of at most ``chunk``, and the rows of their ``samples`` episodes each.

    A share that is lost with its worker comes back in halves, each of which is played with no other. So a question that
    kills whoever plays it is soon alone, and is given up then: its episodes are faults.
    """

    def __init__(self, questions: Sequence[Question], chunk: int, samples: int) -> None:
        self._samples = samples
        self._rows: dict[int, list[EvalRow]] = {}
        self.finished = 0
        """Questions that have their rows."""
        self.todo = [Share(at, tuple(questions[at : at + chunk])) for at in range(0, len(questions), chunk)]
        """Those that no worker has, in the order in which they are played."""

    @property
    def rows(self) -> list[EvalRow]:
        """All rows so far, in the questions' order."""
        return [row for at in sorted(self._rows) for row in self._rows[at]]

    @property
    def hopeless(self) -> bool:
        """Whether every episode so far has ended in a fault."""
        return bool(self._rows) and all(row.fault for rows in self._rows.values() for row in rows)

    def played(self, share: Share, rows: list[EvalRow]) -> None:
        """``rows`` are those of ``share``."""
        self._rows[share.at] = rows
        self.finished += len(share.questions)

    def lose(self, share: Share) -> list[EvalRow] | None:
        """The worker that played ``share`` is gone. Its rows, if its question is given up."""
        lost, size = share.lost + 1, len(share.questions)
        if size == 1 and lost >= LOSSES:
            rows = unplayed(share.questions[0], self._samples, f"{lost} rollout workers were lost while they played it")
            self.played(share, rows)
            return rows
        half = (size + 1) // 2
        for start in range(0, size, half):
            self.todo.append(Share(share.at + start, share.questions[start : start + half], lost))
        return None


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
