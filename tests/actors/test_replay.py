"""Questions that a fault ended are played once more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from ray_fakes import row_of

from actors.replay import ROOM, Shares, play
from agent.inference.evaluation import EvalRow
from agent.records import Question

QUESTIONS = [Question(id=f"q{i}", text="?", golden_answers=("a",)) for i in range(5)]


class Workers:
    """Plays what it is given, in chunks; ``faults`` are the (call, question, sample) that break."""

    def __init__(self, samples: int, *faults: tuple[int, str, int], reason: str = "generation_failed") -> None:
        self.samples = samples
        self.reason = reason
        self.faults = faults
        self.calls: list[list[str]] = []
        self.chunks: list[int] = []

    def evaluate(
        self,
        questions: Sequence[Question],
        played: Callable[[int, int], None] | None = None,
        *,
        step: int | None,
        chunk: int,
        keep: Callable[[list[EvalRow]], None],
    ) -> list[EvalRow]:
        call = len(self.calls)
        self.calls.append([q.id for q in questions])
        self.chunks.append(chunk)
        rows = [
            replace(
                row_of(q), sample=k, em=float(call), fault=broken, stop_reason=self.reason if broken else "answered"
            )
            for q in questions
            for k in range(self.samples)
            for broken in [(call, q.id, k) in self.faults]
        ]
        keep(rows)
        return rows


@pytest.mark.parametrize("killer", ["q0", "q2", "q4"])
def test_a_question_that_kills_whoever_plays_it_is_given_up_alone(killer: str) -> None:
    shares, deaths = Shares(QUESTIONS, 4, samples=2), 0
    while shares.todo:
        share = shares.todo.pop(0)
        if any(q.id == killer for q in share.questions):
            deaths += 1
            shares.lose(share)
        else:
            shares.played(share, [replace(row_of(q), sample=k) for q in share.questions for k in range(2)])
    assert [(row.question_id, row.sample, row.fault) for row in shares.rows] == [
        (q.id, k, q.id == killer) for q in QUESTIONS for k in range(2)
    ]
    given_up = [row for row in shares.rows if row.fault]
    assert {row.error for row in given_up} == {f"{deaths} rollout workers were lost while they played it"}
    assert shares.finished == len(QUESTIONS)
    assert not shares.hopeless


def test_one_death_is_nobodys_and_those_that_were_lost_are_played_with_no_other() -> None:
    shares = Shares(QUESTIONS[:1], 4, samples=1)
    (share,) = shares.todo
    shares.todo.clear()
    assert share.room < ROOM
    assert shares.lose(share) is None
    (again,) = shares.todo
    assert (again.questions, again.room) == (share.questions, ROOM)


def played(workers: Any, **more: Any) -> list[EvalRow]:
    return play(workers, QUESTIONS, step=0, samples=workers.samples, **more)


def test_only_what_broke_is_played_again_and_the_second_attempt_counts() -> None:
    kept: list[EvalRow] = []
    workers = Workers(3, (0, "q1", 2), (0, "q3", 0), (1, "q3", 1))
    rows = played(workers, keep=kept.extend)
    assert workers.calls == [["q0", "q1", "q2", "q3", "q4"], ["q1", "q3"]]
    assert workers.chunks == [21, 21], "64 episodes at once"
    assert [(r.question_id, r.sample) for r in rows] == [(q.id, k) for q in QUESTIONS for k in range(3)]
    assert [r.question_id for r in rows if r.em == 1.0] == ["q1"] * 3 + ["q3"] * 3
    assert [(r.question_id, r.sample) for r in rows if r.fault] == [("q3", 1)]
    assert len(kept) == 15 + 6


def test_nothing_is_played_again_where_all_is_sound_or_all_is_broken() -> None:
    for faults in ((), [(0, q.id, 0) for q in QUESTIONS]):
        workers = Workers(1, *faults)
        assert len(played(workers)) == 5
        assert len(workers.calls) == 1


def test_searches_that_failed_are_waited_for_even_if_they_were_all() -> None:
    for faults in ([(0, q.id, 0) for q in QUESTIONS], [(0, "q2", 0)]):
        workers, waited = Workers(1, *faults, reason="retrieval_failed"), []
        rows = played(workers, searchable=lambda calls=workers.calls, waited=waited: waited.append(len(calls)))
        assert waited == [1], "after the first attempt, before the second"
        assert workers.calls[1] == [q for _, q, _ in faults]
        assert not any(row.fault for row in rows)
